"""Quality figures, computed by scikit-learn and seqeval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from seqeval.metrics import f1_score as entity_f1_score
from seqeval.metrics import precision_score as entity_precision_score
from seqeval.metrics import recall_score as entity_recall_score
from sklearn.metrics import accuracy_score, classification_report, f1_score


def label_metrics(
    truth: Sequence[Any] | np.ndarray,
    chosen: Sequence[Any] | np.ndarray,
    labels: Sequence[Any] | None = None,
) -> dict[str, float]:
    """Accuracy and macro F1 of one label an example.

    Args:
        truth: ``[N]``, labels or label ids.
        chosen: ``[N]``.
        labels: what else was chosen is wrong, but no class of the macro average; ``None``: everything is one.
    """
    occurring = {*truth, *chosen}
    shown = None if labels is None else [label for label in labels if label in occurring]
    return {
        "accuracy": float(accuracy_score(truth, chosen)),
        "macro_f1": float(f1_score(truth, chosen, labels=shown, average="macro", zero_division=0)),
    }


def heads_metrics(
    truth: Mapping[str, Sequence[str]],
    chosen: Mapping[str, Sequence[str]],
    labels: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Means over heads of their accuracies and macro F1, then each head's own; ``[N]`` by head, and the
    labels of each."""
    by_head = {name: label_metrics(truth[name], chosen[name], labels[name]) for name in truth}
    means = {
        figure: sum(metrics[figure] for metrics in by_head.values()) / max(1, len(by_head))
        for figure in ("accuracy", "macro_f1")
    }
    return means | {
        f"{name}_{figure}": value for name, metrics in by_head.items() for figure, value in metrics.items()
    }


def token_metrics(truth: Sequence[Sequence[str]], chosen: Sequence[Sequence[str]]) -> dict[str, float]:
    """Entity precision, recall and F1 (an entity counts when type and both ends are right), and the averages
    of F1 over single tags, ``O`` among them. One list of BIO tags a sentence.

    One tag a token makes the micro average the share of right tags.
    """
    tags, guesses = list(chain(*truth)), list(chain(*chosen))
    averages = {
        f"token_{average}_f1": float(f1_score(tags, guesses, average=average, zero_division=0))
        for average in ("micro", "macro", "weighted")
    }
    return {
        "entity_precision": float(entity_precision_score(truth, chosen, zero_division=0)),
        "entity_recall": float(entity_recall_score(truth, chosen, zero_division=0)),
        "entity_f1": float(entity_f1_score(truth, chosen, zero_division=0)),
        **averages,
    }


def label_report(
    truth: Sequence[str], chosen: Sequence[str], labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of each label that occurs, then their micro, macro and weighted
    averages."""
    shown = [label for label in labels if label in {*truth, *chosen}]
    # By the names of scikit-learn's own rows a label may be called, too.
    rows = {label: f"label {label}" for label in shown}
    report = classification_report(
        truth, chosen, labels=shown, target_names=[*rows.values()], output_dict=True, zero_division=0
    )
    # With every label among those asked for, scikit-learn calls the micro average accuracy.
    micro = report.pop("accuracy", None)
    if micro is not None:
        total = report["macro avg"]["support"]
        report["micro avg"] = {"precision": micro, "recall": micro, "f1-score": micro, "support": total}
    rows |= {average: average for average in ("micro avg", "macro avg", "weighted avg")}
    return {
        name: {figure: float(value) for figure, value in report[row].items()} for name, row in rows.items()
    }


def heads_report(
    truth: Mapping[str, Sequence[str]],
    chosen: Mapping[str, Sequence[str]],
    labels: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, float]]:
    """The reports of all heads, arguments as of :func:`heads_metrics`; a row is called ``head: label``."""
    return {
        f"{name}: {row}": figures
        for name, right in truth.items()
        for row, figures in label_report(right, chosen[name], labels[name]).items()
    }


def format_report(report: dict[str, dict[str, float]]) -> list[str]:
    """The report as lines of a table."""
    width = max(map(len, report))
    lines = [f"{'':<{width}}  precision  recall     F1  support"]
    for label, row in report.items():
        figures = f"{row['precision']:9.3f}  {row['recall']:6.3f}  {row['f1-score']:5.3f}"
        lines.append(f"{label:<{width}}  {figures}  {row['support']:7.0f}")
    return lines


def ranking_metrics(ranks: Sequence[int | None]) -> dict[str, float]:
    """How high the one right item stands. With one right item the ideal gain is 1, so NDCG is
    ``1 / log2(rank + 2)``.

    Args:
        ranks: of each query, place of the right item from 0; ``None`` where it is not in the ranking.
    """
    found = [rank for rank in ranks if rank is not None]
    count = max(1, len(ranks))
    return {
        "hit_at_1": sum(rank == 0 for rank in found) / count,
        "mrr": sum(1 / (rank + 1) for rank in found) / count,
        "ndcg_at_10": sum(float(1 / np.log2(rank + 2)) for rank in found if rank < 10) / count,
        "recall_at_50": sum(rank < 50 for rank in found) / count,
    }
