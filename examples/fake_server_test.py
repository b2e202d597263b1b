"""Test code that calls a model, without a server: run it with pytest."""

import numpy as np
import pytest

from mooring import Client, Overloaded, RetryPolicy, TextClassifier
from mooring.testing import FakeModel, FakeTransport


def shout(client: Client, text: str) -> str:
    """The code under test: what the model labels a text, in capitals."""
    return client.task("intent", TextClassifier)(text)[0].label.upper()


def label_all_as_card(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Answer as an intent model would."""
    rows = len(inputs["text"])
    return {"label": np.array([[b"card"]] * rows, object), "score": np.ones((rows, 1), np.float32)}


@pytest.fixture
def fake() -> FakeTransport:
    """A server with one model."""
    model = FakeModel(
        inputs={"text": ("BYTES", [-1, 1])},
        outputs={"label": ("BYTES", [-1, 1]), "score": ("FP32", [-1, 1])},
        max_batch_size=8,
        parameters={"task": "text-classification"},
        answer=label_all_as_card,
    )
    return FakeTransport({"intent": model})


def test_shouting(fake: FakeTransport) -> None:
    client = Client("grpc://fake:8001", transport=fake, retry=RetryPolicy(max_retries=0))
    assert shout(client, "my card") == "CARD"
    fake.error = Overloaded("queue full")
    with pytest.raises(Overloaded):
        shout(client, "my card")
