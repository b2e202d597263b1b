"""Sequence logits to ranked labels."""

from __future__ import annotations

import numpy as np

from .softmax import softmax


def rank_labels(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rank the labels of each text.

    Args:
        logits: ``[B, labels]``.
        top_k: how many labels to return, at most all.

    Returns:
        Indices of the labels and their probabilities, best first, ``[B, min(top_k, labels)]`` each;
        equal ones in the labels' order.
    """
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top_k]
    return order, np.take_along_axis(probabilities, order, axis=-1)
