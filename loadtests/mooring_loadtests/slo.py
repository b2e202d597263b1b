"""Whether a load test kept its bounds."""

from __future__ import annotations

from dataclasses import dataclass

from mooring_loadtests.load_profile import Slo
from mooring_loadtests.load_result import LoadResult
from mooring_loadtests.load_statistics import Estimate

_LEAST = {"min_throughput": "throughput"}


@dataclass(frozen=True, kw_only=True)
class Bound:
    """One bound and how it went."""

    #: As in the profile, such as ``p99_ms``.
    name: str
    limit: float
    figure: Estimate

    @property
    def kept(self) -> bool:
        """Whether the figure itself keeps the bound."""
        if self.name in _LEAST:
            return self.figure.value >= self.limit
        return self.figure.value <= self.limit

    @property
    def sure(self) -> bool:
        """Whether the limit lies outside the figure's confidence interval."""
        low, high = self.figure.low, self.figure.high
        return low is not None and high is not None and not low <= self.limit <= high


def bounds(result: LoadResult) -> list[Bound]:
    """Every bound of the profile, held against the stages that count.

    Raises:
        DataError: nothing was sent in them.
    """
    figures = result.figures()
    return [
        Bound(name=name, limit=limit, figure=figures[_LEAST.get(name, name)])
        for name in Slo.model_fields
        if (limit := getattr(result.profile.slo, name)) is not None
    ]
