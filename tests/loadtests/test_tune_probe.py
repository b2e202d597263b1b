"""Releases whose settings are tried out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mooring import ConfigError, MooringError, PublishError
from mooring_build.publish import publish_release
from mooring_build.repository import released_version
from mooring_loadtests.tune_probe import Build, Release
from tiny_release import make_release, padded_recipe, snapshot


def _publish(folder: Path, digest: str = "a") -> Path:
    recipe = padded_recipe("intent")
    release = make_release(folder / digest, recipe, inputs_digest=digest)
    facts = {**release.facts, "recipe": recipe.model_dump(mode="json")}
    publish_release(folder / "models", recipe, replace(release, facts=facts))
    return folder / "models"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("meanwhile", "error", "said"),
    [
        (
            "published",
            PublishError,
            "has released version 2 meanwhile, and version 1 was tuned: tune it again",
        ),
        ("edited", ConfigError, "is not as Mooring writes it: build 'intent' again"),
    ],
)
def test_what_came_while_a_search_ran_is_kept(
    precision: str,
    meanwhile: str,
    error: type[MooringError],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = _publish(tmp_path)
    release = Release(repository, "intent")
    # A variant that takes a build.
    release._builds["int8", "padded"] = Build(padded_recipe("intent"), tmp_path / "variants", 1)
    built: list[str] = []
    monkeypatch.setattr("mooring_build.building.build", lambda recipe, **where: built.append(recipe.name))
    if meanwhile == "published":
        _publish(tmp_path, "b")
        assert released_version(repository, "intent") == 2
    else:
        config = repository / "intent_onnx" / "config.pbtxt"
        config.write_text(config.read_text().replace("max_batch_size: 32", "max_batch_size: 16"))
    before = snapshot(repository)
    with pytest.raises(error, match=said):
        release.apply(replace(release.default, precision=precision, instance_count=3), artifacts=tmp_path)
    assert not built
    assert snapshot(repository) == before


def test_a_release_of_a_recipe_that_is_refused_now_is_named(tmp_path: Path) -> None:
    repository = _publish(tmp_path)
    path = repository / "intent" / "1" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["recipe"]["serving"]["max_batch_size"] = -1
    path.write_text(json.dumps(manifest), encoding="utf-8")
    said = r"^version 1 of 'intent' was built from a recipe that is refused now \(serving.max_batch_size: "
    with pytest.raises(ConfigError, match=said):
        Release(repository, "intent")


def test_an_engine_that_a_release_lacks_is_refused(tmp_path: Path) -> None:
    release = Release(_publish(tmp_path), "intent")
    assert {one.engine for one in release.candidates(2, engine="onnx")} == {"onnx"}
    with pytest.raises(ConfigError, match=r"^'intent' has no engine 'onxx', but onnx, torchscript$"):
        release.candidates(2, engine="onxx")
