"""Typed calls of a model with several heads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from mooring import Client, ConfigError, DecodeError, Label, TextMultiClassifier
from mooring._answers import format_json, format_readable
from mooring.testing import FakeModel, FakeTransport

HEADS = {"topic": ["energy", "legal", "earnings"], "sentiment": ["negative", "positive"]}
OUTPUTS = {
    "topic": ("BYTES", [-1, 2]),
    "topic_score": ("FP32", [-1, 2]),
    "sentiment": ("BYTES", [-1, 1]),
    "sentiment_score": ("FP32", [-1, 1]),
}


def answer(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = len(inputs["text"])
    return {
        "topic": np.array([[b"legal", b"energy"]] * rows, object),
        "topic_score": np.full((rows, 2), 0.5, np.float32),
        "sentiment": np.array([[b"positive"]] * rows, object),
        "sentiment_score": np.full((rows, 1), 0.75, np.float32),
    }


def model(**changes: Any) -> FakeModel:
    options: dict[str, Any] = {
        "inputs": {"text": ("BYTES", [-1, 1])},
        "outputs": OUTPUTS,
        "max_batch_size": 4,
        "parameters": {"task": "text-multi-classification", "heads": json.dumps(HEADS)},
        "answer": answer,
    }
    return FakeModel(**{**options, **changes})


@pytest.fixture
def fake() -> FakeTransport:
    return FakeTransport({"heads": model()})


@pytest.fixture
def client(fake: FakeTransport) -> Iterator[Client]:
    with Client("grpc://fake:8001", transport=fake) as opened:
        yield opened


TOPICS = [Label(label="legal", score=0.5), Label(label="energy", score=0.5)]
SENTIMENT = [Label(label="positive", score=0.75)]


def test_a_text_gets_labels_of_every_head(client: Client) -> None:
    task = client.task("heads")
    assert isinstance(task, TextMultiClassifier)
    assert task.heads == ("topic", "sentiment")
    assert task("A text") == {"topic": TOPICS, "sentiment": SENTIMENT}
    assert task(["a", "b"]) == [{"topic": TOPICS, "sentiment": SENTIMENT}] * 2
    assert [outcome.value for outcome in task.map(["a"])] == [{"topic": TOPICS, "sentiment": SENTIMENT}]


def test_only_some_heads_are_asked_for(client: Client, fake: FakeTransport) -> None:
    task = client.task("heads").only("sentiment")
    assert isinstance(task, TextMultiClassifier)
    assert task.heads == ("sentiment",)
    assert task("A text") == {"sentiment": SENTIMENT}
    assert [request.outputs for request in fake.requests] == [("sentiment", "sentiment_score")]
    # The whole task is as it was.
    assert client.task("heads").heads == ("topic", "sentiment")


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        (["colour"], "no head 'colour'; it has topic, sentiment"),
        (["topic", "topic_score"], "no head 'topic_score'"),
        ([], "none of its heads was named; it has topic, sentiment"),
    ],
)
def test_heads_that_the_model_does_not_have(client: Client, heads: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^model 'heads': {said}"):
        client.task("heads").only(*heads)


@pytest.mark.parametrize("said", [None, "", "[]", "{}", "topic"])
def test_a_model_that_does_not_name_its_heads(said: str | None) -> None:
    parameters = {"task": "text-multi-classification"} | ({} if said is None else {"heads": said})
    fake = FakeTransport({"heads": model(parameters=parameters)})
    with (
        Client("grpc://fake:8001", transport=fake) as client,
        pytest.raises(
            DecodeError, match=r"answers otherwise: parameters\.heads is .*expected labels by head"
        ),
    ):
        client.task("heads")


def test_a_head_without_its_outputs_is_no_signature_of_the_task() -> None:
    outputs = {name: spec for name, spec in OUTPUTS.items() if name != "topic_score"}
    fake = FakeTransport({"heads": model(outputs=outputs)})
    with (
        Client("grpc://fake:8001", transport=fake) as client,
        pytest.raises(DecodeError, match="its signature is not that of one"),
    ):
        client.task("heads")


BAD = [
    ({"topic_score": np.full((1, 2), 1.5, np.float32)}, r"score 1\.5 is no probability"),
    ({"sentiment": np.array([[b"\xff"]], object)}, "is not UTF-8"),
    (
        {"topic": np.array([[b"legal"] * 2] * 2, object), "topic_score": np.ones((2, 2), np.float32)},
        "expected 1 rows of equal length",
    ),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=range(len(BAD)))
def test_answers_that_can_not_be_are_decode_errors(changes: dict[str, np.ndarray], said: str) -> None:
    fake = FakeTransport({"heads": model(answer=lambda inputs: {**answer(inputs), **changes})})
    with (
        Client("grpc://fake:8001", transport=fake) as client,
        pytest.raises(DecodeError, match=f"'text-multi-classification', but answers otherwise: .*{said}"),
    ):
        client.task("heads")("A text")


def test_answers_are_printed_head_by_head() -> None:
    found = {"topic": TOPICS, "sentiment": SENTIMENT}
    assert format_readable("A text", found).splitlines() == [
        "A text",
        "  topic",
        "    legal   0.5000",
        "    energy  0.5000",
        "  sentiment",
        "    positive  0.7500",
    ]
    assert json.loads(format_json("text-multi-classification", "A text", "A text", found)) == {
        "text": "A text",
        "labels": {
            "topic": [{"label": "legal", "score": 0.5}, {"label": "energy", "score": 0.5}],
            "sentiment": [{"label": "positive", "score": 0.75}],
        },
    }
