"""The items that a text-ranking recipe chooses from: read from CSV, turned into the vectors of a release.

An item is known by several phrasings, each with a vector of its own: its question, its answer and both in
one and, where the recipe says so, the training texts that belong to it. So a new answer needs no training,
only its vectors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mooring import DataError
from mooring._served.ranking import Catalogue
from mooring_build.data_files import read_catalogue
from mooring_build.datasets import Dataset, read_split
from mooring_build.digests import digest_of
from mooring_build.examples import LabelledText
from mooring_build.metrics import ranking_metrics
from mooring_build.recipe import Recipe
from mooring_build.stages import Stage, StepFiles, library_versions, shared_digest, source_digest


@dataclass(frozen=True)
class Entry:
    """One item."""

    item: str
    question: str
    answer: str

    @property
    def positives(self) -> tuple[str, ...]:
        """What a text that belongs to the item is drawn to in training."""
        return (f"{self.question} {self.answer}",)

    @property
    def phrasings(self) -> tuple[str, ...]:
        """What the item is known by."""
        return self.question, self.answer, f"{self.question} {self.answer}"


def read_entries(recipe: Recipe) -> list[Entry]:
    """Read the recipe's catalogue: CSV with the columns ``item``, ``question`` and ``answer``.

    Raises:
        DataError: with path and row.
    """
    return [Entry(**row) for row in read_catalogue(recipe, ("item", "question", "answer"))]


def of_known_items(
    entries: Sequence[Entry], examples: Sequence[LabelledText], source: str
) -> list[tuple[LabelledText, int]]:
    """The examples whose item is in the catalogue, each with its place there.

    The others are left out: that an item has since been taken out of the catalogue is no fault.

    Raises:
        DataError: there are examples, and the catalogue has no item of theirs.
    """
    places = {entry.item: place for place, entry in enumerate(entries)}
    kept = [(example, places[example.label]) for example in examples if example.label in places]
    if examples and not kept:
        raise DataError(f"{source}: none of its items is in the catalogue, such as {examples[0].label!r}")
    return kept


def known_examples(
    recipe: Recipe, dataset: Dataset, say: Callable[[str], None] = lambda line: None
) -> Dataset:
    """The examples that :func:`of_known_items` keeps, those that are trained on and asked for, with the
    catalogue's entries; ``say`` receives a line where some are left out.

    Raises:
        DataError: as there, or the catalogue can't be read.
    """
    entries = read_entries(recipe)
    train, evaluation = (
        [example for example, _ in of_known_items(entries, examples, source)]
        for examples, source in ((dataset.train, "data.train"), (dataset.evaluation, "data.evaluation"))
    )
    left_out = len(dataset.train) + len(dataset.evaluation) - len(train) - len(evaluation)
    if left_out:
        say(f"            {left_out} texts are for items that are not in the catalogue: left out")
    return replace(dataset, train=train, evaluation=evaluation, entries=entries)


def step_files(
    recipe: Recipe, folder: Path, key: str, dataset: Dataset, artifacts: Path, say: Callable[[str], None]
) -> StepFiles:
    """The catalogue's vectors, made by a checkpoint, and how well they are found.

    Args:
        recipe: whose catalogue it is.
        folder: the checkpoint.
        key: its digest.
        dataset: of :func:`known_examples`; its evaluation split is asked for.
        artifacts: working folder; vectors that are up to date there are used again.
        say: receives a line.
    """
    entries, queries = dataset.entries, dataset.evaluation
    phrasings = [(place, text) for place, entry in enumerate(entries) for text in entry.phrasings]
    if recipe.catalogue.use_training_texts:
        phrasings = sorted([*phrasings, *_training_texts(recipe, dataset)], key=lambda pair: pair[0])
    stage = Stage(
        artifacts,
        recipe.name,
        "catalogue",
        {
            "checkpoint": key,
            "entries": digest_of([astuple(entry) for entry in entries]),
            "phrasings": digest_of(phrasings),
            "evaluation": digest_of([astuple(query) for query in queries]),
            "max_length": recipe.text.max_length,
            "libraries": library_versions("numpy", "torch", "transformers"),
            "sources": source_digest(
                "knowledge_base.py",
                "learners/embedding.py",
                "learners/text.py",
                "metrics.py",
                "models.py",
                "checkpoints.py",
            ),
            "shared_sources": shared_digest(),
        },
    )
    metrics = stage.result()
    state = " (up to date)"
    if metrics is None:
        metrics, state = _make(recipe, folder, entries, phrasings, queries, stage.folder), ""
        stage.finish(metrics)
    figures = "".join(f", {name} {metrics[name]:.3f}" for name in ("hit_at_1", "mrr") if name in metrics)
    say(f"catalogue   {metrics['items']} items, {metrics['vectors']} vectors{figures}{state}")
    files = {name: stage.folder / name for name in ("catalogue.npz", "catalogue.json")}
    return StepFiles(key=stage.key, files={"catalogue": files}, metrics=metrics)


def _training_texts(recipe: Recipe, dataset: Dataset) -> list[tuple[int, str]]:
    if recipe.data is None or recipe.data.train is None:
        raise DataError("catalogue.use_training_texts needs data.train")
    # A recipe that does not train may name some all the same.
    train = dataset.train or read_split(recipe, recipe.data, "train").examples
    known = of_known_items(dataset.entries, train, "data.train")
    return [(place, example.text) for example, place in known]


def _make(
    recipe: Recipe,
    folder: Path,
    entries: Sequence[Entry],
    phrasings: Sequence[tuple[int, str]],
    queries: Sequence[Any],
    target: Path,
) -> Mapping[str, Any]:
    from mooring_build.learners.embedding import Embedder

    embed = Embedder(folder, recipe)
    vectors = embed([text for _, text in phrasings])  # [V, D]
    owners = np.array([place for place, _ in phrasings], np.int32)
    names = {"items": [entry.item for entry in entries], "answers": [entry.answer for entry in entries]}
    target.mkdir(parents=True, exist_ok=True)
    np.savez(target / "catalogue.npz", vectors=vectors, owners=owners)
    (target / "catalogue.json").write_text(json.dumps(names, ensure_ascii=False, indent=1), encoding="utf-8")
    metrics: dict[str, Any] = {"items": len(entries), "vectors": len(vectors)}
    if queries:
        catalogue = Catalogue(vectors, owners, names["items"], names["answers"])
        order, _ = catalogue.rank(embed([query.text for query in queries]), len(entries))
        found = np.array(names["items"], dtype=object)[order]
        places = [row.tolist().index(query.label) for row, query in zip(found, queries, strict=True)]
        metrics |= ranking_metrics(places)
    return metrics
