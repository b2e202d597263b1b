"""What every task of the typed calls has: one item's way in, and a label's way out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from mooring._errors import DecodeError, InvalidInput
from mooring._models import ModelConfig

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

#: float32 softmax may miss 1 by a rounding error.
_SCORE_SLACK = 1e-3


@dataclass(frozen=True, kw_only=True)
class Label:
    """A class of a whole text, image or row of numbers."""

    label: str
    #: Probability, 0 to 1.
    score: float


@dataclass(frozen=True, kw_only=True)
class RankedItem:
    """One item of a ranking."""

    item: str
    #: The higher, the better; its scale is the model's own.
    score: float


@dataclass(frozen=True, kw_only=True)
class RankedAnswer(RankedItem):
    """An item of a knowledge base with its answer."""

    #: Empty where the knowledge base has none.
    text: str


class TaskKind(ABC, Generic[ItemT, ResultT]):
    """One task: its tensors, and the way from items to inputs and from outputs to results."""

    #: Value of ``parameters.task`` in the model's config.
    name: ClassVar[str]
    #: What one item is called in messages.
    item: ClassVar[str] = "text"
    #: The same for several.
    items: ClassVar[str] = "texts"
    #: The only input, its data type and its shape; ``None`` for a width that is the model's own.
    input_name: ClassVar[str] = "text"
    input_datatype: ClassVar[str] = "BYTES"
    input_shape: ClassVar[tuple[int, int | None]] = (-1, 1)
    #: Outputs that the answer must have, each with its data type.
    outputs: ClassVar[Mapping[str, str]]

    def of_model(self, config: ModelConfig, *, model: str) -> TaskKind[ItemT, ResultT]:
        """The kind as one model has it, where models of the task differ.

        Raises:
            DecodeError: the config does not say what the task needs.
        """
        return self

    def is_one(self, items: Any) -> bool:
        """Whether the argument is one item rather than several."""
        return isinstance(items, str)

    def check_items(self, items: Any, *, model: str) -> list[ItemT]:
        """Check what a caller gave, one item or several.

        Raises:
            InvalidInput: not items of this task; nothing was sent.
        """
        if self.is_one(items):
            items = [items]
        if isinstance(items, str | bytes | bytearray) or not isinstance(items, Sequence):
            raise invalid(model, f"expected {self._expected()}, got {type(items).__name__}")
        if not items:
            raise invalid(model, f"the list of {self.items} is empty")
        for i, item in enumerate(items):
            self.check_item(item, where=f"{self.item} {i}", model=model)
        return list(items)

    def check_item(self, item: Any, *, where: str, model: str) -> None:
        """Check one item; ``where`` names it in the message.

        Raises:
            InvalidInput: not an item of this task.
        """
        check_text(item, where=where, model=model)

    def _expected(self) -> str:
        return "a str or a sequence of str"

    def write(self, items: Sequence[ItemT]) -> dict[str, np.ndarray]:
        """Checked items as inputs."""
        return {self.input_name: np.array([[text.encode("utf-8")] for text in items], dtype=np.object_)}  # type: ignore[attr-defined]

    def read(self, items: Sequence[ItemT], answer: Mapping[str, np.ndarray], *, model: str) -> list[ResultT]:
        """An answer's outputs as one result an item.

        Raises:
            DecodeError: the answer contradicts the task.
        """
        shapes = {name: array.shape for name, array in answer.items()}
        for names in self.rows_of_equal_length():
            shape = shapes[names[0]]
            if len(shape) != 2 or shape[0] != len(items) or {shapes[name] for name in names} != {shape}:
                raise self.contradiction(
                    model,
                    f"expected {len(items)} rows of equal length in each output, got {shapes}",
                )
        try:
            return [
                self.read_row(item, {name: array[row] for name, array in answer.items()})
                for row, item in enumerate(items)
            ]
        except Contradiction as exc:
            raise self.contradiction(model, str(exc)) from exc.__cause__

    def rows_of_equal_length(self) -> list[tuple[str, ...]]:
        """Outputs whose rows belong together, as groups."""
        return [tuple(self.outputs)]

    @abstractmethod
    def read_row(self, item: ItemT, row: Mapping[str, np.ndarray]) -> ResultT:
        """One item's row of each output as its result."""

    def combine(self, results: list[ResultT]) -> Any:
        """The results of several items, as their caller gets them."""
        return results

    def contradiction(self, model: str, message: str) -> DecodeError:
        """The error for an answer that is not one of this task."""
        return DecodeError(f"model {model!r} says task {self.name!r}, but answers otherwise: {message}")


