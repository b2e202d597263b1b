"""Releases on disk: what is written, what is refused, what is left alone."""

from __future__ import annotations

import dataclasses
import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from brightness_model import brightness_release
from mooring import PublishError
from mooring_build import publish
from mooring_build import repository as repository_module
from mooring_build.digests import file_sha256
from mooring_build.publish import (
    Release,
    publish_release,
    publish_steps,
    read_manifest,
    released_version,
    up_to_date_version,
    write_configs,
)
from mooring_build.recipe import Recipe
from mooring_build.repository import damaged_files, locked, read_config, versions_of
from mooring_build.triton_config import dumps_config, loads_config, model_configs, model_names
from tiny_release import LABELS, make_release, padded_recipe, snapshot

PARTS = ["ner_tokenizer", "ner_onnx", "ner_torchscript", "ner_postprocessor"]
ENTITY_LABELS = LABELS["token-classification"]


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
            "config.pbtxt", "encoding.py", "manifest.json", "model.py", "settings.json", "texts.py",
            "tokenizer.json",
        ],
        "ner_onnx": ["config.pbtxt", "manifest.json", "model.onnx"],
        "ner_torchscript": ["config.pbtxt", "manifest.json", "model.pt"],
        "ner_postprocessor": [
            "config.pbtxt", "entities.py", "labels.json", "manifest.json", "model.py", "softmax.py",
            "texts.py",
        ],
    }  # fmt: skip
    engine = release.engines["onnx"].path.read_bytes()
    assert (repository / "ner_onnx/1/model.onnx").read_bytes() == engine
    assert json.loads((repository / "ner_postprocessor/1/labels.json").read_text()) == ENTITY_LABELS
    assert json.loads((repository / "ner_tokenizer/1/settings.json").read_text()) == {
        "task": "token-classification",
        "max_length": 128,
        "truncation": False,
        "padded_lengths": list(range(8, 129, 8)),
        "pad_token_id": 0,
    }


def test_a_text_classifier_keeps_its_top_k(tmp_path: Path, repository: Path) -> None:
    recipe = padded_recipe("intent", ["text.top_k=2"])
    publish_release(repository, recipe, make_release(tmp_path / "files", recipe))
    folder = repository / "intent_postprocessor" / "1"
    assert json.loads((folder / "settings.json").read_text()) == {"top_k": 2}
    assert json.loads((folder / "labels.json").read_text()) == LABELS["text-classification"]


def test_the_manifest_proves_the_release(repository: Path, recipe: Recipe, release: Release) -> None:
    publish_release(repository, recipe, release)
    manifest = read_manifest(repository, "ner_onnx", 1)
    assert manifest["files"] == {
        "model.onnx": file_sha256(release.engines["onnx"].path),
        "config.pbtxt": file_sha256(repository / "ner_onnx" / "config.pbtxt"),
    }
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
    before = {name: data for name, data in snapshot(repository).items() if "/1/" in name}
    assert publish_release(repository, recipe, next_release) == 2
    after = snapshot(repository)
    assert {name: after[name] for name in before} == before
    assert released_version(repository, "ner") == 2
    assert [_served(repository, model) for model in model_names(recipe)] == [[2]] * 5


def test_a_release_with_a_ragged_engine_takes_no_engine_away(
    tmp_path: Path, repository: Path, recipe: Recipe, release: Release
) -> None:
    publish_release(repository, recipe, release)
    before = snapshot(repository)
    ragged = padded_recipe("ner", ["serving.mixed_lengths=ragged"])
    files = make_release(tmp_path / "ragged", ragged, {"anna": "B-LOC"}, inputs_digest="b")
    assert publish_release(repository, ragged, files) == 2
    engines = {"ner_onnx": [1], "ner_onnx_ragged": [2], "ner_torchscript": [1], "ner_torchscript_ragged": [2]}
    assert {model: _served(repository, model) for model in engines} == engines
    after = snapshot(repository)
    old = {name for name in before if name.startswith(("ner_onnx/", "ner_torchscript/"))}
    assert {name: after[name] for name in old} == {name: before[name] for name in old}


