"""What each task sends and how its answer is read, apart from how the bytes travel.

A model names its task in its config (``parameters.task``); the tensors of each task are fixed:

======================  ==========================  ==================================================
task                    input                       outputs
======================  ==========================  ==================================================
token-classification    ``text`` BYTES [B, 1]       ``label`` ``entity`` BYTES, ``score`` FP32,
                                                    ``start`` ``end`` INT32, each [B, N]
text-classification     ``text`` BYTES [B, 1]       ``label`` BYTES, ``score`` FP32, each [B, K]
feature-extraction      ``text`` BYTES [B, 1]       ``embedding`` FP32 [B, D]
text-ranking            ``text`` BYTES [B, 1]       ``item`` BYTES, ``score`` FP32, each [B, K]
recommendation          ``history`` BYTES [B, H]    ``item`` BYTES, ``score`` FP32, each [B, K]
image-classification    ``image`` BYTES [B, 1]      ``label`` BYTES, ``score`` FP32, each [B, K]
======================  ==========================  ==================================================

Rows shorter than the others are padded with empty labels, items or history entries.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from mooring._errors import ConfigError, DecodeError, InvalidInput
from mooring._models import ModelConfig, ModelMetadata

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

#: float32 softmax may miss 1 by a rounding error.
_SCORE_SLACK = 1e-3


@dataclass(frozen=True, kw_only=True)
class Entity:
    """A labelled span of a text."""

    label: str
    #: Probability, 0 to 1.
    score: float
    #: First character (code point) of the span.
    start: int
    #: One past its last character.
    end: int
    #: ``text[start:end]`` of the text that was sent.
    text: str


@dataclass(frozen=True, kw_only=True)
class Label:
    """A class of a whole text or image."""

    label: str
    #: Probability, 0 to 1.
    score: float


@dataclass(frozen=True, kw_only=True)
class RankedItem:
    """One item of a ranking."""

    item: str
    #: The higher, the better; its scale is the model's own.
    score: float


class TaskKind(ABC, Generic[ItemT, ResultT]):
    """One task: its tensors, and the way from items to inputs and from outputs to results."""

    #: Value of ``parameters.task`` in the model's config.
    name: ClassVar[str]
    #: What one item is called in messages.
    item: ClassVar[str] = "text"
    #: The same for several.
    items: ClassVar[str] = "texts"
    #: The only input, and its shape.
    input_name: ClassVar[str] = "text"
    input_shape: ClassVar[tuple[int, int]] = (-1, 1)
    #: Outputs that the answer must have, each with its data type.
    outputs: ClassVar[Mapping[str, str]]

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
        _check_text(item, where=where, model=model)

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
        shape = next(iter(shapes.values()))
        if len(shape) != 2 or shape[0] != len(items) or set(shapes.values()) != {shape}:
            raise self.contradiction(
                model, f"expected {len(items)} rows of equal length in each output, got {shapes}"
            )
        try:
            return [
                self.read_row(item, {name: array[row] for name, array in answer.items()})
                for row, item in enumerate(items)
            ]
        except _Contradiction as exc:
            raise self.contradiction(model, str(exc)) from exc.__cause__

    @abstractmethod
    def read_row(self, item: ItemT, row: Mapping[str, np.ndarray]) -> ResultT:
        """One item's row of each output as its result."""

    def combine(self, results: list[ResultT]) -> Any:
        """The results of several items, as their caller gets them."""
        return results

    def contradiction(self, model: str, message: str) -> DecodeError:
        """The error for an answer that is not one of this task."""
        return DecodeError(f"model {model!r} says task {self.name!r}, but answers otherwise: {message}")


class _Contradiction(Exception):
    """What is wrong with a row."""


