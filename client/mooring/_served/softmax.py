"""Logits to probabilities."""

from __future__ import annotations

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis, in the logits' shape and as float32.

    The largest logit of each row is taken off first, so that no exponential overflows.
    """
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float32)
    probabilities: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities
