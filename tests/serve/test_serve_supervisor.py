"""A supervised command ends in every case, and takes with it what it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, ClassVar

import psutil
import pytest

from mooring_serve._process import SupervisedProcess, describe_exit
from processes import all_gone, is_running, wait_until

# Like tritonserver: it starts a helper that nothing but SIGKILL ends, and may or may not mind SIGTERM.
SERVER = """
    import os, signal, subprocess, sys, time

    def leave(*_):
        print("goodbye", flush=True)
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave if sys.argv[1] == "polite" else signal.SIG_IGN)
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); time.sleep(600)"
    helper = subprocess.Popen([sys.executable, "-uc", ignore], stdout=subprocess.PIPE)
    helper.stdout.readline()
    if sys.argv[1] == "orphaning":
        subprocess.run(["sh", "-c", "sleep 0.1 &"], check=True)
    print("helper", helper.pid, "up", flush=True)
    if sys.argv[1] == "crashing":
        sys.exit(3)
    time.sleep(600)
"""


class Supervised:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.script = folder / "server.py"
        self.script.write_text(dedent(SERVER))
        self.region = Path("/dev/shm") / f"mooring-test-{uuid.uuid4().hex}"
        self.process: SupervisedProcess | None = None

    def start(self, manner: str, *, grace_s: float = 30.0) -> SupervisedProcess:
        self.leave_region()
        self.process = SupervisedProcess(
            [sys.executable, str(self.script), manner],
            environment=os.environ,
            log_file=self.log,
            shm_prefix=self.region.name,
            grace_s=grace_s,
        )
        wait_until(lambda: "up" in self.log.read_text())
        return self.process

    def pids(self) -> list[int]:
        words = self.log.read_text().split()
        helper = int(words[words.index("helper") + 1])
        command = self.process.pid if self.process else None
        return [helper, command] if command else [helper]

    def leave_region(self) -> None:
        self.region.with_name(self.region.name + "-1").write_bytes(b"left behind")

    def regions(self) -> list[Path]:
        return list(self.region.parent.glob(f"{self.region.name}*"))


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    made = Supervised(tmp_path)
    yield made
    if made.process is not None:
        made.process.stop()


def test_a_polite_command_is_asked_to_end(supervised: Supervised) -> None:
    process = supervised.start("polite")
    assert process.exit_status is None
    pids = supervised.pids()

    process.stop()

    assert process.exit_status == 0
    assert "goodbye" in supervised.log.read_text()
    assert all_gone(pids)
    assert not supervised.regions()
    process.stop()


def test_a_stubborn_command_is_killed(supervised: Supervised) -> None:
    process = supervised.start("stubborn", grace_s=0.3)
    process.stop()
    assert process.exit_status == 128 + signal.SIGKILL
    assert all_gone(supervised.pids())
    assert not supervised.regions()


def test_a_command_that_ends_by_itself_leaves_nothing(supervised: Supervised) -> None:
    process = supervised.start("crashing")
    wait_until(lambda: process.exit_status is not None)
    assert process.exit_status == 3
    assert all_gone(supervised.pids())
    assert not supervised.regions()


def test_a_killed_command_leaves_nothing(supervised: Supervised) -> None:
    process = supervised.start("polite")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: process.exit_status is not None)
    assert process.exit_status == 128 + signal.SIGKILL
    assert all_gone(supervised.pids())
    assert not supervised.regions()


def test_what_the_command_orphans_is_no_zombie_for_long(supervised: Supervised) -> None:
    process = supervised.start("orphaning", grace_s=0.3)
    supervisor = psutil.Process(process.pid).parent()
    assert supervisor is not None
    wait_until(lambda: [child.pid for child in supervisor.children()] == [process.pid])
    assert process.exit_status is None


def test_it_is_stopped_in_order_where_another_process_holds_the_pipe(supervised: Supervised) -> None:
    process = supervised.start("polite")
    pipe = process._supervisor.stdin
    assert pipe is not None
    # As a forked child does.
    with subprocess.Popen(["sleep", "600"], pass_fds=[pipe.fileno()]) as holder:
        try:
            process.stop()
        finally:
            holder.kill()
    assert process.exit_status == 0
    assert "goodbye" in supervised.log.read_text()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_the_supervisor_ends_the_command_with_itself(supervised: Supervised, sign: signal.Signals) -> None:
    process = supervised.start("polite")
    pids = supervised.pids()
    command = pids[1]
    supervisor = psutil.Process(command).parent()
    assert supervisor is not None
    supervisor.send_signal(sign)
    wait_until(lambda: process.exit_status is not None)
    assert process.exit_status == (0 if sign == signal.SIGTERM else 128 + signal.SIGKILL)
    wait_until(lambda: not is_running(command))

    process.stop()

    wait_until(lambda: all_gone(pids))
    assert not supervised.regions()


def test_a_command_that_cannot_be_run(tmp_path: Path) -> None:
    process = SupervisedProcess(
        ["/no/such/program"],
        environment=os.environ,
        log_file=tmp_path / "log",
        shm_prefix="mooring-test-none",
        grace_s=1.0,
    )
    wait_until(lambda: process.exit_status is not None)
    assert (process.pid, process.exit_status) == (None, 127)
    assert "can't run /no/such/program: [Errno 2]" in (tmp_path / "log").read_text()
    process.stop()


PARENT = """
    import multiprocessing, os, sys, time
    from pathlib import Path
    from mooring_serve._process import SupervisedProcess

    script, log, prefix, manner = sys.argv[1:]
    process = SupervisedProcess(
        [sys.executable, script, "polite"],
        environment=os.environ, log_file=Path(log), shm_prefix=prefix, grace_s=30.0,
    )
    if manner == "with a forked child":
        # It holds a copy of the pipe, so that the pipe alone would not tell of the parent's end.
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        child.start()
        print(child.pid, end=" ")
    print(process.pid, flush=True)
    sys.stdin.readline()
    os._exit(0)
