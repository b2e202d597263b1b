from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mooring import (
    ConfigError,
    CustomerServiceAnswer,
    Entity,
    InvalidInput,
    Label,
    Outcome,
    RankedAnswer,
    RankedItem,
)
from mooring._cli import main
from mooring_build import evaluate_command
from mooring_build.datasets import Dataset, load_dataset
from mooring_build.evaluate_command import describe, judge
from mooring_build.examples import LabelledText, Message, NextItem, TaggedSentence
from mooring_build.recipe import COMPOSED_TASKS, load_recipe, shipped_recipes
from mooring_build.scoring import Score, evaluation_set, score_served, word_tags

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
    # F1 of yes is 1, of no 2/3 (one of two found): no answer is no third label.
    assert score.metrics["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert score.metrics["macro_f1"] == score.report["macro avg"]["f1-score"]
    assert (score.failures, score.first_failure) == (1, "text 0 has 200 tokens")
    shown = "\n".join(describe("intent", 3, score, {"accuracy": 0.75}, None))
    assert "intent version 3: 3 examples, 1 without an answer" in shown
    assert "accuracy  0.6667   0.7500" in shown


def test_no_examples() -> None:
    with pytest.raises(ConfigError, match=r"'intent' names no evaluation data"):
        score_served(load_recipe("intent"), dataset(labels=["a", "b"]), answering([]))


@pytest.mark.parametrize(
    ("served", "recorded", "failed"),
    [(0.9, 0.905, False), (0.9, 0.906, True), (0.9, 0.5, False)],
)
def test_a_drop_beyond_the_bound_fails(served: float, recorded: float, failed: bool) -> None:
    recipe = load_recipe("intent", ["quality.max_drop=0.0055"])
    verdict = judge(recipe, {"accuracy": served}, {"accuracy": recorded})
    assert (verdict is not None) == failed
    if verdict is not None:
        assert verdict == (
            "accuracy is 0.9000, the manifest says 0.9060: a drop of 0.0060, 0.0055 is allowed "
            "(quality.max_drop)"
        )


def test_where_nothing_can_be_compared_that_is_said() -> None:
    recipe = load_recipe("intent")
    assert "see --repository" in judge(recipe, {"accuracy": 0.9}, None)
    assert judge(recipe, {"accuracy": 0.9}, {"loss": 1.0}) == "the manifest has no accuracy to compare with"
    short = load_recipe("recommender", ["catalogue.top_k=5"])
    verdict = judge(short, {"hit_at_1": 0.5}, {"ndcg_at_10": 0.5})
    assert verdict == "ndcg_at_10 looks deeper than the 5 places that are served (catalogue.top_k)"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 1, "FAILED: no manifest of this version with figures of these examples: see --repository"),
        (["--set", "quality.max_drop=0.5"], 1, "FAILED: no manifest"),
        (["--limit", "2"], 0, "Other examples than the manifest's: nothing to compare with."),
        (["--set", "data.label_column=label"], 0, "Other examples than the manifest's"),
    ],
)
def test_a_manifest_that_is_not_there_fails_unless_others_were_asked_for(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    score = Score(metrics={"accuracy": 0.9}, report={}, examples=2, evaluation_digest="e", failures=0)
    monkeypatch.setattr(evaluate_command, "evaluate_served", lambda *args, **options: (1, score))
    assert main(["evaluate", "intent", "--repository", str(tmp_path), *words]) == code
    assert said in capsys.readouterr().out


_WITH_DATA = [name for name in shipped_recipes() if load_recipe(name).task not in COMPOSED_TASKS]


@pytest.mark.parametrize("name", _WITH_DATA)
def test_what_is_asked_are_the_examples_of_the_manifest(name: str) -> None:
    recipe = load_recipe(name)
    # As the build reads it, and as it is read for a served model, whose labels are known.
    built = load_dataset(recipe)
    assert evaluation_set(recipe, built.labels or None).evaluation_digest == built.evaluation_digest != ""


def test_queries_for_items_that_were_taken_out_are_not_asked(tmp_path: Path) -> None:
    recipe = load_recipe("faq")
    examples = evaluation_set(recipe, None).evaluation
    [first, *rest] = recipe.path(recipe.catalogue.file).read_text(encoding="utf-8").splitlines()
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("\n".join([first, *rest[1:]]), encoding="utf-8")
    gone = rest[0].partition(",")[0]
    kept = evaluation_set(load_recipe("faq", [f"catalogue.file={fewer}"]), None)
    assert kept.evaluation == [example for example in examples if example.label != gone]
    assert 0 < len(kept.evaluation) < len(examples)
    # They are the same data, of which a part is left out.
    assert kept.evaluation_digest == evaluation_set(recipe, None).evaluation_digest


def test_a_query_is_scored_by_the_place_of_its_item() -> None:
    examples = [LabelledText("how", "returns"), LabelledText("when", "delivery")]
    ranked = [RankedItem(item=item, score=0.5) for item in ("delivery", "returns")]
    deep = load_recipe("faq", ["catalogue.top_k=50"])
    score = score_served(deep, dataset(*examples, labels=[]), answering([ranked, ranked]))
    assert (score.metrics["hit_at_1"], score.metrics["mrr"]) == (0.5, 0.75)
    # The ranking ends where the item might still come.
    score = score_served(load_recipe("faq"), dataset(*examples, labels=[]), answering([ranked, ranked]))
    assert score.metrics == {"hit_at_1": 0.5}


def test_a_history_is_scored_by_the_place_of_what_came_next() -> None:
    ranked = [RankedItem(item=item, score=0.5) for item in ("a", "b")]
    examples = [NextItem(("x", "y"), "b"), NextItem(("x",), "z")]
    score = score_served(
        load_recipe("recommender", ["catalogue.top_k=50"]),
        dataset(*examples, labels=[]),
        answering([ranked, ranked]),
    )
    assert score.metrics["recall_at_50"] == 0.5


def test_a_service_is_scored_by_its_parts_and_its_hand_overs() -> None:
    def answer(intent: str, item: str, *, handover: bool = False) -> CustomerServiceAnswer:
        return CustomerServiceAnswer(
            intent=Label(label=intent, score=0.9),
            answers=[RankedAnswer(item=item, score=0.5, text="Yes.")],
            reply="Yes.",
            handover=handover,
        )

    examples = [
        Message("stop", "cancel", "", handover=False),
        Message("when", "track", "delivery", handover=False),
        Message("???", "", "", handover=True),
        Message("a person", "talk", "", handover=True),
    ]
    answers = [
        answer("cancel", "returns"),
        answer("cancel", "delivery", handover=True),
        answer("cancel", "returns", handover=True),
        InvalidInput("text 3 is too long", model="customer_service"),
    ]
    score = score_served(load_recipe("customer_service"), dataset(*examples, labels=[]), answering(answers))
    assert score.metrics == {
        "intent_accuracy": pytest.approx(1 / 3),
        "item_hit_at_1": 1.0,
        "handover_precision_in_sample": 0.5,
        "handover_recall_in_sample": 0.5,
    }
    assert score.failures == 1


def test_a_pipeline_without_data_of_its_own_names_its_parts() -> None:
    with pytest.raises(ConfigError, match="evaluate its parts: topic, sentiment"):
        score_served(load_recipe("opinion_monitor"), dataset(labels=[]), answering([]))


def test_a_services_examples_are_its_messages() -> None:
    examples = evaluation_set(load_recipe("customer_service"), None).evaluation
    assert len(examples) == 60
    assert all(isinstance(example, Message) for example in examples)
