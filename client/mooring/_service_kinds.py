"""What a customer wants and what to tell them, in one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mooring._task_kind import (
    Contradiction,
    Label,
    RankedAnswer,
    TaskKind,
    read_answers,
    read_probability,
    read_text,
)


@dataclass(frozen=True, kw_only=True)
class CustomerServiceAnswer:
    """What a customer wants, and what to tell them."""

    #: The most probable one, sure or not.
    intent: Label
    #: Those of the knowledge base that suit best, best first, sure or not.
    answers: list[RankedAnswer]
    #: What to tell the customer; where a person takes over, it says so.
    reply: str
    #: Whether a person is to take over.
    handover: bool


class CustomerService(TaskKind[str, CustomerServiceAnswer]):
    """Intent, answers and reply for a customer's message."""

    name = "customer-service"
    outputs: ClassVar[Mapping[str, str]] = {
        "intent": "BYTES",
        "intent_score": "FP32",
        "item": "BYTES",
        "item_score": "FP32",
        "answer": "BYTES",
        "reply": "BYTES",
        "handover": "BOOL",
    }

    def rows_of_equal_length(self) -> list[tuple[str, ...]]:
        """As many answers as the knowledge base gives; of all else, one."""
        return [("intent", "intent_score", "reply", "handover"), ("item", "item_score", "answer")]

    def read_row(self, item: str, row: Mapping[str, np.ndarray]) -> CustomerServiceAnswer:
        if len(row["intent"]) != 1:
            raise Contradiction(f"{len(row['intent'])} columns of intent, expected 1")
        intent = Label(
            label=read_text("intent", row["intent"][0]), score=read_probability(row["intent_score"][0])
        )
        reply = read_text("reply", row["reply"][0])
        if not reply:
            raise Contradiction("the reply is empty")
        return CustomerServiceAnswer(
            intent=intent,
            answers=read_answers(row["item"], row["item_score"], row["answer"]),
            reply=reply,
            handover=bool(row["handover"][0]),
        )
