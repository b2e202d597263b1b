from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from load_results import load_result
from mooring import DataError
from mooring_loadtests.compare import add_command
from mooring_loadtests.load_profile import Stage

RUN: dict[str, Any] = {"stages": [Stage(seconds=30)], "service_ms": 6.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    results = {
        "a": load_result(seed=1, **RUN),
        "same": load_result(seed=2, **RUN),
        "slow": load_result(seed=3, **{**RUN, "service_ms": 8.0}, version="4"),
        "dead": load_result(seed=4, failures=1.0, **RUN),
        "short": load_result(seed=7, **{**RUN, "stages": [Stage(seconds=9)]}),
        "short too": load_result(seed=9, **{**RUN, "stages": [Stage(seconds=9)]}),
        "a second": load_result(seed=8, **{**RUN, "stages": [Stage(seconds=29), Stage(seconds=1)]}),
        "a second too": load_result(seed=10, **{**RUN, "stages": [Stage(seconds=29), Stage(seconds=1)]}),
        "elsewhere": load_result(seed=5, machine={"cores": "64"}, **RUN),
        "saturated": load_result(seed=6, cpu=0.97, **{**RUN, "service_ms": 9.0}),
    }
    for name, result in results.items():
        (folder / f"{name}.json").write_text(result.to_json(), encoding="utf-8")
    return {name: folder / f"{name}.json" for name in results}


def _run(*words: str | Path) -> int:
    parser = argparse.ArgumentParser(prog="mooring")
    add_command(parser.add_subparsers(required=True))
    args = parser.parse_args(["compare", *map(str, words)])
    return int(args.run(args))


def test_a_slower_version_is_worse(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(files["a"], files["slow"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["A", str(files["a"]), "ner", "3"]
    assert lines[1].split()[:4] == ["B", str(files["slow"]), "ner", "4"]
    assert any(line.startswith("p50 ms") and line.endswith("WORSE") for line in lines)
    assert any(line.startswith("failures") and line.endswith("no difference") for line in lines)
    assert "NOT COMPARABLE" not in "\n".join(lines)


@pytest.mark.parametrize("sides", [("a", "same"), ("slow", "a")])
def test_what_is_not_worse_passes(files: dict[str, Path], sides: tuple[str, str]) -> None:
    assert _run(*(files[side] for side in sides)) == 0


def test_no_difference_is_not_called_sure(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _run(files["a"], files["same"])
    assert "No difference means that none was shown: the interval says" in capsys.readouterr().out


@pytest.mark.parametrize("run", ["short", "a second"])
def test_where_nothing_could_be_judged_nothing_passes(
    files: dict[str, Path], run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(files[run], files[f"{run} too"]) == 3
    out = capsys.readouterr().out
    assert "6 figures: 0 worse, 0 better, 6 unknown." in out
    assert "NO VERDICT: " in out
    assert _run(files[run], files[f"{run} too"], "--json") == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["judged"], document["comparable"], document["worse"]) == (False, True, False)


def test_the_threshold_decides_what_matters(files: dict[str, Path]) -> None:
    assert _run(files["a"], files["slow"], "--threshold", "95%") == 0
    assert _run(files["a"], files["slow"], "--threshold", "0.02") == 1


def test_runs_on_other_machines_pass_nothing(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(files["a"], files["elsewhere"]) == 3
    out = capsys.readouterr().out
    assert "NOT COMPARABLE" in out
    assert "machine: cores is 2 in A and 64 in B" in out


@pytest.mark.parametrize("sides", [("saturated", "a"), ("a", "saturated")])
def test_a_run_whose_generator_did_not_keep_up_passes_nothing(
    files: dict[str, Path], sides: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(*(files[side] for side in sides)) == 3
    assert "is invalid: a generating process used 97% of a core" in capsys.readouterr().out


def test_json_is_one_document(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(files["a"], files["dead"], "--json", "--threshold", "2%") == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["worse"], document["comparable"], document["threshold"]) == (True, True, 0.02)
    assert (document["a"]["model"], document["a"]["version"]) == ("ner", "3")
    changes = {change["figure"]: change for change in document["changes"]}
    assert set(changes) == {"p50_ms", "p95_ms", "p99_ms", "mean_ms", "throughput", "error_rate"}
    # JSON has no infinity.
    assert (changes["p50_ms"]["b"], changes["p50_ms"]["verdict"]) == (None, "worse")
    assert changes["error_rate"]["change"] == 1.0


def test_a_missing_file_is_named(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json is missing"):
        _run(files["a"], tmp_path / "gone.json")


@pytest.mark.parametrize("threshold", ["-1%", "100%", "two", "nan"])
def test_thresholds_that_are_no_share(
    files: dict[str, Path], threshold: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        _run(files["a"], files["a"], f"--threshold={threshold}")
    assert f"'{threshold}' is no share such as 2% or 0.02" in capsys.readouterr().err
