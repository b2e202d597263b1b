"""Intervals of a mean and of a share over templates and fills, which are not independent of one another.

A table ``[T, F]`` has a row for each template and a column for each fill. Cells of a row share their
template, cells of a column their name, so ``T * F`` cells say less than as many independent ones. The
variance of the mean adds up what rows and columns contribute and takes off what both count (Cameron, Gelbach
and Miller, "Robust Inference With Multiway Clustering", 2011). Student's t with the degrees of freedom of the
shorter side rather than a bootstrap: a bootstrap over a dozen clusters gives intervals that are too narrow,
needs a seed and costs thousands of resamples, and the mean over clusters is near enough to normal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def estimate_mean(table: np.ndarray) -> Estimate:
    """Mean of a table ``[T, F]`` of at least two cells."""
    variance, freedom = _variance_of_mean(table)
    mean = float(table.mean())
    reach = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return Estimate(value=mean, low=mean - reach, high=mean + reach)


def estimate_share(table: np.ndarray, count: int) -> Estimate:
    """Wilson's interval of a share.

    Args:
        table: ``[T, F]``, shares of each cell's own events, 0 to 1.
        count: events in all. They count as fewer by the design effect: how many times larger the variance
            of the mean is than that of independent events. Where all or no events happened, nothing shows
            how they hang together, and they count in full.
    """
    share = float(table.mean())
    independent = share * (1 - share) / count
    effect = max(1.0, _variance_of_mean(table)[0] / independent) if independent > 1e-12 else 1.0
    size = count / effect
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    centre = (share + z * z / (2 * size)) / (1 + z * z / size)
    reach = z / (1 + z * z / size) * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return Estimate(value=share, low=max(0.0, centre - reach), high=min(1.0, centre + reach))


def _variance_of_mean(table: np.ndarray) -> tuple[float, int]:
    """Variance of the mean, and its degrees of freedom."""
    rows, columns = table.shape
    by_row = float(table.mean(axis=1).var(ddof=1)) / rows if rows > 1 else 0.0
    by_column = float(table.mean(axis=0).var(ddof=1)) / columns if columns > 1 else 0.0
    if rows == 1 or columns == 1:
        return max(by_row, by_column), max(rows, columns) - 1
    by_cell = float(table.var(ddof=1)) / table.size
    # The difference can fall below what one side alone says, by chance.
    return max(by_row + by_column - by_cell, by_row, by_column), min(rows, columns) - 1
