"""Pipelines that join other recipes' pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooring import RecipeError
from mooring._cli import main
from mooring_build.layouts import ModelStep, layout_of
from mooring_build.real_data import FINANCIAL_TOPICS, financial_topic, phrasebank, same_text
from mooring_build.recipe import COMPOSED_TASKS, load_recipe, shipped_recipes
from mooring_build.triton_config import model_configs
from shared_data import shared_data

COMPOSED = sorted(name for name in shipped_recipes() if load_recipe(name).task in COMPOSED_TASKS)


def test_there_is_one_to_look_at() -> None:
    assert "opinion_monitor" in COMPOSED


@pytest.mark.parametrize("name", COMPOSED)
def test_no_two_pipelines_run_side_by_side(name: str) -> None:
    # Where one of them failed, Triton would never answer; see mooring_build.layouts.relay.
    layout = layout_of(load_recipe(name), [])
    sources = {
        output: step
        for step in layout.steps
        for output in (step.outputs.values() if isinstance(step, ModelStep) else step.outputs)
    }

    def parts_before(step: object) -> set[str]:
        found = set()
        needed = step.inputs.values() if isinstance(step, ModelStep) else step.inputs
        for source in filter(None, map(sources.get, needed)):
            found |= parts_before(source) | ({source.model} if isinstance(source, ModelStep) else set())
        return found

    parts = [step for step in layout.steps if isinstance(step, ModelStep)]
    assert len(parts) >= 2
    assert sorted(len(parts_before(part)) for part in parts) == list(range(len(parts)))


def test_parts_are_joined_in_whichever_version_is_released() -> None:
    configs = model_configs(load_recipe("opinion_monitor"), [], 3)
    assert list(configs) == ["opinion_monitor_relay", "opinion_monitor_joiner", "opinion_monitor"]
    steps = configs["opinion_monitor"].ensemble_scheduling.step
    assert [(step.model_name, step.model_version) for step in steps] == [
        ("topic", -1),
        ("opinion_monitor_relay", 3),
        ("sentiment", -1),
        ("opinion_monitor_joiner", 3),
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('sentiment = "sentiment"\n', ""), "parts names ['topic']; task 'opinion-monitoring' joins"),
        (
            ('topic = "topic"\n', 'topic = "topic"\nmood = "mood"\n'),
            "parts names ['mood', 'sentiment', 'topic']",
        ),
        (('"topic"\n', '"to pic"\n'), "parts.topic: String should match pattern"),
        (
            ('[parts]\ntopic = "topic"\nsentiment = "sentiment"\n', ""),
            "task 'opinion-monitoring' needs the table [parts]",
        ),
    ],
)
def test_mistakes_in_parts(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    path = tmp_path / "opinion_monitor.toml"
    path.write_text(shipped_recipes()["opinion_monitor"].read_text(encoding="utf-8").replace(*change))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert said in str(caught.value)


def _rows(path: Path) -> list[list[str]]:
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def test_the_sentiment_set_is_split_once_for_ever(tmp_path: Path) -> None:
    folder = shared_data("financial_phrasebank")
    files = phrasebank(folder, tmp_path / "one")
    train, evaluation = _rows(files["train"]), _rows(files["evaluation"])
    assert (len(train) + len(evaluation), len(evaluation)) == (4846, 969)
    assert not {text.casefold() for text, _ in train} & {text.casefold() for text, _ in evaluation}
    assert {label for _, label in evaluation} == {"negative", "neutral", "positive"}
    # ISO-8859-1 in the original.
    assert any("ä" in text for text, _ in train)
    again = phrasebank(folder, tmp_path / "two")
    assert {name: path.read_bytes() for name, path in files.items()} == {
        name: path.read_bytes() for name, path in again.items()
    }


def test_the_topic_set_has_labels_by_name_and_no_links(tmp_path: Path) -> None:
    files = financial_topic(shared_data("financial_topic"), tmp_path)
    train, evaluation = _rows(files["train"]), _rows(files["evaluation"])
    # 976 of 16990 are there again among the held-out ones, but for the link.
    assert (len(train), len(evaluation)) == (16014, 4117)
    assert not {same_text(text) for text, _ in train} & {same_text(text) for text, _ in evaluation}
    assert {label for _, label in train} == set(FINANCIAL_TOPICS)
    linked = [text for text, _ in train if "http" in text]
    # What was a link alone is left as it was.
    assert all(" " not in text.strip() for text in linked)
    assert not any("&amp;" in text for text, _ in train)


@pytest.mark.parametrize("name", COMPOSED)
def test_what_trains_nothing_is_not_searched(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Told before the first one is built.
    assert main(["build", "intent", name, "--search", "2"]) == 2
    said = f"--search: {name} train nothing; search for their parts"
    assert capsys.readouterr() == ("", f"mooring: error: {said}\n")
