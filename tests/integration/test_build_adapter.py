"""LoRA: few weights are trained, and what is saved is an ordinary checkpoint."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mooring import RecipeError
from mooring_build.datasets import load_dataset
from mooring_build.learners import learner_of
from mooring_build.models import load_fine_tuned_model
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.training import fine_tune
from tiny_checkpoint import make_tiny_checkpoint

pytestmark = pytest.mark.integration

ROWS = [("who pays my refund", "pay"), ("pays now", "pay"), ("the river is wide", "ask"), ("in porto", "ask")]


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
            "training.epochs=2",
            "training.learning_rate=1e-2",
            "training.batch_size=4",
            "adapter.rank=4",
            "adapter.alpha=8",
        ],
    )


def test_only_adapter_and_head_are_trained(recipe: Recipe) -> None:
    lesson = learner_of(recipe.task).lesson(recipe, Path(recipe.base.checkpoint), load_dataset(recipe))
    trained = {name for name, weight in lesson.model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name or "classifier" in name for name in trained)


def test_a_new_pooler_is_trained_with_the_head(recipe: Recipe, tmp_path: Path) -> None:
    base = Path(recipe.base.checkpoint)
    weights = load_file(base / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if ".pooler." not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    lesson = learner_of(recipe.task).lesson(recipe, base, load_dataset(recipe))
    trained = {name for name, weight in lesson.model.named_parameters() if weight.requires_grad}
    assert any(name.endswith("pooler.modules_to_save.default.dense.weight") for name in trained)
    assert all("lora_" in name or "classifier" in name or "pooler" in name for name in trained)
    # What is saved is an ordinary checkpoint, too.
    fine_tune(recipe, base, load_dataset(recipe), tmp_path / "trained")
    load_fine_tuned_model(tmp_path / "trained", recipe.task)


def test_the_adapter_is_merged_into_the_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    base = Path(recipe.base.checkpoint)
    fine_tune(recipe, base, load_dataset(recipe), tmp_path / "trained")
    before = load_fine_tuned_model(base, recipe.task).state_dict()
    after = load_fine_tuned_model(tmp_path / "trained", recipe.task).state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("attention.self.query" in name for name in changed)
    assert not any("embeddings" in name or "intermediate" in name for name in changed)


def test_layers_that_do_not_exist(recipe: Recipe) -> None:
    adapter = recipe.adapter.model_copy(update={"target_modules": ["no_such_layer"]})
    wrong = recipe.model_copy(update={"adapter": adapter})
    with pytest.raises(RecipeError, match=r"adapter\.target_modules \['no_such_layer'\]"):
        learner_of(wrong.task).lesson(wrong, Path(wrong.base.checkpoint), load_dataset(wrong))
