"""The statistical rule: is a window's share of negative texts above the baseline's by more than chance?

The baseline's share is itself an estimate, so the window is not compared with a point but with what the
baseline predicts: the number of negatives among the window's ``n`` texts is taken as beta-binomial,

    X ~ BetaBinomial(n, a = 1 + s M, b = (1 - s) M),    s = baseline's share, M = its concentration,

and the p-value is ``P(X >= negatives)``. Where texts are independent, ``M`` is the baseline's number of
texts, and this p-value is exactly that of Fisher's one-sided test conditional on the totals (the identity
is that of P. M. E. Altham, "Exact Bayesian analysis of a 2x2 contingency table, and Fisher's 'exact'
significance test", J. R. Stat. Soc. B 31 (1969) 261-269). So it holds for every share and any length of the
baseline.

Where the share moves by itself from window to window, texts are correlated; the correlation ``r`` is
estimated from the baseline's own windows by the method of moments of D. A. Williams, "Extra-binomial
variation in logistic linear models", J. R. Stat. Soc. C 31 (1982) 144-148, and makes ``M`` smaller. The
larger of both p-values counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Terms that change the sum by less than this share are left out.
_NEGLIGIBLE = 1e-17
_MOST_CORRELATION = 0.99


def surge_p_value(
    *,
    texts: int,
    negatives: int,
    baseline_texts: int,
    baseline_negatives: int,
    concentration: float | None = None,
) -> float:
    """How probable so many negatives, or more, would be if nothing had changed.

    Args:
        texts: of the window.
        negatives: those of them that are negative.
        baseline_texts: of the baseline, from 1.
        baseline_negatives: those of them that are negative.
        concentration: ``M`` above; ``None`` takes ``baseline_texts``, which is Fisher's exact test.

    Returns:
        The one-sided p-value, 0 to 1.
    """
    share = baseline_negatives / baseline_texts
    strength = baseline_texts if concentration is None else concentration
    a, b = 1 + share * strength, (1 - share) * strength
    if negatives <= 0 or b <= 0:
        return 1.0
    if negatives > texts * a / (a + b):
        return min(1.0, _tail(texts, a, b, negatives))
    return max(0.0, 1 - _tail(texts, b, a, texts - negatives + 1))


def _tail(n: int, a: float, b: float, first: int) -> float:
    """``P(X >= first)`` of a beta-binomial, for a ``first`` above its mean."""
    if first > n:
        return 0.0
    term = math.exp(
        math.lgamma(n + 1)
        - math.lgamma(first + 1)
        - math.lgamma(n - first + 1)
        + _log_beta(first + a, n - first + b)
        - _log_beta(a, b)
    )
    total = term
    for k in range(first, n):
        term *= (n - k) / (k + 1) * (k + a) / (n - k - 1 + b)
        total += term
        if term < total * _NEGLIGIBLE:
            break
    return total


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def estimate_correlation(windows: Sequence[tuple[int, int]]) -> float:
    """Correlation of two texts of the same window, from windows that did not surge.

    Args:
        windows: texts and negatives of each; those without texts count for nothing.

    Returns:
        0 where the windows differ no more than chance lets them.
    """
    windows = [window for window in windows if window[0]]
    texts = sum(n for n, _ in windows)
    negatives = sum(x for _, x in windows)
    weight = sum((n - 1) * (1 - n / texts) for n, _ in windows)
    if negatives in (0, texts) or weight <= 0:
        return 0.0
    share = negatives / texts
    chi2 = sum((x - n * share) ** 2 / (n * share * (1 - share)) for n, x in windows)
    # chi2 is expected to be the sum of (1 - n/texts) (1 + (n - 1) r) over the windows.
    return min(_MOST_CORRELATION, max(0.0, (chi2 - (len(windows) - 1)) / weight))


def concentration(texts: int, windows: Sequence[tuple[int, int]], correlation: float) -> float:
    """``M`` for a window of so many texts, with the correlation in it.

    The share of the window varies around that of the baseline with ``s (1 - s) (1/n + 1/M)``.

    Args:
        texts: of the window.
        windows: texts and negatives of each window of the baseline.
        correlation: of two texts of the same window.
    """
    total = sum(n for n, _ in windows)
    inflation = sum(n * (1 + (n - 1) * correlation) for n, _ in windows) / total
    return 1 / ((texts - 1) / texts * correlation + inflation / total)
