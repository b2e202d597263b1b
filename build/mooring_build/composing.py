"""Pipelines that join the pipelines of other recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mooring import BuildError
from mooring_build.customer_service import compose_files
from mooring_build.digests import digest_of
from mooring_build.model_card import model_card
from mooring_build.publish import Release, publish_release, up_to_date_version
from mooring_build.recipe import PART_TASKS, Recipe
from mooring_build.repository import read_config, read_manifest, released_version
from mooring_build.stages import git_commit, library_versions, shared_digest, source_digest


def compose(recipe: Recipe, *, repository: Path, artifacts: Path, say: Callable[[str], None]) -> int:
    """Publish a pipeline of released pipelines; see :func:`mooring_build.building.build`.

    Its parts are joined by name, not by version: a part's next release answers in it at once.

    Raises:
        BuildError: a part is not in the repository, or is not what the task joins.
    """
    parts = _released_parts(recipe, repository)
    for name, manifest in parts.items():
        say(f"{name:<11} {recipe.parts[name]} version {manifest['version']}")
    # What the release holds beside its steps' sources, its digest, and further facts of the manifest.
    key: str | None = None
    step_files: dict[str, dict[str, Path | str]] = {}
    more: dict[str, Any] = {}
    if recipe.task == "customer-service":
        key, step_files, more = compose_files(recipe, parts, repository, artifacts, say)
    inputs_digest = digest_of(
        {
            "parts": recipe.parts,
            "step_files": key,
            "facts": more,
            "card": recipe.card.model_dump(),
            "serving": recipe.serving.model_dump(),
            "task": recipe.task,
            "sources": source_digest("served", "release.py", "triton_config.py", "layouts"),
            "shared_sources": shared_digest(),
        }
    )
    current = up_to_date_version(repository, recipe, [], inputs_digest)
    if current is not None:
        say(f"published   {recipe.name} version {current} in {repository} (up to date)")
        return current
    facts: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        # As they were when this was published.
        "composed_of": {
            name: {"model": recipe.parts[name], "version": manifest["version"]}
            for name, manifest in parts.items()
        },
        "metrics": {},
        **more,
        "libraries": library_versions("numpy"),
        "git_commit": git_commit(recipe.folder),
    }
    release = Release(
        labels=[],
        engines={},
        step_files=step_files,
        inputs_digest=inputs_digest,
        facts=facts | {"card": model_card(recipe, facts)},
    )
    version = publish_release(repository, recipe, release)
    say(f"published   {recipe.name} version {version} in {repository}")
    return version


def _released_parts(recipe: Recipe, repository: Path) -> dict[str, dict[str, Any]]:
    """Manifests of the parts' releases, by what they do for the task."""
    manifests = {}
    for name, task in PART_TASKS[recipe.task].items():
        model = recipe.parts[name]
        version, config = released_version(repository, model), read_config(repository, model)
        if version is None or config is None:
            raise BuildError(
                f"{recipe.name} joins {model!r} (parts.{name}), which is not in {repository}: "
                f"run 'mooring build {model}' first"
            )
        found = config.parameters["task"].string_value
        if found != task:
            raise BuildError(f"{recipe.name}: parts.{name} {model!r} is a model for {found}, expected {task}")
        # Triton loads no ensemble that takes larger batches than its steps.
        if config.max_batch_size < recipe.serving.max_batch_size:
            raise BuildError(
                f"{recipe.name}: serving.max_batch_size {recipe.serving.max_batch_size} is more than the "
                f"{config.max_batch_size} of parts.{name} {model!r}"
            )
        manifests[name] = read_manifest(repository, model, version)
    return manifests
