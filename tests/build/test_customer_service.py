"""Replies and thresholds of a customer-service release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mooring import BuildError, DataError, RecipeError
from mooring._served.replies import Reply
from mooring_build.building import build
from mooring_build.customer_service import Thresholds, _read_replies, _Said, read_messages
from mooring_build.examples import Message
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.released import Classified, Ranked

GOOD = """
[replies.cancel]
needs_answer = true
text = "You cancel: {answer}"
[replies.human]
needs_answer = false
handover = true
text = "A colleague comes."
[answer]
text = "Perhaps: {answer}"
[handover]
text = "A person looks at it."
"""


def recipe_with(tmp_path: Path, replies: str = GOOD, messages: str = "") -> Recipe:
    (tmp_path / "replies.toml").write_text(replies, encoding="utf-8")
    (tmp_path / "eval.csv").write_text("text,intent,item,handover\n" + messages, encoding="utf-8")
    return load_recipe(
        "customer_service",
        [f"service.replies={tmp_path / 'replies.toml'}", f"data.evaluation={tmp_path / 'eval.csv'}"],
    )


def test_replies_are_read(tmp_path: Path) -> None:
    content = _read_replies(recipe_with(tmp_path), ["cancel", "human", "other"])
    assert content.replies["cancel"].model_dump() == {
        "text": "You cancel: {answer}",
        "needs_answer": True,
        "handover": False,
    }
    assert (content.answer.text, content.handover.text) == ("Perhaps: {answer}", "A person looks at it.")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[answer]", "[answer", "is not a TOML file"),
        ("needs_answer = true\n", "", r"replies\.cancel\.needs_answer: Field required"),
        (
            "needs_answer = true",
            "needs_answer = 1",
            r"replies\.cancel\.needs_answer: Input should be a valid b",
        ),
        ("needs_answer = true", "needs = true", r"replies\.cancel\.needs: Extra inputs are not permitted"),
        (
            "You cancel: {answer}",
            "You cancel.",
            r"replies\.cancel: needs_answer, but the text has no {answer}",
        ),
        (
            "needs_answer = true",
            "needs_answer = false",
            r"without needs_answer, {answer} needs a line of its",
        ),
        (
            "A colleague comes.",
            "{answer}",
            r"replies\.human: a person takes over \(handover\), so there is no",
        ),
        ("Perhaps: {answer}", "Perhaps.", r"answer\.text: String should match pattern"),
        ("[handover]\n", "[farewell]\n", r"handover: Field required"),
        ("replies.cancel", "replies.cancle", r"replies to \['cancle'\], which 'intent' does not know"),
    ],
)
def test_malformed_replies(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert GOOD.count(old) >= 1
    recipe = recipe_with(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(DataError, match=rf"{tmp_path / 'replies.toml'}[\s\S]*{said}"):
        _read_replies(recipe, ["cancel", "human"])


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("a,,,yes\n", "row 1 after the header: handover 'yes' is neither true nor false"),
        (",,,true\n", ":2: empty text"),
        ("a,,,\n", ":2: empty handover"),
        ("", "holds no row"),
    ],
)
def test_malformed_messages(messages: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_messages(recipe_with(tmp_path, messages=messages))


def test_messages_are_read(tmp_path: Path) -> None:
    assert read_messages(recipe_with(tmp_path, messages="Stop!,cancel,,false\n???,,,TRUE\n")) == [
        Message("Stop!", "cancel", "", False),
        Message("???", "", "", True),
    ]


TEXTS: dict[str, Any] = {
    "intents": ["cancel", "thanks", "other", "x"],
    "templates": {
        "cancel": {"text": "You cancel: {answer}", "needs_answer": True, "handover": False},
        "thanks": {"text": "You are welcome.", "needs_answer": False, "handover": False},
    },
    "answer": "Perhaps: {answer}",
    "handover": "A person looks at it.",
}


def said(*rows: tuple[Message, str, float, str, float]) -> _Said:
    """Messages with what the parts say: intent and acceptance, item and score."""
    messages, labels, acceptance, items, scores = zip(*rows, strict=True)
    answers = np.array([f"Answer of {item}." for item in items], object)
    return _Said(
        messages,
        Classified(np.array(labels, object), np.array(acceptance)),
        Ranked(np.array(items, object), np.array(scores), answers),
        TEXTS,
    )


RIGHT = Message("a", "cancel", "how", False)
FOREIGN = Message("b", "", "", True)


def test_thresholds_part_what_is_known_from_what_is_not() -> None:
    found = said(
        (RIGHT, "cancel", 0.9, "how", 0.8),
        (RIGHT, "cancel", 0.5, "how", 0.6),
        (FOREIGN, "cancel", 0.1, "how", 0.4),
        (FOREIGN, "cancel", 0.0, "how", 0.2),
    ).calibrate(np.arange(4), None, None)
    # Between the nearest known and the nearest foreign score.
    assert found == pytest.approx((0.3, 0.5))


def test_a_wrong_reply_costs_more_than_a_hand_over() -> None:
    wrong = Message("c", "", "other", False)
    one = said(
        (RIGHT, "cancel", 0.9, "how", 0.6),
        (wrong, "cancel", 0.9, "how", 0.8),
        (FOREIGN, "x", 0.0, "how", 0.7),
    )
    found = one.calibrate(np.arange(3), None, None)
    # The right one can't be had without the two that score higher.
    assert [one.reply(place, found).handover for place in range(3)] == [True] * 3


def test_thresholds_of_the_recipe_stay() -> None:
    one = said((RIGHT, "cancel", 0.9, "how", 0.8), (FOREIGN, "cancel", 0.1, "how", 0.4))
    assert one.calibrate(np.arange(2), 0.25, 0.3) == Thresholds(0.25, 0.3)


def test_a_fixed_threshold_leaves_the_other_as_far_from_the_scores() -> None:
    found = said(
        (RIGHT, "cancel", 0.9, "how", 0.9),
        # These two get the same reply whether the answer is sure or not.
        (Message("c", "thanks", "", False), "thanks", 0.9, "how", 0.5),
        (Message("d", "thanks", "", False), "thanks", 0.9, "how", 0.4),
        (FOREIGN, "cancel", 0.9, "how", 0.2),
    ).calibrate(np.arange(4), 0.05, None)
    assert found == pytest.approx((0.05, 0.7))


def test_metrics_count_what_became_of_the_messages() -> None:
    unneeded = Message("d", "cancel", "when", False)
    one = said(
        (RIGHT, "cancel", 0.9, "how", 0.8),
        (FOREIGN, "cancel", 0.9, "how", 0.8),
        (FOREIGN, "other", 0.0, "how", 0.1),
        (unneeded, "other", 0.0, "how", 0.1),
    )
    replies = [one.reply(place, Thresholds(0.5, 0.5)) for place in range(4)]
    assert [reply.handover for reply in replies] == [False, False, True, True]
    assert one.metrics(replies) == {
        "messages": 4,
        "intent_accuracy": 0.5,
        "item_hit_at_1": 0.5,
        "right": 0.5,
        "wrong": 0.25,
        "unneeded_handover": 0.25,
        "handover_precision": 0.5,
        "handover_recall": 0.5,
    }


def test_an_answer_that_nobody_asked_for_is_wrong() -> None:
    one = said((Message("e", "cancel", "", False), "cancel", 0.9, "how", 0.8))
    assert one.metrics([Reply("", False, True, True)])["wrong"] == 1
    assert one.metrics([Reply("", False, True, False)])["right"] == 1


def test_parts_that_are_not_released_are_named(tmp_path: Path) -> None:
    recipe = load_recipe("customer_service")
    with pytest.raises(
        BuildError,
        match=r"customer_service joins 'intent' \(parts.intent\), which is not in .*mooring build intent",
    ):
        build(recipe, repository=tmp_path / "models", artifacts=tmp_path / "artifacts")


def test_parts_and_replies_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "service.toml"
    path.write_text('name = "service"\ntask = "customer-service"\n[parts]\nintent = "a"\nfaq = "b"\n')
    with pytest.raises(RecipeError, match=r"task 'customer-service' needs the table \[service\]"):
        load_recipe(path)
