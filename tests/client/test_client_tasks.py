"""Typed calls of the tasks: items in, results out, and what no model takes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mooring import (
    AsyncTextClassifier,
    ConfigError,
    Entity,
    InvalidInput,
    Label,
    RankedAnswer,
    RankedItem,
    TextClassifier,
)
from mooring._task_kinds import KINDS
from mooring.testing import FakeModel
from wire_models import in_memory


@in_memory
@pytest.mark.parametrize(
    ("model", "task", "kind"),
    [
        ("ner", "token-classification", "TokenClassifier"),
        ("intent", "text-classification", "TextClassifier"),
        ("embed", "feature-extraction", "Embedder"),
        ("rank", "text-ranking", "TextRanker"),
        ("recommend", "recommendation", "Recommender"),
        ("images", "image-classification", "ImageClassifier"),
        ("rows", "tabular-classification", "TabularClassifier"),
    ],
)
def test_each_task_has_its_class(wired: Any, model: str, task: str, kind: str) -> None:
    made = wired.client.task(model)
    assert repr(made) == f"{wired.side.name(kind)}({model!r})"
    assert type(getattr(made, "wrapped", made)) is wired.side.kind(kind)
    assert (made.name, made.model, made.version) == (task, model, "")
    assert wired.client.task(model, version="1").version == "1"


@in_memory
def test_a_caller_says_which_class_it_relies_on(wired: Any) -> None:
    classifier = wired.side.kind("TextClassifier")
    made = wired.client.task("intent", classifier)
    assert type(getattr(made, "wrapped", made)) is classifier
    found, wanted = wired.side.name("TokenClassifier"), wired.side.name("TextClassifier")
    said = f"says task 'token-classification', a {found}, where the caller relies on a {wanted}$"
    with pytest.raises(ConfigError, match=f"^model 'ner' {said}"):
        wired.client.task("ner", classifier)


@in_memory
@pytest.mark.parametrize("kind", [Label, "ner", TextClassifier | AsyncTextClassifier])
def test_a_class_that_is_no_task_is_refused_before_anything_is_asked(wired: Any, kind: Any) -> None:
    known = f"{wired.side.name('CustomerService')}, {wired.side.name('Embedder')}, "
    with pytest.raises(ConfigError, match=f"^kind must be one of {known}.*, or None; got "):
        wired.client.task("nobody", kind)


@in_memory
def test_a_class_of_the_other_client_is_refused(wired: Any) -> None:
    other = ({TextClassifier, AsyncTextClassifier} - {wired.side.kind("TextClassifier")}).pop()
    with pytest.raises(ConfigError, match=f"^kind must be one of .*, or None; got .*{other.__name__}"):
        wired.client.task("intent", other)


def test_a_task_of_a_version_asks_that_version(wired: Any) -> None:
    wired.client.task("ner", version="1")("Some text")
    assert wired.fake.requests[-1].version == "1"


def test_token_classifier_finds_entities_in_characters(wired: Any) -> None:
    ner = wired.client.task("ner")
    assert ner.name == "token-classification"
    text = "🙂 Ähre und Zoë"
    found = ner(text)
    assert found == [
        Entity(label="NAME", score=0.75, start=2, end=6, text="Ähre"),
        Entity(label="NAME", score=0.75, start=11, end=14, text="Zoë"),
    ]
    assert all(entity.text == text[entity.start : entity.end] for entity in found)


def test_text_classifier_gives_labels_best_first(wired: Any) -> None:
    intent = wired.client.task("intent")
    assert intent.name == "text-classification"
    assert intent("x" * 75) == [Label(label="long", score=0.75), Label(label="short", score=0.25)]
    assert [row[0].label for row in intent(["x", "x" * 100])] == ["short", "long"]


def test_embedder_gives_one_vector_or_a_matrix(wired: Any) -> None:
    embed = wired.client.task("embed")
    one = embed("a text")
    assert (one.shape, one.dtype) == ((8,), np.float32)
    np.testing.assert_array_equal(one, np.arange(8, dtype=np.float32) / 10)
    many = embed(["a text", "b", "c", "d", "e"])
    assert (many.shape, many.dtype) == ((5, 8), np.float32)
    assert [len(request.inputs[0].array) for request in wired.fake.requests] == [1, 4, 1]


def test_rankers_give_items_best_first(wired: Any) -> None:
    rank = wired.client.task("rank")
    lamp = RankedAnswer(item="lamp", score=12.5, text="Rub it.")
    assert rank("grün") == [lamp, RankedAnswer(item="grün", score=-3.25, text="")]
    assert rank(["a", "b"]) == [
        [lamp, RankedAnswer(item="a", score=-3.25, text="")],
        [lamp, RankedAnswer(item="b", score=-3.25, text="")],
    ]


def test_recommender_takes_histories_and_pads_the_shorter(wired: Any) -> None:
    recommend = wired.client.task("recommend")
    lamp = RankedItem(item="lamp", score=12.5)
    assert recommend(["tent", "rope"]) == [lamp, RankedItem(item="tent", score=-3.25)]
    two = recommend([["tent", "rope"], ("boot",)])
    assert [row[1].item for row in two] == ["tent", "boot"]
    assert wired.fake.requests[-1].inputs[0].array.tolist() == [[b"tent", b"rope"], [b"boot", b""]]


@in_memory
@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "the list of histories is empty"),
        ("tent", r"expected a history \(a sequence of str\) or a sequence of histories, got str"),
        (7, r"expected a history \(a sequence of str\) or a sequence of histories, got int"),
        ([["tent", ""]], "history 0, item 1 is empty"),
        ([["tent"], [b"rope"]], "history 1, item 0 is bytes, expected str"),
        ([["tent"], "rope"], "history 1 is str, expected a sequence of str"),
        (["tent", ["rope"]], "history 0, item 1 is list, expected str"),
    ],
)
def test_histories_that_no_model_takes_are_not_sent(wired: Any, items: Any, said: str) -> None:
    recommend = wired.client.task("recommend")
    with pytest.raises(InvalidInput, match=f"^model 'recommend': {said}$"):
        recommend(items)
    assert wired.fake.requests == []


def test_image_classifier_takes_bytes_and_paths(wired: Any, tmp_path: Path) -> None:
    images = wired.client.task("images")
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG" + b"x" * 71)
    labels = [Label(label="long", score=0.75), Label(label="short", score=0.25)]
    assert images(path) == images(str(path)) == images(path.read_bytes()) == labels
    assert [row[0].label for row in images([b"x", path])] == ["short", "long"]


@in_memory
def test_images_that_are_not_there_are_not_sent(wired: Any, tmp_path: Path) -> None:
    images = wired.client.task("images")
    for items, said in (
        (tmp_path / "nope.png", r"image 0: there is no file '.*nope\.png' that can be read"),
        ([b"x", tmp_path], "image 1: there is no file"),
        ("A" * 5000, r"image 0: there is no file 'A{200}'\.\.\. \(5000 characters\) that can be read"),
        ("a\0b", r"image 0: there is no file 'a\\x00b' that can be read"),
        (b"", "image 0 is empty"),
        ([b"x", 7], "image 1 is int, expected bytes, a path or an array"),
        (7, r"expected an image \(bytes, a path or an array\) or a sequence of images, got int"),
        (np.zeros((2, 2)), r"image 0 is float64\[2, 2\], expected uint8 \[height, width\] or"),
        ([b"x", np.zeros(4, np.uint8)], r"image 1 is uint8\[4\], expected uint8"),
        (np.zeros((2, 2, 4), np.uint8), r"image 0 is uint8\[2, 2, 4\], expected uint8"),
        (np.zeros((2, 2, 2, 3), np.uint8), r"image 0 is uint8\[2, 2, 2, 3\], expected uint8"),
        (np.zeros((0, 2), np.uint8), r"image 0 is uint8\[0, 2\], expected uint8"),
        ([], "the list of images is empty"),
    ):
        with pytest.raises(InvalidInput, match=f"^model 'images': {said}"):
            images(items)
    assert wired.fake.requests == []


@in_memory
def test_an_image_that_goes_before_it_is_read_is_invalid_input(
    wired: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.isfile", lambda path: True)
    monkeypatch.setattr("os.access", lambda path, mode: True)
    with pytest.raises(InvalidInput, match=r"file '.*gone\.png' can't be read: No such file or directory"):
        wired.client.task("images")(tmp_path / "gone.png")


def test_arrays_travel_as_npy_files(wired: Any) -> None:
    images = wired.client.task("images")
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    color = np.stack([grey, grey + 100, grey + 200], axis=-1)
    one, many = images(grey), images([grey, color, grey.T, b"x"])
    assert [label.label for label in one] == ["long", "short"]
    assert len(many) == 4
    first, rest = wired.fake.requests
    sent = [np.load(io.BytesIO(row[0])) for row in [*first.inputs[0].array, *rest.inputs[0].array[:3]]]
    for array, expected in zip(sent, [grey, grey, color, grey.T], strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == np.uint8
    assert rest.inputs[0].array[3, 0] == b"x"


def test_tabular_classifier_takes_rows_in_any_form(wired: Any) -> None:
    rows = wired.client.task("rows")
    row = [0.5, 0, 0.25]
    labels = [Label(label="much", score=0.75), Label(label="little", score=0.25)]
    assert rows(row) == rows(tuple(row)) == rows(np.array(row)) == rows(np.array(row, np.float16)) == labels
    assert rows([np.float32(0.5), False, 0.25]) == labels
    assert rows([row]) == rows(np.array([row])) == [labels]
    table = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0.25], [0, 1, 0], [0.75, 0, 0]], np.float32)
    wired.fake.requests.clear()
    assert [found[0].label for found in rows(table)] == ["little", "much", "little", "much", "much"]
    assert [request.inputs[0].array.tolist() for request in wired.fake.requests] == [
        table[:4].tolist(),
        table[4:].tolist(),
    ]
    assert {request.inputs[0].array.dtype for request in wired.fake.requests} == {np.dtype(np.float32)}


BAD_ROWS = [
    ([], "the list of rows is empty$"),
    ([[]], "row 0 is empty$"),
    (np.zeros((0, 3)), "the list of rows is empty$"),
    ("abc", r"expected a row \(a sequence of numbers or an array \[F\]\) or .*, got str$"),
    (7, r"expected a row .*, got int$"),
    (np.zeros((2, 3, 1)), r"expected a row .*, got ndarray$"),
    (["a", "b"], "row 0 is str, expected a sequence of numbers$"),
    ([0.5, "b", 1], "row 0, number 1 is str, expected a number$"),
    ([[0.5, None, 1]], "row 0, number 1 is NoneType, expected a number$"),
    (np.array(["a", "b", "c"]), r"row 0 is <U1\[3\], expected numbers \[F\]$"),
    ([[1, 2, 3], [1, float("nan"), 3]], "row 1, number 1 is nan, expected one that is finite as float32$"),
    (np.array([1, 2, np.inf]), "row 0, number 2 is inf, expected one that is finite as float32$"),
    ([1e39, 0, 0], r"row 0, number 0 is 1e\+39, expected one that is finite as float32$"),
    ([10**400, 0, 0], "row 0 has a number that is too large for float32$"),
    ([[1, 2, 3], [1, 2]], "row 1 has 2 numbers, row 0 has 3$"),
    ([1, 2], r"input 'features' has shape \[1, 2\]; expected \[-1, 3\]"),
]


@in_memory
@pytest.mark.parametrize(("items", "said"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_rows_that_no_model_takes_are_not_sent(wired: Any, items: Any, said: str) -> None:
    rows = wired.client.task("rows")
    with pytest.raises(InvalidInput, match=f"^model 'rows': {said}"):
        rows(items)
    assert wired.fake.requests == []


def test_a_row_of_another_width_fails_alone_in_a_map(wired: Any) -> None:
    rows = wired.client.task("rows")
    outcomes = list(rows.map([[1, 0, 0], [1, 0], [0, 0, 0], [float("nan"), 0, 0]], batch_size=4))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True, False]
    assert "expected [-1, 3]" in str(outcomes[1].error)
    assert "row 3, number 0 is nan" in str(outcomes[3].error)


@in_memory
def test_tokenize_is_one_of_two(wired: Any) -> None:
    for options in ({"tokenize": "maybe"}, {"tokenizer": "folder"}):
        with pytest.raises(ConfigError, match="tokenize must be 'server', or 'client' with or without"):
            wired.client.task("ner", **options)


def test_more_texts_than_a_batch_are_split_and_keep_their_order(wired: Any) -> None:
    ner = wired.client.task("ner")
    texts = [f"{'none' if i % 3 else 'Name'} of {'A' * i}" for i in range(1, 12)]
    assert ner(texts) == [ner(text) for text in texts]
    assert [len(request.inputs[0].array) for request in wired.fake.requests[:3]] == [4, 4, 3]


def test_one_text_gives_one_result_and_a_sequence_a_list(wired: Any) -> None:
    ner = wired.client.task("ner")
    assert ner("nothing here") == []
    assert ner(["nothing here"]) == [[]]
    assert ner(("Some", "none")) == [ner("Some"), []]


BAD_TEXTS = [
    ([], "the list of texts is empty"),
    ("", "text 0 is empty"),
    (["a", ""], "text 1 is empty"),
    (["a", None], "text 1 is NoneType, expected str"),
    (["a", b"b"], "text 1 is bytes, expected str"),
    (b"ab", "expected a str or a sequence of str, got bytes"),
    (5, "expected a str or a sequence of str, got int"),
    (iter(["a"]), "expected a str or a sequence of str, got list_iterator"),
    (["a", "b\ud800"], r"text 1 can't be written as UTF-8 \(character 1\)"),
]


@in_memory
@pytest.mark.parametrize("model", ["ner", "intent"])
@pytest.mark.parametrize(("texts", "said"), BAD_TEXTS, ids=range(len(BAD_TEXTS)))
def test_texts_that_no_model_takes_are_not_sent(wired: Any, model: str, texts: Any, said: str) -> None:
    task = wired.client.task(model)
    with pytest.raises(InvalidInput, match=f"^model '{model}': {said}$"):
        task(texts)
    assert wired.fake.requests == []


def test_a_text_that_the_server_refuses_is_found_in_the_call(wired: Any) -> None:
    ner = wired.client.task("refusing")
    with pytest.raises(InvalidInput, match="text 0 is too long") as caught:
        ner(["a"])
    assert "of the call" not in str(caught.value)
    models = wired.fake.models_by_name
    refusing, ner_model = models["refusing"], models["ner"]
    wired.fake.change(
        "refusing",
        answer=lambda inputs: (refusing if len(inputs["text"]) < 4 else ner_model).answer(inputs),
    )
    with pytest.raises(
        InvalidInput, match=r"text 0 is too long.* \(text 0 of that request is text 4 of the call\)"
    ):
        ner(["a"] * 5)


@in_memory
def test_a_model_without_a_known_task_is_refused_with_the_known_ones(wired: Any) -> None:
    known = ", ".join(sorted(KINDS))
    assert known.startswith(
        "customer-service, feature-extraction, image-classification, opinion-monitoring, "
    )
    with pytest.raises(ConfigError, match=rf"model 'double' does not say its task .*known tasks: {known}\."):
        wired.client.task("double")
    wired.fake.models_by_name["odd"] = FakeModel(
        inputs={}, outputs={}, answer=dict, parameters={"task": "telepathy"}
    )
    with pytest.raises(ConfigError, match=f"model 'odd' says task 'telepathy', .*known tasks: {known}$"):
        wired.client.task("odd")
