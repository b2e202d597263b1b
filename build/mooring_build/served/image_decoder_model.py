"""Triton entry point of ``<name>_decoder``: an ``image`` file or array in, ``pixel_values`` out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from .images import ImageDecoder, ImageError, ImageSettings


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"], args["model_version"])
        settings = (folder / "settings.json").read_text(encoding="utf-8")
        self._decoder = ImageDecoder(ImageSettings.loads(settings))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[:, 0]
        try:
            pixel_values = self._decoder.decode(images)
        except ImageError as exc:
            error = pb_utils.TritonError(str(exc), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixel_values", pixel_values)])
