"""What a recipe's pipeline is made of: its steps and the tensors between them, task by task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mooring_build.layouts._layout import EngineStep, Layout, ModelStep, PythonStep, Step, Tensors
from mooring_build.layouts.text import text_classification, token_classification
from mooring_build.recipe import Recipe, Task

__all__ = ["EngineStep", "Layout", "ModelStep", "PythonStep", "Step", "Tensors", "layout_of"]

_LAYOUTS: dict[Task, Callable[[Recipe, Sequence[str]], Layout]] = {
    "text-classification": text_classification,
    "token-classification": token_classification,
}


def layout_of(recipe: Recipe, labels: Sequence[str]) -> Layout:
    """Lay a recipe's pipeline out.

    Args:
        recipe: what is served.
        labels: in the order of the logits; empty where the task has none.
    """
    return _LAYOUTS[recipe.task](recipe, labels)
