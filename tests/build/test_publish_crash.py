"""A publish that is killed, or runs out of disk, at any of its file operations."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mooring_build.publish import publish_release, publish_steps, released_version, write_configs
from mooring_build.recipe import Recipe
from mooring_build.repository import damaged_files, read_config, versions_of
from mooring_build.triton_config import model_names
from tiny_release import make_release, padded_recipe, snapshot

_INTERRUPTER = Path(__file__).resolve().parent.parent / "publish_interrupter.py"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return padded_recipe("ner", ["serving.max_batch_size=8", "serving.warm_up=false"])


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def _release_before(folder: Path, recipe: Recipe) -> None:
    """An earlier release with an engine less, fewer labels and larger batches."""
    earlier = padded_recipe("ner", ['export.formats=["onnx"]', "serving.warm_up=false"])
    release = make_release(folder / "a", earlier, {"anna": "B-PER"}, labels=["O", "B-PER"])
    publish_release(folder / "before", earlier, release)


def _configs_before(folder: Path, recipe: Recipe) -> None:
    """A fresh checkout: committed configs, nothing built."""
    write_configs(folder / "before", recipe, ["O"], 1)


def _nothing_before(folder: Path, recipe: Recipe) -> None:
    (folder / "before").mkdir()


def _interrupted_before(folder: Path, recipe: Recipe) -> None:
    """An earlier release, and another publish that was killed right before it became the one that answers."""
    _release_before(folder, recipe)
    victim = make_release(folder / "victim", recipe, {"anna": "I-PER"}, inputs_digest="victim")
    steps = publish_steps(folder / "before", recipe, victim)
    opened = len(model_names(recipe)) - 1
    while opened:
        opened -= next(steps).startswith("opened")
    # As a kill would leave it: closing the generator takes back what it began.
    shutil.copytree(folder / "before", folder / "killed")
    steps.close()
    shutil.rmtree(folder / "before")
    (folder / "killed").rename(folder / "before")


def _interrupt(folder: Path, how: str, recipe: Recipe, stride: int) -> list[str]:
    release = make_release(folder / "b", recipe, {"anna": "B-LOC"}, inputs_digest="b")
    (folder / "release.pickle").write_bytes(pickle.dumps(release))
    command = [sys.executable, str(_INTERRUPTER), str(folder), how, recipe.model_dump_json(), str(stride)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    endings: list[str] = json.loads(run.stdout)
    assert endings[-1] == "published"
    assert len(endings) * stride > 40  # operations
    return endings


def _check_what_triton_sees(repository: Path, recipe: Recipe, old: int | None) -> None:
    """Every version under a number is whole, and the pinned ones of a released ensemble are served."""
    for model in model_names(recipe):
        for version in versions_of(repository, model):
            assert damaged_files(repository, model, version) == [], (repository, model, version)
    released = released_version(repository, recipe.name)
    assert released in ({old, old + 1} if old else {None, 1}), repository
    if released is None:
        return
    ensemble = read_config(repository, recipe.name)
    assert ensemble is not None
    for step in ensemble.ensemble_scheduling.step:
        part = read_config(repository, step.model_name)
        assert part is not None
        assert step.model_version == released
        assert released in part.version_policy.specific.versions
        assert part.max_batch_size >= ensemble.max_batch_size


_EVERY_OPERATION = pytest.mark.integration  # takes its time, though it starts no server


@pytest.mark.parametrize(
    ("before", "how", "stride"),
    [
        pytest.param(_release_before, "kill", 1, marks=_EVERY_OPERATION),
        pytest.param(_interrupted_before, "kill", 1, marks=_EVERY_OPERATION),
        pytest.param(_configs_before, "kill", 1, marks=_EVERY_OPERATION),
        (_release_before, "kill", 9),
        (_release_before, "full_disk", 9),
        (_configs_before, "kill", 9),
        (_nothing_before, "kill", 9),
        (_nothing_before, "full_disk", 9),
        (_interrupted_before, "kill", 9),
        (_interrupted_before, "full_disk", 9),
    ],
)
def test_an_interrupted_publish_costs_nothing(
    tmp_path: Path, recipe: Recipe, before: Callable[[Path, Recipe], None], how: str, stride: int
) -> None:
    before(tmp_path, recipe)
    old = released_version(tmp_path / "before", recipe.name)
    kept = {name: data for name, data in snapshot(tmp_path / "before").items() if "/1/" in name and old}
    endings = _interrupt(tmp_path, how, recipe, stride)
    assert set(endings[:-1]) == {"SIGKILL" if how == "kill" else "PublishError"}

    states = set()
    for number in range(len(endings)):
        repository = tmp_path / f"case-{number}"
        _check_what_triton_sees(repository, recipe, old)
        states.add(released_version(repository, recipe.name))
        again = make_release(tmp_path / f"again-{number}", recipe, {"anna": "B-LOC"}, inputs_digest="b")
        version = publish_release(repository, recipe, again)
        assert version == (old or 0) + 1, repository
        after = snapshot(repository)
        assert {name: after[name] for name in kept} == kept
        assert not [name for name in after if ".staging-" in name]
        assert versions_of(repository, "ner_torchscript") == {version}
        assert {
            tuple(config.version_policy.specific.versions)
            for model in model_names(recipe)
            if (config := read_config(repository, model)) is not None
        } == {(version,)}
    assert states == {old, (old or 0) + 1}
