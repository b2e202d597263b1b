"""Two sides timed in turns: what disturbs the machine meets both, and the ratio of each pair is left."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass

#: Lets each of a side's workers do so many requests, and returns how long that took in seconds.
Side = Callable[[int], float]

#: Requests of each worker before anything is timed.
_WARM_UP = 32


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Throughput of one side over that of the other."""

    #: One a pair, in the order of the run.
    ratios: tuple[float, ...]
    #: Median throughputs, in requests per second.
    sdk_per_s: float
    bare_per_s: float

    @property
    def ratio(self) -> float:
        """The median ratio."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between these lies the middle half of the ratios."""
        if len(self.ratios) == 1:
            return self.ratios[0], self.ratios[0]
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high


def compare(sdk: Side, bare: Side, *, workers: int, pairs: int, slice_s: float) -> Comparison:
    """Time both sides in turns: sdk, bare, bare, sdk, and so on.

    Both do equally many requests in every turn, as many as the slower one does in ``slice_s``. Garbage is
    collected before each turn, and left to the interpreter within it.

    Args:
        sdk: the one side.
        bare: the other one.
        workers: how many threads or coroutines each side has.
        pairs: turns of each side.
        slice_s: length of a turn, in seconds.
    """
    for side in (sdk, bare):
        side(_WARM_UP)
    slower_s = max(side(_WARM_UP) for side in (sdk, bare))
    requests = max(1, round(_WARM_UP * slice_s / slower_s))
    sdk_s: list[float] = []
    bare_s: list[float] = []
    turns = [(sdk, sdk_s), (bare, bare_s)]
    for _ in range(pairs):
        for side, times_s in turns:
            gc.collect()
            times_s.append(side(requests))
        turns.reverse()
    done = requests * workers
    return Comparison(
        ratios=tuple(bare / sdk for sdk, bare in zip(sdk_s, bare_s, strict=True)),
        sdk_per_s=done / statistics.median(sdk_s),
        bare_per_s=done / statistics.median(bare_s),
    )
