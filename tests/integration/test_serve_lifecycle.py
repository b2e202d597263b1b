"""A server starts, says why if it can't, and leaves nothing behind in whatever way it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from mooring import ConfigError, StartError
from mooring_serve import TritonServer, _server
from processes import all_gone, family, wait_until
from python_models import ECHO_CONFIG, write_python_model

pytestmark = pytest.mark.integration

BROKEN = """
    class TritonPythonModel:
        def initialize(self, args):
            raise ValueError("no weights for " + args["model_name"])
"""
ENDS_ITSELF = """
    import os

    class TritonPythonModel:
        def execute(self, requests):
            os._exit(1)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_python_model(tmp_path / "repository")


def regions(owner: int) -> list[Path]:
    """Shared-memory regions of the servers that a process started."""
    return list(Path("/dev/shm").glob(f"mooring-{owner}-*"))


def answers(server: TritonServer) -> bool:
    sent = np.array([[1.5, -2.0]], dtype=np.float32)
    for module, url in ((triton_grpc, server.grpc_url), (triton_http, server.http_url)):
        with module.InferenceServerClient(url.partition("://")[2]) as client:
            tensor = module.InferInput("x", [1, 2], "FP32")
            tensor.set_data_from_numpy(sent)
            np.testing.assert_array_equal(client.infer("echo", [tensor]).as_numpy("y"), sent)
    return True


def pids_of(server: TritonServer) -> list[int]:
    """The server's supervisor, the server and its stubs."""
    assert server.pid is not None
    supervisor = psutil.Process(server.pid).ppid()
    pids = family(supervisor)
    assert len(pids) >= 3
    return pids


def test_it_serves_and_leaves_nothing(repository: Path) -> None:
    server = TritonServer(repository)
    assert not server.is_alive()
    server.stop()
    with server:
        assert server.is_alive()
        assert server.start() is server
        assert answers(server)
        with urllib.request.urlopen(server.metrics_url) as metrics:
            assert b'nv_inference_request_success{model="echo",version="1"} 2' in metrics.read()
        log = server.log_file
        assert "successfully loaded 'echo'" in log.read_text()
        pids = pids_of(server)
        assert regions(os.getpid())
    assert all_gone(pids)
    assert not regions(os.getpid())
    assert not log.exists()
    assert not server.is_alive()
    assert server.pid is None
    server.stop()

    with server:
        assert answers(server)


def test_an_exception_ends_it_and_keeps_the_log(repository: Path) -> None:
    server = TritonServer(repository)
    pids: list[int] = []

    def fail() -> None:
        with server:
            pids.extend(pids_of(server))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all_gone(pids)
    assert not regions(os.getpid())
    assert server.log_file.exists()
    server.log_file.unlink()


def test_every_model_that_fails_is_named_with_its_own_error(repository: Path, tmp_path: Path) -> None:
    write_python_model(repository, "first", source=BROKEN)
    write_python_model(repository, "second", source=BROKEN)
    write_python_model(repository, "misspelt", config=ECHO_CONFIG.replace("max_batch_size", "max_batch"))
    log_file = tmp_path / "logs" / "server.log"

    with pytest.raises(StartError) as raised:
        TritonServer(repository, log_file=log_file).start()

    message = str(raised.value)
    assert message.startswith(f"3 of the models could not be loaded (log: {log_file}):")
    assert "  first version 1: Internal: ValueError: no weights for first" in message
    assert "  second version 1: Internal: ValueError: no weights for second" in message
    assert 'has no field named "max_batch"' in message
    assert "echo" not in message
    assert not regions(os.getpid())


def test_a_model_without_a_version_is_left_out(
    repository: Path, make_server: Callable[..., TritonServer]
) -> None:
    write_python_model(repository, "unbuilt")
    (repository / "unbuilt" / "1" / "model.py").unlink()
    (repository / "unbuilt" / "1").rmdir()
    server = make_server(repository)
    assert answers(server)
    assert server.unbuilt_models() == ["unbuilt"]
    assert [state.name for state in server.model_states() if state.state] == ["echo"]


def test_a_hidden_folder_is_left_out(repository: Path, make_server: Callable[..., TritonServer]) -> None:
    (repository / ".git" / "objects").mkdir(parents=True)
    server = make_server(repository)
    assert answers(server)
    assert server.unbuilt_models() == []


def test_polling_takes_up_what_is_built_later(
    repository: Path, make_server: Callable[..., TritonServer], tmp_path: Path
) -> None:
    write_python_model(repository, "later")
    (repository / "later" / "1").rename(tmp_path / "1")
    server = make_server(repository, model_control_mode="poll", extra_args=["--repository-poll-secs=1"])
    assert answers(server)
    assert [state.name for state in server.model_states() if state.state == "READY"] == ["echo"]
    (tmp_path / "1").rename(repository / "later" / "1")
    wait_until(
        lambda: {"echo", "later"} == {state.name for state in server.model_states() if state.state == "READY"}
    )


