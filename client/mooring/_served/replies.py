"""Intents and answers to the reply that a customer gets, or to a person who takes over."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

#: Stands for the best answer in the text of a reply.
PLACEHOLDER = "{answer}"


class Reply(NamedTuple):
    """What a customer is told."""

    text: str
    #: Whether a person takes over.
    handover: bool
    #: Whether the text speaks of the intent, and whether it gives the answer.
    uses_intent: bool
    uses_answer: bool


@dataclass(frozen=True)
class Replies:
    """Templates, and when which of them is used.

    Attributes:
        intents: those that the thresholds were found with.
        templates: by intent: ``text``, ``needs_answer``, ``handover``.
        answer: text where the answer is sure and the intent is not.
        handover: text where neither is.
        intent_threshold: least acceptance of an intent that is sure.
        answer_threshold: least score of an answer that is sure.
    """

    intents: Sequence[str]
    templates: Mapping[str, Mapping[str, Any]]
    answer: str
    handover: str
    intent_threshold: float
    answer_threshold: float

    @classmethod
    def load(cls, folder: Path) -> Replies:
        """Read ``replies.json`` from a version folder."""
        return cls(**json.loads((folder / "replies.json").read_text(encoding="utf-8")))

    def reply(self, intent: str, acceptance: float, answer: str, score: float) -> Reply:
        """Build the reply.

        Args:
            intent: the most probable one.
            acceptance: how surely the text has an intent at all.
            answer: the best one.
            score: how well it suits.
        """
        is_sure = score >= self.answer_threshold
        if acceptance >= self.intent_threshold and intent not in self.intents:
            # Of a later release of the classifier: nobody has said what it calls for.
            return Reply(self.handover, True, uses_intent=False, uses_answer=False)
        template = self.templates.get(intent) if acceptance >= self.intent_threshold else None
        if template is None:
            if is_sure:
                return Reply(_fill(self.answer, answer), False, uses_intent=False, uses_answer=True)
            return Reply(self.handover, True, uses_intent=False, uses_answer=False)
        if template["handover"]:
            return Reply(_fill(template["text"], None), True, uses_intent=True, uses_answer=False)
        if template["needs_answer"] and not is_sure:
            return Reply(self.handover, True, uses_intent=False, uses_answer=False)
        text = _fill(template["text"], answer if is_sure else None)
        gives = is_sure and PLACEHOLDER in template["text"]
        return Reply(text, False, uses_intent=True, uses_answer=gives)


def _fill(text: str, answer: str | None) -> str:
    """Put the answer in; without one the lines that hold nothing else are left out."""
    if answer is not None:
        return text.replace(PLACEHOLDER, answer)
    return "\n".join(line for line in text.split("\n") if line.strip() != PLACEHOLDER)
