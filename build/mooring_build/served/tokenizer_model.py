"""Triton entry point of ``<name>_tokenizer``: ``text`` in, token ids out.

Two more outputs let a client make the same token ids itself: ``tokenizer`` and ``settings`` hold the text of
the version folder's files, in the first row of ``[B, 1]``. They are read and sent only where a request asks
for them by name, or for all outputs; the ensemble does neither. A request that asks for nothing else may hold
any text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .encoding import EncodedTexts, TextEncoder
from .texts import TextError

_FILES = {"tokenizer": "tokenizer.json", "settings": "settings.json"}


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        self._folder = Path(args["model_repository"], args["model_version"])
        self._encoder = TextEncoder.load(self._folder)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        texts = [pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[:, 0] for request in requests]
        results = self._encoder.encode_requests(texts)
        return [
            self._response(set(request.requested_output_names()), result, len(rows))
            for request, result, rows in zip(requests, results, texts, strict=True)
        ]

    def _response(self, wanted: set[str], result: EncodedTexts | TextError, rows: int) -> Any:
        tensors = []
        if isinstance(result, EncodedTexts):
            arrays = vars(result).items()
            tensors += [pb_utils.Tensor(name, array) for name, array in arrays if array is not None]
        elif not wanted <= _FILES.keys():
            error = pb_utils.TritonError(str(result), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        for name in _FILES.keys() & wanted:
            column = np.full((rows, 1), b"", np.object_)
            column[0, 0] = (self._folder / _FILES[name]).read_bytes()
            tensors.append(pb_utils.Tensor(name, column))
        return pb_utils.InferenceResponse(tensors)
