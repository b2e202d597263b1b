"""The pipeline that joins topic and sentiment."""

from __future__ import annotations

from collections.abc import Sequence

from tritonclient.grpc import model_config_pb2 as pb

from mooring_build.layouts._layout import Layout, ModelStep, PythonStep, Tensors
from mooring_build.layouts.relay import RELAYED, relay
from mooring_build.layouts.text import TEXT
from mooring_build.recipe import Recipe

_RANKED: Tensors = {
    "topic_labels": (pb.TYPE_STRING, (-1,)),
    "topic_scores": (pb.TYPE_FP32, (-1,)),
    "sentiment_labels": (pb.TYPE_STRING, (-1,)),
    "sentiment_scores": (pb.TYPE_FP32, (-1,)),
}
_OPINION: Tensors = {
    "topic": (pb.TYPE_STRING, (1,)),
    "topic_score": (pb.TYPE_FP32, (1,)),
    "sentiment": (pb.TYPE_STRING, (1,)),
    "sentiment_score": (pb.TYPE_FP32, (1,)),
}


def opinion_monitoring(recipe: Recipe, labels: Sequence[str]) -> Layout:
    """Text to its topic and its sentiment.

    The parts answer as many labels as their own recipes say, best first; the last step takes the first of
    each. So the parts stay what they are for their other callers, and their next release may answer more.
    """
    return Layout(
        inputs=TEXT,
        steps=(
            ModelStep(
                model=recipe.parts["topic"],
                inputs={"text": "text"},
                outputs={"label": "topic_labels", "score": "topic_scores"},
            ),
            relay("topic_labels"),
            ModelStep(
                model=recipe.parts["sentiment"],
                inputs={"text": RELAYED},
                outputs={"label": "sentiment_labels", "score": "sentiment_scores"},
            ),
            PythonStep(
                suffix="joiner",
                entry_point="opinions_model.py",
                shared=(),
                inputs=_RANKED,
                outputs=_OPINION,
            ),
        ),
        answers=_OPINION,
    )
