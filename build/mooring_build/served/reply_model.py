"""Triton entry point of ``<name>_reply``: intents and answers of the parts in, the reply out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .replies import Replies

_INPUTS = ("intent_labels", "intent_scores", "acceptance", "answer", "item_score")


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        self._replies = Replies.load(Path(args["model_repository"], args["model_version"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        arrays = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in _INPUTS]
        labels, scores, acceptance, answers, item_scores = (array[:, 0] for array in arrays)  # [B] each
        replies = [
            self._replies.reply(label.decode(), float(accepted), answer.decode(), float(score))
            for label, accepted, answer, score in zip(labels, acceptance, answers, item_scores, strict=True)
        ]
        texts = np.array([[reply.text.encode()] for reply in replies], dtype=np.object_)
        handover = np.array([[reply.handover] for reply in replies], dtype=bool)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("intent", labels[:, None]),
                pb_utils.Tensor("intent_score", scores[:, None]),
                pb_utils.Tensor("reply", texts),
                pb_utils.Tensor("handover", handover),
            ]
        )
