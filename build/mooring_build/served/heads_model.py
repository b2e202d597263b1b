"""Triton entry point of ``<name>_postprocessor`` for several classifications: logits in, ranked labels out.

The logits of all heads lie side by side; only the heads that a request asks for are ranked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .classification import rank_labels


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"], args["model_version"])
        heads = json.loads((folder / "heads.json").read_text(encoding="utf-8"))
        self._labels = {
            name: np.array([label.encode() for label in labels], dtype=np.object_)
            for name, labels in heads.items()
        }
        self._top_k = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["top_k"]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        logits = pb_utils.get_input_tensor_by_name(request, "logits").as_numpy()
        counts = {name: len(labels) for name, labels in self._labels.items()}
        if logits.shape[-1] != sum(counts.values()):
            message = f"logits {list(logits.shape)} do not fit heads of {counts} labels"
            error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        finite = np.isfinite(logits).all(axis=-1)
        if not finite.all():
            message = f"the logits of row {int(np.argmin(finite))} are not finite"
            error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        wanted = set(request.requested_output_names())
        tensors, start = [], 0
        for name, labels in self._labels.items():
            part = logits[:, start : start + len(labels)]
            start += len(labels)
            if wanted.isdisjoint({name, f"{name}_score"}):
                continue
            order, scores = rank_labels(part, self._top_k)
            tensors += [pb_utils.Tensor(name, labels[order]), pb_utils.Tensor(f"{name}_score", scores)]
        return pb_utils.InferenceResponse(tensors)