class TokenClassification(TaskKind[str, list[Entity]]):
    """Entities of a text, in the order of the text."""

    name = "token-classification"
    outputs: ClassVar[Mapping[str, str]] = {
        "label": "BYTES",
        "score": "FP32",
        "start": "INT32",
        "end": "INT32",
        "entity": "BYTES",
    }

    def read_row(self, item: str, row: Mapping[str, np.ndarray]) -> list[Entity]:
        labels = _until_padding("label", row["label"])
        columns = (row[name].tolist()[: len(labels)] for name in ("score", "start", "end", "entity"))
        return [self._entity(item, *raw) for raw in zip(labels, *columns, strict=True)]

    def _entity(self, text: str, label: str, score: float, start: int, end: int, entity: bytes) -> Entity:
        if not 0 <= start < end <= len(text):
            raise _Contradiction(f"{label} at {start}:{end} of a text of {len(text)} characters")
        span = text[start:end]
        # The server's own words show whether it counts in characters as the client does.
        if entity != span.encode("utf-8"):
            raise _Contradiction(f"{label} at {start}:{end} is {span!r}, but the server says {entity!r}")
        return Entity(label=label, score=_probability(score), start=start, end=end, text=span)


class _Labels(TaskKind[ItemT, list[Label]]):
    """Labels of an item, best first, as many as the model gives."""

    outputs: ClassVar[Mapping[str, str]] = {"label": "BYTES", "score": "FP32"}

    def read_row(self, item: ItemT, row: Mapping[str, np.ndarray]) -> list[Label]:
        labels = [_text("label", raw) for raw in row["label"].tolist()]
        scores = [_probability(raw) for raw in row["score"].tolist()]
        return [Label(label=label, score=score) for label, score in zip(labels, scores, strict=True)]


class TextClassification(_Labels[str]):
    """Labels of a text."""

    name = "text-classification"


class FeatureExtraction(TaskKind[str, np.ndarray]):
    """The embedding of a text, ``[D]`` float32."""

    name = "feature-extraction"
    outputs: ClassVar[Mapping[str, str]] = {"embedding": "FP32"}

    def read_row(self, item: str, row: Mapping[str, np.ndarray]) -> np.ndarray:
        return row["embedding"]

    def combine(self, results: list[np.ndarray]) -> np.ndarray:
        """Embeddings of ``B`` texts, ``[B, D]`` float32."""
        return np.stack(results)


class _Ranking(TaskKind[ItemT, list[RankedItem]]):
    """Items, best first."""

    outputs: ClassVar[Mapping[str, str]] = {"item": "BYTES", "score": "FP32"}

    def read_row(self, item: ItemT, row: Mapping[str, np.ndarray]) -> list[RankedItem]:
        items = _until_padding("item", row["item"])
        scores = row["score"].tolist()[: len(items)]
        if not all(math.isfinite(score) for score in scores):
            raise _Contradiction(f"scores {scores} are not all finite")
        return [RankedItem(item=name, score=score) for name, score in zip(items, scores, strict=True)]


class TextRanking(_Ranking[str]):
    """Items that suit a text."""

    name = "text-ranking"


