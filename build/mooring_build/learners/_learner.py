"""What training, export and verification ask of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import EvalPrediction, PreTrainedModel

    from mooring_build.datasets import Dataset
    from mooring_build.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What transformers' Trainer needs for one task."""

    model: PreTrainedModel
    #: Items as the collator takes them; empty where only scores are wanted.
    train: Any
    evaluation: Any
    collator: Callable[[list[Any]], Mapping[str, Any]]
    metrics: Callable[[EvalPrediction], dict[str, float]]
    #: Precision, recall, F1 and support by label, for the manifest.
    report: Callable[[EvalPrediction], dict[str, dict[str, float]]] | None = None
    #: Outputs and labels to a loss, where the model's own is not the one; takes the number of items too.
    loss: Callable[[Any, Any, Any], Any] | None = None
    #: Makes the model that is saved of the one that was trained.
    finish: Callable[[Any], PreTrainedModel] | None = None
    #: Saved beside the model: a tokenizer, or ``None``.
    processor: Any = None
    #: More arguments of ``TrainingArguments``.
    arguments: Mapping[str, Any] = field(default_factory=dict)


def verified_batches(recipe: Recipe) -> list[int]:
    """Batch sizes that engines are verified with; a batch of two was traced."""
    return sorted({1, 2, 3, 5, 8, recipe.serving.max_batch_size})


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A trained model as its engine has it: tensors by position in, one FP32 tensor out."""

    #: In evaluation mode; ``forward`` takes ``inputs`` by position, the batch first.
    module: torch.nn.Module
    inputs: tuple[str, ...]
    output: str
    #: A batch of two, as tracing needs it.
    sample: tuple[torch.Tensor, ...]
    #: Of each input, its axes of any length, by their ``torch.export.Dim``.
    axes: tuple[Mapping[int, Any], ...]
    #: transformers' own model, where its ONNX exporter is to take it instead of ``module``; it names its
    #: inputs and its output as this does.
    hub_model: PreTrainedModel | None = None
    tokenizer: Any = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One batch on which an engine is compared with the PyTorch model."""

    #: Shape and kind, for messages.
    name: str
    #: In the order of the engine's inputs, the batch first.
    inputs: tuple[np.ndarray, ...]
    #: Mask over the leading axes of the output: what is left out is nobody's answer. ``None``: all counts.
    keep: np.ndarray | None = None


class Learner(ABC):
    """One task's way from data to an engine."""

    #: The metric that picks the best epoch; higher is better.
    headline: ClassVar[str]

    @abstractmethod
    def lesson(
        self, recipe: Recipe, folder: Path | None, dataset: Dataset, *, fine_tuned: bool = False
    ) -> Lesson:
        """Prepare training, or the scoring of a checkpoint that is fine-tuned already.

        Args:
            recipe: says how.
            folder: the checkpoint; ``None`` where ``base.config`` describes a new model.
            dataset: examples and labels.
            fine_tuned: whether the checkpoint is taken as it is.

        Raises:
            CheckpointError: it does not fit the task.
            DataError: the examples do not fit the recipe.
        """

    @abstractmethod
    def exportable(self, recipe: Recipe, folder: Path) -> Exportable:
        """Load a fine-tuned checkpoint as its engine.

        Raises:
            CheckpointError: it is not one of this task.
        """

    @abstractmethod
    def cases(self, recipe: Recipe, exportable: Exportable, dataset: Dataset) -> Iterator[Case]:
        """Batches to verify an engine with: sizes that were not traced, and real examples; the same ones in
        every run."""

    def count_cut(self, recipe: Recipe, folder: Path | None, dataset: Dataset) -> int:
        """How many examples are longer than the model takes; training and evaluation see only their start."""
        return 0
