"""What typed calls make of answers that contradict their task."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mooring import DeadlineExceeded, DecodeError
from mooring._operations import Infer

TEXT = "Anna in Bonn"
GOOD: dict[str, Any] = {
    "label": [[b"PER", b"LOC", b""]],
    "score": [[0.5, 1.0004, 0.0]],
    "start": [[0, 8, -1]],
    "end": [[4, 12, -1]],
    "entity": [[b"Anna", b"Bonn", b""]],
}
DTYPES = {
    "label": np.object_,
    "score": np.float32,
    "start": np.int32,
    "end": np.int32,
    "entity": np.object_,
    "item": np.object_,
    "answer": np.object_,
    "embedding": np.float32,
}


@pytest.fixture
def task_of(side: Any, fake: Any) -> Callable[..., Any]:
    """The task of a model that gives ``answer`` to everything."""

    def make(model: str, answer: dict[str, Any]) -> Any:
        arrays = {name: np.array(rows, DTYPES[name]) for name, rows in answer.items()}
        fake.change(model, answer=lambda inputs: arrays)
        return side.client("grpc://fake:8001", transport=fake).task(model)

    return make


def test_padding_ends_a_row(task_of: Any) -> None:
    found = task_of("ner", GOOD)(TEXT)
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
def test_entities_that_can_not_be_are_decode_errors(task_of: Any, changes: dict[str, Any], said: str) -> None:
    ner = task_of("ner", {**GOOD, **changes})
    with pytest.raises(
        DecodeError, match=f"^model 'ner' says task 'token-classification', but answers.*{said}"
    ):
        ner(TEXT)


def test_offsets_in_bytes_are_found_out(task_of: Any) -> None:
    bytewise = {"label": [[b"LOC"]], "score": [[1]], "start": [[7]], "end": [[11]], "entity": [[b"Bonn"]]}
    with pytest.raises(
        DecodeError, match=r"LOC at 7:11 of a text of 10 characters|but the server says b'Bonn'"
    ):
        task_of("ner", bytewise)("Zoë > Bonn")


BAD_LABELS = [
    ({"label": [[b"a", b"b"]], "score": [[float("inf"), 0]]}, "score inf is no probability"),
    ({"label": [[b"a", b"\xc3"]], "score": [[1, 0]]}, "is not UTF-8"),
    ({"label": [[b"a", b"b"]] * 2, "score": [[1, 0]] * 2}, "expected 1 rows of equal length"),
]


@pytest.mark.parametrize(("answer", "said"), BAD_LABELS, ids=range(len(BAD_LABELS)))
def test_labels_that_can_not_be_are_decode_errors(task_of: Any, answer: dict[str, Any], said: str) -> None:
    with pytest.raises(DecodeError, match=f"'text-classification', but answers otherwise: .*{said}"):
        task_of("intent", answer)(TEXT)


BAD_EMBEDDINGS = [
    (
        {"embedding": [[0.0] * 8] * 2},
        r"expected 1 rows of equal length in each output, got \{'embedding': \(2, 8",
    ),
    ({"embedding": [[0.0] * 9]}, r"output embedding FP32\[-1, 8\] came as float32\[1, 9\]"),
]


@pytest.mark.parametrize(("answer", "said"), BAD_EMBEDDINGS, ids=range(len(BAD_EMBEDDINGS)))
def test_embeddings_that_can_not_be_are_decode_errors(
    task_of: Any, answer: dict[str, Any], said: str
) -> None:
    with pytest.raises(DecodeError, match=f"^model 'embed'.*{said}"):
        task_of("embed", answer)(TEXT)


BAD_RANKINGS = [
    ({"item": [[b"a", b"", b"c"]], "score": [[2, 1, 0]]}, "item 1 is empty, but later ones are not"),
    ({"item": [[b"a", b"\xff"]], "score": [[2, 1]]}, r"item b'\\xff' is not UTF-8"),
    ({"item": [[b"a", b"b"]], "score": [[float("nan"), 1]]}, r"scores \[nan, 1\.0\] are not all finite"),
    ({"item": [[b"a", b"b"]], "score": [[1]]}, "expected 1 rows of equal length"),
    ({"item": [[b"a"]] * 2, "score": [[1]] * 2}, "expected 1 rows of equal length"),
]


@pytest.mark.parametrize(("answer", "said"), BAD_RANKINGS, ids=range(len(BAD_RANKINGS)))
@pytest.mark.parametrize(
    ("model", "task", "item"), [("rank", "text-ranking", TEXT), ("recommend", "recommendation", [TEXT])]
)
def test_rankings_that_can_not_be_are_decode_errors(
    task_of: Any, model: str, task: str, item: Any, answer: dict[str, Any], said: str
) -> None:
    if task == "text-ranking":
        answer = {**answer, "answer": answer["item"]}
    with pytest.raises(
        DecodeError, match=f"^model '{model}' says task '{task}', but answers otherwise: .*{said}"
    ):
        task_of(model, answer)(item)


def test_an_answer_that_is_no_text_is_a_decode_error(task_of: Any) -> None:
    with pytest.raises(DecodeError, match=r"answer b'\\xff' is not UTF-8"):
        task_of("rank", {"item": [[b"a"]], "score": [[1]], "answer": [[b"\xff"]]})(TEXT)


def test_scores_of_a_ranking_are_on_any_scale(task_of: Any) -> None:
    answer = {"item": [[b"a", b""]], "score": [[1e9, float("nan")]], "answer": [[b"Yes.", b""]]}
    [found] = task_of("rank", answer)(TEXT)
    assert (found.item, found.score, found.text) == ("a", 1e9, "Yes.")


@pytest.mark.parametrize(("answer", "said"), BAD_LABELS, ids=range(len(BAD_LABELS)))
def test_labels_of_images_that_can_not_be_are_decode_errors(
    task_of: Any, answer: dict[str, Any], said: str
) -> None:
    with pytest.raises(DecodeError, match=f"'image-classification', but answers otherwise: .*{said}"):
        task_of("images", answer)(b"image")


def test_a_contradiction_in_a_map_is_that_item_s_own(task_of: Any) -> None:
    ner = task_of("ner", {**GOOD, "score": [[0.5, 1.5, 0]]})
    outcomes = list(ner.map([TEXT] * 3, batch_size=1))
    assert [outcome.index for outcome in outcomes] == [0, 1, 2]
    for outcome in outcomes:
        assert outcome.value is None
        with pytest.raises(DecodeError, match=r"score 1\.5 is no probability"):
            outcome.unwrap()


SIGNATURES: list[tuple[str, dict[str, Any]]] = [
    ("intent", {"inputs": {"text": ("BYTES", [-1])}, "max_batch_size": 4}),
    ("intent", {"inputs": {"text": ("INT64", [-1, 1])}}),
    ("intent", {"inputs": {"words": ("BYTES", [-1, 1])}}),
    ("intent", {"inputs": {"text": ("BYTES", [-1, 1]), "more": ("BYTES", [-1, 1])}}),
    ("intent", {"outputs": {"label": ("BYTES", [-1, -1])}}),
    ("intent", {"outputs": {"label": ("BYTES", [-1, -1]), "score": ("FP64", [-1, -1])}}),
    ("intent", {"max_batch_size": 0}),
    ("ner", {"outputs": {"label": ("BYTES", [-1, -1])}}),
    ("embed", {"outputs": {"embedding": ("FP16", [-1, 8])}}),
    ("rank", {"outputs": {"label": ("BYTES", [-1, -1]), "score": ("FP32", [-1, -1])}}),
    ("rank", {"outputs": {"item": ("BYTES", [-1, -1]), "score": ("FP32", [-1, -1])}}),
    ("recommend", {"inputs": {"history": ("BYTES", [-1, 1])}}),
    ("images", {"inputs": {"text": ("BYTES", [-1, 1])}}),
    ("rows", {"inputs": {"features": ("FP64", [-1, 3])}}),
    ("rows", {"inputs": {"features": ("FP32", [-1])}}),
    ("rows", {"inputs": {"features": ("FP32", [-1, 3, 3])}}),
]


@pytest.mark.parametrize(("model", "changes"), SIGNATURES, ids=range(len(SIGNATURES)))
def test_a_signature_unlike_its_task_is_a_decode_error(
    side: Any, fake: Any, model: str, changes: dict[str, Any]
) -> None:
    fake.change(model, **changes)
    task = fake.models_by_name[model].parameters["task"]
    with pytest.raises(DecodeError, match=f"says task '{task}', but its signature is not that of one"):
        side.client("grpc://fake:8001", transport=fake).task(model)


def test_more_outputs_than_a_task_needs_are_not_asked_for(side: Any, fake: Any) -> None:
    fake.change("embed", outputs={"embedding": ("FP32", [-1, 8]), "tokens": ("INT64", [-1, -1])})
    assert side.client("grpc://fake:8001", transport=fake).task("embed")(TEXT).shape == (8,)
    assert fake.requests[-1].outputs == ("embedding",)


def test_the_budget_is_that_of_the_whole_call(side: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request takes 5 of 10 seconds on a clock of the test: the third is not sent."""
    now_s = [0.0]
    monkeypatch.setattr("mooring._deadline.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    given_s = []
    answer = fake.send

    def send(operation: Any, *, timeout_s: float, headers: Any = ()) -> Any:
        if isinstance(operation, Infer):
            given_s.append(timeout_s)
            now_s[0] += 5.0
        return answer(operation, timeout_s=timeout_s, headers=headers)

    monkeypatch.setattr(fake, "send", send)
    ner = side.client("grpc://fake:8001", timeout_s=10, transport=fake).task("ner")
    with pytest.raises(DeadlineExceeded, match="the call's 10 s were spent") as caught:
        ner(["Text"] * 12)
    assert given_s == [10.0, 5.0]
    # What is left travels with the request.
    assert [request.timeout_s for request in fake.requests] == [10.0, 5.0]
    assert caught.value.attempts == (caught.value,)
