"""Triton entry point of ``<name>_postprocessor`` for classification: logits in, ranked labels out.

Where the version folder has ``acceptance.json``, the answer also says how surely the text fits a label.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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
        logits = [pb_utils.get_input_tensor_by_name(request, "logits").as_numpy() for request in requests]
        reasons = [self._reason(one) for one in logits]
        usable = [one for one, reason in zip(logits, reasons, strict=True) if reason is None]
        answers = iter(self._answers(usable) if usable else [])
        return [next(answers) if reason is None else self._refusal(reason) for reason in reasons]

    def _reason(self, logits: np.ndarray) -> str | None:
        """Why a request's logits have no answer."""
        if logits.shape[-1] != len(self._labels):
            return f"logits {list(logits.shape)} do not fit {len(self._labels)} labels"
        finite = np.isfinite(logits)
        if not finite.all():
            row = int(np.argmin(finite.all(axis=-1)))
            return f"the logits of row {row} are not finite: its input isn't, or is too large"
        return None

    def _answers(self, requests: Sequence[np.ndarray]) -> Iterator[Any]:
        """Rank the logits ``[B, labels]`` of several requests in one go."""
        logits = requests[0] if len(requests) == 1 else np.concatenate(requests)
        order, scores = rank_labels(logits, self._top_k)
        columns = {"label": self._labels[order], "score": scores}
        if self._acceptance is not None:
            columns["acceptance"] = self._acceptance(logits)
        start = 0
        for request in requests:
            start, rows = start + len(request), slice(start, start + len(request))
            yield pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, column[rows]) for name, column in columns.items()]
            )

    def _refusal(self, message: str) -> Any:
        error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(output_tensors=[], error=error)
