"""The monitor's statistics against exact arithmetic and hand-made figures."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest

from mooring._monitor.rule import concentration, estimate_correlation
from mooring.monitor import surge_p_value


def fisher(texts: int, negatives: int, baseline_texts: int, baseline_negatives: int) -> float:
    """One-sided, from the definition: the hypergeometric tail given all totals."""
    total, marked = texts + baseline_texts, negatives + baseline_negatives
    ways = sum(
        math.comb(marked, k) * math.comb(total - marked, texts - k)
        for k in range(negatives, min(texts, marked) + 1)
    )
    return float(Fraction(ways, math.comb(total, texts)))


def p_value(
    texts: int, negatives: int, baseline_texts: int, baseline_negatives: int, **options: float
) -> float:
    return surge_p_value(
        texts=texts,
        negatives=negatives,
        baseline_texts=baseline_texts,
        baseline_negatives=baseline_negatives,
        **options,
    )


def test_independent_texts_give_fishers_exact_test() -> None:
    draw = random.Random(4)
    for _ in range(300):
        texts, baseline = draw.randint(1, 80), draw.randint(1, 400)
        table = (texts, draw.randint(0, texts), baseline, draw.randint(0, baseline))
        assert p_value(*table) == pytest.approx(fisher(*table), rel=1e-8, abs=1e-12), table


def test_a_p_value_that_can_be_worked_out_by_hand() -> None:
    # 3 of 3 against 0 of 3: one of the 20 ways to choose 3 of 6.
    assert p_value(3, 3, 3, 0) == pytest.approx(1 / 20)
    assert p_value(3, 0, 3, 0) == 1
    assert p_value(3, 3, 3, 3) == 1


def test_large_counts_neither_overflow_nor_vanish() -> None:
    # 200000 texts at 10 %: six standard deviations above, by the normal approximation, which is rough there.
    deviation = math.sqrt(0.1 * 0.9 * 200_000 * (1 + 200_000 / 10_000_000))
    found = p_value(200_000, round(20_000 + 6 * deviation), 10_000_000, 1_000_000)
    assert found == pytest.approx(math.erfc(6 / math.sqrt(2)) / 2, rel=0.5)
    assert p_value(200_000, 15_000, 10_000_000, 1_000_000) == 1
    assert p_value(200_000, 200_000, 10_000_000, 1_000_000) == 0


def test_a_weaker_baseline_makes_surges_less_surprising() -> None:
    values = [p_value(40, 15, 2000, 250, concentration=m) for m in (2000.0, 200.0, 50.0, 10.0)]
    assert values == sorted(values)
    assert values[0] == p_value(40, 15, 2000, 250)
    assert values[-1] > 100 * values[0]


def test_a_p_value_falls_with_every_negative_text() -> None:
    for strength in (None, 33.3):
        values = [
            p_value(30, x, 500, 60, **({} if strength is None else {"concentration": strength}))
            for x in range(31)
        ]
        assert values == sorted(values, reverse=True)
        assert values[0] == 1


def test_windows_that_differ_as_chance_lets_them_have_no_correlation() -> None:
    assert estimate_correlation([(10, 1)] * 8) == 0
    assert estimate_correlation([]) == 0
    assert estimate_correlation([(0, 0), (5, 2)]) == 0
    assert estimate_correlation([(10, 10), (10, 10)]) == 0


def test_correlation_by_hand() -> None:
    # share 1/2; chi2 = 4 * (2**2 / 2.5) = 6.4; (6.4 - 3) / (4 * 9 * 3/4)
    assert estimate_correlation([(10, 3), (10, 7), (10, 3), (10, 7)]) == pytest.approx(3.4 / 27)
    assert estimate_correlation([(10, 0), (10, 10)]) == 0.99


def test_correlation_is_found_again() -> None:
    draw = random.Random(2)
    windows = []
    for _ in range(4000):
        share, texts = draw.betavariate(0.9, 8.1), draw.randint(5, 60)  # correlation 1 / (0.9 + 8.1 + 1)
        windows.append((texts, sum(draw.random() < share for _ in range(texts))))
    assert estimate_correlation(windows) == pytest.approx(0.1, abs=0.01)


def test_concentration_by_hand() -> None:
    windows = [(10, 1), (0, 0), (30, 3)]
    assert concentration(20, windows, 0.0) == pytest.approx(40)
    # Inflation of the baseline: (10 * (1 + 9 r) + 30 * (1 + 29 r)) / 40 with r = 0.1.
    expected = 1 / (19 / 20 * 0.1 + (10 * 1.9 + 30 * 3.9) / 40 / 40)
    assert concentration(20, windows, 0.1) == pytest.approx(expected)


def binomial(texts: int, share: float) -> list[float]:
    """Probability of each number of negatives."""
    return [math.comb(texts, k) * share**k * (1 - share) ** (texts - k) for k in range(texts + 1)]


@pytest.mark.parametrize("share", [0.02, 0.125, 0.5])
def test_the_level_is_kept_whatever_the_share_is(share: float) -> None:
    """Over all windows and baselines, by their probabilities; comparing with the share itself breaks it."""
    texts, baseline, level = 20, 60, 0.01
    kept = broken = 0.0
    for y, probability in enumerate(binomial(baseline, share)):
        tail = binomial(texts, y / baseline)
        for x, of_window in enumerate(binomial(texts, share)):
            kept += probability * of_window * (p_value(texts, x, baseline, y) <= level)
            broken += probability * of_window * (math.fsum(tail[x:]) <= level)
    assert 0 < kept <= level
    assert broken > level
