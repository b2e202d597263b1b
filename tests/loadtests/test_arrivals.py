from __future__ import annotations

from itertools import pairwise

import pytest

from mooring_loadtests.arrivals import arrival_times
from mooring_loadtests.load_profile import Span

SPANS = (
    Span(start_s=0, end_s=10, amount=20.0, measured=False),
    Span(start_s=10, end_s=30, amount=100.0, measured=True),
)


def _times(arrivals: str, *, sources: int = 1, seed: str = "0") -> list[float]:
    return sorted(
        time
        for source in range(sources)
        for time in arrival_times(SPANS, arrivals=arrivals, seed=seed, source=source, sources=sources)
    )


@pytest.mark.parametrize("sources", [1, 3])
def test_constant_arrivals_keep_the_rate_of_each_stage(sources: int) -> None:
    times = _times("constant", sources=sources)
    assert len(times) == 200 + 2000
    gaps = {round(after - before, 6) for before, after in pairwise(time for time in times if time < 10)}
    assert gaps == {0.05}
    gaps = {round(after - before, 6) for before, after in pairwise(time for time in times if time > 10)}
    assert gaps == {0.01}


@pytest.mark.parametrize("sources", [1, 4])
def test_poisson_arrivals_have_the_rate_and_the_spread(sources: int) -> None:
    times = _times("poisson", sources=sources)
    counts = [sum(second <= time < second + 1 for time in times) for second in range(10, 30)]
    mean = sum(counts) / len(counts)
    # 2,000 expected: four standard deviations.
    assert abs(sum(counts) - 2000) < 4 * 2000**0.5
    variance = sum((count - mean) ** 2 for count in counts) / (len(counts) - 1)
    # A Poisson count's variance is its mean; the 0.1 % quantiles of chi-squared with 19 degrees over 19.
    assert 0.28 < variance / mean < 2.31
    assert all(0 <= time < 30 for time in times)


def test_the_seed_makes_the_times() -> None:
    assert _times("poisson", seed="7") == _times("poisson", seed="7")
    assert _times("poisson", seed="7") != _times("poisson", seed="8")
    one, other = (
        list(arrival_times(SPANS, arrivals="poisson", seed="7", source=s, sources=2)) for s in (0, 1)
    )
    assert set(one).isdisjoint(other)