def test_published_files_are_read_only(repository: Path, recipe: Recipe, release: Release) -> None:
    publish_release(repository, recipe, release)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in repository.glob("*/1/*")}
    assert modes == {0o444}


def test_the_same_release_is_not_published_twice(repository: Path, recipe: Recipe, release: Release) -> None:
    assert up_to_date_version(repository, recipe, ENTITY_LABELS, "a") is None
    publish_release(repository, recipe, release)
    before = snapshot(repository)
    assert up_to_date_version(repository, recipe, ENTITY_LABELS, "a") == 1
    assert publish_release(repository, recipe, release) == 1
    assert snapshot(repository) == before


def _change_digest(recipe: Recipe, repository: Path) -> tuple[Recipe, str]:
    return recipe, "b"


def _change_recipe(recipe: Recipe, repository: Path) -> tuple[Recipe, str]:
    return padded_recipe("ner", ["serving.max_batch_size=8"]), "a"


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
    assert up_to_date_version(repository, recipe, ENTITY_LABELS, digest) is None
    release = dataclasses.replace(release, inputs_digest=digest)
    assert publish_release(repository, recipe, release) == 2
    assert up_to_date_version(repository, recipe, ENTITY_LABELS, digest) == 2


def test_committed_configs_without_versions_get_the_version_that_they_pin(
    repository: Path, recipe: Recipe, release: Release
) -> None:
    write_configs(repository, recipe, ENTITY_LABELS, 3)
    before = snapshot(repository)
    assert released_version(repository, "ner") is None
    assert publish_release(repository, recipe, release) == 3
    after = snapshot(repository)
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
    assert up_to_date_version(repository, recipe, ENTITY_LABELS, "a") == 1


def test_a_release_that_was_rolled_back_by_hand_stays_on_disk(
    tmp_path: Path, repository: Path, recipe: Recipe, release: Release, next_release: Release
) -> None:
    publish_release(repository, recipe, release)
    configs = {name: data for name, data in snapshot(repository).items() if name.endswith("config.pbtxt")}
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
    large, small = (padded_recipe("ner", [f"serving.max_batch_size={size}"]) for size in (32, 8))
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


def test_another_number_of_labels_is_left_open_until_the_switch_is_done(
    tmp_path: Path, repository: Path, recipe: Recipe, release: Release
) -> None:
    publish_release(repository, recipe, release)
    labels = [*ENTITY_LABELS, "B-ORG", "I-ORG"]
    steps = publish_steps(
        repository, recipe, make_release(tmp_path / "b", recipe, labels=labels, inputs_digest="b")
    )
    while next(steps) != "committed":
        pass
    assert _logits(repository, "ner_onnx") == ([], [1, 2])
    assert _logits(repository, "ner_torchscript") == ([[-1, -1]], [1, 2])
    list(steps)
    for model in ("ner_onnx", "ner_torchscript"):
        assert _logits(repository, model) == ([[-1, 7]], [2])


def test_another_size_of_pictures_is_left_open_until_the_switch_is_done(
    tmp_path: Path, repository: Path
) -> None:
    publish_release(repository, *brightness_release(tmp_path / "a"))
    seen = {}
    for step in publish_steps(repository, *brightness_release(tmp_path / "b", size=20)):
        decoder, engine = (read_config(repository, f"image_{part}") for part in ("decoder", "onnx"))
        assert decoder is not None
        assert engine is not None
        seen[step] = [[list(tensor.dims) for tensor in tensors] for tensors in (decoder.output, engine.input)]
    assert seen["noted"] == [[[1, 28, 28]], [[1, 28, 28]]]
    # ONNX Runtime's backend reads what is not declared from each version's file.
    assert seen["committed"] == [[[1, -1, -1]], []]
    assert seen["closed"] == [[[1, 20, 20]], [[1, 20, 20]]]