class Contradiction(Exception):
    """What is wrong with a row."""


class Labels(TaskKind[ItemT, list[Label]]):
    """Labels of an item, best first, as many as the model gives."""

    outputs: ClassVar[Mapping[str, str]] = {"label": "BYTES", "score": "FP32"}

    def read_row(self, item: ItemT, row: Mapping[str, np.ndarray]) -> list[Label]:
        labels = [read_text("label", raw) for raw in row["label"].tolist()]
        scores = [read_probability(raw) for raw in row["score"].tolist()]
        return [Label(label=label, score=score) for label, score in zip(labels, scores, strict=True)]


def invalid(model: str, message: str) -> InvalidInput:
    """The error for an item that the model does not take."""
    return InvalidInput(f"model {model!r}: {message}", model=model)


def check_text(text: Any, *, where: str, model: str) -> None:
    """Check a text that is to be sent.

    Raises:
        InvalidInput: no text, or an empty one, or not to be written as UTF-8.
    """
    if not isinstance(text, str):
        raise invalid(model, f"{where} is {type(text).__name__}, expected str")
    if not text:
        raise invalid(model, f"{where} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise invalid(model, f"{where} can't be written as UTF-8 (character {exc.start})") from exc


def read_text(name: str, raw: object) -> str:
    """A text of an answer; ``name`` is its output's, for messages.

    Raises:
        Contradiction: it is none.
    """
    if not isinstance(raw, bytes):
        raise Contradiction(f"{name} {raw!r} is no bytes")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise Contradiction(f"{name} {raw!r} is not UTF-8") from exc


def until_padding(name: str, column: np.ndarray) -> list[str]:
    """The texts of a row before those that pad it, which are empty.

    Raises:
        Contradiction: a text follows an empty one, or is none.
    """
    texts = [read_text(name, raw) for raw in column.tolist()]
    count = texts.index("") if "" in texts else len(texts)
    if any(texts[count:]):
        raise Contradiction(f"{name} {count} is empty, but later ones are not: {texts}")
    return texts[:count]


def read_ranking(items: np.ndarray, scores: np.ndarray) -> list[RankedItem]:
    """A row's items with their scores.

    Raises:
        Contradiction: a score is not finite, or as :func:`until_padding`.
    """
    names = until_padding("item", items)
    values = scores.tolist()[: len(names)]
    if not all(math.isfinite(value) for value in values):
        raise Contradiction(f"scores {values} are not all finite")
    return [RankedItem(item=name, score=value) for name, value in zip(names, values, strict=True)]


def read_answers(items: np.ndarray, scores: np.ndarray, texts: np.ndarray) -> list[RankedAnswer]:
    """A row's items with their scores and answers.

    Raises:
        Contradiction: an answer is no text, or as :func:`read_ranking`.
    """
    ranking = read_ranking(items, scores)
    answers = [read_text("answer", raw) for raw in texts.tolist()[: len(ranking)]]
    return [
        RankedAnswer(item=one.item, score=one.score, text=answer)
        for one, answer in zip(ranking, answers, strict=True)
    ]


def read_probability(raw: float) -> float:
    """A score of an answer.

    Raises:
        Contradiction: it is not from 0 to 1.
    """
    score = float(raw)
    if not (math.isfinite(score) and -_SCORE_SLACK <= score <= 1 + _SCORE_SLACK):
        raise Contradiction(f"score {score} is no probability")
    return score
