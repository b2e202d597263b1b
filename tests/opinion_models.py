"""Tiny opinion models: the first word of a text is its topic, and a ``bad`` in it makes it negative."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mooring import InvalidInput, Label, Opinion
from mooring.testing import FakeModel
from python_models import write_python_model

_OUTPUTS = ("topic", "topic_score", "sentiment", "sentiment_score")
_CONFIG = """
    backend: "python"
    max_batch_size: 8
    input { name: "text" data_type: TYPE_STRING dims: [1] }
    output { name: "topic" data_type: TYPE_STRING dims: [1] }
    output { name: "topic_score" data_type: TYPE_FP32 dims: [1] }
    output { name: "sentiment" data_type: TYPE_STRING dims: [1] }
    output { name: "sentiment_score" data_type: TYPE_FP32 dims: [1] }
    instance_group { count: 1 kind: KIND_CPU }
    dynamic_batching {}
    parameters { key: "task" value { string_value: "opinion-monitoring" } }
"""
_SOURCE = """
    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(request) for request in requests]

        def answer(self, request):
            column = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[:, 0]
            words = [raw.split() for raw in column]
            topics = [[of_text[0]] for of_text in words]
            sentiments = [[b"negative" if b"bad" in of_text else b"neutral"] for of_text in words]
            scores = np.full((len(words), 1), 0.75, np.float32)
            return pb_utils.InferenceResponse([
                pb_utils.Tensor("topic", np.array(topics, np.object_)),
                pb_utils.Tensor("topic_score", scores),
                pb_utils.Tensor("sentiment", np.array(sentiments, np.object_)),
                pb_utils.Tensor("sentiment_score", scores),
            ])
"""


def write_opinion_model(repository: Path, name: str = "opinion_monitor") -> Path:
    """Write the model for a real server; returns the repository."""
    return write_python_model(repository, name, source=_SOURCE, config=_CONFIG)


def judge(text: str) -> Opinion:
    """What the models say of a text."""
    words = text.split()
    sentiment = "negative" if "bad" in words else "neutral"
    return Opinion(topic=Label(label=words[0], score=0.75), sentiment=Label(label=sentiment, score=0.75))


def fake_opinion_model() -> FakeModel:
    """The model for a fake server; it refuses texts with ``REFUSED``."""
    return FakeModel(
        inputs={"text": ("BYTES", [-1, 1])},
        outputs={name: ("FP32" if name.endswith("score") else "BYTES", [-1, 1]) for name in _OUTPUTS},
        max_batch_size=4,
        parameters={"task": "opinion-monitoring"},
        answer=_answer,
    )


def _answer(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    texts = [raw.decode("utf-8") for raw in inputs["text"][:, 0]]
    if any("REFUSED" in text for text in texts):
        raise InvalidInput("the text is too long", model="opinion_monitor", code="400")
    opinions = [judge(text) for text in texts]
    scores = np.full((len(texts), 1), 0.75, np.float32)
    return {
        "topic": np.array([[opinion.topic.label.encode()] for opinion in opinions], np.object_),
        "topic_score": scores,
        "sentiment": np.array([[opinion.sentiment.label.encode()] for opinion in opinions], np.object_),
        "sentiment_score": scores,
    }
