"""The checkpoint that a release is made of: searched for, trained or scored, and only what is out of date."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from mooring import CheckpointError
from mooring_build.checkpoints import Checkpoint
from mooring_build.datasets import Dataset
from mooring_build.digests import digest_of
from mooring_build.examples import LabelledText, TaggedSentence
from mooring_build.learners import learner_of, learner_sources
from mooring_build.preparation import preparation
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import Search
from mooring_build.stages import Stage, library_versions, source_digest


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    """A checkpoint that answers the recipe's task, and how good it is."""

    #: ``config.json``, weights, and a tokenizer where the task has one.
    folder: Path
    #: Digest of everything it came from.
    key: str
    metrics: dict[str, Any]
    #: What a hyper-parameter search found, where one was asked for.
    searched: dict[str, Any] | None = None


def _model_inputs(recipe: Recipe, checkpoint: Checkpoint, dataset: Dataset) -> dict[str, Any]:
    """What training and evaluation both depend on; the data's digest covers the labels."""
    return {
        "checkpoint": checkpoint.digest,
        "data": dataset.digest,
        "task": recipe.task,
        "max_length": recipe.text.max_length,
        **preparation(recipe),
        "libraries": library_versions("torch", "transformers"),
        "sources": source_digest("training.py", "metrics.py", *learner_sources(recipe.task)),
    }


def search_training(
    recipe: Recipe,
    checkpoint: Checkpoint,
    dataset: Dataset,
    artifacts: Path,
    trials: int,
    say: Callable[[str], None],
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the best hyper-parameters of a search, and what the manifest says of it."""
    from mooring_build.search import ranges_of, search

    training = recipe.training.model_dump(exclude=set(Search.model_fields)) if recipe.training else None
    inputs = {
        **_model_inputs(recipe, checkpoint, dataset),
        "training": training,
        "adapter": recipe.adapter.model_dump() if recipe.adapter else None,
        "search": ranges_of(recipe).model_dump() if recipe.training else None,
        "search_sources": source_digest("search.py"),
    }
    folder = Stage(artifacts, recipe.name, "search", inputs).folder
    say(f"searching   {trials} trials, kept in {folder}")
    _check_packable(recipe, checkpoint)
    found, record = search(recipe, checkpoint.folder, dataset, folder, trials=trials, say=say)
    say(f"best        trial {record['best_trial']}, {record['metric']} {record['best_value']:.3f}")
    return found, record


def train(
    recipe: Recipe, checkpoint: Checkpoint, dataset: Dataset, artifacts: Path, say: Callable[[str], None]
) -> FineTuned:
    """Fine-tune the checkpoint, unless it was done."""
    stage = Stage(
        artifacts,
        recipe.name,
        "trained",
        {
            **_model_inputs(recipe, checkpoint, dataset),
            "training": recipe.training.model_dump() if recipe.training else None,
            "adapter": recipe.adapter.model_dump() if recipe.adapter else None,
        },
    )
    metrics = stage.result()
    if metrics is None:
        _check_packable(recipe, checkpoint)
        say(f"training    on {len(dataset.train)} examples")
        _tell_of_data(recipe, dataset, say)
        from mooring_build.training import fine_tune

        _tell_cut(recipe, checkpoint, dataset, say)
        metrics = fine_tune(recipe, checkpoint.folder, dataset, stage.folder)
        stage.finish(metrics)
        say(f"trained     {_figures(metrics)}")
    else:
        say(f"trained     {_figures(metrics)} (up to date)")
    # Until here a build that is killed goes on from the last epoch.
    shutil.rmtree(stage.folder / "epochs", ignore_errors=True)
    return FineTuned(folder=stage.folder, key=stage.key, metrics=metrics)


def evaluate(
    recipe: Recipe, checkpoint: Checkpoint, dataset: Dataset, artifacts: Path, say: Callable[[str], None]
) -> FineTuned:
    """Take the checkpoint as it is, and score it where there is evaluation data."""
    if checkpoint.folder is None:
        raise CheckpointError("base.config describes a new model: it needs a [training] table")
    say(f"checkpoint  {checkpoint.folder} (fine-tuned before, nothing to train)")
    metrics: dict[str, Any] = {}
    if dataset.evaluation:
        inputs = _model_inputs(recipe, checkpoint, dataset)
        if dataset.entries:
            inputs["entries"] = digest_of([astuple(entry) for entry in dataset.entries])
        stage = Stage(artifacts, recipe.name, "evaluated", inputs)
        found = stage.result()
        if found is None:
            from mooring_build.training import evaluate_checkpoint

            _check_packable(recipe, checkpoint)
            _tell_cut(recipe, checkpoint, replace(dataset, train=[]), say)
            found = evaluate_checkpoint(recipe, checkpoint.folder, dataset, stage.folder)
            stage.finish(found)
        metrics = found
        say(f"evaluated   {_figures(metrics)}")
    return FineTuned(folder=checkpoint.folder, key=checkpoint.digest, metrics=metrics)


def _check_packable(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Or what is trained or scored for hours could not be exported."""
    if recipe.serving.mixed_lengths == "ragged" and checkpoint.folder is not None:
        from mooring_build.packing import check_packable

        check_packable(checkpoint.folder)


def _tell_of_data(recipe: Recipe, dataset: Dataset, say: Callable[[str], None]) -> None:
    """What makes figures, or the model, other than they seem."""
    if dataset.out_of_scope and recipe.data is not None:
        say(
            f"            and {len(dataset.out_of_scope)} texts that fit no label, from "
            f"{recipe.data.out_of_scope_train} (data.out_of_scope_train)"
        )
    if recipe.task == "text-ranking":
        return
    known, asked = (
        [one.text for one in split if isinstance(one, LabelledText | TaggedSentence)]
        for split in (dataset.train, dataset.evaluation)
    )
    trained = set(known)
    seen = sum(text in trained for text in asked)
    if seen:
        say(
            f"            {seen} of {len(asked)} evaluation texts are training texts, too: the figures will "
            "be better than the model"
        )


def _tell_cut(recipe: Recipe, checkpoint: Checkpoint, dataset: Dataset, say: Callable[[str], None]) -> None:
    cut = learner_of(recipe.task).count_cut(recipe, checkpoint.folder, dataset)
    if cut:
        say(f"            {cut} examples are cut off at text.max_length {recipe.text.max_length}")


def _figures(metrics: dict[str, Any]) -> str:
    names = (
        "entity_f1",
        "accuracy",
        "macro_f1",
        "token_micro_f1",
        "hit_at_1",
        "mrr",
        "validation_ndcg_at_10",
    )
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in names if name in metrics)
