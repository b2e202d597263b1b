"""The pipeline that joins intents and answers."""

from __future__ import annotations

from collections.abc import Sequence

from tritonclient.grpc import model_config_pb2 as pb

from mooring_build.layouts._layout import Layout, ModelStep, PythonStep, Tensors
from mooring_build.layouts.relay import RELAYED, relay
from mooring_build.layouts.text import TEXT
from mooring_build.recipe import Recipe

_INTENTS: Tensors = {
    "intent_labels": (pb.TYPE_STRING, (-1,)),
    "intent_scores": (pb.TYPE_FP32, (-1,)),
    "acceptance": (pb.TYPE_FP32, (1,)),
}
_ANSWERS: Tensors = {
    "item": (pb.TYPE_STRING, (-1,)),
    "item_score": (pb.TYPE_FP32, (-1,)),
    "answer": (pb.TYPE_STRING, (-1,)),
}
_REPLY: Tensors = {
    "intent": (pb.TYPE_STRING, (1,)),
    "intent_score": (pb.TYPE_FP32, (1,)),
    "reply": (pb.TYPE_STRING, (1,)),
    "handover": (pb.TYPE_BOOL, (1,)),
}


def customer_service(recipe: Recipe, labels: Sequence[str]) -> Layout:
    """A customer's message to its intent, the answers that suit it, and the reply or a hand-over."""
    return Layout(
        inputs=TEXT,
        steps=(
            ModelStep(
                model=recipe.parts["intent"],
                inputs={"text": "text"},
                outputs={"label": "intent_labels", "score": "intent_scores", "acceptance": "acceptance"},
            ),
            relay("intent_labels"),
            ModelStep(
                model=recipe.parts["faq"],
                inputs={"text": RELAYED},
                outputs={"item": "item", "score": "item_score", "answer": "answer"},
            ),
            PythonStep(
                suffix="reply",
                entry_point="reply_model.py",
                shared=("replies.py",),
                inputs=_INTENTS | {name: _ANSWERS[name] for name in ("answer", "item_score")},
                outputs=_REPLY,
            ),
        ),
        answers=_REPLY | _ANSWERS,
    )
