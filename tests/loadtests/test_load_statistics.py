from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from load_results import load_result
from mooring_loadtests.load_profile import Stage
from mooring_loadtests.load_statistics import Estimate, figures, percentile, wilson
from mooring_loadtests.recorder import Second


def _second(*latencies_ms: float, failures: int = 0, answers: int | None = None) -> Second:
    return Second(
        latencies_ms=Counter(latencies_ms),
        failures_ms=Counter({1.0: failures}) if failures else Counter(),
        answers=len(latencies_ms) if answers is None else answers,
    )


@pytest.mark.parametrize(
    ("share", "value"), [(0.01, 1.0), (0.5, 50.0), (0.501, 51.0), (0.99, 99.0), (0.991, 100.0), (1.0, 100.0)]
)
def test_a_percentile_is_the_nearest_rank(share: float, value: float) -> None:
    assert percentile(dict.fromkeys(map(float, range(1, 101)), 1), share) == value


def test_percentiles_count_repeated_values() -> None:
    assert percentile({3.0: 1, 1.0: 98, 2.0: 1}, 0.98) == 1.0
    assert percentile({3.0: 1, 1.0: 98, 2.0: 1}, 0.99) == 2.0


@pytest.mark.parametrize(("counts", "share"), [({}, 0.5), ({1.0: 0}, 0.5), ({1.0: 1}, 0.0), ({1.0: 1}, 1.1)])
def test_nothing_has_no_percentile(counts: dict[float, int], share: float) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile(counts, share)


def test_figures_by_hand() -> None:
    stage = [_second(10.0, 20.0), _second(30.0, failures=1), _second(answers=2), _second(40.0)]
    measured = figures([stage]).values
    assert measured == {
        "p50_ms": 30.0,
        "p95_ms": math.inf,
        "p99_ms": math.inf,
        "mean_ms": 25.0,
        "throughput": 6 / 4,
        "error_rate": 1 / 5,
    }


def test_figures_are_the_percentiles_of_all_latencies() -> None:
    random = np.random.default_rng(1)
    latencies = [np.round(random.lognormal(2, 1, random.integers(0, 60)), 2) for _ in range(47)]
    measured = figures([[_second(*second) for second in latencies]])
    every = np.concatenate(latencies)
    assert measured.requests == len(every)
    for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)):
        assert measured.values[name] == np.quantile(every, share, method="inverted_cdf")
        assert measured.values[name] == percentile(Counter(every), share)
    assert measured.values["mean_ms"] == pytest.approx(every.mean())


def test_where_nothing_was_answered_every_latency_is_infinite() -> None:
    estimates = figures([[_second(failures=40) for _ in range(12)]]).estimates()
    for name in ("p50_ms", "p95_ms", "p99_ms", "mean_ms"):
        assert estimates[name] == Estimate(value=math.inf, low=math.inf, high=math.inf)
    assert estimates["throughput"] == Estimate(value=0.0, low=0.0, high=0.0)


def test_an_interval_may_end_among_failures() -> None:
    # One second of 30 fails, which is just beyond the percentile: some draws have it, others don't.
    stage = [_second(*map(float, range(1, 41)), failures=60 * (number == 7)) for number in range(30)]
    p95 = figures([stage]).estimates()["p95_ms"]
    assert p95.value == 40.0
    assert p95.low is not None
    assert math.isfinite(p95.low)
    assert p95.high == math.inf


def test_nothing_sent_has_no_figures() -> None:
    with pytest.raises(ValueError, match="without requests"):
        figures([[_second(), _second(answers=3)]])


def test_a_short_run_has_no_interval() -> None:
    stage = [_second(*map(float, range(1, 101))) for _ in range(9)]
    assert figures([stage]).estimates()["p50_ms"] == Estimate(value=50.0)
    assert figures([[*stage, stage[0]]]).estimates()["p50_ms"].low is not None
    # A second by itself says nothing of how much its stage varies.
    assert figures([stage, [stage[0]]]).estimates()["p50_ms"] == Estimate(value=50.0)


