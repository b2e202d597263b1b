"""From a recipe to a release: fine-tune, export, verify, publish, and only what is out of date."""

from __future__ import annotations

import fcntl
import importlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mooring import BuildError, CheckpointError, VerificationError
from mooring_build.checkpoints import (
    Checkpoint,
    read_label_count,
    read_labels_of,
    read_position_limit,
    resolve_checkpoint,
)
from mooring_build.composing import compose
from mooring_build.datasets import Dataset, load_dataset
from mooring_build.digests import digest_files, digest_of
from mooring_build.learners import Exportable, learner_of, learner_sources
from mooring_build.publish import EngineFiles, Release, is_up_to_date, publish_release, released_version
from mooring_build.recipe import COMPOSED_TASKS, LABELLED_TASKS, ExportFormat, Recipe, Task
from mooring_build.release import SHARED_SOURCES
from mooring_build.stages import Stage, library_versions, source_digest

# Tasks whose releases hold more than engines and a tokenizer: the module whose ``step_files`` makes the rest.
_STEP_FILES: dict[Task, str] = {}
_LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxscript", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    """A checkpoint that answers the recipe's task, and how good it is."""

    #: ``config.json``, weights, and a tokenizer where the task has one.
    folder: Path
    #: Digest of everything it came from.
    key: str
    metrics: dict[str, Any]


def build(
    recipe: Recipe, *, repository: Path, artifacts: Path, say: Callable[[str], None] = lambda line: None
) -> int:
    """Build and publish a recipe.

    Args:
        recipe: the validated recipe.
        repository: Triton model repository that receives the release.
        artifacts: working folder; what is up to date there is used again.
        say: receives one line a step.

    Returns:
        The released version; an unchanged recipe keeps the version that is there.

    Raises:
        DataError, CheckpointError: the inputs can't be used.
        BuildError: the artifacts can't be written, or another build of the recipe is running.
        VerificationError: an engine does not answer as the PyTorch model; nothing is published.
        PublishError: the repository can't be written.
    """
    try:
        with _alone(artifacts / recipe.name):
            if recipe.task in COMPOSED_TASKS:
                return compose(recipe, repository=repository, artifacts=artifacts, say=say)
            checkpoint = resolve_checkpoint(recipe)
            dataset = load_dataset(recipe, labels=_fixed_labels(recipe, checkpoint))
            prepare = _evaluate if recipe.training is None else _train
            fine_tuned = prepare(recipe, checkpoint, dataset, artifacts, say)
            engines = _Exports(recipe, fine_tuned, dataset, artifacts, say).make()
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
    if recipe.labels is not None and labels is not None and labels != recipe.labels:
        raise CheckpointError(
            f"labels {recipe.labels} are not those of {checkpoint.folder}: {labels}; names and order must "
            "be the same, or leave labels out of the recipe"
        )
    if labels is None and recipe.labels is None:
        raise CheckpointError(
            f"{checkpoint.folder} names no labels (id2label in its config.json): "
            "name them in the recipe (labels)"
        )
    count = read_label_count(checkpoint.folder)
    if labels is None and recipe.labels is not None and len(recipe.labels) != count:
        raise CheckpointError(
            f"{checkpoint.folder} has {count} labels, the recipe has {len(recipe.labels)}: {recipe.labels}"
        )
    return labels or recipe.labels


def _model_inputs(recipe: Recipe, checkpoint: Checkpoint, dataset: Dataset) -> dict[str, Any]:
    """What training and evaluation both depend on; the data's digest covers the labels."""
    return {
        "checkpoint": checkpoint.digest,
        "data": dataset.digest,
        "task": recipe.task,
        "max_length": recipe.text.max_length,
        "image": recipe.image.model_dump(),
        "features": recipe.features.model_dump() if recipe.features else None,
        "libraries": library_versions("torch", "transformers"),
        "sources": source_digest("training.py", "metrics.py", *learner_sources(recipe.task)),
    }


def _train(
    recipe: Recipe, checkpoint: Checkpoint, dataset: Dataset, artifacts: Path, say: Callable[[str], None]
) -> FineTuned:
    stage = Stage(
        artifacts,
        recipe.name,
        "trained",
        {
            **_model_inputs(recipe, checkpoint, dataset),
            "training": recipe.training.model_dump() if recipe.training else None,
        },
    )
    metrics = stage.result()
    if metrics is None:
        say(f"training    on {len(dataset.train)} examples")
        from mooring_build.training import fine_tune

        cut = learner_of(recipe.task).count_cut(recipe, checkpoint.folder, dataset)
        if cut:
            say(f"            {cut} examples are cut off at text.max_length {recipe.text.max_length}")
        metrics = fine_tune(recipe, checkpoint.folder, dataset, stage.folder)
        stage.finish(metrics)
        say(f"trained     {_figures(metrics)}")
    else:
        say(f"trained     {_figures(metrics)} (up to date)")
    return FineTuned(folder=stage.folder, key=stage.key, metrics=metrics)


def _evaluate(
    recipe: Recipe, checkpoint: Checkpoint, dataset: Dataset, artifacts: Path, say: Callable[[str], None]
) -> FineTuned:
    if checkpoint.folder is None:
        raise CheckpointError("base.config describes a new model: it needs a [training] table")
    say(f"checkpoint  {checkpoint.folder} (fine-tuned before, nothing to train)")
    metrics: dict[str, Any] = {}
    if dataset.evaluation:
        stage = Stage(artifacts, recipe.name, "evaluated", _model_inputs(recipe, checkpoint, dataset))
        found = stage.result()
        if found is None:
            from mooring_build.training import evaluate_checkpoint

            found = evaluate_checkpoint(recipe, checkpoint.folder, dataset, stage.folder)
            stage.finish(found)
        metrics = found
        say(f"evaluated   {_figures(metrics)}")
    return FineTuned(folder=checkpoint.folder, key=checkpoint.digest, metrics=metrics)


