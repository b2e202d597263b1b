"""Triton entry point of ``<name>_relay``: ``text`` in, the same out, once its other input is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("relayed_text", text)])
