"""What publishing refuses: releases that are not fit, and places that are not its own."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from mooring import PublishError
from mooring_build.building import build
from mooring_build.publish import (
    Release,
    publish_release,
    publish_steps,
    read_manifest,
    released_version,
    write_configs,
)
from mooring_build.recipe import Recipe
from mooring_build.triton_config import dumps_config
from tiny_release import LABELS, make_release, padded_recipe, snapshot

ENTITY_LABELS = LABELS["token-classification"]


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
    recipe = padded_recipe("ner", ["name=ner_onnx"])
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
    before = snapshot(repository)
    with pytest.raises(PublishError, match=rf"/{model} is not a model that recipe 'ner' made"):
        publish_release(repository, recipe, release)
    assert snapshot(repository) == before


def test_a_build_looks_at_the_name_before_it_trains(tmp_path: Path, repository: Path) -> None:
    _own_config(repository)
    recipe = padded_recipe("ner", ["base.checkpoint=/none"])
    with pytest.raises(PublishError, match="/ner is not a model that recipe 'ner' made"):
        build(recipe, repository=repository, artifacts=tmp_path / "artifacts")


def test_a_name_keeps_its_task(tmp_path: Path, repository: Path, recipe: Recipe, release: Release) -> None:
    publish_release(repository, recipe, release)
    before = snapshot(repository)
    other = padded_recipe("intent", ["name=ner"])
    with pytest.raises(
        PublishError, match="serves token-classification, recipe 'ner' is text-classification"
    ):
        publish_release(repository, other, make_release(tmp_path / "other", other))
    assert snapshot(repository) == before


def test_a_ragged_engine_keeps_its_number_of_labels(tmp_path: Path, repository: Path) -> None:
    recipe = padded_recipe("ner", ["serving.mixed_lengths=ragged", "labels="])
    publish_release(repository, recipe, make_release(tmp_path / "five", recipe))
    before = snapshot(repository)
    fewer = make_release(tmp_path / "three", recipe, labels=ENTITY_LABELS[:3], inputs_digest="b")
    with pytest.raises(PublishError, match=r"ner_onnx_ragged serves 5 labels a token, this release has 3: "):
        publish_release(repository, recipe, fewer)
    assert snapshot(repository) == before
    padded = padded_recipe("ner", ["labels="])
    assert publish_release(repository, padded, fewer) == 2


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
    with pytest.raises(PublishError, match=f"can't write into {repository}: Permission denied"):
        publish_release(repository, recipe, release)


def test_a_repository_that_is_a_file_is_named(repository: Path, recipe: Recipe, release: Release) -> None:
    repository.write_text("")
    with pytest.raises(PublishError, match=f"can't write into {repository}: File exists"):
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


def test_batches_smaller_than_those_of_a_pipeline_that_joins_it_are_refused(
    repository: Path, recipe: Recipe, release: Release
) -> None:
    version = publish_release(repository, recipe, release)
    joining = pb.ModelConfig(name="service", platform="ensemble", max_batch_size=16)
    joining.ensemble_scheduling.step.add(model_name="ner", model_version=-1)
    (repository / "service" / "1").mkdir(parents=True)
    (repository / "service" / "config.pbtxt").write_text(dumps_config(joining))
    (repository / "foreign").mkdir()
    (repository / "foreign" / "config.pbtxt").write_text("no config")
    before = snapshot(repository)
    small = padded_recipe("ner", ["serving.max_batch_size=8"])
    refused = r"service joins 'ner' and takes batches of 16: .* beside serving\.max_batch_size 8"
    with pytest.raises(PublishError, match=refused):
        publish_release(repository, small, release)
    with pytest.raises(PublishError, match=refused):
        write_configs(repository, small, release.labels, version)
    assert snapshot(repository) == before
    # Without a version on disk nothing serves it.
    (repository / "service" / "1").rmdir()
    write_configs(repository, small, release.labels, version)


def test_a_release_without_an_output_that_a_pipeline_joins_is_refused(
    repository: Path, recipe: Recipe, release: Release, next_release: Release
) -> None:
    version = publish_release(repository, recipe, release)
    joining = pb.ModelConfig(name="service", platform="ensemble", max_batch_size=1)
    step = joining.ensemble_scheduling.step.add(model_name="ner", model_version=-1)
    step.output_map["label"] = "label"
    (repository / "service" / "1").mkdir(parents=True)
    (repository / "service" / "config.pbtxt").write_text(dumps_config(joining))
    write_configs(repository, recipe, release.labels, version)
    step.output_map["acceptance"] = "acceptance"
    (repository / "service" / "config.pbtxt").write_text(dumps_config(joining))
    before = snapshot(repository)
    with pytest.raises(PublishError, match=r"service joins 'ner' and needs its output acceptance, which"):
        publish_release(repository, recipe, next_release)
    with pytest.raises(PublishError, match=r"service joins 'ner' and needs its output acceptance, which"):
        write_configs(repository, recipe, release.labels, version)
    assert snapshot(repository) == before
