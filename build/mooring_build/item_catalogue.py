"""The items that a recommender chooses from: their vectors and biases, made by a fine-tuned checkpoint.

An item that came after the training has a vector from its text alone, so it needs a publish and no training.
The figures of the release are measured here, over the catalogue that is served.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mooring._served.recommendation import ItemCatalogue
from mooring_build.behaviour import count_events, read_items
from mooring_build.datasets import Dataset
from mooring_build.digests import digest_of
from mooring_build.examples import NextItem, Visits
from mooring_build.metrics import ranking_metrics
from mooring_build.recipe import Recipe
from mooring_build.stages import Stage, StepFiles, library_versions, shared_digest, source_digest

if TYPE_CHECKING:
    from mooring_build.learners.recommender_model import RecommenderModel

_FILES = ("items.json", "items.npz")
_SHOWN = ("ndcg_at_10", "recall_at_50", "ndcg_over_popularity")


def step_files(
    recipe: Recipe, folder: Path, key: str, dataset: Dataset, artifacts: Path, say: Callable[[str], None]
) -> StepFiles:
    """The catalogue's vectors, made by a checkpoint, and how well it recommends.

    Args:
        recipe: names the catalogue.
        folder: the checkpoint.
        key: its digest.
        dataset: its evaluation split is asked for.
        artifacts: working folder; vectors that are up to date there are used again.
        say: receives a line.

    Raises:
        DataError: the catalogue can't be used, or lacks an item of the events.
    """
    texts = read_items(recipe)
    stage = Stage(
        artifacts,
        recipe.name,
        "catalogue",
        {
            "checkpoint": key,
            "items": digest_of(list(texts.items())),
            "data": [dataset.digest, dataset.evaluation_digest],
            "max_length": recipe.text.max_length,
            "libraries": library_versions("numpy", "torch", "transformers"),
            "sources": source_digest(
                "item_catalogue.py",
                "behaviour.py",
                "metrics.py",
                "models.py",
                "learners/embedding.py",
                "learners/recommender.py",
                "learners/recommender_model.py",
                "learners/text.py",
            ),
            "shared_sources": shared_digest(),
        },
    )
    metrics = stage.result()
    state = " (up to date)"
    if metrics is None:
        metrics, state = _make(recipe, folder, texts, dataset, stage.folder), ""
        stage.finish(metrics)
    figures = "".join(f", {name} {metrics[name]:.3f}" for name in _SHOWN if name in metrics)
    counts = f"{metrics['items']} items, {metrics['items_by_text_alone']} by text alone"
    say(f"catalogue   {counts}{figures}{state}")
    settings = recipe.catalogue.model_dump(include={"max_history", "top_k", "unknown_items"})
    files: dict[str, Path | str] = {name: stage.folder / name for name in _FILES}
    files["settings.json"] = json.dumps(settings, indent=2)
    key = digest_of([stage.key, settings])
    return StepFiles(key=key, files={"lookup": files, "ranker": files}, metrics=metrics)


def _make(
    recipe: Recipe, folder: Path, texts: Mapping[str, str], dataset: Dataset, target: Path
) -> dict[str, Any]:
    import torch

    from mooring_build.learners.recommender import load_recommender

    model, known = load_recommender(folder, recipe)
    text_vectors = _text_vectors(recipe, folder, model, known, texts)
    trained = list(known)[: model.config.trained_count]
    places = {item: place for place, item in enumerate(trained)}
    own = [places.get(item, -1) for item in texts]
    with torch.inference_mode():
        vectors, biases = model.item_vectors(torch.from_numpy(text_vectors), torch.tensor(own))
    target.mkdir(parents=True, exist_ok=True)
    np.savez(target / "items.npz", vectors=vectors.numpy(), biases=biases.numpy())
    (target / "items.json").write_text(
        json.dumps(list(texts), ensure_ascii=False, indent=0), encoding="utf-8"
    )
    metrics: dict[str, Any] = {"items": len(texts), "items_by_text_alone": own.count(-1)}
    if dataset.evaluation:
        catalogue = ItemCatalogue.load(target)
        metrics |= _measure(recipe, model, catalogue, text_vectors, dataset)
    return metrics


def _text_vectors(
    recipe: Recipe,
    folder: Path,
    model: RecommenderModel,
    known: Mapping[str, str],
    texts: Mapping[str, str],
) -> np.ndarray:
    """Vectors ``[N, T]`` of the items' texts; only those that the checkpoint has not are made anew."""
    from mooring_build.learners.text import embed_texts, tokenizer_of

    vectors = dict(zip(known.values(), model.text_vectors.numpy(), strict=True))
    new = sorted(set(texts.values()) - vectors.keys())
    if new:
        tokenizer = tokenizer_of(model.text_encoder, folder, recipe, "embedding")
        made = embed_texts(model.text_encoder, tokenizer, new, recipe.text.max_length)
        vectors |= dict(zip(new, made, strict=True))
    return np.stack([vectors[text] for text in texts.values()])


def _measure(
    recipe: Recipe,
    model: RecommenderModel,
    catalogue: ItemCatalogue,
    text_vectors: np.ndarray,
    dataset: Dataset,
) -> dict[str, float]:
    """Each user's last item among all items that the user had not seen: by the model, by the number of users
    who chose an item before, and by the mean of the texts of the history."""
    import torch

    asked: Sequence[NextItem] = dataset.evaluation
    visits: Sequence[Visits] = dataset.train
    rows = {item.decode(): row for row, item in enumerate(catalogue.items)}
    chosen = count_events(visited.items for visited in visits)
    popularity = np.array([chosen.get(item, 0) for item in rows], np.float32)
    ranks: dict[str, list[int | None]] = {"": [], "popularity_": [], "similarity_": []}
    for one in asked:
        seen = [rows[item] for item in one.history]
        history = catalogue.items[seen][None]
        vectors, mask = catalogue.look_up(history, recipe.catalogue.max_history)
        with torch.inference_mode():
            user = model.tower(torch.from_numpy(vectors), torch.from_numpy(mask)).numpy()
        scores = {
            "": catalogue.score(user, [seen])[0],
            "popularity_": popularity.copy(),
            "similarity_": text_vectors @ text_vectors[seen].mean(0),
        }
        for name, values in scores.items():
            ranks[name].append(_rank(values, seen, rows[one.item]))
    if not visits:
        # Without the events of the training nothing is known of popularity.
        del ranks["popularity_"]
    metrics = {
        f"{prefix}{name}": round(ranking_metrics(found)[name], 6)
        for prefix, found in ranks.items()
        for name in ("ndcg_at_10", "recall_at_50")
    }
    if metrics.get("popularity_ndcg_at_10"):
        metrics["ndcg_over_popularity"] = round(metrics["ndcg_at_10"] / metrics["popularity_ndcg_at_10"], 6)
    return metrics


def _rank(scores: np.ndarray, seen: Sequence[int], right: int) -> int:
    """Place of the right item among those not seen; equal ones stand in the catalogue's order."""
    scores[list(seen)] = -np.inf
    own = scores[right]
    return int((scores > own).sum() + (scores[:right] == own).sum())
