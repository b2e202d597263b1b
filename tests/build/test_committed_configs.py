"""The configs under ``model_repository/`` are those that the shipped recipes generate."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooring_build.datasets import read_labels
from mooring_build.recipe import load_recipe, shipped_recipes
from mooring_build.repository import pinned_version, read_config
from mooring_build.triton_config import dumps_config, model_configs

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_committed_configs_are_up_to_date(name: str) -> None:
    recipe = load_recipe(name)
    version = pinned_version(read_config(REPOSITORY, name))
    assert version is not None, f"{REPOSITORY / name} has no config that pins a version"
    for model, config in model_configs(recipe, read_labels(recipe), version).items():
        path = REPOSITORY / model / "config.pbtxt"
        assert path.read_text(encoding="utf-8") == dumps_config(config), (
            f"{path} is stale: run 'mooring build {name}' and commit it"
        )


def test_no_config_is_left_over() -> None:
    expected = {model for name in shipped_recipes() for model in model_configs(load_recipe(name), ["O"], 1)}
    assert {path.parent.name for path in REPOSITORY.glob("*/config.pbtxt")} == expected
