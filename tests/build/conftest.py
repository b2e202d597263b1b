"""Two releases of one recipe, and a repository to publish them into."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooring_build.publish import Release
from mooring_build.recipe import Recipe
from tiny_release import make_release, padded_recipe


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def recipe() -> Recipe:
    return padded_recipe("ner")


@pytest.fixture
def release(tmp_path: Path, recipe: Recipe) -> Release:
    return make_release(tmp_path / "first", recipe, {"anna": "B-PER"})


@pytest.fixture
def next_release(tmp_path: Path, recipe: Recipe) -> Release:
    return make_release(tmp_path / "next", recipe, {"anna": "B-LOC"}, inputs_digest="b")
