"""Pipelines that join the pipelines of other recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mooring import BuildError
from mooring_build.recipe import Recipe


def compose(recipe: Recipe, *, repository: Path, artifacts: Path, say: Callable[[str], None]) -> int:
    """Publish a pipeline of released pipelines; see :func:`mooring_build.building.build`."""
    raise BuildError(f"task {recipe.task!r} can't be built yet")
