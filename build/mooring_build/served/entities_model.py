"""Triton entry point of ``<name>_postprocessor`` for token classification: logits in, entities out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .entities import BioLabels, Entity, tabulate
from .texts import decode_texts

#: A request's texts, and its logits and words.
_Parsed = tuple[list[str], tuple[np.ndarray, np.ndarray]]


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"], args["model_version"])
        self._labels = BioLabels(json.loads((folder / "labels.json").read_text(encoding="utf-8")))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        parsed = [self._parse(request) for request in requests]
        usable = [one for one in parsed if not isinstance(one, ValueError)]
        texts = [text for own, _ in usable for text in own]
        try:
            found = iter(
                self._labels.decode_requests(texts, [arrays for _, arrays in usable]) if usable else []
            )
        except ValueError:
            # One fails by itself, and not with its neighbours.
            return [self._answer(one) for one in parsed]
        return [
            _refusal(one)
            if isinstance(one, ValueError)
            else _response(one[0], list(islice(found, len(one[0]))))
            for one in parsed
        ]

    def _parse(self, request: Any) -> _Parsed | ValueError:
        raw, logits, words = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("text", "logits", "words")
        )
        try:
            texts = decode_texts(raw[:, 0])
            self._labels.check(texts, logits, words)
        except ValueError as exc:
            return exc
        return texts, (logits, words)

    def _answer(self, parsed: _Parsed | ValueError) -> Any:
        if isinstance(parsed, ValueError):
            return _refusal(parsed)
        texts, arrays = parsed
        try:
            return _response(texts, self._labels.decode_requests(texts, [arrays]))
        except ValueError as exc:
            return _refusal(exc)


def _response(texts: Sequence[str], found: Sequence[Sequence[Entity]]) -> Any:
    arrays = tabulate(texts, found)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])


def _refusal(reason: ValueError) -> Any:
    error = pb_utils.TritonError(str(reason), pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(output_tensors=[], error=error)
