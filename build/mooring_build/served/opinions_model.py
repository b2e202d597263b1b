"""Triton entry point of ``<name>_joiner`` for opinion monitoring: ranked labels in, the best of each out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

# From the name that the ranked labels have among the pipeline's tensors to that of the best one.
_BEST = {
    "topic_labels": "topic",
    "topic_scores": "topic_score",
    "sentiment_labels": "sentiment",
    "sentiment_scores": "sentiment_score",
}


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        tensors = []
        for ranked, best in _BEST.items():
            array = pb_utils.get_input_tensor_by_name(request, ranked).as_numpy()  # [B, K], best first
            tensors.append(pb_utils.Tensor(best, array[:, :1].copy()))
        return pb_utils.InferenceResponse(tensors)
