"""Several classifications of a text as heads on one frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from mooring import CheckpointError
from mooring_build.datasets import Dataset
from mooring_build.examples import HeadText
from mooring_build.learners._learner import Exportable, Lesson
from mooring_build.learners.text import (
    IGNORED,
    TextLearner,
    embed_texts,
    mean_of_tokens,
    required,
    text_exportable,
    tokenizer_of,
)
from mooring_build.metrics import heads_metrics, heads_report
from mooring_build.models import load_fine_tuned_model
from mooring_build.recipe import Recipe

_DROPOUT = 0.1


class HeadsConfig(PreTrainedConfig):
    """Shape of a :class:`HeadsModel`.

    Args:
        encoder: the encoder's own configuration, as a table.
        heads: labels by head, each in the order of its logits.
    """

    model_type = "mooring_heads"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        heads: dict[str, list[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder or {}
        self.heads = heads or {}
        # Not the table's own keys: DistilBERT's width is called ``dim`` there.
        shape = AutoConfig.for_model(**self.encoder) if self.encoder else None
        for name in ("vocab_size", "hidden_size", "max_position_embeddings"):
            setattr(self, name, getattr(shape, name, None))


class HeadsModel(PreTrainedModel):
    """Token ids to the logits of all heads, one head after the other.

    A head sees the mean of the encoder's tokens: one hidden layer as wide as the encoder, then its labels.
    The encoder is frozen: training reaches the heads alone.
    """

    config_class = HeadsConfig
    base_model_prefix = "encoder"

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(AutoConfig.for_model(**config.encoder)).requires_grad_(False)
        width = config.hidden_size
        self.heads = nn.ModuleDict(
            {
                _module_name(name): nn.Sequential(
                    nn.Linear(width, width), nn.GELU(), nn.Dropout(_DROPOUT), nn.Linear(width, len(labels))
                )
                for name, labels in config.heads.items()
            }
        )
        self.post_init()

    @classmethod
    def around(cls, encoder: PreTrainedModel, heads: dict[str, list[str]]) -> HeadsModel:
        """Put new heads on an encoder with its weights."""
        model = cls(HeadsConfig(encoder=encoder.config.to_dict(), heads=heads))
        model.encoder = encoder.requires_grad_(False)
        return model

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """``[B, L]`` ids and mask to ``[B, D]``, the mean over the tokens."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return mean_of_tokens(hidden, attention_mask)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Answer texts, or what the encoder made of them.

        Args:
            input_ids: ``[B, L]``.
            attention_mask: ``[B, L]``.
            features: ``[B, D]`` of :meth:`embed`, instead of the two.
            labels: ``[B, heads]`` label ids, ``IGNORED`` where a text has no label for a head.

        Returns:
            ``logits`` ``[B, sum of labels]``, and the ``loss`` where there are labels.
        """
        if features is None:
            features = self.embed(input_ids, attention_mask)
        answers = [head(features) for head in self.heads.values()]
        loss = None
        if labels is not None:
            # Summed per head and divided by the batch, so that a head without an example in it adds nothing.
            losses = [
                functional.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="sum")
                for logits, truth in zip(answers, labels.unbind(1), strict=True)
            ]
            loss = torch.stack(losses).sum() / len(features)
        return SequenceClassifierOutput(loss=loss, logits=torch.cat(answers, dim=-1))


AutoConfig.register(HeadsConfig.model_type, HeadsConfig)
AutoModel.register(HeadsConfig, HeadsModel)


class HeadsLearner(TextLearner):
    """One label a text from each head; each example has the label of one of them."""

    headline = "accuracy"

    def lesson(
        self, recipe: Recipe, folder: Path | None, dataset: Dataset, *, fine_tuned: bool = False
    ) -> Lesson:
        folder = required(recipe, folder)
        model = load_heads_model(folder, recipe) if fine_tuned else _new_model(folder, recipe)
        tokenizer = tokenizer_of(model, folder, recipe)
        model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        heads = model.config.heads
        return Lesson(
            model=model,
            train=_items(model, tokenizer, recipe, dataset.train),
            evaluation=_items(model, tokenizer, recipe, dataset.evaluation),
            collator=_collate,
            metrics=lambda prediction: heads_metrics(*_read(prediction, heads), heads),
            report=lambda prediction: heads_report(*_read(prediction, heads), heads),
            processor=tokenizer,
        )

    def exportable(self, recipe: Recipe, folder: Path) -> Exportable:
        return text_exportable(load_heads_model(folder, recipe), folder, recipe)


def load_heads_model(folder: Path, recipe: Recipe) -> HeadsModel:
    """Load a checkpoint of a recipe with heads, ready to answer.

    Raises:
        CheckpointError: it is none, or its heads are not the recipe's.
    """
    model = load_fine_tuned_model(folder, recipe.task)
    expected = _heads_of(recipe)
    found = model.config.heads if isinstance(model, HeadsModel) else {}
    if found != expected:
        raise CheckpointError(f"{folder} has the heads {found or 'none'}, the recipe says {expected}")
    # A saved config has its keys sorted; the order of the logits is the recipe's.
    model.config.heads = expected
    names = map(_module_name, expected)
    model.heads = nn.ModuleDict({name: model.heads[name] for name in names})
    return model


def _module_name(head: str) -> str:
    """A head's name among modules, where names such as ``type`` and ``keys`` are taken."""
    return f"head_{head}"


def _new_model(folder: Path, recipe: Recipe) -> HeadsModel:
    encoder = load_fine_tuned_model(folder, recipe.task)
    if isinstance(encoder, HeadsModel):
        encoder = encoder.encoder
    return HeadsModel.around(encoder, _heads_of(recipe))


def _heads_of(recipe: Recipe) -> dict[str, list[str]]:
    return {name: head.labels for name, head in (recipe.heads or {}).items()}


def _items(
    model: HeadsModel, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, examples: Sequence[HeadText]
) -> list[dict[str, Any]]:
    """A lesson's items: the frozen encoder runs once a text, not once an epoch."""
    texts = [example.text for example in examples]
    features = embed_texts(model, tokenizer, texts, recipe.text.max_length)
    return [
        {
            "features": own,
            "labels": [
                labels.index(example.label) if name == example.head else IGNORED
                for name, labels in model.config.heads.items()
            ],
        }
        for own, example in zip(features, examples, strict=True)
    ]


def _collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "features": torch.from_numpy(np.stack([item["features"] for item in items])),
        "labels": torch.tensor([item["labels"] for item in items]),
    }


def _read(
    prediction: EvalPrediction, heads: dict[str, list[str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Right and chosen labels by head, of the examples that have one for it; no head without examples."""
    logits, ids = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    truth, chosen, start = {}, {}, 0
    for column, (name, labels) in enumerate(heads.items()):
        own = ids[:, column] != IGNORED
        best = logits[own, start : start + len(labels)].argmax(-1)
        start += len(labels)
        if own.any():
            truth[name] = [labels[i] for i in ids[own, column]]
            chosen[name] = [labels[i] for i in best]
    return truth, chosen
