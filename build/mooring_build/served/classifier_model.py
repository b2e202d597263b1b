"""Triton entry point of ``<name>_postprocessor`` for classification: logits in, ranked labels out.

Where the version folder has ``acceptance.json``, the answer also says how surely the text fits a label.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .classification import Acceptance, rank_labels


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"], args["model_version"])
        labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        self._labels = np.array([label.encode() for label in labels], dtype=np.object_)
        self._top_k = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["top_k"]

        calibration = folder / "acceptance.json"
        self._acceptance = None
        if calibration.is_file():
            content = json.loads(calibration.read_text(encoding="utf-8"))
            self._acceptance = Acceptance(content["confidences"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        logits = pb_utils.get_input_tensor_by_name(request, "logits").as_numpy()
        if logits.shape[-1] != len(self._labels):
            return self._refusal(f"logits {list(logits.shape)} do not fit {len(self._labels)} labels")
        finite = np.isfinite(logits).all(axis=-1)
        if not finite.all():
            row = int(np.argmin(finite))
            return self._refusal(f"the logits of row {row} are not finite: its input isn't, or is too large")
        order, scores = rank_labels(logits, self._top_k)
        tensors = [pb_utils.Tensor("label", self._labels[order]), pb_utils.Tensor("score", scores)]
        if self._acceptance is not None:
            tensors.append(pb_utils.Tensor("acceptance", self._acceptance(logits)))
        return pb_utils.InferenceResponse(tensors)

    def _refusal(self, message: str) -> Any:
        error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(output_tensors=[], error=error)
