"""Triton entry point of ``<name>_lookup``: a history of items in, their vectors out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from .recommendation import ItemCatalogue


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"], args["model_version"])
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self._catalogue = ItemCatalogue.load(folder, skip_unknown=settings["unknown_items"] == "skip")
        self._width = settings["max_history"]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        histories = pb_utils.get_input_tensor_by_name(request, "history").as_numpy()
        try:
            vectors, mask = self._catalogue.look_up(histories, self._width)
        except ValueError as exc:
            error = pb_utils.TritonError(str(exc), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("vectors", vectors), pb_utils.Tensor("mask", mask)]
        )
