"""The model card: what it says, what it leaves open, and that every task has its limits."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from mooring_build.model_card import LIMITS, model_card
from mooring_build.recipe import Recipe, Task, load_recipe

FACTS: dict[str, Any] = {
    "data": {"digest": "d" * 64, "train_examples": 10, "evaluation_examples": 5},
    "metrics": {"accuracy": 0.93},
    "base_checkpoint": {"name": "tiny", "source": "hub", "digest": "c" * 64},
    "libraries": {"torch": "2.13"},
}


def test_a_card_joins_facts_and_the_recipes_own_words() -> None:
    recipe = load_recipe(
        "intent",
        [
            "card.intended_use=Sorting mail.",
            "card.limits=English only.",
            "card.data_source=our shop",
            "card.data_licence=internal",
        ],
    )
    audit = {"passed": True, "axes": {}}
    card = model_card(recipe, FACTS, audit=audit)
    assert card == {
        "model": "intent",
        "task": "text-classification",
        "intended_use": "Sorting mail.",
        "data": {
            "source": "our shop",
            "licence": "internal",
            "digest": "d" * 64,
            "train_examples": 10,
            "evaluation_examples": 5,
        },
        "metrics": {"accuracy": 0.93},
        "audit": audit,
        "limits": ["English only.", LIMITS["text-classification"]],
        "base_checkpoint": FACTS["base_checkpoint"],
    }
    json.dumps(card, allow_nan=False)


def test_what_nobody_said_is_left_open() -> None:
    recipe = Recipe.model_validate({**load_recipe("ner").model_dump(exclude={"card"})})
    card = model_card(recipe, {})
    assert card["data"] == {"source": None, "licence": None}
    assert (card["intended_use"], card["audit"], card["metrics"]) == (None, None, {})
    assert card["limits"] == [LIMITS["token-classification"]]
    assert "base_checkpoint" not in card


def test_a_pipeline_of_pipelines_says_what_it_joins() -> None:
    joined = {"topic": {"model": "topic", "version": 3}}
    card = model_card(load_recipe("intent"), {"composed_of": joined})
    assert card["composed_of"] == joined


def test_facts_are_not_changed() -> None:
    before = json.dumps(FACTS)
    card = model_card(load_recipe("intent"), FACTS)
    card["metrics"]["accuracy"] = 0
    card["data"]["digest"] = ""
    assert json.dumps(FACTS) == before


@pytest.mark.parametrize("task", get_args(Task))
def test_every_task_has_its_limits(task: Task) -> None:
    assert 60 < len(LIMITS[task]) < 400
    assert LIMITS[task].endswith(".")
