"""Readers of the published sets of questions: StackFAQ and CLINC150."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mooring import DataError
from mooring_build.data_files import read_rows
from mooring_build.real_data import clinc150, stackfaq
from shared_data import shared_data

THREAD = (
    "<qapair>{}<question>\n Which  one?\n</question><answer> The left. </answer><answer>No.</answer></qapair>"
)
QUERIES = "<rephr>a</rephr><rephr></rephr><rephr> * </rephr><rephr>b &lt;c&gt;</rephr>"


def test_threads_become_a_catalogue_and_two_splits(tmp_path: Path) -> None:
    (tmp_path / "stackExchange-FAQ.xml").write_text(f"<root>{THREAD.format(QUERIES)}</root>")
    files = stackfaq(tmp_path, tmp_path / "out")
    assert read_rows(files["catalogue"], ["item", "question", "answer"]) == [
        {"item": "thread-000", "question": "Which one?", "answer": "The left."}
    ]
    assert read_rows(files["train"], ["text", "item"]) == [{"text": "a", "item": "thread-000"}]
    assert read_rows(files["evaluation"], ["text", "item"]) == [{"text": "b <c>", "item": "thread-000"}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<root>", "is not XML: no element found"),
        (
            f"<root>{THREAD.format('<rephr>a</rephr>')}</root>",
            r"thread 0 has no question, no answer",
        ),
    ],
)
def test_threads_that_can_not_be(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        stackfaq(tmp_path, tmp_path / "out")
    (tmp_path / "stackExchange-FAQ.xml").write_text(text)
    with pytest.raises(DataError, match=said):
        stackfaq(tmp_path, tmp_path / "out")


def test_stackfaq_is_whole(tmp_path: Path) -> None:
    files = stackfaq(shared_data("stackfaq"), tmp_path)
    catalogue = read_rows(files["catalogue"], ["item", "question", "answer"])
    train, evaluation = (read_rows(files[split], ["text", "item"]) for split in ("train", "evaluation"))
    assert (len(catalogue), len(train), len(evaluation)) == (125, 625, 624)
    assert {row["item"] for row in [*train, *evaluation]} == {row["item"] for row in catalogue}


def test_clinc150_is_whole(tmp_path: Path) -> None:
    files = clinc150(shared_data("clinc150"), tmp_path)
    counts = {split: len(read_rows(path, ["text"])) for split, path in files.items()}
    assert counts == {
        "train": 15000,
        "evaluation": 3000,
        "test": 4500,
        "out_of_scope_train": 100,
        "out_of_scope": 100,
        "out_of_scope_test": 1000,
    }
    labels = {row["label"] for row in read_rows(files["train"], ["text", "label"])}
    assert len(labels) == 150
    assert labels == {row["label"] for row in read_rows(files["test"], ["text", "label"])}


@pytest.mark.parametrize("content", ["[", '{"train": []}', json.dumps(dict.fromkeys(["train", "val"], 7))])
def test_a_clinc150_that_can_not_be(content: str, tmp_path: Path) -> None:
    (tmp_path / "data_full.json").write_text(content)
    with pytest.raises(DataError, match="is not as CLINC150 has it"):
        clinc150(tmp_path, tmp_path / "out")
