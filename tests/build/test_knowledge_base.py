"""The catalogue of a text-ranking recipe, as it is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mooring import BuildError, DataError, RecipeError
from mooring_build import building
from mooring_build.checkpoints import Checkpoint
from mooring_build.datasets import Dataset
from mooring_build.examples import LabelledText
from mooring_build.knowledge_base import Entry, known_examples, of_known_items, read_entries
from mooring_build.recipe import Recipe, load_recipe
from tiny_checkpoint import make_tiny_checkpoint


def read(path: Path, text: str) -> list[Entry]:
    path.write_text(text, encoding="utf-8")
    return read_entries(load_recipe("faq", [f"catalogue.file={path}"]))


def test_entries_keep_the_order_of_the_file(tmp_path: Path) -> None:
    text = 'answer,item,note,question\n"Press it, twice.",how,x,How?\nWait. ,when,,"When ""now""?"\n'
    entries = read(tmp_path / "a.csv", text)
    assert entries == [Entry("how", "How?", "Press it, twice."), Entry("when", 'When "now"?', "Wait.")]
    assert entries[0].phrasings == ("How?", "Press it, twice.", "How? Press it, twice.")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("item,question\na,b\n", r"column 'answer' is not among its columns \['item', 'question'\]"),
        ("item,question,answer\na,,c\n", r":2: empty question"),
        ("item,question,answer\na,b,c\na,d,e\n", r"item 'a' is there twice"),
        ("item,question,answer\n", "holds no row"),
        ('item,question,answer\na,b,"c\n', r":2: the row that begins here: unexpected end of data"),
        ("item,question,answer\na,b,c, but not d\n", r":2: more cells than the 3 of the header"),
    ],
)
def test_malformed_catalogues(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path / 'a.csv'}.*{said}"):
        read(tmp_path / "a.csv", text)


def test_a_catalogue_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"catalogue.file '/nowhere.csv': no file /nowhere.csv"):
        read_entries(load_recipe("faq", ["catalogue.file=/nowhere.csv"]))


def test_texts_of_items_that_were_taken_out_are_left_out() -> None:
    entries = [Entry("a", "?", "!"), Entry("b", "?", "!")]
    texts = [LabelledText("x", "b"), LabelledText("y", "c"), LabelledText("z", "a")]
    assert of_known_items(entries, texts, "data.train") == [(texts[0], 1), (texts[2], 0)]
    assert of_known_items(entries, [], "data.train") == []
    with pytest.raises(DataError, match=r"data.train: none of its items is in the catalogue, such as 'c'"):
        of_known_items(entries, texts[1:2], "data.train")


def test_the_examples_are_of_items_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item,question,answer\na,?,!\nb,?,!\n", encoding="utf-8")
    texts = [LabelledText("x", "b"), LabelledText("y", "c")]
    dataset = Dataset(train=texts[::-1], evaluation=texts, labels=[], digest="d", evaluation_digest="e")
    recipe = load_recipe("faq", [f"catalogue.file={tmp_path / 'a.csv'}"])
    kept = known_examples(recipe, dataset)
    assert kept == replace(dataset, train=texts[:1], evaluation=texts[:1], entries=read_entries(recipe))


def test_a_build_counts_the_examples_that_it_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text("item,question,answer\na,?,!\nb,?,!\n", encoding="utf-8")
    (tmp_path / "texts.csv").write_text("text,item\nx,b\ny,c\nz,a\n", encoding="utf-8")
    checkpoint = make_tiny_checkpoint(tmp_path / "tiny", "text-classification", ["a", "b"])
    changes = [f"data.{split}={tmp_path / 'texts.csv'}" for split in ("train", "evaluation")]
    changes += [f"catalogue.file={tmp_path / 'a.csv'}", f"base.checkpoint={checkpoint}", "text.max_length=48"]

    def train(recipe: Recipe, checkpoint: Checkpoint, dataset: Dataset, *_: object) -> None:
        raise BuildError(f"{len(dataset.train)} and {len(dataset.evaluation)} examples")

    monkeypatch.setattr(building, "train", train)
    with pytest.raises(BuildError, match="2 and 2 examples"):
        building.build(load_recipe("faq", changes), repository=tmp_path / "m", artifacts=tmp_path / "a")


def test_a_recipe_without_a_catalogue_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    path.write_text('name = "bare"\ntask = "text-ranking"\n[base]\ncheckpoint = "a/b"\n')
    with pytest.raises(RecipeError, match=r"task 'text-ranking' needs the table \[catalogue\]"):
        load_recipe(path)


def test_an_embedding_says_its_length(tmp_path: Path) -> None:
    path = tmp_path / "embed.toml"
    path.write_text('name = "embed"\ntask = "feature-extraction"\n[base]\ncheckpoint = "a/b"\n')
    with pytest.raises(RecipeError, match=r"task 'feature-extraction' needs text.dimension"):
        load_recipe(path)
    assert load_recipe(path, ["text.dimension=8"]).text.dimension == 8
    with pytest.raises(RecipeError, match=r"data.format 'csv' does not fit task 'feature-extraction': none"):
        load_recipe(path, ["text.dimension=8", "data.format=csv"])
