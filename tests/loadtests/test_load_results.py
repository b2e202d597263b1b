from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring import DataError
from mooring_loadtests.results import percentile, read_results, round_response_time


def _entry(protocol: str, **changes: Any) -> dict[str, Any]:
    """A line of Locust's statistics, as Locust 2.47 serialises it."""
    return {
        "name": f"ner {protocol}",
        "method": protocol,
        "last_request_timestamp": 1030.0,
        "start_time": 1010.0,
        "num_requests": 100,
        "num_none_requests": 0,
        "num_failures": 0,
        "total_response_time": 1000.0,
        "max_response_time": 90.2,
        "min_response_time": 4.0,
        "total_content_length": 900,
        # 1 to 90 once each, then ten of 90.2.
        "response_times": {**{str(value): 1 for value in range(1, 91)}, "90.2": 10},
        "num_reqs_per_sec": {},
        "num_fail_per_sec": {},
        **changes,
    }


def _write(folder: Path, **changes: Any) -> Path:
    path = folder / "ner.json"
    content = {"stats": [_entry("http"), _entry("grpc")], "errors": [], "crashes": [], **changes}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_figures_per_protocol(tmp_path: Path) -> None:
    load = read_results(_write(tmp_path))
    assert [result.name for result in load.protocols] == ["ner grpc", "ner http"]
    grpc = load.protocols[0]
    assert (grpc.protocol, grpc.requests, grpc.failures) == ("grpc", 100, 0)
    # 100 requests in 20 s; the 50th of the sorted times is 50, the 99th is 90.2.
    assert (grpc.requests_per_s, grpc.p50_ms, grpc.p99_ms) == (5.0, 50.0, 90.2)
    assert load.passed


def test_failures_fail_the_run_and_are_explained(tmp_path: Path) -> None:
    errors = [
        {"method": "grpc", "name": "ner grpc", "error": "Overloaded('queue full')", "occurrences": 2},
        {"method": "http", "name": "ner http", "error": "InvalidInput('too long')", "occurrences": 5},
    ]
    stats = [_entry("grpc", num_failures=2), _entry("http", num_failures=5)]
    load = read_results(_write(tmp_path, stats=stats, errors=errors))
    assert load.failures == 7
    assert load.errors == (("InvalidInput('too long')", 5), ("Overloaded('queue full')", 2))
    assert not load.passed


def test_an_error_of_the_users_own_code_fails_the_run(tmp_path: Path) -> None:
    load = read_results(_write(tmp_path, crashes=[{"error": "KeyError: 'x'", "occurrences": 1}]))
    assert load.failures == 0
    assert load.errors == (("KeyError: 'x'", 1),)
    assert not load.passed


def test_a_run_without_requests_has_not_passed(tmp_path: Path) -> None:
    load = read_results(_write(tmp_path, stats=[]))
    assert load.protocols == ()
    assert not load.passed


def test_one_request_has_no_rate(tmp_path: Path) -> None:
    entry = _entry(
        "grpc", num_requests=1, start_time=5.0, last_request_timestamp=5.0, response_times={"7": 1}
    )
    (result,) = read_results(_write(tmp_path, stats=[entry])).protocols
    assert (result.requests_per_s, result.p50_ms, result.p99_ms) == (0.0, 7.0, 7.0)


def test_a_missing_file_says_that_the_run_did_not_end(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ner\.json is missing: the load test did not come to its end"):
        read_results(tmp_path / "ner.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"stats": [{}], "errors": [], "crashes": []}', "null"])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ner.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"ner\.json holds no results of a load test"):
        read_results(path)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 100))
def test_percentile_is_the_nearest_rank(values: list[int], percent: int) -> None:
    counts = {float(value): values.count(value) for value in values}
    rank = -(-percent * len(values) // 100)
    assert percentile(counts, percent / 100) == sorted(values)[rank - 1]


@pytest.mark.parametrize(("counts", "share"), [({}, 0.5), ({1.0: 0}, 0.5), ({1.0: 1}, 0.0), ({1.0: 1}, 1.5)])
def test_percentile_of_nothing(counts: dict[float, int], share: float) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile(counts, share)


@given(st.floats(0.01, 1e6))
def test_rounding_errs_by_half_a_percent_at_most(time_ms: float) -> None:
    assert round_response_time(time_ms) == pytest.approx(time_ms, rel=0.005001)


def test_rounding_leaves_few_values() -> None:
    assert len({round_response_time(tenths / 10) for tenths in range(10, 100_000)}) < 4000
