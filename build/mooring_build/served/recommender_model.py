"""Triton entry point of ``<name>_ranker``: a user's vector and history in, the items that suit it out."""

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
        self._top_k = settings["top_k"]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        users, histories = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("user", "history")
        )
        try:
            items, scores = self._catalogue.recommend(users, histories, self._top_k)
        except ValueError as exc:
            error = pb_utils.TritonError(str(exc), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        return pb_utils.InferenceResponse([pb_utils.Tensor("item", items), pb_utils.Tensor("score", scores)])
