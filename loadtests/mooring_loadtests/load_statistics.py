"""Figures of a load test with their confidence intervals.

Latencies of neighbouring requests depend on each other (they queue behind one another), so intervals come
from a block bootstrap: whole stretches of the run are drawn with replacement, not single requests (Künsch,
"The jackknife and the bootstrap for general stationary observations", Annals of Statistics 17, 1989). They
are drawn stage by stage, as every repetition of the run would have the same stages.

An interval knows only what happened within the run. Events that are rarer than a few in a run are missing
from it: with a server at 80 % of its capacity, the interval of a minute's p99 is too narrow by far.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mooring_loadtests.recorder import Second

#: Stretches that a run is cut into; each is a second at least.
_BLOCKS = 30
#: With fewer there is no interval.
_FEWEST_BLOCKS = 10
_DRAWS = 1000
_LEVEL = 0.95
#: Of the normal distribution, for ``_LEVEL``.
_Z = 1.959964
PERCENTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
#: What is known of a run, in the order in which it is told.
FIGURES = (*PERCENTILES, "mean_ms", "throughput", "error_rate")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and its 95 % confidence interval."""

    value: float
    #: ``None`` where the run was too short for an interval.
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Bootstrap draws of each figure, ``[1000]``, and the figure itself."""

    values: Mapping[str, float]
    #: Without the figures for which the run was too short.
    draws: Mapping[str, np.ndarray]
    #: Requests behind the figures.
    requests: int

    def estimates(self) -> dict[str, Estimate]:
        """Each figure with its interval."""
        return {name: self._estimate(name) for name in self.values}

    def _estimate(self, name: str) -> Estimate:
        value = self.values[name]
        if name not in self.draws:
            return Estimate(value=value)
        low, high = interval(self.draws[name])
        if name == "error_rate":
            # Draws of a run without failures have none either, which does not make it certain that there
            # never are any.
            least, most = wilson(value, self.requests)
            low, high = min(low, least), max(high, most)
        return Estimate(value=value, low=low, high=high)


def figures(stages: Sequence[Sequence[Second]], *, seed: int = 0) -> Draws:
    """Percentiles and mean of latency, answers a second and share of failures.

    A failed request counts as slower than any that was answered: a server must not look faster because it
    gave up. A percentile that lies among failures is infinite. The mean is that of answered requests, and
    infinite where there is none.

    Args:
        stages: of each stage, one entry a second, also where nothing was sent.
        seed: of the draws.

    Raises:
        ValueError: nothing was sent.
    """
    size = max(1, round(sum(map(len, stages)) / _BLOCKS))
    cut = [_split(stage, size) for stage in stages]
    parts = [part for blocks in cut for part in blocks]
    counts, values = _histograms([together(part) for part in parts])
    requests = int(counts.sum())
    if not requests:
        raise ValueError("no figures of a run without requests")
    answers = np.array([sum(second.answers for second in part) for part in parts], float)
    lengths = np.array([len(part) for part in parts], float)
    whole = _measure(counts.sum(0)[None], answers.sum()[None], lengths.sum()[None], values)
    draws: dict[str, np.ndarray] = {}
    if len(parts) >= _FEWEST_BLOCKS and min(map(len, cut)) > 1:
        times = _draw([len(blocks) for blocks in cut], np.random.default_rng(seed))
        draws = _measure(times @ counts, times @ answers, times @ lengths, values)
        for name, share in PERCENTILES.items():
            if share**requests > (1 - _LEVEL) / 2:
                # Even of independent requests, all of them might lie below the percentile.
                del draws[name]
    return Draws(
        values={name: float(figure[0]) for name, figure in whole.items()}, draws=draws, requests=requests
    )


def interval(draws: np.ndarray) -> tuple[float, float]:
    """95 % interval of what was drawn."""
    shares = [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]
    # Without interpolation, which knows no infinity.
    low, high = np.quantile(draws, shares, method="inverted_cdf")
    return float(low), float(high)


def wilson(share: float, total: int) -> tuple[float, float]:
    """95 % interval of a share of independent events.

    Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American
    Statistical Association 22, 1927.

    Args:
        share: of the events that happened.
        total: events, above 0.
    """
    spread = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    middle, scale = share + _Z**2 / (2 * total), 1 + _Z**2 / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _draw(sizes: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """How often each block is drawn, ``[1000, blocks]``: one fewer than a stage has, made up for by weight.

    With as many as there are, the spread would be too small by a factor of (size - 1) / size (Efron, "The
    jackknife, the bootstrap and other resampling plans", 1982, section 8).
    """
    return np.hstack(
        [
            random.multinomial(size - 1, np.full(size, 1 / size), size=_DRAWS) * (size / (size - 1))
            for size in sizes
        ]
    )


def _histograms(blocks: Sequence[Second]) -> tuple[np.ndarray, np.ndarray]:
    """Requests of each block by latency, ``[blocks, values]``, and the latencies; the last is a failure's."""
    values = np.array([*sorted({value for block in blocks for value in block.latencies_ms}), np.inf])
    place = {value: i for i, value in enumerate(values)}
    counts = np.zeros((len(blocks), len(values)))
    for row, block in zip(counts, blocks, strict=True):
        for value, count in block.latencies_ms.items():
            row[place[value]] = count
        row[-1] = block.failures_ms.total()
    return counts, values


def _measure(
    counts: np.ndarray, answers: np.ndarray, lengths: np.ndarray, values: np.ndarray
) -> dict[str, np.ndarray]:
    """Figures of histograms: ``counts`` ``[N, values]``, the last column failures; the others ``[N]``."""
    requests = counts.sum(1)
    reached = counts.cumsum(1)
    measured = {
        # Nearest rank: the smallest value that so many requests do not exceed. Sums of weights are not exact.
        name: values[(reached >= (share - 1e-12) * requests[:, None]).argmax(1)]
        for name, share in PERCENTILES.items()
    }
    answered = requests - counts[:, -1]
    sums = counts[:, :-1] @ values[:-1]
    measured["mean_ms"] = np.divide(sums, answered, out=np.full(len(sums), np.inf), where=answered > 0.5)
    measured["throughput"] = answers / lengths
    measured["error_rate"] = counts[:, -1] / np.maximum(requests, 1)
    return measured


def _split(seconds: Sequence[Second], size: int) -> list[Sequence[Second]]:
    """Blocks of about so many seconds, all alike, as each is drawn as often as any other.

    A short stage has two, or there would be no interval for all the others.
    """
    length = len(seconds)
    count = max(min(2, length), round(length / size))
    ends = [length * number // count for number in range(count + 1)]
    return [seconds[first:end] for first, end in itertools.pairwise(ends)]


def together(part: Sequence[Second]) -> Second:
    block = Second()
    for second in part:
        block.add(second)
    return block


def percentile(counts: Mapping[float, int], share: float) -> float:
    """Nearest-rank percentile of a histogram: the smallest value such that ``share`` of all are at most it.

    Args:
        counts: number of occurrences by value, not empty.
        share: above 0 and at most 1, such as 0.99.

    Raises:
        ValueError: there is nothing to rank, or ``share`` is no share.
    """
    total = sum(counts.values())
    if total < 1 or not 0 < share <= 1:
        raise ValueError(f"no percentile {share} of {total} values")
    rank = int(np.ceil(share * total))
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= rank:
            break
    return value
