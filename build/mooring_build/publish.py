"""Publish a release into a Triton model repository: atomically, and never into an existing version.

A release is one new version in every model of a recipe (see :mod:`mooring_build.triton_config`). It
becomes the one that answers in a single step, when the ensemble's ``config.pbtxt`` is replaced:

1. every version folder is written under a name that Triton does not take for a version,
2. a journal notes the configs as they are and as they will be,
3. the folders get their number; no config names it yet, so Triton does not load them,
4. the parts' configs name the old version and the new one,
5. **the ensemble's config is replaced**: it pins the new version for each of its steps,
6. the parts' configs name the new version alone, and the journal is closed.

Killed before 5, the old release answers; after it, the new one; and the next publish undoes or completes
what was begun. A recipe's first release has nothing to keep working: its configs are written before 3, and
the ensemble's folder, placed last, takes the part of 5.

Old versions stay on disk, complete, each with the configs that it was published with: :func:`roll_back` lets
one answer again, by steps 2 and 4 to 6. Nothing deletes them but their owner.
"""

from __future__ import annotations

import datetime
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from mooring import PublishError
from mooring_build.digests import file_sha256
from mooring_build.recipe import Recipe
from mooring_build.release import EngineFiles, Release, version_files
from mooring_build.repository import (
    CONFIG,
    MANIFEST,
    Journal,
    damaged_files,
    joining_pipelines,
    locked,
    pinned_version,
    place_version,
    read_config,
    read_manifest,
    read_text,
    released_version,
    stage_version,
    versions_of,
    write_file,
)
from mooring_build.switching import Switch, recover
from mooring_build.triton_config import HEADER, dumps_config, loads_config, model_configs, model_names

__all__ = [
    "EngineFiles",
    "Release",
    "check_name",
    "publish_release",
    "publish_steps",
    "read_manifest",
    "released_version",
    "roll_back",
    "up_to_date_version",
    "write_configs",
]


def check_name(repository: Path, recipe: Recipe) -> None:
    """Refuse a recipe with the name of something else; a publish does so too, but after the training.

    Raises:
        PublishError: a model that Mooring did not write or that serves another task has the name.
    """
    with _explained(repository):
        _check_ownership(repository, recipe)
        _check_task(repository, recipe)


def publish_release(repository: Path, recipe: Recipe, release: Release) -> int:
    """Publish a release and make it the one that answers.

    Args:
        repository: Triton model repository; created where it is missing.
        recipe: names the models and says how they are served.
        release: files and facts.

    Returns:
        The version. An identical release that is there already keeps its version.

    Raises:
        PublishError: an engine has no passed verification, a file can't be used, a model that Mooring did
            not write or that serves another task has the name, a pipeline that joins this one takes larger
            batches, or the repository can't be written. What answered before answers still; only an error
            after the commit leaves the new release there.
    """
    steps = publish_steps(repository, recipe, release)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            version: int = done.value
            return version


def publish_steps(repository: Path, recipe: Recipe, release: Release) -> Generator[str, None, int]:
    """Publish step by step, for tests that stop in between; see :func:`publish_release`.

    Yields:
        The name of each step after it is done.
    """
    with _explained(repository):
        files = version_files(recipe, release)
    with _explained(repository), locked(repository) as journal:
        _check_ownership(repository, recipe)
        recover(repository, journal)
        yield "recovered"
        _check_task(repository, recipe)
        ensemble = model_configs(recipe, release.labels, 1)[recipe.name]
        _check_joining(repository, recipe.name, ensemble)
        _check_joined(repository, ensemble)
        if released_version(repository, recipe.name) is not None:
            _check_widths(repository, recipe, release.labels)
        current = up_to_date_version(repository, recipe, release.labels, release.inputs_digest)
        if current is not None:
            return current
        try:
            return (yield from _publish(repository, recipe, release, files, journal))
        except BaseException:
            # A disk that is full or read-only may forbid this too; then the next publish does it.
            with suppress(OSError):
                recover(repository, journal)
            raise


def write_configs(repository: Path, recipe: Recipe, labels: Sequence[str], version: int) -> None:
    """Write the configs alone, so that they can be reviewed and committed without a build.

    Raises:
        PublishError: another version is released, or as in :func:`publish_release`.
    """
    with _explained(repository), locked(repository) as journal:
        _check_ownership(repository, recipe)
        recover(repository, journal)
        released = released_version(repository, recipe.name)
        if released not in (None, version):
            raise PublishError(
                f"{repository / recipe.name} has released version {released}: "
                f"its configs can't be rewritten for version {version}"
            )
        configs = model_configs(recipe, labels, version)
        _check_joining(repository, recipe.name, configs[recipe.name])
        old = read_config(repository, recipe.name)
        # Killed in between, the ensemble must not take larger batches than its steps: Triton refuses that.
        shrinks = old is not None and configs[recipe.name].max_batch_size < old.max_batch_size
        for model in sorted(configs, key=lambda model: (model == recipe.name) != shrinks):
            write_file(repository / model / CONFIG, dumps_config(configs[model]))


