from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mooring import Label
from mooring_build.publish import publish_release
from mooring_build.recipe import load_recipe, shipped_recipes
from mooring_loadtests.system_demo import _items, main, same
from tiny_release import make_release, padded_recipe


def test_answers_are_the_same_within_rounding() -> None:
    one, close, far = (Label(label="a", score=score) for score in (0.5, 0.50005, 0.502))
    assert same([one], [close])
    assert not same([one], [far])
    assert not same([one], [one, one])
    assert same({"head": [one]}, {"head": [close]})
    assert not same({"head": [one]}, {"tail": [one]})
    assert same(np.array([1.0, 2.0]), np.array([1.0, 2.00001]))
    assert not same("a", "b")


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_system_has_something_to_ask(name: str) -> None:
    asked = _items(load_recipe(name))
    assert len(asked) >= 2
    assert all(words for words, _ in asked)


def test_a_system_that_is_not_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sentiment", "--repository", str(tmp_path), "--reports", str(tmp_path)]) == 2
    assert "has no built model 'sentiment': run 'mooring build sentiment' first" in capsys.readouterr().err


@pytest.mark.integration
def test_a_system_answers_over_both_protocols(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = padded_recipe("intent", ['export.formats=["onnx"]'])
    release = make_release(tmp_path / "release", recipe, {"card": "card"}, runnable=True)
    publish_release(tmp_path / "models", recipe, release)
    arguments = ["intent", "--repository", str(tmp_path / "models"), "--reports", str(tmp_path / "reports")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "intent: text-classification; gRPC and HTTP agree" in printed
    assert "Where is my parcel? It should have come on Monday." in printed