class Recommendation(_Ranking[Sequence[str]]):
    """Items that suit a history of items, oldest first."""

    name = "recommendation"
    item = "history"
    items = "histories"
    input_name = "history"
    input_shape = (-1, -1)

    def is_one(self, items: Any) -> bool:
        return (
            isinstance(items, Sequence)
            and bool(items)
            and isinstance(items[0], str)
            and not isinstance(items, str)
        )

    def check_item(self, item: Any, *, where: str, model: str) -> None:
        if isinstance(item, str) or not isinstance(item, Sequence):
            raise invalid(model, f"{where} is {type(item).__name__}, expected a sequence of str")
        for i, entry in enumerate(item):
            _check_text(entry, where=f"{where}, item {i}", model=model)

    def _expected(self) -> str:
        return "a history (a sequence of str) or a sequence of histories"

    def write(self, items: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        width = max(1, max(map(len, items)))
        rows = np.full((len(items), width), b"", np.object_)
        for row, history in zip(rows, items, strict=True):
            row[: len(history)] = [entry.encode("utf-8") for entry in history]
        return {self.input_name: rows}


class ImageClassification(_Labels[bytes | str | os.PathLike[str]]):
    """Labels of an image: an encoded file's bytes, or its path."""

    name = "image-classification"
    item = "image"
    items = "images"
    input_name = "image"

    def is_one(self, items: Any) -> bool:
        return isinstance(items, bytes | str | os.PathLike)

    def check_item(self, item: Any, *, where: str, model: str) -> None:
        if not isinstance(item, bytes | str | os.PathLike):
            raise invalid(model, f"{where} is {type(item).__name__}, expected bytes or a path")
        if isinstance(item, bytes) and not item:
            raise invalid(model, f"{where} is empty")
        if not isinstance(item, bytes) and not (Path(item).is_file() and os.access(item, os.R_OK)):
            raise invalid(model, f"{where}: there is no file {os.fspath(item)!r} that can be read")

    def _expected(self) -> str:
        return "an image (bytes or a path) or a sequence of images"

    def write(self, items: Sequence[bytes | str | os.PathLike[str]]) -> dict[str, np.ndarray]:
        rows = np.empty((len(items), 1), np.object_)
        rows[:, 0] = [item if isinstance(item, bytes) else Path(item).read_bytes() for item in items]
        return {self.input_name: rows}


KINDS: dict[str, TaskKind[Any, Any]] = {
    kind.name: kind
    for kind in (
        FeatureExtraction(),
        ImageClassification(),
        Recommendation(),
        TextClassification(),
        TextRanking(),
        TokenClassification(),
    )
}


def find_kind(metadata: ModelMetadata, config: ModelConfig, *, model: str) -> TaskKind[Any, Any]:
    """The task that the model's config names.

    Raises:
        ConfigError: it names none, or one that this client does not know.
        DecodeError: the model's signature is not that of its task.
    """
    known = ", ".join(sorted(KINDS))
    said = config.parameters.get("task")
    if said is None:
        raise ConfigError(
            f"model {model!r} does not say its task (parameters.task in its config); known tasks: {known}. "
            "Use infer for a model without one"
        )
    if said not in KINDS:
        raise ConfigError(f"model {model!r} says task {said!r}, unknown to this client; known tasks: {known}")
    kind = KINDS[said]
    takes = {(spec.name, spec.datatype, spec.shape) for spec in metadata.inputs}
    gives = {spec.name: spec.datatype for spec in metadata.outputs}
    lacks = kind.outputs.items() - gives.items()
    wanted = (kind.input_name, "BYTES", kind.input_shape)
    if takes != {wanted} or lacks or config.max_batch_size < 1:
        raise DecodeError(
            f"model {model!r} says task {said!r}, but its signature is not that of one: it takes "
            f"{[str(spec) for spec in metadata.inputs]}, gives {[str(spec) for spec in metadata.outputs]}, "
            f"max_batch_size {config.max_batch_size}; expected it to take {kind.input_name} "
            f"BYTES{list(kind.input_shape)}, to give {dict(kind.outputs)}, and max_batch_size above 0"
        )
    return kind


def invalid(model: str, message: str) -> InvalidInput:
    """The error for an item that the model does not take."""
    return InvalidInput(f"model {model!r}: {message}", model=model)


def _check_text(text: Any, *, where: str, model: str) -> None:
    if not isinstance(text, str):
        raise invalid(model, f"{where} is {type(text).__name__}, expected str")
    if not text:
        raise invalid(model, f"{where} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise invalid(model, f"{where} can't be written as UTF-8 (character {exc.start})") from exc


def _until_padding(name: str, column: np.ndarray) -> list[str]:
    """The texts of a row before those that pad it, which are empty."""
    texts = [_text(name, raw) for raw in column.tolist()]
    count = texts.index("") if "" in texts else len(texts)
    if any(texts[count:]):
        raise _Contradiction(f"{name} {count} is empty, but later ones are not: {texts}")
    return texts[:count]


def _text(name: str, raw: object) -> str:
    if not isinstance(raw, bytes):
        raise _Contradiction(f"{name} {raw!r} is no bytes")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _Contradiction(f"{name} {raw!r} is not UTF-8") from exc


def _probability(raw: float) -> float:
    score = float(raw)
    if not (math.isfinite(score) and -_SCORE_SLACK <= score <= 1 + _SCORE_SLACK):
        raise _Contradiction(f"score {score} is no probability")
    return score
