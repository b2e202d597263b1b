"""Recommenders: what users chose next, learned from what they chose before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction, PreTrainedTokenizerFast

from mooring import CheckpointError, DataError
from mooring_build.behaviour import count_events, read_items
from mooring_build.checkpoints import read_pooling
from mooring_build.datasets import Dataset
from mooring_build.examples import NextItem, Visits
from mooring_build.learners._learner import Case, Exportable, Learner, Lesson, verified_batches
from mooring_build.learners.embedding import EmbeddingModel
from mooring_build.learners.recommender_model import (
    IGNORED,
    RecommenderConfig,
    RecommenderModel,
    UserTower,
)
from mooring_build.learners.text import embed_texts, required, tokenizer_of
from mooring_build.metrics import ranking_metrics
from mooring_build.models import load_fine_tuned_model, load_tokenizer
from mooring_build.recipe import Recipe

#: Beside the weights: names and texts of the items that a checkpoint knows, in its order.
KNOWN_ITEMS = "known_items.json"


class RecommendationLearner(Learner):
    """The next item of a history; the last one of each user's training events picks the best epoch."""

    headline = "validation_ndcg_at_10"

    def lesson(
        self, recipe: Recipe, folder: Path | None, dataset: Dataset, *, fine_tuned: bool = False
    ) -> Lesson:
        folder = required(recipe, folder)
        train, evaluation = _parted(dataset.train)
        if fine_tuned:
            model, texts = load_recommender(folder, recipe)
            # Nothing is held back from a training that is over.
            evaluation = list(dataset.evaluation)
        else:
            model, texts = _new_recommender(recipe, folder, train, evaluation)
        places = {item: place for place, item in enumerate(texts)}
        known = [asked for asked in evaluation if asked.item in places]
        if not known:
            raise DataError(f"{folder} knows none of the {len(evaluation)} items that it is asked for")
        return Lesson(
            model=model,
            train=[
                {"items": [places[item] for item in window]}
                for visited in train
                for window in _windows(visited, recipe.catalogue.max_history + 1)
            ],
            evaluation=[
                {
                    "items": [
                        *(places[item] for item in asked.history if item in places),
                        places[asked.item],
                    ],
                    "held_out": True,
                }
                for asked in known
            ],
            collator=_Collator(recipe.catalogue.max_history, model.config.known_count),
            metrics=_score,
            processor=_KnownItems(load_tokenizer(folder), texts),
            arguments={"remove_unused_columns": False},
        )

    def exportable(self, recipe: Recipe, folder: Path) -> Exportable:
        model, _ = load_recommender(folder, recipe)
        with torch.inference_mode():
            vectors, _ = model.known_items()
        batch = torch.export.Dim("batch", min=1, max=1024)
        history = torch.export.Dim("history", min=1, max=recipe.catalogue.max_history)
        length = min(7, recipe.catalogue.max_history)
        mask = torch.ones(2, length, dtype=torch.int64)
        mask[1, length // 2 :] = 0
        return Exportable(
            module=_Engine(model.tower, vectors.numpy()).eval(),
            inputs=("vectors", "mask"),
            output="user",
            sample=(torch.randn(2, length, recipe.catalogue.dimension), mask),
            axes=({0: batch, 1: history}, {0: batch, 1: history}),
        )

    def cases(self, recipe: Recipe, exportable: Exportable, dataset: Dataset) -> Iterator[Case]:
        """Histories of real items: batch sizes crossed with lengths, full, masked and empty."""
        items: np.ndarray = exportable.module.items
        random = np.random.default_rng(20)
        longest = recipe.catalogue.max_history
        lengths = sorted({1, 2, 3, 7, 16, longest} & set(range(1, longest + 1)))
        for batch in verified_batches(recipe):
            for length in lengths:
                vectors = items[random.integers(len(items), size=(batch, length))]
                full = np.ones((batch, length), np.int64)
                yield Case(name=f"[{batch}, {length}] full histories", inputs=(vectors, full))
                counts = random.integers(0, length + 1, size=(batch, 1))
                mask = (np.arange(length) < counts).astype(np.int64)
                masked = vectors * mask[..., None].astype(np.float32)
                yield Case(name=f"[{batch}, {length}] histories under a mask", inputs=(masked, mask))


class _Engine(nn.Module):
    """The tower, and vectors to try it with, which are not part of what is exported."""

    def __init__(self, tower: UserTower, items: np.ndarray) -> None:
        super().__init__()
        self.tower = tower
        self.items = items

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.tower(vectors, mask)


class _KnownItems:
    """What is saved beside a model: its tokenizer, and names and texts of the items."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, str]) -> None:
        self._tokenizer = tokenizer
        self._texts = texts

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        self._tokenizer.save_pretrained(folder, **options)
        content = json.dumps(self._texts, ensure_ascii=False, indent=0)
        (Path(folder) / KNOWN_ITEMS).write_text(content, encoding="utf-8")


class _Collator:
    """Pads histories at their end. Of training examples every item is a label, of held-out ones the last."""

    def __init__(self, max_history: int, padding: int) -> None:
        self._max_history = max_history
        self._padding = padding

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        held_out = "held_out" in examples[0]
        histories = [example["items"][:-1][-self._max_history :] for example in examples]
        width = max(map(len, histories))
        history = torch.zeros(len(examples), width, dtype=torch.int64)
        labels = torch.full((len(examples), width + 1), IGNORED)
        for row, (example, items) in enumerate(zip(examples, histories, strict=True)):
            history[row, : len(items)] = torch.tensor(items, dtype=torch.int64)
            if held_out:
                labels[row, len(items)] = example["items"][-1]
            else:
                labels[row, : len(items) + 1] = torch.tensor(example["items"])
        batch = {"history": history, "labels": labels}
        if held_out:
            rows = [torch.tensor(example["items"][:-1], dtype=torch.int64) for example in examples]
            batch["seen"] = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._padding)
        return batch


def load_recommender(folder: Path, recipe: Recipe) -> tuple[RecommenderModel, dict[str, str]]:
    """Load a fine-tuned recommender, ready to answer, and the texts of the items that it knows, in its order.

    Raises:
        CheckpointError: it is none, or it has another shape than the recipe says.
    """
    model = load_fine_tuned_model(folder, recipe.task)
    if not isinstance(model, RecommenderModel):
        raise CheckpointError(
            f"{folder} is no recommender but a {model.config.model_type} model: "
            "give the recipe a [training] table"
        )
    for key in ("dimension", "max_history"):
        wanted, found = getattr(recipe.catalogue, key), getattr(model.config, key)
        if wanted != found:
            raise CheckpointError(f"{folder} has {key} {found}, catalogue.{key} says {wanted}")
    try:
        texts: dict[str, str] = json.loads((folder / KNOWN_ITEMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{folder / KNOWN_ITEMS} can't be read: {exc}") from exc
    if len(texts) != model.config.known_count:
        raise CheckpointError(
            f"{folder / KNOWN_ITEMS} has {len(texts)} items, the weights are of {model.config.known_count}"
        )
    return model, texts


def _parted(visits: Sequence[Visits]) -> tuple[list[tuple[str, ...]], list[NextItem]]:
    """What is learned of each user, and what comes after it."""
    return (
        [visited.items[:-1] for visited in visits],
        [NextItem(visited.items[:-1], visited.items[-1]) for visited in visits],
    )


def _windows(items: Sequence[str], length: int) -> Iterator[Sequence[str]]:
    """Parts of ``length`` items, the latest first; the earliest may be shorter."""
    for end in range(len(items), 0, -length):
        yield items[max(0, end - length) : end]


def _new_recommender(
    recipe: Recipe, folder: Path, train: Sequence[Sequence[str]], evaluation: Sequence[NextItem]
) -> tuple[RecommenderModel, dict[str, str]]:
    catalogue = read_items(recipe)
    counts = count_events(train)
    later = {asked.item for asked in evaluation} - counts.keys()
    # In the catalogue's order, so that nothing hangs on that of a set.
    texts = {item: text for item, text in catalogue.items() if item in counts} | {
        item: text for item, text in catalogue.items() if item in later
    }
    encoder = EmbeddingModel.around(load_fine_tuned_model(folder, recipe.task), read_pooling(folder))
    config = RecommenderConfig(
        encoder=encoder.config.encoder,
        pooling=encoder.config.pooling,
        dimension=recipe.catalogue.dimension,
        max_history=recipe.catalogue.max_history,
        known_count=len(texts),
        trained_count=len(counts),
    )
    model = RecommenderModel(config)
    model.text_encoder = encoder.requires_grad_(False)
    tokenizer = tokenizer_of(encoder, folder, recipe, "embedding")
    vectors = embed_texts(encoder.eval(), tokenizer, list(texts.values()), recipe.text.max_length)
    model.text_vectors.copy_(torch.from_numpy(vectors))
    # The logarithm of a share is the bias that a softmax would learn: training starts from popularity.
    shares = np.log([counts[item] for item in texts if item in counts])
    model.own_biases.data.copy_(torch.from_numpy(shares - shares.mean()))
    return model, texts


def _score(prediction: EvalPrediction) -> dict[str, float]:
    metrics = ranking_metrics(np.asarray(prediction.predictions).tolist())
    return {f"validation_{name}": metrics[name] for name in ("ndcg_at_10", "recall_at_50")}
