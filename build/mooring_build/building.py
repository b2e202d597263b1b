"""From a recipe to a release: fine-tune, export, verify, publish, and only what is out of date."""

from __future__ import annotations

import fcntl
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mooring import BuildError, CheckpointError
from mooring_build.batch_strategy import STRATEGY_SOURCE, batch_strategy
from mooring_build.checkpoints import (
    Checkpoint,
    read_label_count,
    read_labels_of,
    read_position_limit,
    resolve_checkpoint,
)
from mooring_build.composing import compose
from mooring_build.datasets import Dataset, load_dataset
from mooring_build.digests import digest_of
from mooring_build.exports import LIBRARIES, Exports
from mooring_build.fine_tuned import FineTuned, evaluate, search_training, train
from mooring_build.model_card import model_card
from mooring_build.publish import EngineFiles, Release, check_name, publish_release, up_to_date_version
from mooring_build.recipe import COMPOSED_TASKS, LABELLED_TASKS, Recipe, Task
from mooring_build.recipe_tables import ExportFormat
from mooring_build.release_audit import audit_release
from mooring_build.repository import decided_with_others
from mooring_build.stages import StepFiles, git_commit, library_versions, shared_digest, source_digest

# Tasks whose releases hold more of the checkpoint: the module whose ``step_files`` makes it.
_STEP_FILES: dict[Task, str] = {
    "recommendation": "item_catalogue",
    "text-ranking": "knowledge_base",
}


