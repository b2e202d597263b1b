from __future__ import annotations

from pathlib import Path

import pytest

import mooring_build
from mooring_build import stages
from mooring_build.digests import digest_of
from mooring_build.stages import Stage, source_digest

PACKAGE = Path(mooring_build.__file__).parent


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


def test_a_record_that_was_cut_off_is_no_part_of_the_result(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "ner", "trained", {})
    stage.folder.mkdir(parents=True)
    (stage.folder / "stage.json.new").write_text('{"key":')
    stage.finish({"try": 2})
    assert stage.result() == {"try": 2}


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


def test_stages_know_the_shared_modules_that_they_run() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py")}
    running = {name for name, text in texts.items() if "Stage(" in text and "mooring._served" in text}
    assert {"acceptance.py", "customer_service.py", "item_catalogue.py", "knowledge_base.py"} <= running
    assert {name for name in running if "shared_digest()" not in texts[name]} == set()


def test_stages_that_run_learners_know_their_metrics() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py")}
    running = {name for name, text in texts.items() if "*learner_sources(" in text}
    assert {"fine_tuned.py", "exports.py"} <= running
    assert {name for name in running if '"metrics.py"' not in texts[name]} == set()


def test_the_shared_digest_follows_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "SHARED_SOURCES", tmp_path)
    (tmp_path / "texts.py").write_text("one")
    before = stages.shared_digest()
    (tmp_path / "texts.py").write_text("other")
    assert stages.shared_digest() != before


def test_source_digest_covers_files_and_folders() -> None:
    assert source_digest("export.py") != source_digest("training.py")
    assert source_digest("served") != source_digest("served", "export.py")
