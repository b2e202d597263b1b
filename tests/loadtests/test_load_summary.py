from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mooring import DataError, Entity, Label
from mooring_loadtests.answers import AnswerPair
from mooring_loadtests.releases import EngineParity, ReleaseFacts, read_release
from mooring_loadtests.summary import summarise, table

MANIFEST = {
    "model": "ner",
    "version": 3,
    "base_checkpoint": {"name": "some/encoder", "source": "hub", "digest": "00"},
    "data": {"digest": "11", "train_examples": 426, "evaluation_examples": 60},
    "metrics": {"token_micro_f1": 0.98, "entity_f1": 0.91, "entity_recall": 0.9},
    "recipe": {"serving": {"mixed_lengths": "padded"}},
    "parity": {
        "onnx": {"passed": True, "max_abs_difference": 4e-06, "tolerance": 1e-4, "cases": 74},
        "torchscript": {"passed": True, "max_abs_difference": 0.0, "tolerance": 1e-4, "cases": 74},
    },
}
RELEASE = ReleaseFacts(
    name="ner",
    version=3,
    base_checkpoint="some/encoder",
    train_examples=426,
    metrics=(("entity F1", 0.91), ("token micro F1", 0.98)),
    engines=(
        EngineParity(model="ner_onnx", max_abs_difference=4e-06, tolerance=1e-4, cases=74),
        EngineParity(model="ner_torchscript", max_abs_difference=0.0, tolerance=1e-4, cases=74),
    ),
)
ENTITY = Entity(label="LOC", score=0.9, start=9, end=15, text="Lisbon")


def _write_manifest(repository: Path, **changes: Any) -> None:
    folder = repository / "ner" / "3"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({**MANIFEST, **changes}), encoding="utf-8")


def _summary(pairs: list[AnswerPair]) -> list[str]:
    text = summarise(
        releases=[RELEASE],
        answers={"ner": pairs},
        load=["ner grpc  1,234", "ner http  1,240"],
        load_title="Load: 8 users",
        report=Path("reports/ner.html"),
        command="bin/mooring",
    )
    return text.splitlines()


def test_a_manifest_becomes_facts(tmp_path: Path) -> None:
    _write_manifest(tmp_path)
    assert read_release(tmp_path, "ner", 3) == RELEASE


def test_a_release_that_was_not_evaluated(tmp_path: Path) -> None:
    _write_manifest(tmp_path, metrics={})
    assert read_release(tmp_path, "ner", 3).metrics == ()


def test_a_missing_manifest_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json is missing: 'mooring build ner' writes it"):
        read_release(tmp_path, "ner", 3)


@pytest.mark.parametrize(
    "changes", [{"parity": {"onnx": {}}}, {"data": None}, {"metrics": {"accuracy": "x"}}]
)
def test_a_broken_manifest_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    _write_manifest(tmp_path, **changes)
    with pytest.raises(DataError, match="is no manifest of a release"):
        read_release(tmp_path, "ner", 3)


def test_the_whole_summary() -> None:
    pairs = [
        AnswerPair(text="Maria in Lisbon", grpc=[ENTITY], http=[ENTITY]),
        AnswerPair(text="It rained.", grpc=[], http=[]),
    ]
    assert _summary(pairs) == [
        "Trained",
        "  ner  version 3  entity F1 0.910, token micro F1 0.980  426 examples, from some/encoder",
        "",
        "Exported: largest difference from the PyTorch model's logits",
        "  ner_onnx         4.0e-06  over 74 batches, 1e-04 allowed",
        "  ner_torchscript  0.0e+00  over 74 batches, 1e-04 allowed",
        "",
        "Answers: gRPC and HTTP agree",
        "                                             gRPC   HTTP",
        "  ner  Maria in Lisbon  LOC  Lisbon [9:15]  0.900  0.900",
        "       It rained.       (nothing)",
        "",
        "Load: 8 users",
        "  ner grpc  1,234",
        "  ner http  1,240",
        "",
        "Report",
        "  reports/ner.html",
        "",
        "Next",
        "  serve until Ctrl-C   bin/mooring serve",
        '  ask, elsewhere       bin/mooring predict ner "Maria Santos lives in Lisbon."',
        '  ask without Mooring  curl -d \'{"text": "Maria Santos lives in Lisbon."}\' '
        "localhost:8000/v2/models/ner/generate",
        "  train on your data   bin/mooring build ner --set name=my_ner --set labels= --set data.train=FILE "
        "--set data.evaluation=FILE",
    ]


def test_a_disagreement_is_told_with_both_sides() -> None:
    same = AnswerPair(text="It rained.", grpc=[], http=[])
    lines = _summary([AnswerPair(text="Maria in Lisbon", grpc=[ENTITY], http=[]), same])
    assert "Answers: gRPC and HTTP DISAGREE on 1 of 2 texts" in lines
    assert "  ner  Maria in Lisbon  LOC  Lisbon [9:15]  0.900     -" in lines


def test_labels_are_listed_below_their_text() -> None:
    labels = [Label(label="track_order", score=0.8), Label(label="refund", score=0.1)]
    lines = _summary([AnswerPair(text="Where is it?", grpc=labels, http=labels)])
    first = lines.index("  ner  Where is it?  track_order  0.800  0.800")
    assert lines[first + 1].split() == ["refund", "0.100", "0.100"]


def test_a_long_text_is_shortened() -> None:
    lines = _summary([AnswerPair(text="word " * 40, grpc=[], http=[])])
    (shown,) = (line for line in lines if line.endswith("(nothing)"))
    assert " …" in shown
    assert len(shown) < 90


def test_a_table_aligns_its_columns() -> None:
    assert table([["a", "1"], ["bcd", "22"]], right=[1]) == ["a     1", "bcd  22"]
