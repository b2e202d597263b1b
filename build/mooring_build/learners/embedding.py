"""Embeddings of texts: an encoder, one vector of its tokens', unit length; fine-tuned to rank items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import ModelOutput

from mooring import CheckpointError, RecipeError
from mooring_build.checkpoints import Pooling, read_pooling
from mooring_build.datasets import Dataset
from mooring_build.knowledge_base import Entry, of_known_items
from mooring_build.learners._learner import Exportable, Lesson
from mooring_build.learners.text import (
    TextLearner,
    embed_texts,
    mean_of_tokens,
    required,
    text_exportable,
    tokenizer_of,
)
from mooring_build.metrics import ranking_metrics
from mooring_build.models import load_fine_tuned_model, load_tokenizer
from mooring_build.recipe import Recipe

# Cosines times this are the logits of the contrastive loss, as in sentence-transformers'
# MultipleNegativesRankingLoss.
_SCALE = 20.0


class EmbeddingConfig(PreTrainedConfig):
    """Shape of an :class:`EmbeddingModel`.

    Args:
        encoder: the encoder's own configuration, as a table.
        pooling: whether a text's vector is the ``mean`` of its tokens' or the first one's (``cls``).
    """

    model_type = "mooring_embedding"

    def __init__(
        self, encoder: dict[str, Any] | None = None, pooling: Pooling = "mean", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder or {}
        self.pooling = pooling
        # Not the table's own keys: DistilBERT's width is called ``dim`` there.
        shape = AutoConfig.for_model(**self.encoder) if self.encoder else None
        for name in ("vocab_size", "hidden_size", "max_position_embeddings"):
            setattr(self, name, getattr(shape, name, None))


@dataclass
class EmbeddingOutput(ModelOutput):
    """``loss`` where there are positives to compare with, and the texts' ``embedding`` ``[B, D]``."""

    loss: torch.Tensor | None = None
    embedding: torch.Tensor | None = None