def roll_back(repository: Path, name: str, version: int | None = None) -> int:
    """Make an earlier release the one that answers, with the configs that it was published with.

    Args:
        repository: Triton model repository.
        name: of a released pipeline.
        version: one that is on disk; ``None`` for the highest below the one that answers.

    Returns:
        The version that answers now.

    Raises:
        PublishError: nothing is released under that name, there is no such version or it is not whole, a
            pipeline that joins this one needs what that version does not answer, or the repository can't be
            written.
    """
    with _explained(repository), locked(repository) as journal:
        recover(repository, journal)
        released = released_version(repository, name)
        if released is None:
            raise PublishError(f"{repository / name} has no release to go back from")
        if "parts" not in read_manifest(repository, name, released):
            raise PublishError(
                f"{repository / name} is a part of a pipeline, which goes back as a whole: name that"
            )
        there = sorted(versions_of(repository, name) - {released})
        if version is None:
            version = max((one for one in there if one < released), default=None)
        if version not in there:
            raise PublishError(
                f"{repository / name} serves version {released} and has "
                f"{'version ' + ', '.join(map(str, there)) if there else 'no other version'} beside it"
                f"{'' if version is None else f', not version {version}'}"
            )
        after = _published_configs(repository, name, version)
        _check_joining(repository, name, loads_config(after[name]))
        _check_joined(repository, loads_config(after[name]))
        try:
            switch = Switch.to(repository, name, version, after, placed=False)
            journal.write(vars(switch))
            for _ in switch.commit(repository, journal):
                pass
        except BaseException:
            with suppress(OSError):
                recover(repository, journal)
            raise
        return version


def _published_configs(repository: Path, name: str, version: int) -> dict[str, str]:
    """Each model's config as that version was published with it; the version is whole."""
    models = [*read_manifest(repository, name, version).get("parts", {}), name]
    if damaged := [path for model in models for path in damaged_files(repository, model, version)]:
        raise PublishError(f"{damaged[0]} is missing or not as it was published: build the release again")
    configs = {model: read_text(repository / model / str(version) / CONFIG) for model in models}
    if lacking := [model for model, text in configs.items() if text is None]:
        raise PublishError(
            f"{repository / lacking[0] / str(version)} has no {CONFIG}: an earlier Mooring published it"
        )
    return {model: text for model, text in configs.items() if text is not None}


def up_to_date_version(
    repository: Path, recipe: Recipe, labels: Sequence[str], inputs_digest: str
) -> int | None:
    """The released version, if it came from these inputs, is undamaged, and has the recipe's configs."""
    try:
        version = released_version(repository, recipe.name)
        if version is None:
            return None
        manifest = read_manifest(repository, recipe.name, version)
        configs = model_configs(recipe, labels, version)
        is_current = (
            manifest.get("inputs_digest") == inputs_digest
            and all(
                read_text(repository / model / CONFIG) == dumps_config(config)
                for model, config in configs.items()
            )
            and all(
                file_sha256(repository / model / str(version) / MANIFEST) == digest
                for model, digest in manifest["parts"].items()
            )
            and not any(damaged_files(repository, model, version) for model in configs)
        )
    except (PublishError, OSError):
        # Whatever is unreadable here is told by the publish that follows.
        return None
    return version if is_current else None


def _publish(
    repository: Path,
    recipe: Recipe,
    release: Release,
    files: Mapping[str, dict[str, Path | str]],
    journal: Journal,
) -> Generator[str, None, int]:
    version = _next_version(repository, recipe)
    configs = model_configs(recipe, release.labels, version)
    after = {model: dumps_config(config) for model, config in configs.items()}
    manifest = {
        **release.facts,
        "version": version,
        "published": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "inputs_digest": release.inputs_digest,
        "labels": list(release.labels),
        "parity": {name: dict(engine.parity) for name, engine in release.engines.items()},
    }
    parts = {}
    for model, content in files.items():
        parts[model] = stage_version(
            repository / model, version, {**content, CONFIG: after[model]}, {**manifest, "model": model}
        )
        yield f"staged {model}"
    stage_version(
        repository / recipe.name,
        version,
        {CONFIG: after[recipe.name]},
        {**manifest, "model": recipe.name, "parts": parts},
    )
    yield f"staged {recipe.name}"

    switch = Switch.to(repository, recipe.name, version, after, placed=True)
    journal.write(vars(switch))
    yield "noted"
    for model, text in after.items():
        if switch.released is None or switch.before[model] is None:
            write_file(repository / model / CONFIG, text)
            yield f"announced {model}"
    for model in after:
        place_version(repository / model, version)
        yield f"placed {model}"
    yield from switch.commit(repository, journal)
    return version


