"""What is measured of Mooring: releases of the shipped recipes, each with one engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mooring_loadtests.bench_sides import Built
from mooring_loadtests.cores import usable_cores

#: Models by part: the recipe, its task, and overrides.
MODELS = {
    "classifier": ("intent", "text-classification", ("data.out_of_scope=", "data.out_of_scope_train=")),
    "ner": ("ner", "token-classification", ("verify.lowered_tolerance=5",)),
}
CLASSIFIER = MODELS["classifier"][0]
#: Of every release: one engine is enough, and nothing may refuse a long text. The shipped sets are small: one
#: answer of 108 that int8 changes is more than the half point that recipes allow.
_SETTINGS = (
    'export.formats=["onnx"]',
    "text.truncation=true",
    "quality.max_drop=0.01",
    # Every other side has all cores, too.
    f"serving.instance_count={usable_cores()}",
)
_PLAIN = "serving.mixed_lengths=none"
PRECISIONS = ("fp32", "int8")
#: Folder of what is installed for other sides.
ENVIRONMENTS = "alternatives"
#: Folder of what is trained and exported.
_BUILDS = "builds"


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


def release(recipe: str, overrides: Sequence[str], repository: Path, work: Path) -> Path:
    """Build a shipped recipe with overrides; returns the repository."""
    from mooring_build.building import build
    from mooring_build.recipe import load_recipe

    build(
        load_recipe(recipe, overrides),
        repository=repository,
        artifacts=work / _BUILDS,
        say=lambda line: say(f"  {line}"),
    )
    return repository


def build_sides(part: str, work: Path) -> Built:
    """Build the recipe of a part in each precision, as it is and with an engine that takes text by text."""
    from mooring_build.stages import newest_stage

    name, task, overrides = MODELS[part]
    repositories, plain = {}, {}
    for precision in PRECISIONS:
        settings = [*overrides, *_SETTINGS, f"export.precision={precision}"]
        repositories[precision] = release(name, settings, work / f"{part}-{precision}", work)
        plain[precision] = release(name, [*settings, _PLAIN], work / f"{part}-{precision}-plain", work)
    checkpoint = newest_stage(work / _BUILDS, name, "trained")
    return Built(name=name, task=task, repositories=repositories, plain=plain, checkpoint=checkpoint)


def release_classifier(more: Sequence[str], repository: Path, work: Path) -> Path:
    """Build the classifier with overrides of its own beside those of all; returns the repository."""
    name, _, overrides = MODELS["classifier"]
    return release(name, [*overrides, *_SETTINGS, *more], repository, work)