def test_a_short_stage_takes_no_interval_from_the_others() -> None:
    long, short = ([_second(*map(float, range(1, 11))) for _ in range(count)] for count in (300, 10))
    estimate = figures([long, short, long]).estimates()["p50_ms"]
    assert estimate.low is not None


def test_a_percentile_that_no_request_may_have_reached_has_no_interval() -> None:
    # 0.99 ** 367 is 2.5 %: so likely all of 367 requests lie below the 99th percentile.
    few, enough = ([_second(*[1.0, 2.0] * count) for _ in range(20)] for count in (9, 10))
    assert figures([few]).estimates()["p99_ms"] == Estimate(value=2.0)
    assert figures([few]).estimates()["p95_ms"].low is not None
    assert figures([enough]).estimates()["p99_ms"].low is not None


def test_stages_are_drawn_by_themselves() -> None:
    slow, fast = ([_second(value, value) for _ in range(30)] for value in (100.0, 1.0))
    # Each stage is the same all the time, so nothing varies between repetitions of the run.
    apart = figures([slow, fast]).estimates()["mean_ms"]
    assert (apart.value, apart.low, apart.high) == pytest.approx((50.5, 50.5, 50.5))
    mixed = figures([[*slow, *fast]]).estimates()["mean_ms"]
    assert mixed.low is not None
    assert mixed.low < 40


def test_a_stage_has_no_short_block_that_stands_for_the_whole() -> None:
    fast, slow = [_second(1.0)] * 600, [_second(100.0)] * 41
    # Each stage is the same all the time, and so are repetitions of the run.
    mean = figures([fast, slow]).estimates()["mean_ms"]
    assert (mean.low, mean.high) == pytest.approx((mean.value, mean.value), rel=0.05)


def test_no_failure_seen_does_not_mean_that_none_will_come() -> None:
    errors = figures([[_second(1.0) for _ in range(100)]]).estimates()["error_rate"]
    assert (errors.value, errors.low) == (0.0, 0.0)
    assert errors.high == pytest.approx(0.0370, abs=1e-4)


def test_failures_that_come_together_make_a_wider_interval() -> None:
    spread = [_second(*[1.0] * 19, failures=1) for _ in range(60)]
    together = [
        _second(*[1.0] * (0 if number < 3 else 20), failures=20 * (number < 3)) for number in range(60)
    ]
    widths = []
    for stage in (spread, together):
        errors = figures([stage]).estimates()["error_rate"]
        assert errors.value == 0.05
        assert errors.low is not None
        assert errors.high is not None
        widths.append(errors.high - errors.low)
    # Independent ones: as wide as Wilson's.
    assert widths[0] == pytest.approx(np.diff(wilson(0.05, 1200))[0])
    assert widths[1] > 3 * widths[0]


def test_wilson() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_draws_repeat() -> None:
    stages = [[_second(float(number)) for number in range(40)]]
    first, again, other = figures(stages), figures(stages), figures(stages, seed=1)
    assert np.array_equal(first.draws["mean_ms"], again.draws["mean_ms"])
    assert not np.array_equal(first.draws["mean_ms"], other.draws["mean_ms"])
    assert first.draws["mean_ms"].shape == (1000,)


def test_intervals_hold_what_they_should() -> None:
    """The median and the mean of a queue at half load, against the figures of a run of 20 minutes."""
    truth = load_result(seed=999, stages=[Stage(seconds=1200)], rate=25.0, service_ms=20.0).figures()
    runs = [
        load_result(
            seed=seed, arrivals=seed, stages=[Stage(seconds=40)], rate=25.0, service_ms=20.0
        ).figures()
        for seed in range(60)
    ]
    for name in ("p50_ms", "mean_ms"):
        held = sum(run[name].low <= truth[name].value <= run[name].high for run in runs)
        # 95 % of 60 are 57; fewer than 49 would be a chance of 1 in 1,000.
        assert held >= 49, name
        # Too wide is wrong too.
        width = np.mean([run[name].high - run[name].low for run in runs])
        spread = np.std([run[name].value for run in runs])
        assert width < 5.5 * spread, name
