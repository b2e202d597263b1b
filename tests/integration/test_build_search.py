"""Hyper-parameter search over a tiny model, and what it leaves."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, TrainerState, TrainingArguments

from mooring import RecipeError
from mooring_build.building import build
from mooring_build.datasets import load_dataset
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.repository import read_manifest
from mooring_build.search import ranges_of, search
from mooring_build.training import trackers
from tiny_checkpoint import make_tiny_checkpoint

pytestmark = pytest.mark.integration

ROWS = [
    ("who pays my refund", "pay"),
    ("my refund now", "pay"),
    ("pays now", "pay"),
    ("the river is wide", "ask"),
    ("anna works in porto", "ask"),
    ("lisbon is in porto", "ask"),
]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    checkpoint = make_tiny_checkpoint(tmp_path / "tiny", "text-classification", ["ask", "pay"])
    data = tmp_path / "data.csv"
    with data.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *ROWS * 4])
    return load_recipe(
        "intent",
        [
            f"base.checkpoint={checkpoint}",
            f"data.train={data}",
            f"data.evaluation={data}",
            "data.format=csv",
            "text.max_length=48",
            'export.formats=["onnx"]',
            "search.epochs=[1, 2]",
            "search.batch_size=[4, 8]",
        ],
    )


def test_a_search_goes_on_and_its_best_trial_is_published(recipe: Recipe, tmp_path: Path) -> None:
    places = {"repository": tmp_path / "models", "artifacts": tmp_path / "artifacts"}
    said: list[str] = []
    assert build(recipe, **places, search_trials=2, say=said.append) == 1
    assert [line.split()[1] for line in said if line.startswith("trial ")] == ["0", "1"]
    said.clear()
    build(recipe, **places, search_trials=3, say=said.append)
    assert [line.split()[1] for line in said if line.startswith("trial ")] == ["2"]

    (folder,) = (tmp_path / "artifacts" / "intent").glob("search-*")
    rows = list(csv.DictReader((folder / "trials.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 3
    assert [float(row["value"]) for row in rows] == sorted(
        (float(row["value"]) for row in rows), reverse=True
    )
    assert len({row["learning_rate"] for row in rows}) == 3
    (first,) = [row for row in rows if row["trial"] == "0"]
    assert recipe.training is not None
    # The recipe's own, but for the epochs: those are not among what it tries.
    assert float(first["learning_rate"]) == recipe.training.learning_rate
    assert float(first["weight_decay"]) == recipe.training.weight_decay
    assert 1 <= float(first["epochs"]) <= 2
    assert (folder / "trials.png").read_bytes().startswith(b"\x89PNG")

    version = max(int(path.name) for path in (tmp_path / "models" / "intent").glob("[0-9]*"))
    manifest = read_manifest(tmp_path / "models", "intent", version)
    record = manifest["search"]
    assert (record["trials"], str(record["best_trial"])) == (3, rows[0]["trial"])
    assert record["best_value"] == pytest.approx(float(rows[0]["value"]), abs=1e-6)
    training = manifest["recipe"]["training"]
    assert {name: training[name] for name in record["values"]} == record["values"]


def test_other_values_of_the_recipe_are_tried_though_there_are_trials_enough(
    recipe: Recipe, tmp_path: Path
) -> None:
    dataset, base = load_dataset(recipe), Path(recipe.base.checkpoint)
    for trials, rate in enumerate((1e-4, 3e-4, 3e-4), start=1):
        training = recipe.training.model_copy(update={"learning_rate": rate})
        own = recipe.model_copy(update={"training": training})
        _, record = search(own, base, dataset, tmp_path / "search", trials=1)
        # The third has nothing new.
        assert record["trials"] == min(trials, 2)
    rows = csv.DictReader((tmp_path / "search" / "trials.csv").read_text(encoding="utf-8").splitlines())
    assert {float(row["learning_rate"]) for row in rows} == {1e-4, 3e-4}


def test_trials_are_trained_as_the_build_trains(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[float, float, float]] = []

    def note(
        self: EarlyStoppingCallback, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any
    ) -> None:
        trained.append((args.warmup_steps, args.num_train_epochs, state.epoch))

    monkeypatch.setattr(EarlyStoppingCallback, "on_train_end", note, raising=False)
    # Nothing is learnt at such a rate, so that no epoch is better than the first.
    overrides = {"learning_rate": [1e-12, 1e-11], "epochs": [5, 6], "warmup_ratio": [0.1, 0.3]}
    slow = recipe.model_copy(update={"search": recipe.search.model_copy(update=overrides)})
    build(slow, repository=tmp_path / "m", artifacts=tmp_path / "a", search_trials=2)
    assert len(trained) == 3
    for warmup, wanted, epochs in trained:
        assert 0.1 <= warmup <= 0.3
        assert wanted >= 5
        # Two epochs without improvement end it; each trial counts anew.
        assert epochs == 3


def test_a_search_needs_training(recipe: Recipe, tmp_path: Path) -> None:
    fine_tuned = recipe.model_copy(update={"training": None, "labels": ["ask", "pay"]})
    with pytest.raises(RecipeError, match="there is nothing to search for"):
        build(fine_tuned, repository=tmp_path / "m", artifacts=tmp_path / "a", search_trials=1)


def test_a_tracker_that_is_not_installed(recipe: Recipe, tmp_path: Path) -> None:
    tracking = recipe.tracking.model_copy(update={"report_to": ["tensorboard", "wandb"]})
    with pytest.raises(RecipeError, match=r"'wandb': its package is missing; pip install wandb"):
        trackers(recipe.model_copy(update={"tracking": tracking}), tmp_path)


def test_what_a_recipe_leaves_out_goes_as_far_as_its_own_values() -> None:
    tried = ranges_of(load_recipe("tabular", ["search.warmup_ratio=[0.0, 0.1]", "training.batch_size=24"]))
    assert tried.learning_rate == [2e-5, 5e-3]
    assert tried.epochs == [2, 30]
    assert tried.batch_size == [8, 16, 24, 32]
    assert tried.warmup_ratio == [0.0, 0.1]


def test_a_search_that_can_not_be_built_is_refused_at_once(recipe: Recipe, tmp_path: Path) -> None:
    outside = tmp_path / "outside.csv"
    outside.write_text("text\nno label fits\n")
    keys = {"data": recipe.data.model_copy(update={"out_of_scope_train": str(outside)})}
    smooth = recipe.training.model_copy(update={"label_smoothing": 0.1})
    said: list[str] = []
    with pytest.raises(RecipeError, match=r"training\.label_smoothing"):
        build(
            recipe.model_copy(update={**keys, "training": smooth}),
            repository=tmp_path / "m",
            artifacts=tmp_path / "a",
            search_trials=1,
            say=said.append,
        )
    assert not any(line.startswith("trial ") for line in said)
