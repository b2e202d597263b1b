from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mooring import ConfigError, VerificationError
from mooring_build.recipe import Recipe, shipped_recipes
from mooring_build.release_audit import audit_release
from tiny_release import LABELS, make_release, padded_recipe


class Audited:
    """A tiny release whose engine knows one word, and what its audits say."""

    def __init__(self, folder: Path, word: str) -> None:
        recipe = padded_recipe("intent", ['export.formats=["onnx"]'])
        release = make_release(folder / "release", recipe, {word: "card"}, runnable=True)
        self._engine = release.engines["onnx"]
        self._folder = folder
        self.said: list[str] = []

    def __call__(self, recipe: Recipe, labels: list[str] | None = None) -> dict[str, Any] | None:
        return audit_release(
            recipe,
            self._engine,
            labels or LABELS[recipe.task],
            self._folder / "release",
            self._folder / "artifacts",
            self.said.append,
        )


@pytest.fixture
def fair(tmp_path: Path) -> Audited:
    return Audited(tmp_path, "card")


def test_a_model_that_heeds_no_names_is_within_the_limits(fair: Audited) -> None:
    summary = fair(padded_recipe("intent", ['audit.templates=["service"]', "audit.required=true"]))
    assert summary is not None
    assert summary["passed"]
    assert "broken" not in {axis["verdict"] for axis in summary["axes"].values()}
    assert fair.said == [f"audited     {summary['texts']} texts, limits broken for: none"]


def test_an_audit_is_made_once(fair: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = padded_recipe("intent", ['audit.templates=["service"]'])
    first = fair(recipe)
    monkeypatch.setattr("mooring_build.release_audit._audit", None)
    assert fair(recipe) == first


def test_own_templates_start_from_the_recipes_folder_and_count(fair: Audited, tmp_path: Path) -> None:
    own = tmp_path / "probes.toml"
    path = tmp_path / "mine.toml"
    text = shipped_recipes()["intent"].read_text()
    path.write_text(text.replace('templates = ["service"]', 'templates = ["probes.toml"]'))
    recipe = padded_recipe(path)
    with pytest.raises(
        ConfigError, match=r"there are no templates 'probes\.toml': neither one of .* nor a file"
    ):
        fair(recipe)
    own.write_text('[texts]\nmine = ["{name} wants the card.", "{name} pays."]\n')
    first = fair(recipe)
    own.write_text('[texts]\nmine = ["{name} wants the card.", "{name} pays.", "{name} calls."]\n')
    second = fair(recipe)
    assert first is not None
    assert second is not None
    assert second["texts"] > first["texts"]


def test_own_templates_of_an_override_start_from_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probes.toml").write_text("[texts]\n")
    recipe = padded_recipe("intent", ['audit.templates=["service", "probes.toml"]'])
    assert recipe.audit is not None
    assert recipe.audit.templates == ["service", str(tmp_path / "probes.toml")]


def test_a_model_that_heeds_a_letter_of_names_is_refused_where_the_recipe_says_so(tmp_path: Path) -> None:
    # Names are spelt in letters by the tiny tokenizer; this one weighs in those that begin with m.
    biased = Audited(tmp_path, "m")
    limits = ['audit.templates=["service"]', "audit.max_gap=0.001", "audit.max_flips=0.001"]
    summary = biased(padded_recipe("intent", limits))
    assert summary is not None
    assert not summary["passed"]
    with pytest.raises(VerificationError, match=r"not published: its answers differ between groups"):
        biased(padded_recipe("intent", [*limits, "audit.required=true"]))


def test_without_a_table_nothing_is_asked(fair: Audited) -> None:
    recipe = padded_recipe("intent")
    assert fair(recipe.model_copy(update={"audit": None})) is None
    assert fair.said == []


def test_a_token_classifier_without_people(fair: Audited) -> None:
    recipe = padded_recipe("ner", ['audit.templates=["people"]'])
    assert fair(recipe, ["O", "B-LOC", "I-LOC"]) is None
    assert fair.said == ["audited     not: the names of people are compared, and no label is PER"]
