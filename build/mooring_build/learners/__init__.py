"""How each task is trained, scored and made an engine of; the only part of a task that needs torch."""

from __future__ import annotations

import importlib

from mooring_build.learners._learner import Case, Exportable, Learner, Lesson
from mooring_build.recipe import Task

__all__ = ["Case", "Exportable", "Learner", "Lesson", "learner_of", "learner_sources"]

# By task: module and class of its learner, and the source files and folders that a trained model depends on
# beyond the trainer's. A module is imported only when something of its task is made.
_LEARNERS: dict[Task, tuple[str, str, tuple[str, ...]]] = {
    "feature-extraction": (
        "embedding",
        "FeatureExtractionLearner",
        ("learners/embedding.py", "learners/text.py", "models.py", "checkpoints.py"),
    ),
    "image-classification": (
        "image",
        "ImageClassificationLearner",
        ("learners/image.py", "learners/_one_label.py", "models.py"),
    ),
    "recommendation": (
        "recommender",
        "RecommendationLearner",
        (
            "learners/recommender.py",
            "learners/recommender_model.py",
            "learners/embedding.py",
            "learners/text.py",
            "models.py",
            "checkpoints.py",
            "behaviour.py",
        ),
    ),
    "tabular-classification": (
        "tabular",
        "TabularClassificationLearner",
        ("learners/tabular.py", "learners/_one_label.py", "models.py"),
    ),
    "text-classification": (
        "text",
        "TextClassificationLearner",
        ("learners/text.py", "learners/_one_label.py", "learners/adapters.py", "models.py"),
    ),
    "text-multi-classification": (
        "heads",
        "HeadsLearner",
        ("learners/heads.py", "learners/text.py", "models.py"),
    ),
    "text-ranking": (
        "embedding",
        "TextRankingLearner",
        ("learners/embedding.py", "learners/text.py", "models.py", "checkpoints.py", "knowledge_base.py"),
    ),
    "token-classification": (
        "text",
        "TokenClassificationLearner",
        ("learners/text.py", "learners/adapters.py", "models.py"),
    ),
}


def learner_of(task: Task) -> Learner:
    """The learner of a task that has an engine."""
    module, name, _ = _LEARNERS[task]
    learner: Learner = getattr(importlib.import_module(f"mooring_build.learners.{module}"), name)()
    return learner


def learner_sources(task: Task) -> tuple[str, ...]:
    """Source files of ``mooring_build`` that a change of makes the task's models out of date."""
    return _LEARNERS[task][2]
