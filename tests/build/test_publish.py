"""Releases on disk: what is written, what is refused, what is left alone."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from mooring._errors import PublishError
from mooring_build import repository as repository_module
from mooring_build.publish import (
    Release,
    is_up_to_date,
    publish_release,
    publish_steps,
    read_manifest,
    released_version,
    write_configs,
)
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.repository import damaged_files, file_sha256, locked, versions_of
from mooring_build.triton_config import dumps_config, loads_config, model_configs, model_names
from tiny_release import LABELS, make_release

PARTS = ["ner_tokenizer", "ner_onnx", "ner_torchscript", "ner_postprocessor"]
ENTITY_LABELS = LABELS["token-classification"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("ner")


@pytest.fixture
def release(tmp_path: Path, recipe: Recipe) -> Release:
    return make_release(tmp_path / "first", recipe, {"anna": "B-PER"})


@pytest.fixture
def next_release(tmp_path: Path, recipe: Recipe) -> Release:
    return make_release(tmp_path / "next", recipe, {"anna": "B-LOC"}, inputs_digest="b")


def _files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder but the lock file."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".publish.lock"
    }


def _served(repository: Path, model: str) -> list[int]:
    text = (repository / model / "config.pbtxt").read_text()
    return list(loads_config(text).version_policy.specific.versions)


def test_the_first_release_is_version_1_of_every_model(
    repository: Path, recipe: Recipe, release: Release
) -> None:
    assert released_version(repository, "ner") is None
    assert publish_release(repository, recipe, release) == 1
    assert released_version(repository, "ner") == 1
    assert sorted(path.name for path in repository.iterdir()) == sorted([".publish.lock", *PARTS, "ner"])
    for model, config in model_configs(recipe, ENTITY_LABELS, 1).items():
        assert (repository / model / "config.pbtxt").read_text() == dumps_config(config)
        assert sorted(path.name for path in (repository / model).iterdir()) == ["1", "config.pbtxt"]
        assert damaged_files(repository, model, 1) == []


def test_version_folders_hold_what_the_models_need(
    repository: Path, recipe: Recipe, release: Release
) -> None:
    publish_release(repository, recipe, release)
    content = {model: sorted(p.name for p in (repository / model / "1").iterdir()) for model in PARTS}
    assert content == {
        "ner_tokenizer": [
            "encoding.py", "manifest.json", "model.py", "settings.json", "texts.py", "tokenizer.json",
        ],
        "ner_onnx": ["manifest.json", "model.onnx"],
        "ner_torchscript": ["manifest.json", "model.pt"],
        "ner_postprocessor": [
            "entities.py", "labels.json", "manifest.json", "model.py", "softmax.py", "texts.py",
        ],
    }  # fmt: skip
    engine = release.engines["onnx"].path.read_bytes()
    assert (repository / "ner_onnx/1/model.onnx").read_bytes() == engine
    assert json.loads((repository / "ner_postprocessor/1/labels.json").read_text()) == ENTITY_LABELS
    assert json.loads((repository / "ner_tokenizer/1/settings.json").read_text()) == {
        "task": "token-classification",
        "max_length": 128,
        "truncation": False,
        "pad_to_multiple_of": 8,
        "pad_token_id": 0,
    }


def test_a_text_classifier_keeps_its_top_k(tmp_path: Path, repository: Path) -> None:
    recipe = load_recipe("intent", ["text.top_k=2"])
    publish_release(repository, recipe, make_release(tmp_path / "files", recipe))
    folder = repository / "intent_postprocessor" / "1"
    assert json.loads((folder / "settings.json").read_text()) == {"top_k": 2}
    assert json.loads((folder / "labels.json").read_text()) == LABELS["text-classification"]


def test_the_manifest_proves_the_release(repository: Path, recipe: Recipe, release: Release) -> None:
    publish_release(repository, recipe, release)
    manifest = read_manifest(repository, "ner_onnx", 1)
    assert manifest["files"] == {"model.onnx": file_sha256(release.engines["onnx"].path)}
    assert manifest["parity"] == {name: {"passed": True, "cases": 7} for name in ("onnx", "torchscript")}
    assert manifest["metrics"] == {"accuracy": 0.5}
    assert (manifest["model"], manifest["version"], manifest["inputs_digest"]) == ("ner_onnx", 1, "a")
    assert read_manifest(repository, "ner", 1)["parts"] == {
        model: file_sha256(repository / model / "1" / "manifest.json") for model in PARTS
    }


def test_the_next_release_leaves_the_earlier_one_as_it_is(
    repository: Path, recipe: Recipe, release: Release, next_release: Release
) -> None:
    publish_release(repository, recipe, release)
    before = {name: data for name, data in _files(repository).items() if "/1/" in name}
    assert publish_release(repository, recipe, next_release) == 2
    after = _files(repository)
    assert {name: after[name] for name in before} == before
    assert released_version(repository, "ner") == 2
    assert [_served(repository, model) for model in model_names(recipe)] == [[2]] * 5


def test_published_files_are_read_only(repository: Path, recipe: Recipe, release: Release) -> None:
    publish_release(repository, recipe, release)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in repository.glob("*/1/*")}
    assert modes == {0o444}


def test_the_same_release_is_not_published_twice(repository: Path, recipe: Recipe, release: Release) -> None:
    assert not is_up_to_date(repository, recipe, ENTITY_LABELS, "a")
    publish_release(repository, recipe, release)
    before = _files(repository)
    assert is_up_to_date(repository, recipe, ENTITY_LABELS, "a")
    assert publish_release(repository, recipe, release) == 1
    assert _files(repository) == before


def _change_digest(recipe: Recipe, repository: Path) -> tuple[Recipe, str]:
    return recipe, "b"


def _change_recipe(recipe: Recipe, repository: Path) -> tuple[Recipe, str]:
    return load_recipe("ner", ["serving.max_batch_size=8"]), "a"


def _edit_config(recipe: Recipe, repository: Path) -> tuple[Recipe, str]:
    path = repository / "ner_onnx" / "config.pbtxt"
    path.write_text(path.read_text().replace("count: 2", "count: 9"))
    return recipe, "a"


def _damage_file(recipe: Recipe, repository: Path) -> tuple[Recipe, str]:
    path = repository / "ner_onnx" / "1" / "model.onnx"
    path.chmod(0o644)
    path.write_bytes(b"x")
    return recipe, "a"


def _damage_manifest(recipe: Recipe, repository: Path) -> tuple[Recipe, str]:
    path = repository / "ner_tokenizer" / "1" / "manifest.json"
    path.chmod(0o644)
    path.write_text('{"files": {}}')
    return recipe, "a"


def _lose_file(recipe: Recipe, repository: Path) -> tuple[Recipe, str]:
    (repository / "ner_postprocessor" / "1" / "labels.json").unlink()
    return recipe, "a"


def _lose_version(recipe: Recipe, repository: Path) -> tuple[Recipe, str]:
    (repository / "ner_onnx" / "1").rename(repository / "elsewhere")
    return recipe, "a"


@pytest.mark.parametrize(
    "change",
    [
        _change_digest,
        _change_recipe,
        _edit_config,
        _damage_file,
        _damage_manifest,
        _lose_file,
        _lose_version,
    ],
)
def test_what_is_out_of_date_is_published_anew(
    repository: Path, recipe: Recipe, release: Release, change: Any
) -> None:
    publish_release(repository, recipe, release)
    recipe, digest = change(recipe, repository)
    assert not is_up_to_date(repository, recipe, ENTITY_LABELS, digest)
    release = dataclasses.replace(release, inputs_digest=digest)
    assert publish_release(repository, recipe, release) == 2
    assert is_up_to_date(repository, recipe, ENTITY_LABELS, digest)


def test_committed_configs_without_versions_get_the_version_that_they_pin(
    repository: Path, recipe: Recipe, release: Release
) -> None:
    write_configs(repository, recipe, ENTITY_LABELS, 3)
    before = _files(repository)
    assert released_version(repository, "ner") is None
    assert publish_release(repository, recipe, release) == 3
    after = _files(repository)
    assert {name: after[name] for name in before} == before


def test_configs_of_a_release_are_not_rewritten_for_another_version(
    repository: Path, recipe: Recipe, release: Release
) -> None:
    publish_release(repository, recipe, release)
    with pytest.raises(
        PublishError, match="has released version 1: its configs can't be rewritten for version 2"
    ):
        write_configs(repository, recipe, ENTITY_LABELS, 2)
    (repository / "ner_onnx" / "config.pbtxt").unlink()
    write_configs(repository, recipe, ENTITY_LABELS, 1)
    assert is_up_to_date(repository, recipe, ENTITY_LABELS, "a")


def test_a_release_that_was_rolled_back_by_hand_stays_on_disk(
    tmp_path: Path, repository: Path, recipe: Recipe, release: Release, next_release: Release
) -> None:
    publish_release(repository, recipe, release)
    configs = {name: data for name, data in _files(repository).items() if name.endswith("config.pbtxt")}
    publish_release(repository, recipe, next_release)
    for name, data in configs.items():
        (repository / name).write_bytes(data)
    assert released_version(repository, "ner") == 1
    third = make_release(tmp_path / "third", recipe, inputs_digest="c")
    assert publish_release(repository, recipe, third) == 3
    assert all(versions_of(repository, model) == {1, 2, 3} for model in model_names(recipe))


def test_parts_can_run_both_ensembles_until_the_switch_is_done(
    tmp_path: Path, repository: Path, release: Release
) -> None:
    large, small = (load_recipe("ner", [f"serving.max_batch_size={size}"]) for size in (32, 8))
    publish_release(repository, large, release)
    steps = publish_steps(repository, small, make_release(tmp_path / "b", small, inputs_digest="b"))
    while next(steps) != "committed":
        pass
    for model in PARTS:
        config = loads_config((repository / model / "config.pbtxt").read_text())
        assert (list(config.version_policy.specific.versions), config.max_batch_size) == ([1, 2], 32)
    assert list(steps)[-1] == "closed"
    for model in model_names(small):
        config = loads_config((repository / model / "config.pbtxt").read_text())
        assert (list(config.version_policy.specific.versions), config.max_batch_size) == ([2], 8)


def test_an_engine_that_is_no_longer_exported_is_left_alone(
    tmp_path: Path, repository: Path, recipe: Recipe, release: Release
) -> None:
    publish_release(repository, recipe, release)
    fewer = load_recipe("ner", ['export.formats=["onnx"]'])
    assert publish_release(repository, fewer, make_release(tmp_path / "b", fewer, inputs_digest="b")) == 2
    assert _served(repository, "ner_torchscript") == [1]
    again = make_release(tmp_path / "c", recipe, inputs_digest="c")
    assert publish_release(repository, recipe, again) == 3
    assert versions_of(repository, "ner_torchscript") == {1, 3}


def test_recipes_share_a_repository(
    tmp_path: Path, repository: Path, recipe: Recipe, release: Release
) -> None:
    intent = load_recipe("intent")
    publish_release(repository, recipe, release)
    before = _files(repository)
    publish_release(repository, intent, make_release(tmp_path / "intent", intent))
    after = _files(repository)
    assert {name: after[name] for name in before} == before
    assert (released_version(repository, "ner"), released_version(repository, "intent")) == (1, 1)


def test_a_closed_generator_takes_back_what_it_began(
    repository: Path, recipe: Recipe, release: Release, next_release: Release
) -> None:
    publish_release(repository, recipe, release)
    before = _files(repository)
    steps = publish_steps(repository, recipe, next_release)
    while not next(steps).startswith("opened"):
        pass
    steps.close()
    assert _files(repository) == before


def test_publishers_wait_for_one_another(
    repository: Path, recipe: Recipe, release: Release, next_release: Release
) -> None:
    versions = []
    with locked(repository):
        other = threading.Thread(
            target=lambda: versions.append(publish_release(repository, recipe, release)), daemon=True
        )
        other.start()
        other.join(0.3)
        assert other.is_alive()
        assert _files(repository) == {}
    other.join(30)
    assert versions == [1]


def test_a_lock_that_is_never_freed_is_reported(
    repository: Path, recipe: Recipe, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository_module, "_LOCK_TIMEOUT_S", 0.0)
    with locked(repository), pytest.raises(PublishError, match="has been held by another publish for 0 s"):
        publish_release(repository, recipe, release)


def _with_parity(release: Release, **parity: Any) -> Release:
    engine = dataclasses.replace(release.engines["onnx"], parity=parity)
    return dataclasses.replace(release, engines={**release.engines, "onnx": engine})


def _without_torchscript(release: Release) -> Release:
    return dataclasses.replace(release, engines={"onnx": release.engines["onnx"]})


def _without_engine_file(release: Release) -> Release:
    release.engines["onnx"].path.unlink()
    return release


def _with_tokenizer(release: Release, content: bytes) -> Release:
    release.tokenizer_file.write_bytes(content)
    return release


def _with_tokenizer_config(release: Release, content: str) -> Release:
    release.tokenizer_config_file.write_text(content)
    return release


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_with_parity, r"ner_onnx has not passed verification \(\{\}\): nothing is published"),
        (
            lambda r: _with_parity(r, passed=False, cases=3),
            r"has not passed verification .*'cases': 3",
        ),
        (lambda r: _with_parity(r, passed="true"), "ner_onnx has not passed verification"),
        (
            lambda r: _with_parity(r, passed=True, distance=float("nan")),
            "can't go into a manifest: Out of range",
        ),
        (_without_torchscript, "ner_torchscript is not in the release, but the recipe exports torchscript"),
        (_without_engine_file, r"ner_onnx: .*engine\.onnx is not a file"),
        (lambda r: dataclasses.replace(r, labels=["O", "PER"]), "label 'PER' is not O, B-<type> or I-<type>"),
        (lambda r: dataclasses.replace(r, labels=[]), "recipe 'ner' has no labels"),
        (lambda r: dataclasses.replace(r, facts={"path": Path()}), "can't go into a manifest.*PosixPath"),
        (lambda r: _with_tokenizer(r, b"{}"), r"tokenizer\.json is not a tokenizer\.json"),
        (lambda r: dataclasses.replace(r, tokenizer_file=Path("no.json")), r"no\.json is not a file"),
        (lambda r: _with_tokenizer_config(r, "{}"), r"names no pad_token of .*\(got None\)"),
        (lambda r: _with_tokenizer_config(r, '{"pad_token": "<pad>"}'), r"\(got '<pad>'\)"),
        (lambda r: _with_tokenizer_config(r, "{"), r"tokenizer_config\.json can't be read"),
    ],
)
def test_a_release_that_is_not_fit_is_refused_before_anything_is_written(
    repository: Path, recipe: Recipe, release: Release, spoil: Any, message: str
) -> None:
    with pytest.raises(PublishError, match=message):
        publish_release(repository, recipe, spoil(release))
    assert not repository.exists()


def test_a_padding_token_may_be_written_out(repository: Path, recipe: Recipe, release: Release) -> None:
    _with_tokenizer_config(release, '{"pad_token": {"content": "[UNK]", "lstrip": false}}')
    publish_release(repository, recipe, release)
    settings = json.loads((repository / "ner_tokenizer/1/settings.json").read_text())
    assert settings["pad_token_id"] == 1


def _own_config(repository: Path) -> None:
    (repository / "ner").mkdir(parents=True)
    (repository / "ner" / "config.pbtxt").write_text('backend: "python"')


def _own_model(repository: Path) -> None:
    (repository / "ner_onnx" / "1").mkdir(parents=True)
    (repository / "ner_onnx" / "1" / "model.onnx").write_bytes(b"mine")


def _own_file(repository: Path) -> None:
    repository.mkdir()
    (repository / "ner_tokenizer").write_text("mine")


def _other_recipe(repository: Path) -> None:
    recipe = load_recipe("ner", ["name=ner_onnx"])
    write_configs(repository, recipe, ENTITY_LABELS, 1)


@pytest.mark.parametrize(
    ("occupy", "model"),
    [
        (_own_config, "ner"),
        (_own_model, "ner_onnx"),
        (_own_file, "ner_tokenizer"),
        (_other_recipe, "ner_onnx"),
    ],
)
def test_a_model_that_the_recipe_did_not_make_is_not_touched(
    repository: Path, recipe: Recipe, release: Release, occupy: Any, model: str
) -> None:
    occupy(repository)
    before = _files(repository)
    with pytest.raises(PublishError, match=rf"/{model} is not a model that recipe 'ner' made"):
        publish_release(repository, recipe, release)
    assert _files(repository) == before


def test_a_name_keeps_its_task(tmp_path: Path, repository: Path, recipe: Recipe, release: Release) -> None:
    publish_release(repository, recipe, release)
    before = _files(repository)
    other = load_recipe("intent", ["name=ner"])
    with pytest.raises(
        PublishError, match="serves token-classification, recipe 'ner' is text-classification"
    ):
        publish_release(repository, other, make_release(tmp_path / "other", other))
    assert _files(repository) == before


def test_a_version_is_never_written_over(
    repository: Path, recipe: Recipe, release: Release, next_release: Release
) -> None:
    publish_release(repository, recipe, release)
    steps = publish_steps(repository, recipe, next_release)
    while next(steps) != "noted":
        pass
    (repository / "ner" / "2").mkdir()
    with pytest.raises(PublishError, match=r"ner/2 exists: a version is written once and never changed"):
        list(steps)
    assert released_version(repository, "ner") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_repository_that_cannot_be_written_is_named(
    repository: Path, recipe: Recipe, release: Release
) -> None:
    repository.mkdir(mode=0o555)
    with pytest.raises(PublishError, match=f"can't publish into {repository}: Permission denied"):
        publish_release(repository, recipe, release)


def test_a_repository_that_is_a_file_is_named(repository: Path, recipe: Recipe, release: Release) -> None:
    repository.write_text("")
    with pytest.raises(PublishError, match=f"can't publish into {repository}: File exists"):
        publish_release(repository, recipe, release)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "can't be read: .*No such file"), ("[]", "is no manifest"), ("{", "can't be")],
)
def test_a_manifest_that_cannot_be_read_is_named(repository: Path, content: str | None, message: str) -> None:
    folder = repository / "ner" / "1"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "manifest.json").write_text(content)
    with pytest.raises(PublishError, match=rf"ner/1/manifest\.json {message}"):
        read_manifest(repository, "ner", 1)
