"""Run one command and end it, with all that it started, when the parent process is gone.

A process that dies by ``kill -9`` can't stop its tritonserver, so a small process stands between them:
it holds a pipe whose other end only the parent has, and ends the server when that end closes, for
whatever reason. It is started by path with the standard library alone, and prints the process id of
the command on its standard output.

Usage: ``python -IS _supervisor.py PARENT_PID GRACE_S SHM_PREFIX COMMAND...``. Its exit status is that of
the command, or 128 plus the number of the signal that killed it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

SHM_FOLDER = Path("/dev/shm")
#: Pause between two looks at the command, in seconds.
_TICK_S = 0.2
_EXEC_FAILED = 127
# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str]) -> int:
    """Supervise the command until it ends or standard input closes."""
    parent, grace_s, shm_prefix, *command = argv
    libc = ctypes.CDLL(None, use_errno=True)
    # Stubs whose server died, and what a model left running, become children of this process, so that they
    # can be waited for.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ended = _EndRequest(int(parent))

    def die_with_supervisor() -> None:
        # Bound to the thread that forks, which in this process is the only one.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            stderr=sys.stderr.fileno(),
            start_new_session=True,
            preexec_fn=die_with_supervisor,
        )
    except OSError as exc:
        print(f"can't run {command[0]}: {exc}", file=sys.stderr)
        return _EXEC_FAILED
    with contextlib.suppress(BrokenPipeError):
        print(child.pid, flush=True)
    while child.poll() is None and not ended.within(_TICK_S):
        _reap_orphans(child.pid)
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(float(grace_s))
    _end_group(child)
    remove_shared_memory(shm_prefix)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


class _EndRequest:
    """Standard input closed, the parent gone (a forked child of it may hold the pipe), or SIGTERM."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._signalled = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self._signalled = True

    def within(self, seconds: float) -> bool:
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        return self._signalled or bool(readable) or os.getppid() != self._parent


def _reap_orphans(command: int) -> None:
    """Wait for those that became children of this process and have ended; the command is its ``Popen``'s."""
    with contextlib.suppress(ChildProcessError):
        while (
            ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        ) is not None and ended.si_pid != command:
            os.waitpid(ended.si_pid, 0)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the command's process group, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        try:
            reaped, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if reaped == 0:
            time.sleep(0.01)


def remove_shared_memory(prefix: str) -> None:
    """Remove the shared-memory regions that a killed server left behind."""
    for region in SHM_FOLDER.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
