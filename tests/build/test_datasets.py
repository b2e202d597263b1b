from __future__ import annotations

from pathlib import Path

import pytest

from mooring import DataError, RecipeError
from mooring_build.datasets import load_dataset
from mooring_build.recipe import load_recipe


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def overrides(train: Path, evaluation: Path) -> list[str]:
    return [f"data.train={train}", f"data.evaluation={evaluation}"]


def test_labels_come_sorted_from_the_training_data(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\nx,pay\ny,ask\n")
    dataset = load_dataset(load_recipe("intent", overrides(train, train)))
    assert dataset.labels == ["ask", "pay"]


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\nx,pay\ny,ask\n")
    recipe = load_recipe("intent", overrides(train, train))
    before = load_dataset(recipe).digest
    assert load_dataset(recipe).digest == before
    write(train, "text,label\nx,pay\ny,ask!\n")
    assert load_dataset(recipe).digest != before


def test_missing_file_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.train '.*none.csv': no file"):
        load_dataset(load_recipe("intent", overrides(tmp_path / "none.csv", tmp_path / "none.csv")))


def test_label_that_training_never_saw(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\nx,pay\ny,ask\n")
    evaluation = write(tmp_path / "eval.csv", "text,label\nx,shout\n")
    with pytest.raises(
        DataError, match=r"eval.csv has labels \['shout'\] that are not among.*\['ask', 'pay'\]"
    ):
        load_dataset(load_recipe("intent", overrides(train, evaluation)))


def test_labels_that_the_recipe_fixes_can_be_taken_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "aspirin B-DRUG\n\n. O\n")
    wrong = r"a.conll has labels \['B-DRUG'\] .*, which the recipe fixes; --set labels= takes them from"
    with pytest.raises(DataError, match=wrong):
        load_dataset(load_recipe("ner", overrides(path, path)))
    assert load_dataset(load_recipe("ner", [*overrides(path, path), "labels="])).labels == [
        "O",
        "B-DRUG",
        "I-DRUG",
    ]


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.csv", "text,label\nx,pay\ny,ask\n")
    assert len(load_dataset(load_recipe("intent", overrides(Path("~/a.csv"), Path("~/a.csv")))).train) == 2


def test_one_label_is_nothing_to_learn(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\nx,pay\n")
    with pytest.raises(DataError, match="single label 'pay'"):
        load_dataset(load_recipe("intent", overrides(train, train)))


def test_token_labels_must_be_bio(tmp_path: Path) -> None:
    train = write(tmp_path / "a.conll", "Anna B-PER\n")
    with pytest.raises(RecipeError, match="needs O, B-<type>, I-<type>"):
        load_dataset(load_recipe("ner", [*overrides(train, train), 'labels=["PER", "B-PER", "I-PER"]']))


def test_shipped_data_sets_load() -> None:
    assert load_dataset(load_recipe("ner")).labels[0] == "O"
    intent = load_dataset(load_recipe("intent"))
    train_texts = {example.text for example in intent.train}
    assert not train_texts & {example.text for example in intent.evaluation}
