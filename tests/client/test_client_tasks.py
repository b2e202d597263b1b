"""Typed calls of all six tasks: items in, results out, and what no model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mooring import ConfigError, Entity, InvalidInput, Label, RankedItem
from mooring.testing import FakeModel


@pytest.mark.parametrize(
    ("model", "task", "kind"),
    [
        ("ner", "token-classification", "TokenClassifier"),
        ("intent", "text-classification", "TextClassifier"),
        ("embed", "feature-extraction", "Embedder"),
        ("rank", "text-ranking", "TextRanker"),
        ("recommend", "recommendation", "Recommender"),
        ("images", "image-classification", "ImageClassifier"),
    ],
)
def test_each_task_has_its_class(wired: Any, model: str, task: str, kind: str) -> None:
    made = wired.client.task(model)
    assert repr(made) == f"{wired.side.name(kind)}({model!r})"
    assert type(getattr(made, "wrapped", made)) is wired.side.kind(kind)
    assert (made.name, made.model, made.version) == (task, model, "")
    assert wired.client.task(model, version="1").version == "1"


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
    lamp = RankedItem(item="lamp", score=12.5)
    assert rank("grün") == [lamp, RankedItem(item="grün", score=-3.25)]
    assert rank(["a", "b"]) == [
        [lamp, RankedItem(item="a", score=-3.25)],
        [lamp, RankedItem(item="b", score=-3.25)],
    ]


def test_recommender_takes_histories_and_pads_the_shorter(wired: Any) -> None:
    recommend = wired.client.task("recommend")
    lamp = RankedItem(item="lamp", score=12.5)
    assert recommend(["tent", "rope"]) == [lamp, RankedItem(item="tent", score=-3.25)]
    two = recommend([["tent", "rope"], ("boot",)])
    assert [row[1].item for row in two] == ["tent", "boot"]
    assert wired.fake.requests[-1].inputs[0].array.tolist() == [[b"tent", b"rope"], [b"boot", b""]]


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


def test_images_that_are_not_there_are_not_sent(wired: Any, tmp_path: Path) -> None:
    images = wired.client.task("images")
    for items, said in (
        (tmp_path / "nope.png", r"image 0: there is no file '.*nope\.png' that can be read"),
        ([b"x", tmp_path], "image 1: there is no file"),
        (b"", "image 0 is empty"),
        ([b"x", 7], "image 1 is int, expected bytes or a path"),
        (7, r"expected an image \(bytes or a path\) or a sequence of images, got int"),
        ([], "the list of images is empty"),
    ):
        with pytest.raises(InvalidInput, match=f"^model 'images': {said}"):
            images(items)
    assert wired.fake.requests == []


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


def test_a_model_without_a_known_task_is_refused_with_the_known_ones(wired: Any) -> None:
    known = (
        "feature-extraction, image-classification, recommendation, text-classification, text-ranking, "
        "token-classification"
    )
    with pytest.raises(ConfigError, match=rf"model 'double' does not say its task .*known tasks: {known}\."):
        wired.client.task("double")
    wired.fake.models_by_name["odd"] = FakeModel(
        inputs={}, outputs={}, answer=dict, parameters={"task": "telepathy"}
    )
    with pytest.raises(ConfigError, match=f"model 'odd' says task 'telepathy', .*known tasks: {known}$"):
        wired.client.task("odd")