def test_the_others_serve_where_readiness_is_not_strict(
    repository: Path, make_server: Callable[..., TritonServer]
) -> None:
    write_python_model(repository, "first", source=BROKEN)
    assert answers(make_server(repository, strict_readiness=False))


def test_a_model_that_takes_too_long_is_named(repository: Path, tmp_path: Path) -> None:
    slow = """
        import time

        class TritonPythonModel:
            def initialize(self, args):
                time.sleep(600)
    """
    write_python_model(repository, "slow", source=slow)
    server = TritonServer(
        repository, start_timeout_s=5.0, stop_timeout_s=1.0, log_file=tmp_path / "server.log"
    )
    with pytest.raises(StartError, match=r"not ready after 5 s, still loading: .*slow.* start_timeout_s"):
        server.start()
    assert not server.is_alive()
    assert not regions(os.getpid())


def test_an_option_that_tritonserver_does_not_know(repository: Path, tmp_path: Path) -> None:
    server = TritonServer(repository, extra_args=["--no-such-option=1"], log_file=tmp_path / "server.log")
    with pytest.raises(
        StartError, match=r"exited with status 1 .*\nunrecognized option '--no-such-option=1'"
    ):
        server.start()


@pytest.mark.parametrize("option", ["http_port", "grpc_port", "metrics_port"])
def test_a_port_in_use_is_named(
    repository: Path,
    tmp_path: Path,
    make_server: Callable[..., TritonServer],
    option: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose = _server.choose_ports
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        message = rf"{option} {port} on 127\.0\.0\.1 is already in use"
        with pytest.raises(StartError, match=message):
            make_server(repository, **{option: port})
        assert not (tmp_path / "tritonserver.log").exists()

        # The same where another program takes the port after that look.
        monkeypatch.setattr(
            _server,
            "choose_ports",
            lambda address, ports: {**choose(address, {**ports, option: 0}), option: port},
        )
        with pytest.raises(StartError, match=message):
            make_server(repository, **{option: port})
        assert "already in use" in (tmp_path / "tritonserver.log").read_text()
    assert not regions(os.getpid())


def test_another_free_port_is_tried_when_one_was_taken(
    repository: Path, make_server: Callable[..., TritonServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = _server.choose_ports
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = [{"grpc_port": listener.getsockname()[1]}]
        monkeypatch.setattr(
            _server,
            "choose_ports",
            lambda address, ports: {**choose(address, ports), **(taken.pop() if taken else {})},
        )
        assert answers(make_server(repository))
    assert not taken


def test_a_killed_tritonserver_leaves_nothing(
    repository: Path, make_server: Callable[..., TritonServer]
) -> None:
    server = make_server(repository)
    pids = pids_of(server)
    assert server.pid is not None
    assert server.exit_reason() == ""
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.is_alive())
    assert all_gone(pids)
    assert not regions(os.getpid())
    assert server.exit_reason().startswith("tritonserver was killed by SIGKILL")
    assert answers(server.start())


def test_a_dead_stub_does_not_hinder_the_end(tmp_path: Path) -> None:
    repository = write_python_model(tmp_path / "repository", source=ENDS_ITSELF)
    with TritonServer(repository, stop_timeout_s=3.0) as server:
        pids = pids_of(server)
        with pytest.raises(InferenceServerException):
            answers(server)
        assert server.is_alive()
    assert all_gone(pids)
    assert not regions(os.getpid())


def test_explicit_control_loads_and_unloads(
    repository: Path, make_server: Callable[..., TritonServer]
) -> None:
    server = make_server(repository, model_control_mode="explicit")
    assert answers(server)
    with triton_http.InferenceServerClient(server.http_url.partition("://")[2]) as client:
        client.unload_model("echo")
        wait_until(lambda: not client.is_model_ready("echo"))
        client.load_model("echo")
    assert answers(server)


def test_a_repository_without_models(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run 'mooring build'"):
        TritonServer(tmp_path / "absent").start()


def test_a_log_file_that_cannot_be_written(repository: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't write the log file .*/repository: .*directory"):
        TritonServer(repository, log_file=repository).start()


def test_the_log_of_an_earlier_run_stays(repository: Path, tmp_path: Path) -> None:
    log_file = tmp_path / "server.log"
    log_file.write_text("E1122 07:52:07.65 8922 main.cc:245] \"failed to load model 'echo': long ago\"\n")
    with TritonServer(repository, log_file=log_file) as server:
        assert "long ago" not in server.log_tail()
    assert "long ago" in log_file.read_text()


def test_a_name_as_host(repository: Path, make_server: Callable[..., TritonServer]) -> None:
    server = make_server(repository, host="localhost")
    assert server.http_url.startswith("http://127.0.0.1:")
    assert answers(server)


PARENT = """
import sys, time
from pathlib import Path
from mooring_serve import TritonServer

server = TritonServer(Path(sys.argv[1]), log_file=Path(sys.argv[2])).start()
print(server.pid, flush=True)
time.sleep(600)
"""


def test_a_killed_parent_takes_the_server_along(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(repository), str(tmp_path / "server.log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        pids = family(psutil.Process(server).ppid())
        assert regions(parent.pid)
        parent.kill()
    wait_until(lambda: all_gone(pids))
    wait_until(lambda: not regions(parent.pid))


class ServeCommand:
    """A running ``mooring serve``."""

    def __init__(self, *arguments: str) -> None:
        program = "import sys; from mooring._cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "serve", *arguments]
        ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
        self.process = subprocess.Popen(
            [*command, *ports], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def read_summary(self) -> list[str]:
        assert self.process.stdout is not None
        lines = []
        while not lines or not lines[-1].startswith("Ctrl-C"):
            lines.append(self.process.stdout.readline().rstrip("\n"))
            assert lines[-1], lines
        return lines

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def serve_command() -> Iterator[Callable[..., ServeCommand]]:
    """Run ``mooring serve`` with these arguments; one that a failing test leaves is killed."""
    with ExitStack() as running:

        def start(*arguments: str) -> ServeCommand:
            command = ServeCommand(*arguments)
            running.enter_context(command.process)
            running.callback(command.process.kill)
            return command

        yield start


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_serve_command(
    repository: Path, serve_command: Callable[..., ServeCommand], sign: signal.Signals
) -> None:
    command = serve_command(str(repository))
    summary = command.read_summary()
    assert summary[:3] == ["mooring: starting tritonserver ...", "models:", "  echo     1  READY"]
    shown: dict[str, Any] = dict(line.split(maxsplit=1) for line in summary[3:8])
    assert list(shown) == ["http:", "grpc:", "metrics:", "log:", "try:"]
    assert Path(shown["log:"]).exists()
    tried = subprocess.run(shown["try:"], shell=True, capture_output=True, text=True, check=True)
    assert '"version":"2.' in tried.stdout
    pids = family(command.process.pid)

    command.process.send_signal(sign)

    assert command.finish() == (0, "mooring: stopping\n", "")
    assert all_gone(pids)
    assert not regions(command.process.pid)
    assert not Path(shown["log:"]).exists()


def test_serve_command_shows_a_call_that_works(
    tmp_path: Path, serve_command: Callable[..., ServeCommand]
) -> None:
    config = """
        backend: "python"
        max_batch_size: 8
        input { name: "x" data_type: TYPE_STRING dims: [1] }
        output { name: "y" data_type: TYPE_STRING dims: [1] }
    """
    ensemble = """
        platform: "ensemble"
        max_batch_size: 8
        input { name: "text" data_type: TYPE_STRING dims: [1] }
        output { name: "answer" data_type: TYPE_STRING dims: [1] }
        ensemble_scheduling { step {
            model_name: "echo" model_version: 1
            input_map { key: "x" value: "text" } output_map { key: "y" value: "answer" }
        } }
    """
    repository = write_python_model(tmp_path / "repository", config=config)
    write_python_model(repository, "pipeline", config=ensemble)
    command = serve_command(str(repository))
    (line,) = [line for line in command.read_summary() if line.startswith("try:")]
    tried = subprocess.run(line.removeprefix("try:"), shell=True, capture_output=True, text=True, check=True)
    assert '"answer":"Where is my parcel from Lisbon?"' in tried.stdout
    command.process.terminate()
    assert command.finish()[0] == 0


def test_serve_command_says_why_the_server_ended(
    repository: Path, serve_command: Callable[..., ServeCommand]
) -> None:
    command = serve_command(str(repository), "--log-file", str(repository.parent / "server.log"))
    command.read_summary()
    (server,) = [pid for pid in family(command.process.pid) if psutil.Process(pid).name() == "tritonserver"]
    os.kill(server, signal.SIGKILL)
    status, _, err = command.finish()
    assert status == 1
    assert err.startswith("mooring: error: tritonserver was killed by SIGKILL")
    assert not regions(command.process.pid)


def test_serve_command_without_models(tmp_path: Path, serve_command: Callable[..., ServeCommand]) -> None:
    status, _, err = serve_command(str(tmp_path / "absent")).finish()
    assert status == 2
    assert err == (
        f"mooring: error: there is no model repository at {tmp_path}/absent: run 'mooring build', "
        "or give another folder\n"
    )