class _Exports:
    """Exports and verifies every format; loads the PyTorch model only when one is out of date."""

    def __init__(
        self,
        recipe: Recipe,
        fine_tuned: FineTuned,
        dataset: Dataset,
        artifacts: Path,
        say: Callable[[str], None],
    ) -> None:
        self._recipe = recipe
        self._fine_tuned = fine_tuned
        self._dataset = dataset
        self._artifacts = artifacts
        self._say = say
        self._loaded: Exportable | None = None

    def make(self) -> dict[ExportFormat, EngineFiles]:
        return {export_format: self._make(export_format) for export_format in self._recipe.export.formats}

    def _make(self, export_format: ExportFormat) -> EngineFiles:
        from mooring_build.engines import ENGINE_FILES

        recipe = self._recipe
        stage = Stage(
            self._artifacts,
            recipe.name,
            export_format,
            {
                "checkpoint": self._fine_tuned.key,
                "export": {"precision": recipe.export.precision, "opset": recipe.export.opset},
                "verify": recipe.verify.model_dump(),
                "max_length": recipe.text.max_length,
                "max_batch_size": recipe.serving.max_batch_size,
                "data": self._dataset.digest,
                "libraries": library_versions(*_LIBRARIES),
                "sources": source_digest(
                    "export.py", "verification.py", "engines.py", *learner_sources(recipe.task)
                ),
            },
        )
        parity = stage.result()
        state = " (up to date)"
        if parity is None:
            parity, state = self._export_and_verify(export_format, stage.folder), ""
            stage.finish(parity)
        self._say(
            f"{export_format:<11} largest difference {parity['max_abs_difference']:.2g} "
            f"over {parity['cases']} batches, {parity['tolerance']:.0e} allowed{state}"
        )
        return EngineFiles(path=stage.folder / ENGINE_FILES[export_format], parity=parity, key=stage.key)

    def _export_and_verify(self, export_format: ExportFormat, folder: Path) -> dict[str, Any]:
        from mooring_build.engines import open_engine
        from mooring_build.export import export_engine
        from mooring_build.verification import verify_engine

        exportable = self._exportable()
        try:
            path = export_engine(exportable, self._recipe, export_format, folder)
            engine = open_engine(path, export_format)
            cases = learner_of(self._recipe.task).cases(self._recipe, exportable, self._dataset)
            parity = verify_engine(engine, exportable, self._recipe, cases)
        except OSError:
            raise
        except Exception as exc:
            # Exporters and runtimes raise whatever they have; none of it may lead to a release.
            raise VerificationError(f"{self._recipe.name}_{export_format} is not published: {exc}") from exc
        return parity.to_dict()

    def _exportable(self) -> Exportable:
        if self._loaded is None:
            learner = learner_of(self._recipe.task)
            self._loaded = learner.exportable(self._recipe, self._fine_tuned.folder)
        return self._loaded


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
    files_key, step_files = _step_files(recipe, fine_tuned, artifacts, say)
    inputs_digest = digest_of(
        {
            "engines": {name: files.key for name, files in engines.items()},
            "labels": dataset.labels,
            "text": recipe.text.model_dump(),
            "image": recipe.image.model_dump(),
            "top_k": recipe.top_k,
            "step_files": files_key,
            "card": recipe.card.model_dump(),
            "serving": recipe.serving.model_dump(),
            "engine": recipe.export.engine,
            "task": recipe.task,
            "sources": source_digest("served", "release.py", "triton_config.py", "layouts"),
            "shared_sources": digest_files(SHARED_SOURCES.glob("*.py"), root=SHARED_SOURCES),
        }
    )
    if is_up_to_date(repository, recipe, dataset.labels, inputs_digest):
        version = released_version(repository, recipe.name)
        if version is not None:
            say(f"published   {recipe.name} version {version} in {repository} (up to date)")
            return version
    version = publish_release(
        repository,
        recipe,
        Release(
            labels=dataset.labels,
            engines=engines,
            tokenizer_file=fine_tuned.folder / "tokenizer.json",
            tokenizer_config_file=fine_tuned.folder / "tokenizer_config.json",
            step_files=step_files,
            inputs_digest=inputs_digest,
            facts=_facts(recipe, checkpoint, dataset, fine_tuned),
        ),
    )
    say(f"published   {recipe.name} version {version} in {repository}")
    return version


def _step_files(
    recipe: Recipe, fine_tuned: FineTuned, artifacts: Path, say: Callable[[str], None]
) -> tuple[str | None, Mapping[str, Mapping[str, Path | str]]]:
    """What a release holds besides engines and tokenizer, with the digest of what it came from."""
    if recipe.task not in _STEP_FILES:
        return None, {}
    make = importlib.import_module(f"mooring_build.{_STEP_FILES[recipe.task]}").step_files
    key, files = make(recipe, fine_tuned.folder, fine_tuned.key, artifacts, say)
    return key, files


def _facts(recipe: Recipe, checkpoint: Checkpoint, dataset: Dataset, fine_tuned: FineTuned) -> dict[str, Any]:
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
            "train_examples": len(dataset.train),
            "evaluation_examples": len(dataset.evaluation),
        },
        "metrics": fine_tuned.metrics,
        "libraries": library_versions(*_LIBRARIES),
        "git_commit": _git_commit(recipe.folder),
    }


def _git_commit(folder: Path) -> str | None:
    """Commit of the checkout that the recipe lies in, or ``None`` outside of one."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _figures(metrics: dict[str, Any]) -> str:
    names = ("entity_f1", "accuracy", "macro_f1", "tag_accuracy")
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in names if name in metrics)
