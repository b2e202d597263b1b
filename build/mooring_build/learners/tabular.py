"""Tabular classification: one hidden layer over standardised numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, default_data_collator
from transformers.modeling_outputs import SequenceClassifierOutput

from mooring import CheckpointError
from mooring_build.datasets import Dataset
from mooring_build.examples import Example
from mooring_build.learners._learner import Case, Exportable, Learner, Lesson, verified_batches
from mooring_build.learners._one_label import label_scores
from mooring_build.models import load_fine_tuned_model
from mooring_build.recipe import Recipe

_REAL_ROWS = 64


class DenseConfig(PreTrainedConfig):
    """Shape of a :class:`DenseClassifier`."""

    model_type = "mooring_dense"

    num_features: int = 1
    hidden_size: int = 64


class DenseClassifier(PreTrainedModel):
    """Standardisation, a hidden layer of rectified units, and a logit a label.

    Mean and scale of each feature are buffers, so that they travel with the weights and into the engines.
    """

    config_class = DenseConfig
    main_input_name = "features"

    def __init__(self, config: DenseConfig) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.zeros(config.num_features))
        self.register_buffer("scale", torch.ones(config.num_features))
        self.hidden = torch.nn.Linear(config.num_features, config.hidden_size)
        self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        if isinstance(module, torch.nn.Linear):
            # PyTorch's own suits so few inputs better than transformers' small normal values.
            module.reset_parameters()

    def standardise(self, features: np.ndarray) -> None:
        """Take mean and standard deviation of each feature from ``features [N, F]``; a feature that never
        changes is only shifted."""
        # As the engine takes it: the deviation of equal numbers is off 0 by rounding.
        changes = np.ptp(features.astype(np.float32), axis=0) > 0
        self.mean.copy_(torch.from_numpy(features.mean(axis=0)))
        self.scale.copy_(torch.from_numpy(np.where(changes, features.std(axis=0), 1)))

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        hidden = torch.relu(self.hidden((features - self.mean) / self.scale))  # [B, hidden_size]
        logits = self.classifier(hidden)  # [B, labels]
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(DenseConfig.model_type, DenseConfig)
AutoModel.register(DenseConfig, DenseClassifier)
_EXPECTED = f"a tabular model is a {DenseConfig.model_type!r}"


class LogitsOnly(torch.nn.Module):
    """The classifier as its engine has it: one tensor in, one out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.model(features).logits


class TabularClassificationLearner(Learner):
    """One label a row of numbers."""

    headline = "accuracy"

    def lesson(
        self, recipe: Recipe, folder: Path | None, dataset: Dataset, *, fine_tuned: bool = False
    ) -> Lesson:
        if folder is not None:
            model = _load(recipe, folder)
            found = [model.config.id2label[index] for index in range(model.config.num_labels)]
            if not fine_tuned and found != dataset.labels:
                raise CheckpointError(f"{folder} has labels {found}, the data has {dataset.labels}")
        else:
            model = _new(recipe, dataset)
        return Lesson(
            model=model,
            train=_items(dataset.train, dataset.labels),
            evaluation=_items(dataset.evaluation, dataset.labels),
            collator=default_data_collator,
            **label_scores(dataset.labels),
        )

    def exportable(self, recipe: Recipe, folder: Path) -> Exportable:
        return Exportable(
            module=LogitsOnly(_load(recipe, folder)).eval(),
            inputs=("features",),
            output="logits",
            sample=(torch.randn(2, recipe.features.count),),
            axes=({0: torch.export.Dim("batch", min=1, max=1024)},),
        )

    def cases(self, recipe: Recipe, exportable: Exportable, dataset: Dataset) -> Iterator[Case]:
        """Random rows as far from each other as those that were trained on, and real ones."""
        model = exportable.module.model
        mean, scale = model.mean.numpy(), model.scale.numpy()
        random = np.random.default_rng(20)
        for batch in verified_batches(recipe):
            for spread in (1, 3):
                rows = mean + spread * scale * random.standard_normal((batch, len(mean)))
                yield Case(name=f"[{batch}] random rows, spread {spread}", inputs=(rows.astype(np.float32),))
        real = _matrix(dataset.evaluation[:_REAL_ROWS]) if dataset.evaluation else ()
        for start in range(0, len(real), 7):
            rows = real[start : start + 7].astype(np.float32)
            yield Case(name=f"[{len(rows)}] real rows", inputs=(rows,))


def _new(recipe: Recipe, dataset: Dataset) -> DenseClassifier:
    config = dict(recipe.base.config)
    if config.pop("model_type") != DenseConfig.model_type:
        raise CheckpointError(f"base.config.model_type {recipe.base.config['model_type']!r}: {_EXPECTED}")
    try:
        model = DenseClassifier(
            DenseConfig(
                **config,
                num_features=recipe.features.count,
                id2label=dict(enumerate(dataset.labels)),
                label2id={label: index for index, label in enumerate(dataset.labels)},
            )
        )
    except Exception as exc:
        # transformers and PyTorch check the values, each in its own way.
        raise CheckpointError(f"base.config {recipe.base.config}: {exc}") from exc
    model.standardise(_matrix(dataset.train))
    return model


def _load(recipe: Recipe, folder: Path) -> DenseClassifier:
    model = load_fine_tuned_model(folder, recipe.task)
    if not isinstance(model, DenseClassifier):
        raise CheckpointError(f"{folder} is a {model.config.model_type!r}, {_EXPECTED}")
    if model.config.num_features != recipe.features.count:
        raise CheckpointError(
            f"{folder} takes {model.config.num_features} features, the recipe says "
            f"{recipe.features.count} (features.count)"
        )
    return model


def _matrix(rows: Sequence[Example]) -> np.ndarray:
    return np.array([row.features for row in rows])  # [N, F]


def _items(rows: Sequence[Example], labels: list[str]) -> list[dict[str, Any]]:
    ids = {label: index for index, label in enumerate(labels)}
    return [{"features": np.array(row.features, np.float32), "labels": ids[row.label]} for row in rows]
