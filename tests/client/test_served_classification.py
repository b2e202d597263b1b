"""Logits to ranked labels."""

from __future__ import annotations

import numpy as np
import pytest

from mooring._served.classification import rank_labels


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
