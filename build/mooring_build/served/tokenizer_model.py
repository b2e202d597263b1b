"""Triton entry point of ``<name>_tokenizer``: ``text`` in, token ids out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from .encoding import EncodedTexts, TextEncoder
from .texts import TextError


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        self._encoder = TextEncoder.load(Path(args["model_repository"], args["model_version"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        texts = [pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[:, 0] for request in requests]
        return [_response(result) for result in self._encoder.encode_requests(texts)]


def _response(result: EncodedTexts | TextError) -> Any:
    if isinstance(result, TextError):
        error = pb_utils.TritonError(str(result), pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(output_tensors=[], error=error)
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, array) for name, array in vars(result).items() if array is not None]
    )
