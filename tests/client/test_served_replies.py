"""Intents and answers to replies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mooring._served.replies import Replies

CONTENT: dict[str, Any] = {
    "intents": ["cancel", "broken", "thanks", "human", "other"],
    "templates": {
        "cancel": {"text": "You cancel.\n{answer}\nBye.", "needs_answer": True, "handover": False},
        "broken": {"text": "Sorry.\n{answer}\nSend a photo.", "needs_answer": False, "handover": False},
        "thanks": {"text": "You are welcome.", "needs_answer": False, "handover": False},
        "human": {"text": "A colleague comes.", "needs_answer": False, "handover": True},
    },
    "answer": "Perhaps this:\n{answer}",
    "handover": "A person looks at it.",
    "intent_threshold": 0.2,
    "answer_threshold": 0.5,
}
SURE, UNSURE = 0.2, 0.19
GOOD, POOR = 0.5, 0.49


@pytest.mark.parametrize(
    ("intent", "acceptance", "score", "text", "handover", "uses"),
    [
        ("cancel", SURE, GOOD, "You cancel.\nPress {x}.\nBye.", False, "ia"),
        ("cancel", SURE, POOR, "A person looks at it.", True, ""),
        ("cancel", UNSURE, GOOD, "Perhaps this:\nPress {x}.", False, "a"),
        ("cancel", UNSURE, POOR, "A person looks at it.", True, ""),
        ("broken", SURE, GOOD, "Sorry.\nPress {x}.\nSend a photo.", False, "ia"),
        ("broken", SURE, POOR, "Sorry.\nSend a photo.", False, "i"),
        ("thanks", SURE, GOOD, "You are welcome.", False, "i"),
        ("human", SURE, GOOD, "A colleague comes.", True, "i"),
        ("human", UNSURE, GOOD, "Perhaps this:\nPress {x}.", False, "a"),
        # An intent without a template is as good as none.
        ("other", SURE, GOOD, "Perhaps this:\nPress {x}.", False, "a"),
        ("other", SURE, POOR, "A person looks at it.", True, ""),
        # One of a later release of the classifier may have been the one that a person takes care of.
        ("renamed", SURE, GOOD, "A person looks at it.", True, ""),
        ("renamed", UNSURE, GOOD, "Perhaps this:\nPress {x}.", False, "a"),
    ],
)
def test_the_reply(
    intent: str, acceptance: float, score: float, text: str, handover: bool, uses: str, tmp_path: Path
) -> None:
    (tmp_path / "replies.json").write_text(json.dumps(CONTENT))
    reply = Replies.load(tmp_path).reply(intent, acceptance, "Press {x}.", score)
    assert (reply.text, reply.handover) == (text, handover)
    assert (reply.uses_intent, reply.uses_answer) == ("i" in uses, "a" in uses)