@pytest.mark.parametrize(("old", "new"), [(32, 8), (8, 32)])
def test_configs_that_are_half_written_have_no_larger_batches_than_their_parts(
    old: int, new: int, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = (padded_recipe("ner", [f"serving.max_batch_size={size}"]) for size in (old, new))
    write_configs(repository, before, ENTITY_LABELS, 1)
    write_file, written = publish.write_file, 0

    def write(path: Path, text: str) -> None:
        nonlocal written
        write_file(path, text)
        written += 1
        configs = [
            loads_config((repository / model / "config.pbtxt").read_text()) for model in (*PARTS, "ner")
        ]
        *parts, ensemble = [config.max_batch_size for config in configs]
        assert ensemble <= min(parts)

    monkeypatch.setattr(publish, "write_file", write)
    write_configs(repository, after, ENTITY_LABELS, 1)
    assert written == len(model_names(after))


def _logits(repository: Path, model: str) -> tuple[list[list[int]], list[int]]:
    """Declared dims of an engine's outputs, and the versions it serves."""
    config = loads_config((repository / model / "config.pbtxt").read_text())
    return [list(output.dims) for output in config.output], list(config.version_policy.specific.versions)


def test_an_output_that_goes_away_is_there_until_the_switch_is_done(tmp_path: Path, repository: Path) -> None:
    both = padded_recipe("opinion_heads")
    one = padded_recipe("opinion_heads", ['heads={topic={labels=["a", "b"], train="a", evaluation="a"}}'])
    publish_release(repository, both, make_release(tmp_path / "a", both, labels=["a"]))
    steps = publish_steps(repository, one, make_release(tmp_path / "b", one, labels=["a"], inputs_digest="b"))
    outputs = {}
    for step in steps:
        config = read_config(repository, "opinion_heads_postprocessor")
        assert config is not None
        outputs[step] = [output.name for output in config.output]
    head = ["topic", "topic_score"]
    assert outputs["opened opinion_heads_postprocessor"] == [*head, "sentiment", "sentiment_score"]
    assert outputs["committed"] == [*head, "sentiment", "sentiment_score"]
    assert outputs["closed"] == head


def test_an_engine_that_is_no_longer_exported_is_left_alone(
    tmp_path: Path, repository: Path, recipe: Recipe, release: Release
) -> None:
    publish_release(repository, recipe, release)
    fewer = padded_recipe("ner", ['export.formats=["onnx"]'])
    assert publish_release(repository, fewer, make_release(tmp_path / "b", fewer, inputs_digest="b")) == 2
    assert _served(repository, "ner_torchscript") == [1]
    again = make_release(tmp_path / "c", recipe, inputs_digest="c")
    assert publish_release(repository, recipe, again) == 3
    assert versions_of(repository, "ner_torchscript") == {1, 3}


def test_recipes_share_a_repository(
    tmp_path: Path, repository: Path, recipe: Recipe, release: Release
) -> None:
    intent = padded_recipe("intent")
    publish_release(repository, recipe, release)
    before = snapshot(repository)
    publish_release(repository, intent, make_release(tmp_path / "intent", intent))
    after = snapshot(repository)
    assert {name: after[name] for name in before} == before
    assert (released_version(repository, "ner"), released_version(repository, "intent")) == (1, 1)


def test_a_closed_generator_takes_back_what_it_began(
    repository: Path, recipe: Recipe, release: Release, next_release: Release
) -> None:
    publish_release(repository, recipe, release)
    before = snapshot(repository)
    steps = publish_steps(repository, recipe, next_release)
    while not next(steps).startswith("opened"):
        pass
    steps.close()
    assert snapshot(repository) == before


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
        assert snapshot(repository) == {}
    other.join(30)
    assert versions == [1]


def test_a_lock_that_is_never_freed_is_reported(
    repository: Path, recipe: Recipe, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository_module, "_LOCK_TIMEOUT_S", 0.0)
    with locked(repository), pytest.raises(PublishError, match="has been held by another publish for 0 s"):
        publish_release(repository, recipe, release)