class EmbeddingModel(PreTrainedModel):
    """Token ids to a vector of unit length."""

    config_class = EmbeddingConfig
    base_model_prefix = "encoder"

    def __init__(self, config: EmbeddingConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(AutoConfig.for_model(**config.encoder))
        self.post_init()

    @classmethod
    def around(cls, encoder: PreTrainedModel, pooling: Pooling = "mean") -> EmbeddingModel:
        """Put an encoder with its weights into a model."""
        model = cls(EmbeddingConfig(encoder=encoder.config.to_dict(), pooling=pooling))
        model.encoder = encoder
        return model

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """``[B, L]`` ids and mask to ``[B, D]``."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        first_only = self.config.pooling == "cls"
        pooled = hidden[:, 0] if first_only else mean_of_tokens(hidden, attention_mask)
        return functional.normalize(pooled, dim=-1)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        positive_input_ids: torch.Tensor | None = None,
        positive_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> EmbeddingOutput:
        """Embed texts; with positives, also say how much nearer each is to its own than to the others'.

        Args:
            input_ids: ``[B, L]``.
            attention_mask: ``[B, L]``.
            positive_input_ids: ``[B, P]``, a text of the same item for each.
            positive_attention_mask: ``[B, P]``.
            labels: ``[B]`` as :func:`_marks` gives them: another text of the same item is no negative.
        """
        embedding = self.embed(input_ids, attention_mask)
        if positive_input_ids is None or labels is None:
            return EmbeddingOutput(embedding=embedding)
        positives = self.embed(positive_input_ids, positive_attention_mask)
        items = _items(labels)
        others = items[:, None] == items[None, :]
        others.fill_diagonal_(False)
        logits = (embedding @ positives.T * _SCALE).masked_fill(others, float("-inf"))
        truth = torch.arange(len(logits), device=logits.device)
        return EmbeddingOutput(loss=functional.cross_entropy(logits, truth), embedding=embedding)


AutoConfig.register(EmbeddingConfig.model_type, EmbeddingConfig)
AutoModel.register(EmbeddingConfig, EmbeddingModel)


class Embedder:
    """Embeds texts with a checkpoint, as many as there are.

    Args:
        folder: an encoder, or a checkpoint of a text-ranking recipe.
        recipe: limits the length of a text; what is over is cut off.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._model = load_embedding_model(folder, recipe)
        self._tokenizer = load_tokenizer(folder)
        self._max_length = recipe.text.max_length

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors ``[N, D]`` float32 in the order of the texts."""
        return embed_texts(self._model, self._tokenizer, texts, self._max_length)


class _EmbeddingLearner(TextLearner):
    headline = "mrr"

    def exportable(self, recipe: Recipe, folder: Path) -> Exportable:
        return text_exportable(load_embedding_model(folder, recipe), folder, recipe, "embedding")


class FeatureExtractionLearner(_EmbeddingLearner):
    """The embedding itself; there is nothing to learn."""

    def lesson(
        self, recipe: Recipe, folder: Path | None, dataset: Dataset, *, fine_tuned: bool = False
    ) -> Lesson:
        raise RecipeError(f"task {recipe.task!r} is not trained: fine-tune with task 'text-ranking'")


class TextRankingLearner(_EmbeddingLearner):
    """Texts next to what the catalogue says of their items."""

    def lesson(
        self, recipe: Recipe, folder: Path | None, dataset: Dataset, *, fine_tuned: bool = False
    ) -> Lesson:
        folder = required(recipe, folder)
        model = load_embedding_model(folder, recipe)
        tokenizer = tokenizer_of(model, folder, recipe, "embedding")
        entries = dataset.entries
        encode = _Encoder(tokenizer, recipe)
        train = of_known_items(entries, dataset.train, "data.train")
        asked = of_known_items(entries, dataset.evaluation, "data.evaluation")
        return Lesson(
            model=model,
            train=[
                encode.pair(example.text, positive, _mark(item))
                for example, item in train
                for positive in entries[item].positives
            ],
            evaluation=[
                *(encode.pair(example.text, entries[item].question, _mark(item)) for example, item in asked),
                *encode.catalogue(entries),
            ],
            collator=_Collator(tokenizer),
            metrics=_score,
            processor=tokenizer,
        )


class _Encoder:
    """Texts to the items of a lesson."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        self._tokenizer = tokenizer
        self._max_length = recipe.text.max_length

    def pair(self, text: str, positive: str, label: int) -> dict[str, Any]:
        """A text beside one that it should be near to."""
        first, second = (
            self._tokenizer(part, truncation=True, max_length=self._max_length) for part in (text, positive)
        )
        names = ("input_ids", "attention_mask")
        return (
            {name: first[name] for name in names}
            | {f"positive_{name}": second[name] for name in names}
            | {"labels": label}
        )

    def catalogue(self, entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
        """What the queries of an evaluation choose from, embedded beside them by the same weights."""
        for item, entry in enumerate(entries):
            for phrasing in entry.phrasings:
                yield self.pair(phrasing, entry.question, _mark(item, of_catalogue=True))


class _Collator:
    """Pads both texts of each pair."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {"labels": torch.tensor([item["labels"] for item in items])}
        for prefix in ("", "positive_"):
            rows = [
                {name: item[f"{prefix}{name}"] for name in ("input_ids", "attention_mask")} for item in items
            ]
            padded = self._tokenizer.pad(rows, return_tensors="pt")
            batch |= {f"{prefix}{name}": tensor for name, tensor in padded.items()}
        return batch


def _mark(item: int, *, of_catalogue: bool = False) -> int:
    """The label of a text: its item, and whether it stands in the catalogue."""
    return -item - 1 if of_catalogue else item


def _items(labels: torch.Tensor) -> torch.Tensor:
    return torch.where(labels < 0, -labels - 1, labels)


def _score(prediction: EvalPrediction) -> dict[str, float]:
    """How high each query's item stands among those of the catalogue."""
    vectors, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    asked = labels >= 0
    owners = -labels[~asked] - 1
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    scores = np.maximum.reduceat(vectors[asked] @ vectors[~asked].T, starts, axis=1)  # [queries, items]
    truth = labels[asked]
    own = np.take_along_axis(scores, truth[:, None], axis=1)
    better = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < truth[:, None]))
    return ranking_metrics(better.sum(axis=1).tolist())


def load_embedding_model(folder: Path, recipe: Recipe) -> EmbeddingModel:
    """Load an encoder, or a checkpoint of a text-ranking recipe, ready to answer.

    Raises:
        CheckpointError: it can't be loaded, makes its embeddings in a way that Mooring does not have, or they
            have another length than the recipe says.
    """
    model = load_fine_tuned_model(folder, recipe.task)
    if not isinstance(model, EmbeddingModel):
        model = EmbeddingModel.around(model, read_pooling(folder))
    expected = recipe.catalogue.dimension if recipe.catalogue is not None else recipe.text.dimension
    if model.config.hidden_size != expected:
        key = "catalogue.dimension" if recipe.catalogue is not None else "text.dimension"
        raise CheckpointError(
            f"{folder} makes embeddings of {model.config.hidden_size} values, {key} says {expected}"
        )
    return model.eval()
