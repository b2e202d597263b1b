"""What each task sends and how its answer is read, apart from how the bytes travel.

A model names its task in its config (``parameters.task``); the tensors of each task are fixed:

=========================  ==========================  ==================================================
task                       input                       outputs
=========================  ==========================  ==================================================
token-classification       ``text`` BYTES [B, 1]       ``label`` ``entity`` BYTES, ``score`` FP32,
                                                       ``start`` ``end`` INT32, each [B, N]
text-classification        ``text`` BYTES [B, 1]       ``label`` BYTES, ``score`` FP32, each [B, K]
text-multi-classification  ``text`` BYTES [B, 1]       ``<head>`` BYTES, ``<head>_score`` FP32, each
                                                       [B, K], for each of ``parameters.heads``
feature-extraction         ``text`` BYTES [B, 1]       ``embedding`` FP32 [B, D]
text-ranking               ``text`` BYTES [B, 1]       ``item`` ``answer`` BYTES, ``score`` FP32, each
                                                       [B, K]
recommendation             ``history`` BYTES [B, H]    ``item`` BYTES, ``score`` FP32, each [B, K]
image-classification       ``image`` BYTES [B, 1]      ``label`` BYTES, ``score`` FP32, each [B, K]
tabular-classification     ``features`` FP32 [B, F]    ``label`` BYTES, ``score`` FP32, each [B, K]
customer-service           ``text`` BYTES [B, 1]       ``intent`` ``reply`` BYTES, ``intent_score`` FP32,
                                                       ``handover`` BOOL, each [B, 1]; ``item``
                                                       ``answer`` BYTES, ``item_score`` FP32, each [B, K]
opinion-monitoring         ``text`` BYTES [B, 1]       ``topic`` ``sentiment`` BYTES, ``topic_score``
                                                       ``sentiment_score`` FP32, each [B, 1]
=========================  ==========================  ==================================================

Rows shorter than the others are padded with empty labels, items or history entries. An image is a JPEG or PNG
file, or an array as a ``.npy`` file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mooring._array_kinds import ImageClassification, TabularClassification
from mooring._errors import ConfigError, DecodeError
from mooring._head_kinds import TextMultiClassification
from mooring._models import ModelConfig, ModelMetadata, TensorSpec
from mooring._service_kinds import CustomerService
from mooring._task_kind import (
    Contradiction,
    Label,
    Labels,
    RankedAnswer,
    RankedItem,
    TaskKind,
    check_text,
    invalid,
    read_answers,
    read_probability,
    read_ranking,
    read_text,
    until_padding,
)


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
class Opinion:
    """What a text is about, and what it says of it."""

    topic: Label
    #: ``negative``, ``neutral`` or ``positive``.
    sentiment: Label


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
        labels = until_padding("label", row["label"])
        columns = (row[name].tolist()[: len(labels)] for name in ("score", "start", "end", "entity"))
        return [self._entity(item, *raw) for raw in zip(labels, *columns, strict=True)]

    def _entity(self, text: str, label: str, score: float, start: int, end: int, entity: bytes) -> Entity:
        if not 0 <= start < end <= len(text):
            raise Contradiction(f"{label} at {start}:{end} of a text of {len(text)} characters")
        span = text[start:end]
        # The server's own words show whether it counts in characters as the client does.
        if entity != span.encode("utf-8"):
            raise Contradiction(f"{label} at {start}:{end} is {span!r}, but the server says {entity!r}")
        return Entity(label=label, score=read_probability(score), start=start, end=end, text=span)


class TextClassification(Labels[str]):
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


class TextRanking(TaskKind[str, list[RankedAnswer]]):
    """Items that suit a text, best first, with their answers."""

    name = "text-ranking"
    outputs: ClassVar[Mapping[str, str]] = {"item": "BYTES", "score": "FP32", "answer": "BYTES"}

    def read_row(self, item: str, row: Mapping[str, np.ndarray]) -> list[RankedAnswer]:
        return read_answers(row["item"], row["score"], row["answer"])


class Recommendation(TaskKind[Sequence[str], list[RankedItem]]):
    """Items that suit a history of items, oldest first; best first."""

    name = "recommendation"
    outputs: ClassVar[Mapping[str, str]] = {"item": "BYTES", "score": "FP32"}
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
            check_text(entry, where=f"{where}, item {i}", model=model)

    def _expected(self) -> str:
        return "a history (a sequence of str) or a sequence of histories"

    def read_row(self, item: Sequence[str], row: Mapping[str, np.ndarray]) -> list[RankedItem]:
        return read_ranking(row["item"], row["score"])

    def write(self, items: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        width = max(1, max(map(len, items)))
        rows = np.full((len(items), width), b"", np.object_)
        for row, history in zip(rows, items, strict=True):
            row[: len(history)] = [entry.encode("utf-8") for entry in history]
        return {self.input_name: rows}


class OpinionMonitoring(TaskKind[str, Opinion]):
    """Topic and sentiment of a text."""

    name = "opinion-monitoring"
    outputs: ClassVar[Mapping[str, str]] = {
        "topic": "BYTES",
        "topic_score": "FP32",
        "sentiment": "BYTES",
        "sentiment_score": "FP32",
    }

    def read_row(self, item: str, row: Mapping[str, np.ndarray]) -> Opinion:
        topic, sentiment = (
            self._label(name, row[name], row[f"{name}_score"]) for name in ("topic", "sentiment")
        )
        return Opinion(topic=topic, sentiment=sentiment)

    def _label(self, name: str, labels: np.ndarray, scores: np.ndarray) -> Label:
        if len(labels) != 1:
            raise Contradiction(f"{len(labels)} columns of {name}, expected 1")
        label = read_text(name, labels[0])
        if not label:
            raise Contradiction(f"the {name} is empty")
        return Label(label=label, score=read_probability(scores[0]))


KINDS: dict[str, TaskKind[Any, Any]] = {
    kind.name: kind
    for kind in (
        CustomerService(),
        FeatureExtraction(),
        ImageClassification(),
        OpinionMonitoring(),
        Recommendation(),
        TabularClassification(),
        TextClassification(),
        TextMultiClassification(),
        TextRanking(),
        TokenClassification(),
    )
}


def find_kind(metadata: ModelMetadata, config: ModelConfig, *, model: str) -> TaskKind[Any, Any]:
    """The task that the model's config names.

    Raises:
        ConfigError: it names none, or one that this client does not know.
        DecodeError: the model's config or signature is not that of its task.
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
    kind = KINDS[said].of_model(config, model=model)
    gives = {spec.name: spec.datatype for spec in metadata.outputs}
    lacks = kind.outputs.items() - gives.items()
    if not _takes(kind, metadata.inputs) or lacks or config.max_batch_size < 1:
        shape = ["any" if size is None else size for size in kind.input_shape]
        raise DecodeError(
            f"model {model!r} says task {said!r}, but its signature is not that of one: it takes "
            f"{[str(spec) for spec in metadata.inputs]}, gives {[str(spec) for spec in metadata.outputs]}, "
            f"max_batch_size {config.max_batch_size}; expected it to take {kind.input_name} "
            f"{kind.input_datatype}{shape}, to give {dict(kind.outputs)}, and max_batch_size above 0"
        )
    return kind


def _takes(kind: TaskKind[Any, Any], inputs: Sequence[TensorSpec]) -> bool:
    """Whether the inputs of a model are those of the task."""
    if len(inputs) != 1 or len(inputs[0].shape) != len(kind.input_shape):
        return False
    fits = all(want in (None, size) for size, want in zip(inputs[0].shape, kind.input_shape, strict=True))
    return fits and (inputs[0].name, inputs[0].datatype) == (kind.input_name, kind.input_datatype)
