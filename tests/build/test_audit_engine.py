"""An engine in this process is audited as a served pipeline would be."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from mooring import ConfigError, Label
from mooring._served.encoding import EncodingSettings, TextEncoder
from mooring_build.audit import audit
from mooring_build.audit_engine import ask_engine
from mooring_build.audit_texts import template_axes
from mooring_build.engines import open_engine
from tiny_release import LABELS, make_release, padded_recipe


def make_ask(folder: Path, name: str, answers: dict[str, str]) -> object:
    recipe = padded_recipe(name, ['export.formats=["onnx"]'])
    release = make_release(folder / name, recipe, answers, runnable=True)
    settings = EncodingSettings(
        task=recipe.task,
        max_length=128,
        truncation=False,
        padded_lengths=list(range(8, 129, 8)),
        pad_token_id=0,
    )
    encoder = TextEncoder(Tokenizer.from_file(str(release.tokenizer_file)), settings)
    engine = open_engine(release.engines["onnx"].path, "onnx")
    return ask_engine(engine, encoder, LABELS[recipe.task], recipe.task)


def test_texts(tmp_path: Path) -> None:
    ask = make_ask(tmp_path, "intent", {"card": "card"})
    texts = ["my card"] * 40 + ["where"]
    answers = ask(texts)
    assert len(answers) == 41
    assert [label.label for label in answers[0]] == LABELS["text-classification"]
    assert answers[0][2] == Label(label="card", score=pytest.approx(0.9647, abs=1e-3))
    assert sum(label.score for label in answers[40]) == pytest.approx(1)
    report = audit(ask, "text-classification", template_axes("text-classification", ["service"]))
    assert report.passed
    assert report.fewest_labels == 3


def test_entities(tmp_path: Path) -> None:
    ask = make_ask(tmp_path, "ner", {"anna": "B-PER", "smith": "I-PER"})
    ((entity,), nothing) = ask(["visits Anna Smith", "my card"])
    assert (entity.label, entity.start, entity.end, entity.text) == ("PER", 7, 17, "Anna Smith")
    assert nothing == []
    report = audit(ask, "token-classification", template_axes("token-classification"))
    assert {comparison.recall.value for comparison in report.comparisons if comparison.recall} == {0}


def test_other_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="engines for 'text-ranking' can't be audited"):
        ask_engine(lambda *inputs: inputs[0], None, [], "text-ranking")  # type: ignore[arg-type]
