"""Triton entry point of ``<name>_catalogue``: an embedding in, the nearest items and their answers out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .ranking import Catalogue


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"], args["model_version"])
        self._catalogue = Catalogue.load(folder)
        self._items, self._answers = (
            np.array([text.encode() for text in texts], dtype=np.object_)
            for texts in (self._catalogue.items, self._catalogue.answers)
        )
        self._top_k = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["top_k"]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        embedding = pb_utils.get_input_tensor_by_name(request, "embedding").as_numpy()
        try:
            order, scores = self._catalogue.rank(embedding, self._top_k)
        except ValueError as exc:
            error = pb_utils.TritonError(str(exc), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("item", self._items[order]),
                pb_utils.Tensor("score", scores),
                pb_utils.Tensor("answer", self._answers[order]),
            ]
        )
