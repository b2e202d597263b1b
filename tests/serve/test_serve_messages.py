"""What a server's log and index say becomes a message that a person can act on."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mooring import ConfigError
from mooring_serve import TritonServer
from mooring_serve._server_log import errors, last_lines, load_errors, still_loading, taken_port
from mooring_serve._status import ModelState, describe_failures, load_failures
from mooring_serve.cli import _example

LOG = r"""
I1122 07:52:05.259922 8922 model_lifecycle.cc:472] "loading: tok:1"
E1122 07:52:05.258167 8922 server.cc:241] "CudaDriverHelper has not been initialized."
[libprotobuf ERROR /b/text_format.cc:337] Error parsing text-format inference.ModelConfig: 1:32: no field "x".
E1122 07:52:05.855395 8922 model_repository_manager.cc:1460] "Poll failed for model directory 'badcfg': failed to read text proto from r/badcfg/config.pbtxt"
E1122 07:52:05.862437 8922 model_repository_manager.cc:703] "Invalid argument: ensemble ens contains models that are not available or ambiguous: absent"
I1122 07:52:05.260225 8922 model_lifecycle.cc:472] "loading: bad:1"
I1122 07:52:05.260225 8922 model_lifecycle.cc:472] "loading: slow:3"
I1122 07:52:07.292943 8922 model_lifecycle.cc:839] "successfully loaded 'tok'"
E1122 07:52:07.643686 8922 model_lifecycle.cc:642] "failed to load 'bad' version 1: Internal: ValueError: no weights\n\nAt:\n  model.py(3): initialize\n"
I1122 07:52:07.643707 8922 model_lifecycle.cc:777] "failed to load 'bad'"
E1122 07:52:07.644001 8922 model_repository_manager.cc:1415] "failed to poll model 'nope': model not found in any model repository."
E1122 07:52:07.644002 8922 model_repository_manager.cc:703] "Invalid argument: ensemble 'pipe' depends on 'bad' which has no loaded version. Model 'bad' loading failed"
E1122 07:52:07.644453 8922 ensemble_scheduler.cc:1468] "unable to create stream for pipe: CUDA driver"
"""  # noqa: E501


def test_load_errors_are_told_apart_by_model() -> None:
    assert load_errors(LOG) == {
        "badcfg": "Poll failed for model directory 'badcfg': failed to read text proto from "
        'r/badcfg/config.pbtxt: Error parsing text-format inference.ModelConfig: 1:32: no field "x".',
        "ens": "Invalid argument: ensemble ens contains models that are not available or ambiguous: absent",
        "bad": "failed to load 'bad' version 1: Internal: ValueError: no weights\n\nAt:\n"
        "  model.py(3): initialize",
        "nope": "failed to poll model 'nope': model not found in any model repository.",
        "pipe": "Invalid argument: ensemble 'pipe' depends on 'bad' which has no loaded version. "
        "Model 'bad' loading failed",
    }


def test_errors_leave_out_what_every_machine_without_a_gpu_says() -> None:
    assert not [message for message in errors(LOG) if "CUDA" in message or "Cuda" in message]


def test_last_lines() -> None:
    assert last_lines(LOG, limit=1).startswith("Invalid argument: ensemble 'pipe'")
    usage = (
        "tritonserver: unrecognized option '--nonsense'\nUsage: tritonserver [options]\n  --help\n\tPrint\n"
    )
    assert last_lines(usage) == "unrecognized option '--nonsense'"
    assert last_lines("one\ntwo\n\nthree\n", limit=2) == "two\nthree"
    assert last_lines("") == ""


def test_still_loading() -> None:
    assert still_loading(LOG) == ["slow"]


def test_taken_port() -> None:
    taken = "failed to start GRPC service: Unavailable - Socket '127.0.0.1:48001' already in use "
    assert taken_port(LOG + taken) == 48001
    assert taken_port(LOG) is None


def state(name: str, version: str = "", state: str = "", reason: str = "") -> ModelState:
    return ModelState(name=name, version=version, state=state, reason=reason)


def test_every_failed_model_is_reported_with_its_own_reason() -> None:
    index = [
        state("ner", "1", "UNAVAILABLE", "unloaded"),
        state("ner", "2", "READY"),
        state(
            "bad", "1", "UNAVAILABLE", "Internal: ValueError: no weights\n\nAt:\n  model.py(3): initialize\n"
        ),
        state("pipe"),
        state("other"),
    ]
    failures = load_failures(index, {"ner", "bad", "pipe", "absent"}, {"pipe": "depends on 'bad'"})
    assert describe_failures(failures).splitlines() == [
        "  bad version 1: Internal: ValueError: no weights",
        "    ",
        "    At:",
        "      model.py(3): initialize",
        "  absent: not loaded; the log may say why",
        "  pipe: depends on 'bad'",
    ]


def test_no_failures() -> None:
    assert load_failures([state("ner", "2", "READY"), state("other")], {"ner"}, {"ner": "old"}) == {}


def test_the_end_of_a_log_that_was_cut_off_meanwhile(tmp_path: Path) -> None:
    log_file = tmp_path / "server.log"
    log_file.write_text("of an earlier run\n" * 100)
    server = TritonServer("models", log_file=log_file)
    server._log_start = log_file.stat().st_size
    assert server.log_tail() == ""
    log_file.write_text("what came after copytruncate\n")
    assert server.log_tail() == "what came after copytruncate"


def test_nowhere_to_put_a_temporary_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**name: str) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(ConfigError, match=r"server's log: .* directory found in \['/tmp'\]; TMPDIR names"):
        TritonServer("models")._open_log()


def test_a_log_file_that_can_not_be_read_again(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(ConfigError, match=r"the log file .*/pipe is a pipe or a terminal.*: give a file"):
            TritonServer("models", log_file=pipe)._open_log()
    finally:
        os.close(reader)
    assert TritonServer("models", log_file=Path(os.devnull))._open_log() == Path(os.devnull)


def test_a_model_of_any_name_is_asked_for_an_example() -> None:
    # Nobody answers there.
    server: Any = SimpleNamespace(http_url="http://127.0.0.1:1")
    assert _example(server, [state("modèle", "1", "READY")]) == "curl -s http://127.0.0.1:1/v2"
