from __future__ import annotations

from pathlib import Path

from mooring_build.digests import digest_of
from mooring_build.stages import Stage, source_digest


def test_a_stage_is_done_once_per_content(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "ner", "trained", {"epochs": 1})
    assert stage.result() is None
    stage.finish({"accuracy": 0.5})
    assert Stage(tmp_path, "ner", "trained", {"epochs": 1}).result() == {"accuracy": 0.5}
    assert Stage(tmp_path, "ner", "trained", {"epochs": 2}).result() is None


def test_a_stage_that_was_done_again_after_damage_is_finished(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "ner", "trained", {})
    stage.finish({"try": 1})
    (stage.folder / "model.safetensors").write_bytes(b"whole")
    stage.finish({"try": 2})
    (stage.folder / "model.safetensors").write_bytes(b"damaged")
    assert stage.result() is None
    (stage.folder / "model.safetensors").write_bytes(b"whole")
    stage.finish({"try": 3})
    assert stage.result() == {"try": 3}


def test_an_interrupted_stage_is_not_finished(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "ner", "onnx", {})
    stage.folder.mkdir(parents=True)
    (stage.folder / "model.onnx").write_bytes(b"half")
    assert stage.result() is None
    (stage.folder / "stage.json").write_text('{"key":')
    assert stage.result() is None


def test_digest_does_not_depend_on_key_order() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_source_digest_covers_files_and_folders() -> None:
    assert source_digest("export.py") != source_digest("training.py")
    assert source_digest("served") != source_digest("served", "export.py")
