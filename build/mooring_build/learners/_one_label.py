"""Scores of tasks with one label an example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import EvalPrediction

from mooring_build.metrics import label_metrics, label_report


def label_scores(labels: Sequence[str]) -> dict[str, Callable[[EvalPrediction], Any]]:
    """``metrics`` and ``report`` of a :class:`~mooring_build.learners.Lesson` whose model gives logits
    ``[N, labels]``."""

    def read(prediction: EvalPrediction) -> tuple[list[str], list[str]]:
        chosen = np.asarray(prediction.predictions).argmax(-1)
        return [labels[i] for i in np.asarray(prediction.label_ids)], [labels[i] for i in chosen]

    return {
        "metrics": lambda prediction: label_metrics(*read(prediction)),
        "report": lambda prediction: label_report(*read(prediction), labels),
    }
