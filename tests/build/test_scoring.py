from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mooring import ConfigError, Entity, InvalidInput, Label, Outcome, RankedItem
from mooring_build.datasets import Dataset, LabelledText, NextItem, TaggedSentence
from mooring_build.evaluate_command import describe, judge
from mooring_build.recipe import load_recipe
from mooring_build.scoring import score_served, word_tags

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
SENTENCE = TaggedSentence(
    ("Anna", "de", "Vries", "left", "U.S.", "soil"), ("B-PER", "I-PER", "I-PER", *"OOO")
)


def entity(label: str, start: int, end: int) -> Entity:
    return Entity(label=label, score=0.9, start=start, end=end, text=SENTENCE.text[start:end])


def answering(values: Sequence[Any]) -> Callable[[Sequence[Any]], list[Outcome[Any]]]:
    def ask(items: Sequence[Any]) -> list[Outcome[Any]]:
        assert len(items) == len(values)
        return [
            Outcome(index=i, error=value) if isinstance(value, Exception) else Outcome(index=i, value=value)
            for i, value in enumerate(values)
        ]

    return ask


def dataset(*examples: Any, labels: list[str]) -> Dataset:
    return Dataset(train=[], evaluation=examples, labels=labels, digest="d", evaluation_digest="e")


def test_words_get_the_tags_of_the_entities_that_cover_them() -> None:
    # "Anna de Vries left U.S. soil": the server may split a word that CoNLL keeps whole ("U.S" of "U.S.").
    found = [entity("PER", 0, 13), entity("LOC", 19, 22)]
    assert word_tags(SENTENCE, found, LABELS) == ["B-PER", "I-PER", "I-PER", "O", "B-LOC", "O"]


def test_neighbouring_entities_begin_anew() -> None:
    found = [entity("PER", 0, 4), entity("PER", 5, 13)]
    assert word_tags(SENTENCE, found, LABELS)[:3] == ["B-PER", "B-PER", "I-PER"]
    assert word_tags(SENTENCE, [entity("PER", 0, 7)], ["O", "B-PER"])[:3] == ["B-PER", "B-PER", "O"]


def test_entities_are_scored_as_the_build_does() -> None:
    found = [[entity("PER", 0, 13), entity("LOC", 19, 23)]]
    score = score_served(load_recipe("ner"), dataset(SENTENCE, labels=LABELS), answering(found))
    # Two entities are found, the one of PER is right.
    assert score.metrics["entity_precision"] == 0.5
    assert score.metrics["entity_recall"] == 1.0
    assert score.metrics["token_micro_f1"] == pytest.approx(5 / 6)
    assert score.report["B-PER"]["support"] == 1
    assert (score.examples, score.failures, score.evaluation_digest) == (1, 0, "e")


def test_what_the_server_refused_is_a_wrong_answer() -> None:
    examples = [LabelledText("a", "yes"), LabelledText("b", "no"), LabelledText("c", "no")]
    answers = [
        [Label(label="yes", score=0.9), Label(label="no", score=0.1)],
        InvalidInput("text 0 has 200 tokens", model="intent"),
        [Label(label="no", score=0.8)],
    ]
    score = score_served(load_recipe("intent"), dataset(*examples, labels=["no", "yes"]), answering(answers))
    assert score.metrics["accuracy"] == pytest.approx(2 / 3)
    assert (score.failures, score.first_failure) == (1, "text 0 has 200 tokens")
    shown = "\n".join(describe("intent", 3, score, {"accuracy": 0.75}, None))
    assert "intent version 3: 3 examples, 1 without an answer" in shown
    assert "accuracy            0.6667   0.7500" in shown


def test_no_examples() -> None:
    with pytest.raises(ConfigError, match=r"'intent' names no evaluation data"):
        score_served(load_recipe("intent"), dataset(labels=["a", "b"]), answering([]))


@pytest.mark.parametrize(
    ("served", "recorded", "failed"),
    [(0.9, 0.905, False), (0.9, 0.906, True), (0.9, 0.5, False), (0.9, None, False)],
)
def test_a_drop_beyond_the_bound_fails(served: float, recorded: float | None, failed: bool) -> None:
    recipe = load_recipe("intent", ["quality.max_drop=0.0055"])
    verdict = judge(recipe, {"accuracy": served}, {} if recorded is None else {"accuracy": recorded})
    assert (verdict is not None) == failed
    if verdict is not None:
        assert verdict == (
            "accuracy is 0.9000, the manifest says 0.9060: a drop of 0.0060, 0.0055 is allowed "
            "(quality.max_drop)"
        )
    assert judge(recipe, {"accuracy": served}, None) is None


def test_a_query_is_scored_by_the_place_of_its_item() -> None:
    examples = [LabelledText("how", "returns"), LabelledText("when", "delivery")]
    ranked = [RankedItem(item=item, score=0.5) for item in ("delivery", "returns")]
    score = score_served(load_recipe("faq"), dataset(*examples, labels=[]), answering([ranked, ranked]))
    assert score.metrics["hit_at_1"] == 0.5
    assert score.metrics["mrr"] == 0.75


def test_a_history_is_scored_by_the_place_of_what_came_next() -> None:
    ranked = [RankedItem(item=item, score=0.5) for item in ("a", "b")]
    examples = [NextItem(("x", "y"), "b"), NextItem(("x",), "z")]
    score = score_served(
        load_recipe("recommender"), dataset(*examples, labels=[]), answering([ranked, ranked])
    )
    assert score.metrics["recall_at_50"] == 0.5
