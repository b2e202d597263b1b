"""Sequence logits to ranked labels, and to whether the text fits one at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .softmax import softmax


def confidence(logits: np.ndarray) -> np.ndarray:
    """How strongly the logits ``[B, labels]`` speak for any label at all, ``[B]``: their log-sum-exp.

    Unlike the largest probability, it is not raised where all other labels are just as far off (the energy
    score of Liu et al., 2020, arXiv:2010.03759).
    """
    largest = logits.max(axis=-1)
    energy: np.ndarray = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=-1))
    return energy


class Acceptance:
    """How surely a text is one that the classifier knows a label for.

    Args:
        confidences: :func:`confidence` of texts that are in scope, rising.
    """

    def __init__(self, confidences: Sequence[float]) -> None:
        self._confidences = np.asarray(confidences, dtype=np.float32)

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Share of the texts in scope that the classifier is no surer of, ``[B, 1]`` float32.

        So a threshold of 0.05 refuses about 5 % of what is in scope, whatever the classifier.
        """
        places = np.searchsorted(self._confidences, confidence(logits), side="right")
        return (places / len(self._confidences)).astype(np.float32)[:, None]


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
