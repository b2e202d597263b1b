from __future__ import annotations

import numpy as np
import pytest

from mooring import Entity, Label
from mooring_loadtests.answers import AnswerPair, same

LISBON = Entity(label="LOC", score=0.9, start=6, end=12, text="Lisbon")


def _agree(grpc: list[Entity] | list[Label], http: list[Entity] | list[Label]) -> bool:
    return AnswerPair(text="About Lisbon", grpc=grpc, http=http).agree


def test_the_same_answers_agree() -> None:
    assert _agree([], [])
    assert _agree([LISBON], [Entity(label="LOC", score=0.90005, start=6, end=12, text="Lisbon")])
    assert _agree([Label(label="a", score=0.7)], [Label(label="a", score=0.7)])


@pytest.mark.parametrize(
    "other",
    [
        [],
        [LISBON, LISBON],
        [Entity(label="PER", score=0.9, start=6, end=12, text="Lisbon")],
        [Entity(label="LOC", score=0.9, start=5, end=12, text=" Lisbon")],
        [Entity(label="LOC", score=0.9, start=6, end=11, text="Lisbo")],
        [Entity(label="LOC", score=0.8, start=6, end=12, text="Lisbon")],
    ],
)
def test_a_difference_is_seen(other: list[Entity]) -> None:
    assert not _agree([LISBON], other)
    assert not _agree(other, [LISBON])


def test_labels_differ_by_order_and_score() -> None:
    a, b = Label(label="a", score=0.5), Label(label="b", score=0.5)
    assert not _agree([a, b], [b, a])
    assert not _agree([a], [Label(label="a", score=0.501)])


def test_answers_are_the_same_within_rounding() -> None:
    one, close, far = (Label(label="a", score=score) for score in (0.5, 0.50005, 0.502))
    assert same([one], [close])
    assert not same([one], [far])
    assert not same([one], [one, one])
    assert same({"head": [one]}, {"head": [close]})
    assert not same({"head": [one]}, {"tail": [one]})
    assert same(np.array([1.0, 2.0]), np.array([1.0, 2.00001]))
    assert not same("a", "b")
