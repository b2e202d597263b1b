"""Triton entry point of ``<name>_postprocessor`` for token classification: logits in, entities out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from .entities import BioLabels, tabulate
from .texts import decode_texts


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"], args["model_version"])
        self._labels = BioLabels(json.loads((folder / "labels.json").read_text(encoding="utf-8")))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        raw, logits, offsets, word_ids = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("text", "logits", "offsets", "word_ids")
        )
        try:
            texts = decode_texts(raw[:, 0])
            found = self._labels.decode(texts, logits, offsets, word_ids)
        except ValueError as exc:
            error = pb_utils.TritonError(str(exc), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        arrays = tabulate(texts, found)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])
