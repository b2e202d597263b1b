"""Quality figures, computed by scikit-learn and seqeval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from seqeval.metrics import f1_score as entity_f1_score
from seqeval.metrics import precision_score as entity_precision_score
from seqeval.metrics import recall_score as entity_recall_score
from sklearn.metrics import accuracy_score, f1_score


def text_metrics(truth: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """Accuracy and macro F1 of one label a text; both arrays ``[N]`` of label ids."""
    return {
        "accuracy": float(accuracy_score(truth, chosen)),
        "macro_f1": float(f1_score(truth, chosen, average="macro", zero_division=0)),
    }


def token_metrics(truth: Sequence[Sequence[str]], chosen: Sequence[Sequence[str]]) -> dict[str, float]:
    """Entity precision, recall and F1 (an entity counts when type and both ends are right), and the
    accuracy of single tags. One list of BIO tags a sentence."""
    flat_truth = [tag for sentence in truth for tag in sentence]
    flat_chosen = [tag for sentence in chosen for tag in sentence]
    return {
        "entity_precision": float(entity_precision_score(truth, chosen, zero_division=0)),
        "entity_recall": float(entity_recall_score(truth, chosen, zero_division=0)),
        "entity_f1": float(entity_f1_score(truth, chosen, zero_division=0)),
        "tag_accuracy": float(accuracy_score(flat_truth, flat_chosen)),
    }