def _next_version(repository: Path, recipe: Recipe) -> int:
    """One above all that is there; or the version that the configs pin already, if it was never built."""
    pinned = pinned_version(read_config(repository, recipe.name))
    existing = [version for model in model_names(recipe) for version in versions_of(repository, model)]
    return max([pinned or 1, *(version + 1 for version in existing)])


def _check_ownership(repository: Path, recipe: Recipe) -> None:
    """Refuse to touch a model that Mooring did not write, or wrote as another kind of model."""
    # Only the kinds matter here, not labels or version.
    for model, config in model_configs(recipe, [""], 1).items():
        folder = repository / model
        text = read_text(folder / CONFIG)
        if text is None:
            foreign = any(
                not (folder / str(version) / MANIFEST).is_file() for version in versions_of(repository, model)
            )
        elif text.startswith(HEADER):
            found = read_config(repository, model)
            foreign = found is None or (found.backend, found.platform) != (config.backend, config.platform)
        else:
            foreign = True
        if foreign or (folder.exists() and not folder.is_dir()):
            raise PublishError(
                f"{folder} is not a model that recipe {recipe.name!r} made: "
                "give the recipe another name, or move the folder away"
            )


def _check_task(repository: Path, recipe: Recipe) -> None:
    """A name keeps its task: callers of the old release could not read the new one's answers."""
    if released_version(repository, recipe.name) is None:
        return
    config = read_config(repository, recipe.name)
    task = config.parameters["task"].string_value if config is not None else recipe.task
    if task != recipe.task:
        raise PublishError(
            f"{repository / recipe.name} serves {task}, recipe {recipe.name!r} is {recipe.task}: "
            "give the recipe another name"
        )


def _check_joining(repository: Path, joined: str, changed: pb.ModelConfig) -> None:
    """What joins this pipeline must load beside its new config too."""
    most = changed.max_batch_size
    answers = {output.name for output in changed.output}
    for name, config in joining_pipelines(repository, joined).items():
        joins, size = f"{repository / name} joins {joined!r}", config.max_batch_size
        if size > most:
            raise PublishError(
                f"{joins} and takes batches of {size}: Triton would not load it beside "
                f"serving.max_batch_size {most}; build with {size} or more, or first build {name!r} with "
                f"--set serving.max_batch_size={most}"
            )
        steps = [step for step in config.ensemble_scheduling.step if step.model_name == joined]
        if missing := sorted({output for step in steps for output in step.output_map} - answers):
            raise PublishError(
                f"{joins} and needs its output {', '.join(missing)}, which this release has not: Triton "
                "would not load it, and 'mooring serve' not start; build or roll back that first, build into "
                f"another --repository or under another name, or move {repository / name} away"
            )


def _check_joined(repository: Path, ensemble: pb.ModelConfig) -> None:
    """What this pipeline joins may have been released anew since the release was made."""
    for step in ensemble.ensemble_scheduling.step:
        if step.model_version > 0:
            continue
        joined = read_config(repository, step.model_name)
        answers = {output.name for output in joined.output} if joined is not None else set()
        if missing := sorted(set(step.output_map) - answers):
            raise PublishError(
                f"{ensemble.name} joins {repository / step.model_name} and needs its output "
                f"{', '.join(missing)}, which it no longer has: build {step.model_name!r} again"
            )
        if joined is not None and joined.max_batch_size < ensemble.max_batch_size:
            raise PublishError(
                f"{ensemble.name} takes batches of {ensemble.max_batch_size}, and what it joins, "
                f"{repository / step.model_name}, of {joined.max_batch_size}: set serving.max_batch_size to "
                "that or less"
            )


def _check_widths(repository: Path, recipe: Recipe, labels: Sequence[str]) -> None:
    """A scattered output keeps its width: Triton cuts the outputs of all versions by the config's."""
    for model, config in model_configs(recipe, labels, 1).items():
        old = read_config(repository, model) if config.batch_output else None
        if old is not None and list(old.output) != list(config.output):
            raise PublishError(
                f"{repository / model} serves {old.output[0].dims[-1]} labels a token, this release has "
                f"{len(labels)}: with serving.mixed_lengths 'ragged' both can't be there at once; give the "
                "recipe another name, or publish with 'padded' first and move the folder away"
            )


@contextmanager
def _explained(repository: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        place = f": {exc.filename}" if exc.filename else ""
        raise PublishError(f"can't write into {repository}: {exc.strerror or exc}{place}") from exc
