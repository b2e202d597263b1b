"""What a recipe's pipeline is made of: its steps and the tensors between them, task by task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mooring_build.layouts._layout import EngineStep, Layout, ModelStep, PythonStep, Step, Tensors
from mooring_build.layouts.heads import text_multi_classification
from mooring_build.layouts.image import image_classification
from mooring_build.layouts.opinions import opinion_monitoring
from mooring_build.layouts.ranking import feature_extraction, text_ranking
from mooring_build.layouts.recommendation import recommendation
from mooring_build.layouts.service import customer_service
from mooring_build.layouts.tabular import tabular_classification
from mooring_build.layouts.text import text_classification, token_classification
from mooring_build.recipe import Recipe, Task

__all__ = ["EngineStep", "Layout", "ModelStep", "PythonStep", "Step", "Tensors", "layout_of"]

_LAYOUTS: dict[Task, Callable[[Recipe, Sequence[str]], Layout]] = {
    "customer-service": customer_service,
    "feature-extraction": feature_extraction,
    "image-classification": image_classification,
    "opinion-monitoring": opinion_monitoring,
    "recommendation": recommendation,
    "tabular-classification": tabular_classification,
    "text-classification": text_classification,
    "text-multi-classification": text_multi_classification,
    "text-ranking": text_ranking,
    "token-classification": token_classification,
}


def layout_of(recipe: Recipe, labels: Sequence[str]) -> Layout:
    """Lay a recipe's pipeline out.

    Args:
        recipe: what is served.
        labels: in the order of the logits; empty where the task has none.
    """
    return _LAYOUTS[recipe.task](recipe, labels)
