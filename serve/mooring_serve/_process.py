"""A server process behind its supervisor."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mooring_serve import _supervisor


class SupervisedProcess:
    """A command that ends, with all that it started, at the latest when this process does.

    Args:
        command: program and arguments.
        environment: environment of the command.
        log_file: gets what the command prints.
        shm_prefix: start of the names of its shared-memory regions.
        grace_s: time between SIGTERM and SIGKILL, in seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log_file: Path,
        shm_prefix: str,
        grace_s: float,
    ) -> None:
        self._shm_prefix = shm_prefix
        self._grace_s = grace_s
        supervisor = [sys.executable, "-IS", _supervisor.__file__, str(os.getpid()), str(grace_s), shm_prefix]
        with log_file.open("ab") as log:
            self._supervisor = subprocess.Popen(
                [*supervisor, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(environment),
                # Ctrl-C reaches this process alone, which then stops the server in order.
                start_new_session=True,
            )
        #: Process id of the command, or ``None`` if it could not be run.
        self.pid: int | None = None
        assert self._supervisor.stdout is not None
        try:
            with self._supervisor.stdout as answer:
                line = answer.readline().strip()
        except BaseException:
            # Ctrl-C: nobody has this object yet who could stop it.
            self.stop()
            raise
        if line:
            self.pid = int(line)

    @property
    def exit_status(self) -> int | None:
        """Exit status of the command, 128 plus the signal that killed it, or ``None`` while it runs."""
        status = self._supervisor.poll()
        # A supervisor that is killed takes the command along.
        return 128 - status if status is not None and status < 0 else status

    def stop(self) -> None:
        """End the command and all that it started; does nothing if that is done."""
        assert self._supervisor.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._supervisor.stdin.close()
        # A forked child of this process may hold a copy of the pipe's end.
        self._supervisor.terminate()
        try:
            self._supervisor.wait(self._grace_s + 10.0)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()
        if self._supervisor.returncode < 0 and self.pid is not None:
            # It was killed itself, and the command with it, but not what the command had started.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            _supervisor.remove_shared_memory(self._shm_prefix)


def describe_exit(status: int) -> str:
    """Put an exit status into words."""
    if status > 128 and (status - 128) in set(signal.Signals):
        return f"was killed by {signal.Signals(status - 128).name}"
    return f"exited with status {status}"