"""


@pytest.mark.parametrize("manner", ["that is killed", "with a forked child", "that leaves without stopping"])
def test_a_parent(supervised: Supervised, manner: str) -> None:
    arguments = [str(supervised.script), str(supervised.log), supervised.region.name, manner]
    supervised.leave_region()
    with subprocess.Popen(
        [sys.executable, "-c", dedent(PARENT), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        *forked, command = map(int, parent.stdout.readline().split())
        wait_until(lambda: "up" in supervised.log.read_text())
        pids = [command, *supervised.pids()]
        assert all(map(is_running, pids))
        if manner == "that leaves without stopping":
            parent.stdin.write("\n")
        else:
            parent.kill()
    wait_until(lambda: all_gone(pids))
    wait_until(lambda: not supervised.regions())
    assert "goodbye" in supervised.log.read_text()
    for pid in forked:
        os.kill(pid, signal.SIGKILL)


def test_describe_exit() -> None:
    assert describe_exit(1) == "exited with status 1"
    assert describe_exit(137) == "was killed by SIGKILL"
    assert describe_exit(255) == "exited with status 255"


class _Interrupted(subprocess.Popen[bytes]):
    """Ctrl-C comes while its first line is waited for."""

    made: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.made.append(self)
        pipe, self.stdout = self.stdout, self  # type: ignore[assignment]
        assert pipe is not None
        pipe.close()

    def __enter__(self) -> Any:
        raise KeyboardInterrupt


def test_an_interrupted_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", _Interrupted)
    with pytest.raises(KeyboardInterrupt):
        SupervisedProcess(
            [sys.executable, "-c", "import time; time.sleep(600)"],
            environment=os.environ,
            log_file=tmp_path / "log",
            shm_prefix="mooring-test-none",
            grace_s=1.0,
        )
    (supervisor,) = _Interrupted.made
    assert supervisor.returncode is not None
