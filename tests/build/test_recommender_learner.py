"""The recommender's model and lesson, on a text encoder of a few thousand weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mooring import CheckpointError
from mooring_build.behaviour import read_items
from mooring_build.datasets import Dataset, load_dataset
from mooring_build.learners import Lesson, learner_of
from mooring_build.learners.recommender import KNOWN_ITEMS, load_recommender
from mooring_build.learners.recommender_model import IGNORED, RecommenderModel
from mooring_build.models import load_fine_tuned_model
from mooring_build.recipe import Recipe, load_recipe
from tiny_checkpoint import make_tiny_checkpoint

EVENTS = "user,item,time\n" + "".join(
    f"user{user},item{(user + step) % 9},{step}\n" for user in range(6) for step in range(6)
)
# Item 9 is only chosen last but one, item 10 never; so both have no part of their own.
EVENTS += "user9,item1,1\nuser9,item9,2\nuser9,item2,3\n"
ITEMS = "item,text\n" + "".join(f"item{item},the river {item}\n" for item in range(11))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("encoder"), "text-classification", ["a", "b"])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Recipe:
    folder = tmp_path_factory.mktemp("data")
    (folder / "events.csv").write_text(EVENTS)
    (folder / "items.csv").write_text(ITEMS)
    overrides = [
        f"base.checkpoint={encoder}",
        f"data.train={folder / 'events.csv'}",
        f"catalogue.file={folder / 'items.csv'}",
        "catalogue.dimension=8",
        "catalogue.max_history=4",
        "text.max_length=32",
    ]
    return load_recipe("recommender", overrides)


@pytest.fixture(scope="module")
def dataset(recipe: Recipe) -> Dataset:
    return load_dataset(recipe)


@pytest.fixture(scope="module")
def lesson(recipe: Recipe, encoder: Path, dataset: Dataset) -> Lesson:
    torch.manual_seed(0)
    return learner_of("recommendation").lesson(recipe, encoder, dataset)


@pytest.fixture(scope="module")
def model(lesson: Lesson) -> RecommenderModel:
    return lesson.model.eval()


@pytest.fixture(scope="module")
def saved(lesson: Lesson, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    lesson.model.save_pretrained(folder)
    lesson.processor.save_pretrained(folder)
    return folder


def collate(lesson: Lesson, examples: Sequence[dict[str, object]]) -> dict[str, torch.Tensor]:
    return dict(lesson.collator(list(examples)))


def test_items_of_the_training_come_before_those_without_a_part_of_their_own(
    model: RecommenderModel, lesson: Lesson, saved: Path
) -> None:
    known = list(json.loads((saved / KNOWN_ITEMS).read_text()))
    assert known == [f"item{item}" for item in [*range(9), 9]]
    assert (model.config.known_count, model.config.trained_count) == (10, 9)


def test_training_starts_from_popularity(model: RecommenderModel, dataset: Dataset) -> None:
    chosen = [item for visited in dataset.train for item in visited.items[:-1]]
    shares = np.log([chosen.count(f"item{item}") for item in range(9)])
    assert model.own_biases.detach().numpy() == pytest.approx(shares - shares.mean(), abs=1e-6)


def test_every_item_of_a_window_is_a_label(lesson: Lesson) -> None:
    # Six events each: the last is the test, the one before it validation, and four are learned from.
    assert [example["items"] for example in lesson.train][:2] == [[0, 1, 2, 3], [1, 2, 3, 4]]
    batch = collate(lesson, [{"items": [0, 1, 2, 3, 4]}, {"items": [7]}])
    assert batch["history"].tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[0, 1, 2, 3, 4], [7, *[IGNORED] * 4]]
    assert "seen" not in batch


def test_long_histories_are_parted_into_windows(recipe: Recipe, encoder: Path) -> None:
    from mooring_build.examples import NextItem, Visits

    visits = [Visits(tuple(f"item{item}" for item in range(9)))]
    dataset = Dataset(
        train=visits,
        evaluation=[NextItem(visits[0].items, "item9")],
        labels=[],
        digest="",
        evaluation_digest="",
    )
    lesson = learner_of("recommendation").lesson(recipe, encoder, dataset)
    assert [example["items"] for example in lesson.train] == [[3, 4, 5, 6, 7], [0, 1, 2]]
    (held_out,) = lesson.evaluation
    batch = collate(lesson, [held_out])
    assert batch["history"].tolist() == [[4, 5, 6, 7]]
    assert batch["labels"].tolist() == [[*[IGNORED] * 4, 8]]
    assert batch["seen"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_ranks_leave_out_what_was_seen(lesson: Lesson, model: RecommenderModel) -> None:
    examples = [{"items": [0, 1, 5], "held_out": True}, {"items": [2, 9], "held_out": True}]
    batch = collate(lesson, examples)
    with torch.no_grad():
        answer = model(**batch)
        vectors, biases = model.known_items()
    for row, example in enumerate(examples):
        *seen, right = example["items"]
        history = vectors[torch.tensor([seen])]
        user = model.tower(history, torch.ones(1, len(seen), dtype=torch.int64))[0].detach()
        scores = (vectors @ user + biases).tolist()
        better = [item for item, score in enumerate(scores) if score > scores[right] and item not in seen]
        assert answer["ranks"][row].item() == len(better)


def test_the_state_before_a_choice_does_not_see_it(model: RecommenderModel) -> None:
    vectors = torch.randn(1, 4, 8)
    changed = vectors.clone()
    changed[0, 2, 0] += 5
    with torch.inference_mode():
        before, after = model.tower.states(vectors), model.tower.states(changed)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().min() > 0


def test_padding_changes_no_user(model: RecommenderModel) -> None:
    vectors = torch.randn(3, 4, 8)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    with torch.inference_mode():
        users = model.tower(vectors, mask)
        for row, count in enumerate([2, 4, 0]):
            alone = model.tower.states(vectors[row : row + 1, :count])[0, -1]
            torch.testing.assert_close(users[row], alone)


def test_an_item_without_a_part_of_its_own_is_its_text(model: RecommenderModel) -> None:
    texts = model.text_vectors[:2]
    with torch.inference_mode():
        own, own_biases = model.item_vectors(texts, torch.tensor([0, 1]))
        new, new_biases = model.item_vectors(texts, torch.tensor([-1, -1]))
        torch.testing.assert_close(new, model.projection(texts))
        torch.testing.assert_close(own - new, model.own_vectors[:2])
        torch.testing.assert_close(own_biases - new_biases, model.own_biases[:2])


def test_only_the_text_encoder_is_frozen(model: RecommenderModel) -> None:
    frozen = {name.split(".")[0] for name, weight in model.named_parameters() if not weight.requires_grad}
    trained = {name.split(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    assert frozen == {"text_encoder"}
    assert trained == {"projection", "text_bias", "own_vectors", "own_biases", "tower"}


def test_a_checkpoint_is_whole(model: RecommenderModel, recipe: Recipe, saved: Path) -> None:
    loaded, texts = load_recommender(saved, recipe)
    assert texts == {item: text for item, text in read_items(recipe).items() if item != "item10"}
    weights, expected = loaded.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_a_checkpoint_that_does_not_fit_is_refused(
    recipe: Recipe, encoder: Path, saved: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="is no recommender but a bert model"):
        load_recommender(encoder, recipe)
    other = recipe.model_copy(update={"catalogue": recipe.catalogue.model_copy(update={"max_history": 5})})
    with pytest.raises(CheckpointError, match=r"has max_history 4, catalogue\.max_history says 5"):
        load_recommender(saved, other)
    folder = shutil.copytree(saved, tmp_path / "damaged")
    (folder / KNOWN_ITEMS).write_text('{"item0": "the river"}')
    with pytest.raises(CheckpointError, match="has 1 items, the weights are of 10"):
        load_recommender(folder, recipe)


def test_a_fine_tuned_checkpoint_is_scored_on_what_was_held_out(
    recipe: Recipe, saved: Path, dataset: Dataset
) -> None:
    lesson = learner_of("recommendation").lesson(recipe, saved, dataset, fine_tuned=True)
    # Of six users the last item is one that they had in common; user9's is item2.
    assert [example["items"][-1] for example in lesson.evaluation] == [5, 6, 7, 8, 0, 1, 2]


def test_the_encoder_is_not_part_of_the_engine(recipe: Recipe, saved: Path) -> None:
    exportable = learner_of("recommendation").exportable(recipe, saved)
    encoder = load_fine_tuned_model(saved, recipe.task).text_encoder
    size = sum(weight.numel() for weight in exportable.module.parameters())
    assert size < sum(weight.numel() for weight in encoder.parameters())
    assert not any("text_encoder" in name for name, _ in exportable.module.named_parameters())


def test_engines_are_tried_with_every_length_and_empty_histories(
    recipe: Recipe, saved: Path, dataset: Dataset
) -> None:
    learner = learner_of("recommendation")
    cases = list(learner.cases(recipe, learner.exportable(recipe, saved), dataset))
    shapes = {case.inputs[0].shape for case in cases}
    assert {shape[0] for shape in shapes} == {1, 2, 3, 5, 8, 32}
    assert {shape[1] for shape in shapes} == {1, 2, 3, 4}
    assert {shape[2] for shape in shapes} == {8}
    lengths = {tuple(case.inputs[1].sum(1).tolist()) for case in cases}
    assert any(0 in row for row in lengths)
    assert any(len(set(row)) > 2 for row in lengths)
