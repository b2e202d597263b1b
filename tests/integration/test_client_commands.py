"""The commands that ask a server, run as programs against a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mooring_serve import TritonServer
from mooring_serve._ports import choose_ports
from python_models import write_python_model
from text_models import write_text_models

pytestmark = pytest.mark.integration


def mooring(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mooring", *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("commands")
    repository = write_text_models(folder / "repository", refused="REFUSED")
    write_python_model(repository, "broken", source="raise RuntimeError('no weights here')\n")
    with TritonServer(repository, log_file=folder / "log", strict_readiness=False) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: TritonServer) -> str:
    return str(getattr(server, f"{request.param}_url"))


def test_predict_answers_thousands_of_lines_in_order(url: str, tmp_path: Path) -> None:
    lines = [f"Name{number} lives here" for number in range(2000)]
    lines[700] = "REFUSED"
    lines[1400] = ""
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    done = mooring("predict", "ner", "--file", str(path), "--json", "--url", url)
    assert done.returncode == 2
    first, second = sorted(done.stderr.splitlines())
    assert first.startswith("mooring: error: line 1401 is empty")
    assert second.startswith("mooring: error: line 701: ")
    assert "no text with 'REFUSED'" in second
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == [line for line in lines if line not in ("", "REFUSED")]
    assert answers[5]["entities"] == [
        {"label": "PER", "score": 0.75, "start": 0, "end": 5, "text": "Name5"},
    ]


def test_predict_reads_standard_input(url: str) -> None:
    done = mooring("predict", "intent", "--url", url, stdin="where is it?\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "where is it?\n  track_order  0.7500\n  refund       0.2500\n"


def test_models_shows_what_is_ready_and_why_not(url: str) -> None:
    done = mooring("models", "--url", url)
    assert (done.returncode, done.stderr) == (0, "")
    header, *rows = [line.split() for line in done.stdout.splitlines()]
    assert header == ["NAME", "VERSION", "STATE", "TASK", "MAX", "BATCH", "REASON"]
    assert rows[0][:3] == ["broken", "1", "UNAVAILABLE"]
    assert "no weights here" in done.stdout.splitlines()[1]
    assert rows[1:] == [
        ["intent", "1", "READY", "text-classification", "8"],
        ["ner", "1", "READY", "token-classification", "8"],
    ]


def test_stats_counts_what_was_asked(url: str) -> None:
    before = json.loads(mooring("stats", "intent", "--json", "--url", url).stdout)
    assert mooring("predict", "intent", "a", "b", "c", "--url", url).returncode == 0
    (after,) = json.loads(mooring("stats", "intent", "--json", "--url", url).stdout)
    assert after["items"] == before[0]["items"] + 3
    assert after["failed"] == 0
    assert after["mean_batch"] >= 1
    assert after["mean_ms"]["total"] >= after["mean_ms"]["compute_infer"] > 0
    assert "answered, 0 failed" in mooring("stats", "intent", "--url", url).stdout
    unknown = mooring("stats", "nope", "--url", url)
    assert (unknown.returncode, unknown.stdout) == (1, "")


def test_wait_tells_models_that_are_ready_from_one_that_is_not(url: str) -> None:
    assert mooring("wait", "ner", "intent", "--url", url).returncode == 0
    done = mooring("wait", "ner", "broken", "--for-s", "0", "--url", url)
    assert done.returncode == 1
    assert "model 'broken' version 1 is UNAVAILABLE" in done.stderr
    assert done.stderr.count("\n") == 1


def test_wait_waits_for_a_server_that_starts(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    repository = write_python_model(tmp_path / "repository")
    ports = choose_ports("127.0.0.1", {"http_port": 0, "grpc_port": 0, "metrics_port": 0})
    command = [sys.executable, "-m", "mooring", "wait", "echo", "--for-s", "60"]
    command += ["--url", f"grpc://127.0.0.1:{ports['grpc_port']}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        first = waiting.stderr.readline()
        make_server(repository, **ports)
        out, _ = waiting.communicate(timeout=90)
    assert first.startswith("waiting up to 60 s: ")
    assert "can't connect" in first
    assert waiting.returncode == 0
    assert out.startswith("ready after ")