def build(
    recipe: Recipe,
    *,
    repository: Path,
    artifacts: Path,
    search_trials: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Build and publish a recipe.

    Args:
        recipe: the validated recipe.
        repository: Triton model repository that receives the release.
        artifacts: working folder; what is up to date there is used again.
        search_trials: how many hyper-parameter trials there shall be before the best are built; 0: none.
        say: receives one line a step.

    Returns:
        The released version; an unchanged recipe keeps the version that is there.

    Raises:
        DataError, CheckpointError: the inputs can't be used.
        BuildError: the artifacts can't be written, or another build of the recipe is running.
        VerificationError: an engine does not answer as the PyTorch model; nothing is published.
        PublishError: something else has the recipe's name, or the repository can't be written.
    """
    try:
        with _alone(artifacts / recipe.name):
            check_name(repository, recipe)
            if recipe.task in COMPOSED_TASKS:
                return compose(recipe, repository=repository, artifacts=artifacts, say=say)
            checkpoint = resolve_checkpoint(recipe)
            dataset = load_dataset(recipe, labels=_fixed_labels(recipe, checkpoint))
            if recipe.task == "text-ranking":
                # scikit-learn comes with it, which takes a while.
                from mooring_build.knowledge_base import known_examples

                dataset = known_examples(recipe, dataset, say)
            searched: dict[str, Any] | None = None
            if search_trials:
                recipe, searched = search_training(recipe, checkpoint, dataset, artifacts, search_trials, say)
            prepare = evaluate if recipe.training is None else train
            fine_tuned = prepare(recipe, checkpoint, dataset, artifacts, say)
            fine_tuned = replace(fine_tuned, searched=searched)
            engines = Exports(recipe, fine_tuned.folder, fine_tuned.key, dataset, artifacts, say).make()
            return _publish(
                recipe,
                checkpoint,
                dataset,
                fine_tuned,
                engines,
                repository=repository,
                artifacts=artifacts,
                say=say,
            )
    except OSError as exc:
        place = f": {exc.filename}" if exc.filename else ""
        raise BuildError(f"can't build {recipe.name}: {exc.strerror or exc}{place}") from exc
    except (SafetensorError, RuntimeError) as exc:
        # How weights and PyTorch's files say that the disk is full.
        if any(words in str(exc) for words in ("No space left", "file write failed")):
            raise BuildError(f"can't build {recipe.name}: {exc}") from exc
        raise


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second build of the recipe out of its stages; a killed build's lock is free at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(f"another build works in {folder}: wait for it or end it") from None
        yield


def _fixed_labels(recipe: Recipe, checkpoint: Checkpoint) -> list[str] | None:
    """Labels of a fine-tuned checkpoint; on the way, refuse what can't come out well before it costs time."""
    if checkpoint.folder is None:
        return None
    limit = read_position_limit(checkpoint.folder)
    if limit is not None and recipe.text.max_length > limit:
        raise CheckpointError(
            f"text.max_length {recipe.text.max_length} is more than the {limit} positions "
            f"of {checkpoint.folder}"
        )
    if recipe.training is not None or recipe.task not in LABELLED_TASKS:
        return None
    labels = read_labels_of(checkpoint.folder)
    count = read_label_count(checkpoint.folder)
    if count < 2:
        raise CheckpointError(
            f"{checkpoint.folder} has one output (id2label in its config.json), a number or a score: "
            f"task {recipe.task!r} serves one label of several, by a softmax that would always be 1"
        )
    if recipe.labels is not None and labels is not None and labels != recipe.labels:
        raise CheckpointError(
            f"labels {recipe.labels} are not those of {checkpoint.folder}: {labels}; names and order must "
            "be the same, or leave labels out of the recipe"
        )
    if labels is None and recipe.labels is None:
        raise CheckpointError(
            f"{checkpoint.folder} names no labels (id2label in its config.json): "
            f"name all {count} in the recipe (labels), in the order of the model's outputs"
        )
    if labels is None and recipe.labels is not None and len(recipe.labels) != count:
        raise CheckpointError(
            f"{checkpoint.folder} has {count} labels, the recipe has {len(recipe.labels)}: {recipe.labels}"
        )
    return labels or recipe.labels


def _publish(
    recipe: Recipe,
    checkpoint: Checkpoint,
    dataset: Dataset,
    fine_tuned: FineTuned,
    engines: dict[ExportFormat, EngineFiles],
    *,
    repository: Path,
    artifacts: Path,
    say: Callable[[str], None],
) -> int:
    strategy = batch_strategy(recipe, artifacts, say)
    extra = _step_files(recipe, fine_tuned, engines[recipe.export.engine], dataset, artifacts, say)
    audited = audit_release(
        recipe, engines[recipe.export.engine], dataset.labels, fine_tuned.folder, artifacts, say
    )
    inputs_digest = digest_of(
        {
            "engines": {name: files.key for name, files in engines.items()},
            "labels": dataset.labels,
            "text": recipe.text.model_dump(),
            "image": recipe.image.model_dump(),
            "top_k": recipe.top_k,
            "step_files": extra.key,
            "card": recipe.card.model_dump(),
            "audit": audited,
            "serving": recipe.serving.model_dump(),
            "engine": recipe.export.engine,
            "task": recipe.task,
            "search": fine_tuned.searched,
            "sources": source_digest("served", STRATEGY_SOURCE, "release.py", "triton_config.py", "layouts"),
            "shared_sources": shared_digest(),
        }
    )
    current = up_to_date_version(repository, recipe, dataset.labels, inputs_digest)
    if current is not None:
        say(f"published   {recipe.name} version {current} in {repository} (up to date)")
        return current
    facts = _facts(recipe, checkpoint, dataset, fine_tuned, fine_tuned.metrics | dict(extra.metrics))
    version = publish_release(
        repository,
        recipe,
        Release(
            labels=dataset.labels,
            engines=engines,
            tokenizer_file=fine_tuned.folder / "tokenizer.json",
            tokenizer_config_file=fine_tuned.folder / "tokenizer_config.json",
            batch_strategy=strategy,
            step_files=extra.files,
            inputs_digest=inputs_digest,
            facts=facts | {"card": model_card(recipe, facts, audit=audited)},
        ),
    )
    say(f"published   {recipe.name} version {version} in {repository}")
    for name in decided_with_others(repository, recipe.name, version):
        say(f"outdated    {name} found its thresholds with another version of {recipe.name}: build it again")
    return version


def _step_files(
    recipe: Recipe,
    fine_tuned: FineTuned,
    engine: EngineFiles,
    dataset: Dataset,
    artifacts: Path,
    say: Callable[[str], None],
) -> StepFiles:
    """What a release holds besides engines and tokenizer."""
    if recipe.task == "text-classification":
        from mooring_build.acceptance import step_files

        return step_files(recipe, engine, fine_tuned.folder, dataset, artifacts, say)
    if recipe.task not in _STEP_FILES:
        return StepFiles(key=None, files={})
    make = importlib.import_module(f"mooring_build.{_STEP_FILES[recipe.task]}").step_files
    return make(recipe, fine_tuned.folder, fine_tuned.key, dataset, artifacts, say)


def _facts(
    recipe: Recipe,
    checkpoint: Checkpoint,
    dataset: Dataset,
    fine_tuned: FineTuned,
    metrics: dict[str, Any],
) -> dict[str, Any]:
    """What the manifest says of the release beyond its files."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "base_checkpoint": {
            "name": recipe.base.checkpoint or f"new {recipe.base.config['model_type']}",
            "source": checkpoint.source,
            "digest": checkpoint.digest,
        },
        "data": {
            "digest": dataset.digest,
            "evaluation_digest": dataset.evaluation_digest,
            "train_examples": len(dataset.train),
            "evaluation_examples": len(dataset.evaluation),
        },
        "metrics": metrics,
        "search": fine_tuned.searched,
        "libraries": library_versions(*LIBRARIES),
        "git_commit": git_commit(recipe.folder),
    }
