"""The comparison with perf_analyzer, which is not installed with the project: a stand-in writes for it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from load_results import load_result
from mooring_loadtests import cross_check

_RATE = 50.0
# Slow while it warms up, then as fast as it is told; one request of fifty is slower.
_PERF_ANALYZER = """\
#!{python}
import json, sys
words = sys.argv[1:]
after = dict(zip(words, words[1:]))
rate = next(float(word.partition("=")[2]) for word in words if word.startswith("--request-rate-range="))
requests = []
for number in range(int(after["--request-count"])):
    sent_s = 1000 + number / rate
    took_s = 10 if number < 3 * rate else {p99_s} if number % 50 == 0 else {p50_s}
    answered = [] if number % 10 < {lost} else [int((sent_s + took_s) * 1e9)]
    requests.append({{"timestamp": int(sent_s * 1e9), "response_timestamps": answered}})
with open(after["--profile-export-file"], "x") as file:
    json.dump({{"experiments": [{{"requests": requests}}]}}, file)
with open({asked!r}, "w") as file:
    json.dump(after, file)
"""


@pytest.fixture
def perf_analyzer(tmp_path: Path) -> Callable[..., Path]:
    """Writes a perf_analyzer that is as fast as the simulated result, times a factor."""
    figures = load_result(rate=_RATE).figures()

    def write(*, times: float = 1.0, lost: int = 0) -> Path:
        path = tmp_path / "perf_analyzer"
        p50_s, p99_s = (figures[name].value * times / 1000 for name in ("p50_ms", "p99_ms"))
        asked = str(tmp_path / "asked.json")
        script = _PERF_ANALYZER.format(
            python=sys.executable, p50_s=p50_s, p99_s=p99_s, asked=asked, lost=lost
        )
        path.write_text(script, encoding="utf-8")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_check, "run_load", lambda **asked: load_result(rate=_RATE))
    # What the server has counted: with each look 100 requests more, of 5 ms each.
    looks = count(1)
    monkeypatch.setattr(cross_check, "_counted", lambda args: (seen := 100 * next(looks), seen * 5 * 10**6))


def _compare(perf_analyzer: Path, *options: str) -> int:
    return cross_check.main(["ner", "--perf-analyzer", str(perf_analyzer), "--turns", "2", *options])


def test_sides_that_agree(
    perf_analyzer: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert _compare(perf_analyzer(), "--rate", f"{_RATE}", "--url", "http://127.0.0.1:8000") == 0
    shown = capsys.readouterr().out
    assert shown.count("server_mean_ms 5\n") == 4
    ratios = json.loads(shown.splitlines()[-1])
    assert ratios.pop("throughput_ratio") == pytest.approx(1, abs=0.05)
    assert ratios == pytest.approx({"p50_ms_ratio": 1, "p99_ms_ratio": 1}, abs=0.001)
    asked = json.loads((tmp_path / "asked.json").read_text(encoding="utf-8"))
    assert (asked["-m"], asked["-u"], asked["-i"]) == ("ner", "127.0.0.1:8000", "http")
    assert asked["--request-count"] == str(int(_RATE * 11))


@pytest.mark.parametrize("times", [0.85, 1.2])
def test_sides_that_do_not_agree(
    times: float, perf_analyzer: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _compare(perf_analyzer(times=times), "--rate", f"{_RATE}") == 1
    ratios = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert ratios["p50_ms_ratio"] == pytest.approx(1 / times, rel=0.01)


def test_the_rate_is_half_of_what_the_model_takes(
    perf_analyzer: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _compare(perf_analyzer())
    rate = float(capsys.readouterr().out.split()[0])
    assert rate == pytest.approx(load_result(rate=_RATE).figures()["throughput"].value / 2, abs=0.05)


def test_what_is_missing_or_fails(
    perf_analyzer: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert _compare(tmp_path / "nothing") == 2
    assert "nothing is no program" in capsys.readouterr().err
    assert _compare(perf_analyzer(), "--url", "https://127.0.0.1:8000") == 2
    assert "'https://127.0.0.1:8000' begins with neither" in capsys.readouterr().err
    failing = perf_analyzer()
    failing.write_text("#!/bin/sh\necho no such model >&2\nexit 99\n", encoding="utf-8")
    assert _compare(failing, "--rate", "1") == 1
    assert "perf_analyzer failed (99): no such model" in capsys.readouterr().err


def test_a_perf_analyzer_that_does_not_end_is_started_again(
    perf_analyzer: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(cross_check, "_OVERHEAD_S", -18)
    path, hung = perf_analyzer(), tmp_path / "hung"
    hang = f"if not os.path.exists({str(hung)!r}):\n    open({str(hung)!r}, 'w')\n    time.sleep(600)\n"
    script = path.read_text(encoding="utf-8").replace("import json", f"import os, time\n{hang}import json")
    path.write_text(script, encoding="utf-8")
    assert _compare(path, "--rate", f"{_RATE}", "--seconds", "20") == 0
    assert capsys.readouterr().out.count("did not end within 5 s and was killed") == 1


def test_a_perf_analyzer_that_never_ends(
    perf_analyzer: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_check, "_OVERHEAD_S", -22.8)
    path = perf_analyzer()
    path.write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
    assert _compare(path, "--rate", f"{_RATE}", "--seconds", "20") == 1
    assert "perf_analyzer did not end, 3 times" in capsys.readouterr().err


def test_requests_without_an_answer_count_for_nothing(
    perf_analyzer: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _compare(perf_analyzer(lost=1), "--rate", f"{_RATE}") == 1
    assert re.search(r"perf_analyzer has \d+ answers to \d+ requests", capsys.readouterr().err)


def test_a_percentile_among_failures_leaves_the_last_line_json(
    perf_analyzer: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_check, "run_load", lambda **asked: load_result(rate=_RATE, failures=0.1))
    assert _compare(perf_analyzer(), "--rate", f"{_RATE}") == 1
    last = capsys.readouterr().out.splitlines()[-1]
    ratios = json.loads(last, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert ratios["p99_ms_ratio"] is None


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "fast"])
def test_a_rate_is_a_number_above_0(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        _compare(Path("perf_analyzer"), f"--rate={rate}")
    assert stopped.value.code == 2
    assert f"{rate!r} is no number above 0" in capsys.readouterr().err
