"""What ``mooring load`` says of a run, and how it ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from load_results import STEPS, load_result
from mooring import _cli as cli
from mooring._commands import Credentials
from mooring_loadtests import load_run
from mooring_loadtests.load_profile import Slo, Stage
from mooring_loadtests.load_result import LoadResult
from mooring_loadtests.recorder import Recorder


def _run(result: LoadResult, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(load_run, "run_load", lambda **asked: result)
    return cli.main(["load", "ner", "--profile", "steady", "--reports", str(folder)])


@pytest.mark.parametrize(("bound_ms", "status"), [(None, 0), (1000.0, 0), (1.0, 1)])
def test_bounds_decide(
    bound_ms: float | None, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(load_result(slo=Slo(p99_ms=bound_ms)), tmp_path, monkeypatch) == status
    assert (tmp_path / "ner-steady.json").is_file()


@pytest.mark.parametrize(
    ("seconds", "said"), [(5, ": kept, too little measured for an interval\n"), (60, ": kept\n")]
)
def test_a_bound_without_an_interval_is_told(
    seconds: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = load_result(stages=[Stage(seconds=seconds)], slo=Slo(p99_ms=1000.0))
    assert _run(result, tmp_path, monkeypatch) == 0
    assert said in capsys.readouterr().out


def test_a_run_that_says_nothing_calls_no_bound_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = load_result(cpu=0.97, slo=Slo(p99_ms=1000.0, p50_ms=0.1))
    assert _run(result, tmp_path, monkeypatch) == 3
    out = capsys.readouterr().out
    assert out.count(": no verdict\n") == 2
    assert ": kept" not in out
    assert "BROKEN" not in out
    assert "INVALID: a generating process used 97% of a core" in out


@pytest.mark.parametrize("stages", ["[{seconds=1}]", "[{seconds=99, measured=false}, {seconds=1}]"])
def test_a_run_in_which_nothing_is_due_does_not_begin(
    stages: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(**asked: Any) -> LoadResult:
        raise AssertionError("it began")

    monkeypatch.setattr(load_run, "run_load", run)
    words = ["load", "ner", "--profile", "steady", "--reports", str(tmp_path), "--set", f"stages={stages}"]
    assert cli.main([*words, "--set", "rate=0.01", "--processes", "2"]) == 2
    assert "at rate 0.01 no request is due in the 1 s of the stages that count" in capsys.readouterr().err


def test_a_server_that_died_is_no_success_where_nothing_is_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # From the second but last stage on nothing is answered in time.
    result = load_result(stages=STEPS, stall=(65.0, 1000.0))
    assert _run(result, tmp_path, monkeypatch) == 1
    assert "NOT ANSWERED: no request of the last stage was\n" in capsys.readouterr().out
    assert (tmp_path / "ner-steady.json").is_file()


def test_a_run_that_nothing_came_of_does_not_leave_the_last_one_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [tmp_path / f"ner-steady.{ending}" for ending in ("json", "html")]
    for path in left:
        path.write_text("the last one", encoding="utf-8")
    empty = replace(load_result(), recorder=Recorder())
    empty.recorder.errors["DeadlineExceeded: no answer within 10 s"] += 4
    assert _run(empty, tmp_path, monkeypatch) == 1
    said = capsys.readouterr().err
    assert f"came to an end (log: {tmp_path / 'ner-steady.log'})" in said
    assert "4 x DeadlineExceeded: no answer within 10 s" in said
    # Whoever compares next would take it for this one's.
    assert not any(path.exists() for path in left)


def test_certificates_and_tokens_are_those_of_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Credentials] = []

    def run(*, credentials: Credentials, **other: Any) -> LoadResult:
        asked.append(credentials)
        return load_result()

    monkeypatch.setattr(load_run, "run_load", run)
    words = ["load", "ner", "--reports", str(tmp_path), "--url", "grpcs://models:8001"]
    assert cli.main([*words, "--ca-file", "ca.pem", "--token-env", "OWN_TOKEN"]) == 0
    assert cli.main(words) == 0
    assert asked == [Credentials(ca_file="ca.pem", token_env="OWN_TOKEN"), Credentials()]
