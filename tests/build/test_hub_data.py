"""Data sets as the hub keeps them, read from local folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from mooring import DataError
from mooring_build.datasets import LabelledText, TaggedSentence, load_dataset
from mooring_build.recipe import Recipe, load_recipe

TAGS = ["O", "B-PER", "I-PER", "B-LOC"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def save(folder: Path, rows: dict[str, list[object]], features: Features) -> Path:
    folder.mkdir()
    for split in ("train", "test"):
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def texts(folder: Path, **changes: str) -> Recipe:
    keys = {"format": "hub", "dataset": str(folder), "train": "train", "evaluation": "test"} | changes
    return load_recipe("intent", [*(f"data.{key}={value}" for key, value in keys.items())])


def test_labels_may_be_numbers_with_names(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["ask", "pay"])})
    folder = save(tmp_path / "set", {"text": ["one", "two"], "label": [1, 0]}, features)
    dataset = load_dataset(texts(folder).model_copy(update={"labels": None}))
    assert list(dataset.train) == [LabelledText("one", "pay"), LabelledText("two", "ask")]
    assert dataset.labels == ["ask", "pay"]
    assert len(dataset.evaluation) == 2


def test_sentences_are_tokens_and_tags(tmp_path: Path) -> None:
    features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=TAGS))})
    rows = {"tokens": [["Anna", "left", "Porto"]], "ner_tags": [[1, 0, 3]]}
    folder = save(tmp_path / "set", rows, features)
    recipe = load_recipe(
        "ner",
        [
            "data.format=hub",
            f"data.dataset={folder}",
            "data.train=train",
            "data.evaluation=test",
            "data.text_column=tokens",
            "data.label_column=ner_tags",
        ],
    )
    expected = TaggedSentence(("Anna", "left", "Porto"), ("B-PER", "O", "B-LOC"))
    assert list(load_dataset(recipe).train) == [expected]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "intent": Value("string")})
    folder = save(tmp_path / "set", {"text": ["one", ""], "intent": ["a", "b"]}, features)
    with pytest.raises(
        DataError, match=r"data\.label_column 'label' is not among its columns \['text', 'intent'\]"
    ):
        load_dataset(texts(folder))
    with pytest.raises(DataError, match=r"split 'train', row 1: '' with 'b' is no example"):
        load_dataset(texts(folder, label_column="intent"))
    with pytest.raises(DataError, match=r"split 'validation' can't be loaded"):
        load_dataset(texts(folder, train="validation"))
