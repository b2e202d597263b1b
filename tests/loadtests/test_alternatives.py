from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mooring import ConfigError, MooringError
from mooring_loadtests import alternatives
from mooring_loadtests.alternatives import (
    ALTERNATIVES,
    BENTOML,
    FASTAPI,
    INFINITY,
    LITSERVE,
    MLSERVER,
    OPENVINO,
    PYTRITON,
    TASKS,
    Alternative,
    ServingSettings,
    ask,
    candidate_settings,
    install,
    is_installed,
    serve,
)

SETTINGS = ServingSettings(workers=2, threads=1, max_batch_size=8, max_wait_ms=2.5)
TEXT = 'Say "hi", Zoë.'
every_alternative = pytest.mark.parametrize("alternative", ALTERNATIVES, ids=lambda each: each.folder)
# Answers its own process id, and says that it has loaded after a moment.
SERVER = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.dumps({"answers": [{"label": str(os.getpid()), "score": 0.5}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
for copy in range(int(sys.argv[2])):
    print("model loaded in process", copy, flush=True)
server.serve_forever()
"""


class ScriptedAlternative(Alternative):
    """Runs a program of the test instead of a server of its own."""

    def command(self, python: Path, *, port: int, settings: ServingSettings, **_: Any) -> list[str]:
        return [str(python), "-c", self.folder, str(port), str(settings.workers)]


def scripted(program: str) -> Alternative:
    return ScriptedAlternative(
        name="Scripted", folder=program, request=FASTAPI.request, read=FASTAPI.read, says_loaded=True
    )


@every_alternative
def test_everything_in_an_environment_is_pinned_exactly(alternative: Alternative) -> None:
    lines = alternative.requirements.read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[A-Za-z0-9.]+", line)] == []
    assert len({line.partition("==")[0] for line in lines}) == len(lines) > 10
    assert "torch==2.13.0" in lines
    assert [line for line in lines if line.startswith("transformers==")]


def test_openvino_comes_with_the_projects_own_packages() -> None:
    def pins(file: Path) -> set[str]:
        lines = file.read_text(encoding="utf-8").splitlines()
        return {line for line in lines if line and not line.startswith("#")}

    own = pins(OPENVINO.parents[3] / "constraints.txt")
    (other,) = pins(OPENVINO) - own
    assert other.startswith("onnxruntime-openvino==")


@every_alternative
def test_no_pin_brings_cuda(alternative: Alternative) -> None:
    pins = alternative.requirements.read_text(encoding="utf-8")
    # NVIDIA's server and its management library run without a GPU.
    cuda = re.findall(r"(?m)^(?:nvidia-(?!pytriton|ml-py)|cuda-|triton=|onnxruntime-gpu|cupy).*$", pins)
    assert cuda == []


@every_alternative
def test_the_command_has_every_option(alternative: Alternative) -> None:
    command = alternative.command(
        Path("env/bin/python"), checkpoint=Path("/c"), task=TASKS[0], port=8123, settings=SETTINGS
    )
    assert command[:3] == ["env/bin/python", "-m", f"alternatives.{alternative.folder}.serve"]
    assert dict(zip(command[3::2], command[4::2], strict=True)) == {
        "--checkpoint": "/c",
        "--task": "text-classification",
        "--port": "8123",
        "--workers": "2",
        "--threads": "1",
        "--max-batch-size": "8",
        "--max-wait-ms": "2.5",
    }


@every_alternative
def test_a_server_listens_on_the_loopback_address_only(alternative: Alternative) -> None:
    folder = alternative.requirements.parent
    source = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    options = (folder.parent / "options.py").read_text(encoding="utf-8")
    assert re.search(r'(?m)^HOST = "127\.0\.0\.1"$', options)
    assert "import HOST," in source
    assert re.search(r'(host=HOST|"(--)?host": HOST|"--host", HOST|http_address=HOST)', source)
    assert "0.0.0.0" not in source


@pytest.mark.parametrize("alternative", [FASTAPI, LITSERVE], ids=lambda each: each.folder)
def test_own_servers_take_a_text_and_give_label_and_score(alternative: Alternative) -> None:
    path, body = alternative.request(TEXT)
    assert path in ("/answer", "/predict")
    assert json.loads(body) == {"text": TEXT}
    answer = b'{"answers": [{"label": "PER", "score": 0.75, "start": 0, "end": 3}]}'
    assert alternative.read(answer) == [("PER", 0.75)]
    assert alternative.read(b'{"answers": []}') == []


def test_bentoml_takes_and_gives_lists() -> None:
    path, body = BENTOML.request(TEXT)
    assert (path, json.loads(body)) == ("/answer", {"text": [TEXT]})
    assert BENTOML.read(b'[{"answers": [{"label": "PER", "score": 0.75}]}]') == [("PER", 0.75)]


def test_mlserver_takes_and_gives_tensors() -> None:
    path, body = MLSERVER.request(TEXT)
    assert path == "/v2/models/classifier/infer"
    assert json.loads(body)["inputs"][0]["data"] == [TEXT]

    def answer(found: Any) -> bytes:
        return json.dumps({"outputs": [{"name": "output", "data": [json.dumps(found)]}]}).encode()

    assert MLSERVER.read(answer({"label": "refund", "score": 0.5})) == [("refund", 0.5)]
    entities = [{"entity_group": "PER", "score": 0.5}, {"entity_group": "LOC", "score": 0.25}]
    assert MLSERVER.read(answer(entities)) == [("PER", 0.5), ("LOC", 0.25)]
    assert MLSERVER.read(answer([])) == []


def test_infinity_gives_every_label_of_which_the_best_counts() -> None:
    path, body = INFINITY.request(TEXT)
    assert (path, json.loads(body)) == ("/classify", {"model": "classifier", "input": [TEXT]})
    scores = [{"label": "lost", "score": 0.2}, {"label": "refund", "score": 0.7}]
    assert INFINITY.read(json.dumps({"data": [scores]}).encode()) == [("refund", 0.7)]


def test_pytriton_gives_json_in_a_tensor() -> None:
    path, body = PYTRITON.request(TEXT)
    assert path == "/v2/models/classifier/infer"
    assert json.loads(body)["inputs"][0] | {"name": ""} == {
        "name": "",
        "shape": [1, 1],
        "datatype": "BYTES",
        "data": [TEXT],
    }
    data = [json.dumps([{"label": "PER", "score": 0.5}])]
    assert PYTRITON.read(json.dumps({"outputs": [{"data": data}]}).encode()) == [("PER", 0.5)]


def test_candidates_use_every_core_and_no_more() -> None:
    candidates = candidate_settings(4)
    assert {each.workers * each.threads for each in candidates} == {4}
    assert {each.max_batch_size for each in candidates} == {1, 8}


def test_an_environment_is_made_once_for_its_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alternatives, "_FOLDER", tmp_path)
    FASTAPI.requirements.parent.mkdir()
    FASTAPI.requirements.write_text("# nothing\n", encoding="utf-8")
    assert not is_installed(FASTAPI.requirements, tmp_path / "cache")
    python = install(FASTAPI.requirements, tmp_path / "cache")
    assert python == tmp_path / "cache" / "fastapi" / "bin" / "python"
    assert is_installed(FASTAPI.requirements, tmp_path / "cache")
    python.with_name("kept").touch()
    install(FASTAPI.requirements, tmp_path / "cache")
    assert python.with_name("kept").exists()

    FASTAPI.requirements.write_text("--no-index\nnot-there==1.0\n", encoding="utf-8")
    assert not is_installed(FASTAPI.requirements, tmp_path / "cache")
    with pytest.raises(MooringError, match=r"^not installed: ERROR: .*not-there==1\.0"):
        install(FASTAPI.requirements, tmp_path / "cache")
    assert not is_installed(FASTAPI.requirements, tmp_path / "cache")
    assert not python.with_name("kept").exists()


def test_without_a_checkout_there_is_nothing_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alternatives, "_FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"fastapi/requirements\.txt is missing: run this from a checkout"):
        install(FASTAPI.requirements, tmp_path / "cache")


def _serve(alternative: Alternative, tmp_path: Path, *, task: str = TASKS[0]) -> Any:
    (tmp_path / "config.json").touch()
    return serve(
        alternative,
        Path(sys.executable),
        checkpoint=tmp_path,
        task=task,
        settings=SETTINGS,
        log_file=tmp_path / "log",
    )


def _ends(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_server_answers_in_the_block_and_is_gone_after_it(tmp_path: Path) -> None:
    with _serve(scripted(SERVER), tmp_path) as url:
        ((pid, score),) = ask(scripted(SERVER), url, TEXT)
        assert score == 0.5
        assert int(pid) != os.getpid()
    assert _ends(int(pid))
    with socket.socket() as port, pytest.raises(ConnectionRefusedError):
        port.connect(("127.0.0.1", int(url.rpartition(":")[2])))


def test_a_servers_own_files_are_gone_after_the_block(tmp_path: Path) -> None:
    server = scripted(SERVER.replace("str(os.getpid())", "os.path.expanduser('~')"))
    with _serve(server, tmp_path) as url:
        ((home, _),) = ask(server, url, TEXT)
        assert Path(home) != Path.home()
        (Path(home) / "left").touch()
    assert not Path(home).exists()


def test_a_server_is_gone_after_a_failure_in_the_block(tmp_path: Path) -> None:
    pids = []

    def fail_in_the_block() -> None:
        with _serve(scripted(SERVER), tmp_path) as url:
            pids.append(int(ask(scripted(SERVER), url, TEXT)[0][0]))
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail_in_the_block()
    assert _ends(pids[0])


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; print('no such weights'); sys.exit(3)", r"3 \(log: .*log\): no such weights$"),
        (
            "try: [][0]\nfinally: print('shutting down')",
            r"1 \(log: .*log\): IndexError: list index out of range$",
        ),
    ],
)
def test_a_server_that_ends_at_once_says_why(tmp_path: Path, program: str, reason: str) -> None:
    with (
        pytest.raises(MooringError, match=rf"it exited with status {reason}"),
        _serve(scripted(program), tmp_path),
    ):
        pytest.fail("it did not start")


def test_a_server_whose_copies_are_not_all_loaded_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alternatives, "_START_LIMIT_S", 5.0)
    one_short = SERVER.replace("int(sys.argv[2])", "int(sys.argv[2]) - 1")
    with (
        pytest.raises(MooringError, match=r"no answer within 5 s: [01] of 2 copies of the model loaded"),
        _serve(scripted(one_short), tmp_path),
    ):
        pytest.fail("it did not start")


def test_a_task_that_an_alternative_lacks_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(MooringError, match="Infinity has no token-classification"),
        _serve(INFINITY, tmp_path, task="token-classification"),
    ):
        pytest.fail("it did not start")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"checkpoint .* has no config\.json: give the folder of save_pretr"),
        serve(
            FASTAPI,
            Path(sys.executable),
            checkpoint=tmp_path,
            task=TASKS[0],
            settings=SETTINGS,
            log_file=tmp_path / "log",
        ),
    ):
        pytest.fail("it did not start")


def test_what_would_change_a_server_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    environment = alternatives._environment(FASTAPI, Path("/env/bin/python"), SETTINGS)
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert Path(environment["PYTHONPATH"]) == FASTAPI.requirements.parents[2]
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["PATH"].startswith("/env/bin:")
