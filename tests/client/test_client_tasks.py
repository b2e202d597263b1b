"""What typed calls make of answers that contradict their task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mooring import Client, DeadlineExceeded, DecodeError
from mooring.testing import FakeModel, FakeTransport

TEXT = "Anna in Bonn"
GOOD: dict[str, Any] = {
    "label": [[b"PER", b"LOC", b""]],
    "score": [[0.5, 1.0004, 0.0]],
    "start": [[0, 8, -1]],
    "end": [[4, 12, -1]],
    "entity": [[b"Anna", b"Bonn", b""]],
}
DTYPES = {"label": np.object_, "score": np.float32, "start": np.int32, "end": np.int32, "entity": np.object_}


def client_of(fake: FakeTransport, model: str, answer: dict[str, Any]) -> Client:
    """A client whose ``model`` gives ``answer`` to everything."""
    arrays = {name: np.array(rows, DTYPES[name]) for name, rows in answer.items()}
    changed = {**vars(fake.models_by_name[model]), "answer": lambda inputs: arrays}
    fake.models_by_name[model] = FakeModel(**changed)
    return Client("grpc://fake:8001", transport=fake)


def test_padding_ends_a_row(fake: FakeTransport) -> None:
    found = client_of(fake, "ner", GOOD).task("ner")(TEXT)
    assert [(entity.label, entity.text, entity.start, entity.end) for entity in found] == [
        ("PER", "Anna", 0, 4),
        ("LOC", "Bonn", 8, 12),
    ]


BAD_ENTITIES = [
    ({"label": [[b"PER", b"", b"LOC"]]}, "label 1 is empty, but later ones are not"),
    ({"label": [[b"\xff", b"LOC", b""]]}, r"label b'\\xff' is not UTF-8"),
    ({"label": [["PER", "LOC", ""]]}, "label 'PER' is no bytes"),
    ({"score": [[float("nan"), 1, 0]]}, "score nan is no probability"),
    ({"score": [[0.5, 1.5, 0]]}, r"score 1\.5 is no probability"),
    ({"score": [[-0.5, 1, 0]]}, r"score -0\.5 is no probability"),
    ({"start": [[4, 8, -1]]}, "PER at 4:4 of a text of 12 characters"),
    ({"start": [[-1, 8, -1]]}, "PER at -1:4 of a text of 12 characters"),
    ({"end": [[4, 13, -1]]}, "LOC at 8:13 of a text of 12 characters"),
    ({"end": [[3, 12, -1]]}, r"PER at 0:3 is 'Ann', but the server says b'Anna'"),
    ({"label": [[b"PER"]]}, r"expected 1 rows of equal length in each output, got \{'label': \(1, 1\)"),
    ({name: 2 * rows for name, rows in GOOD.items()}, "expected 1 rows of equal length"),
]


@pytest.mark.parametrize(("changes", "said"), BAD_ENTITIES, ids=range(len(BAD_ENTITIES)))
def test_entities_that_can_not_be_are_decode_errors(
    fake: FakeTransport, changes: dict[str, Any], said: str
) -> None:
    ner = client_of(fake, "ner", {**GOOD, **changes}).task("ner")
    with pytest.raises(
        DecodeError, match=f"^model 'ner' says task 'token-classification', but answers.*{said}"
    ):
        ner(TEXT)


def test_offsets_in_bytes_are_found_out(fake: FakeTransport) -> None:
    bytewise = {"label": [[b"LOC"]], "score": [[1]], "start": [[7]], "end": [[11]], "entity": [[b"Bonn"]]}
    with pytest.raises(
        DecodeError, match=r"LOC at 7:11 of a text of 10 characters|but the server says b'Bonn'"
    ):
        client_of(fake, "ner", bytewise).task("ner")("Zoë > Bonn")


BAD_LABELS = [
    ({"label": [[b"a", b"b"]], "score": [[float("inf"), 0]]}, "score inf is no probability"),
    ({"label": [[b"a", b"\xc3"]], "score": [[1, 0]]}, "is not UTF-8"),
    ({"label": [[b"a", b"b"]] * 2, "score": [[1, 0]] * 2}, "expected 1 rows of equal length"),
]


@pytest.mark.parametrize(("answer", "said"), BAD_LABELS, ids=range(len(BAD_LABELS)))
def test_labels_that_can_not_be_are_decode_errors(
    fake: FakeTransport, answer: dict[str, Any], said: str
) -> None:
    with pytest.raises(DecodeError, match=f"'text-classification', but answers otherwise: .*{said}"):
        client_of(fake, "intent", answer).task("intent")(TEXT)


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": {"text": ("BYTES", [-1])}, "max_batch_size": 4},
        {"inputs": {"text": ("INT64", [-1, 1])}},
        {"inputs": {"words": ("BYTES", [-1, 1])}},
        {"inputs": {"text": ("BYTES", [-1, 1]), "more": ("BYTES", [-1, 1])}},
        {"outputs": {"label": ("BYTES", [-1, -1])}},
        {"outputs": {"label": ("BYTES", [-1, -1]), "score": ("FP64", [-1, -1])}},
        {"max_batch_size": 0},
    ],
)
def test_a_signature_unlike_its_task_is_a_decode_error(fake: FakeTransport, changes: dict[str, Any]) -> None:
    fake.models_by_name["odd"] = FakeModel(**{**vars(fake.models_by_name["intent"]), **changes})
    with pytest.raises(
        DecodeError, match="says task 'text-classification', but its signature is not that of one"
    ):
        Client("grpc://fake:8001", transport=fake).task("odd")


def test_the_budget_is_that_of_the_whole_call(fake: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request takes 5 of 10 seconds on a clock of the test: the third is not sent."""
    now_s = [0.0]
    monkeypatch.setattr("mooring._deadline.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    given_s = []
    answer = fake.infer

    def infer(request: Any, *, timeout_s: float) -> Any:
        given_s.append(timeout_s)
        now_s[0] += 5.0
        return answer(request, timeout_s=timeout_s)

    monkeypatch.setattr(fake, "infer", infer)
    ner = Client("grpc://fake:8001", timeout_s=10, transport=fake).task("ner")
    with pytest.raises(DeadlineExceeded, match="the call's 10 s were spent") as caught:
        ner(["Text"] * 12)
    assert given_s == [10.0, 5.0]
    assert [type(attempt) for attempt in caught.value.attempts] == [TimeoutError]


def test_repr_names_the_model(fake: FakeTransport) -> None:
    client = Client("grpc://fake:8001", transport=fake)
    assert repr(client.task("ner")) == "TokenClassifier('ner')"
    assert repr(client) == "Client('grpc://fake:8001')"
