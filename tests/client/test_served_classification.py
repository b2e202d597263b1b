"""Logits to ranked labels."""

from __future__ import annotations

import numpy as np
import pytest

from mooring._served.classification import Acceptance, rank_labels


def test_labels_are_ranked_by_probability() -> None:
    logits = np.log(np.array([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]], np.float32))
    order, scores = rank_labels(logits, top_k=2)
    assert order.tolist() == [[1, 2], [0, 2]]
    assert scores == pytest.approx(np.array([[0.5, 0.3], [0.7, 0.2]]))
    assert scores.dtype == np.float32


def test_no_more_labels_than_there_are() -> None:
    order, scores = rank_labels(np.array([[1.0, 2.0]]), top_k=5)
    assert order.tolist() == [[1, 0]]
    assert scores.sum() == pytest.approx(1)


def test_equal_labels_keep_their_order() -> None:
    assert rank_labels(np.zeros((1, 4)), top_k=4)[0].tolist() == [[0, 1, 2, 3]]


def test_acceptance_is_the_share_of_known_texts_that_are_no_surer() -> None:
    acceptance = Acceptance([1.0, 2.0, 2.0, 4.0])
    # Their probabilities say the same in each row; the sums of their exponentials do not.
    logits = np.log(np.array([[1, 1], [1.5, 1.5], [4, 4], [10, 10], [50, 50]], np.float32))
    answers = acceptance(logits)
    assert answers.tolist() == [[0.0], [0.25], [0.75], [0.75], [1.0]]
    assert answers.dtype == np.float32


def test_a_threshold_of_one_twentieth_refuses_as_many_known_texts() -> None:
    known = np.sort(np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32).max(axis=1))
    acceptance = Acceptance(known.tolist())
    assert (acceptance(known[:, None]) >= np.float32(0.05)).mean() == pytest.approx(0.95, abs=0.002)
