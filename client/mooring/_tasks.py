"""Typed calls: text in, entities or labels out.

What a task sends and how it reads the answer is kept apart from the call itself, so that it does
not depend on how the bytes travel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar, overload

import numpy as np

from mooring._errors import ConfigError, DecodeError, InvalidInput
from mooring._models import ModelConfig, ModelMetadata

if TYPE_CHECKING:
    from mooring._client import Client

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
    """A class of a whole text."""

    label: str
    #: Probability, 0 to 1.
    score: float


class TextTask(ABC, Generic[ResultT]):
    """A model that takes texts and says what it is for; :meth:`Client.task` makes it.

    Calling it with one text returns one result, with a sequence of texts a list of results in the
    same order. More texts than the model's ``max_batch_size`` are sent as several requests, one
    after the other.
    """

    #: Value of ``parameters.task`` in the model's config.
    name: ClassVar[str]
    #: Outputs that the answer must have, each with its data type.
    outputs: ClassVar[Mapping[str, str]]

    def __init__(self, client: Client, model: str, version: str) -> None:
        self._client = client
        self.model = model
        self.version = version

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too; the first match counts
        self, texts: str, *, timeout_s: float | None = None
    ) -> ResultT: ...

    @overload
    def __call__(self, texts: Sequence[str], *, timeout_s: float | None = None) -> list[ResultT]: ...

    def __call__(
        self, texts: str | Sequence[str], *, timeout_s: float | None = None
    ) -> ResultT | list[ResultT]:
        """Ask the model.

        Args:
            texts: one text, or a sequence of texts; none may be empty.
            timeout_s: time budget of the whole call in seconds, however many requests it takes;
                ``None`` takes the client's.

        Returns:
            One result for a ``str``, else one result per text.

        Raises:
            InvalidInput: an empty sequence, or a text that is empty, no ``str`` or not encodable as
                UTF-8 (nothing is sent then), or one that the model refuses.
            DecodeError: the answer contradicts the task.
            TransportError: no answer came.
            ServerError: the server said no.
        """
        checked = self._check_texts([texts] if isinstance(texts, str) else texts)
        deadline = self._client._begin(timeout_s)
        # Looked up at each call: a reload may have changed it. After one to 0, infer says what is wrong.
        signature = self._client._signature(deadline, self.model, self.version)
        size = signature.config.max_batch_size or len(checked)
        results: list[ResultT] = []
        for first in range(0, len(checked), size):
            batch = checked[first : first + size]
            results += self._ask(batch, first=first, timeout_s=deadline.left_s())
        return results[0] if isinstance(texts, str) else results

    def _ask(self, texts: Sequence[str], *, first: int, timeout_s: float) -> list[ResultT]:
        column = np.array([[text.encode("utf-8")] for text in texts], dtype=np.object_)  # [B, 1]
        try:
            answer = self._client.infer(
                self.model,
                {"text": column},
                outputs=list(self.outputs),
                version=self.version,
                timeout_s=timeout_s,
            )
        except InvalidInput as exc:
            if first == 0:
                raise
            # The server counts from the start of its request.
            raise InvalidInput(
                f"{exc} (text 0 of that request is text {first} of the call)",
                model=exc.model,
                version=exc.version,
                code=exc.code,
            ) from exc
        self._check_rows(answer, len(texts))
        return [
            self._read_row(text, {name: array[row] for name, array in answer.items()})
            for row, text in enumerate(texts)
        ]

    def _check_texts(self, texts: Sequence[str]) -> list[str]:
        if isinstance(texts, bytes | bytearray) or not isinstance(texts, Sequence):
            raise self._invalid(f"expected a str or a sequence of str, got {type(texts).__name__}")
        if not texts:
            raise self._invalid("the list of texts is empty")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise self._invalid(f"text {i} is {type(text).__name__}, expected str")
            if not text:
                raise self._invalid(f"text {i} is empty")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as exc:
                raise self._invalid(f"text {i} can't be written as UTF-8 (character {exc.start})") from exc
        return list(texts)

    def _check_rows(self, answer: Mapping[str, np.ndarray], texts: int) -> None:
        shapes = {name: array.shape for name, array in answer.items()}
        shape = next(iter(shapes.values()))
        if len(shape) != 2 or shape[0] != texts or set(shapes.values()) != {shape}:
            raise self._contradiction(f"expected {texts} rows of equal length in each output, got {shapes}")

    @abstractmethod
    def _read_row(self, text: str, row: Mapping[str, np.ndarray]) -> ResultT:
        """Turn one text's row of each output into its result."""

    def _read_label(self, raw: object) -> str:
        if not isinstance(raw, bytes):
            raise self._contradiction(f"label {raw!r} is no bytes")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise self._contradiction(f"label {raw!r} is not UTF-8") from exc

    def _read_score(self, raw: float) -> float:
        score = float(raw)
        if not (math.isfinite(score) and -_SCORE_SLACK <= score <= 1 + _SCORE_SLACK):
            raise self._contradiction(f"score {score} is no probability")
        return score

    def _invalid(self, message: str) -> InvalidInput:
        return InvalidInput(f"model {self.model!r}: {message}", model=self.model)

    def _contradiction(self, message: str) -> DecodeError:
        return DecodeError(f"model {self.model!r} says task {self.name!r}, but answers otherwise: {message}")


class TokenClassifier(TextTask[list[Entity]]):
    """Finds entities in texts: a list of :class:`Entity` per text, in the order of the text."""

    name = "token-classification"
    outputs: ClassVar[Mapping[str, str]] = {
        "label": "BYTES",
        "score": "FP32",
        "start": "INT32",
        "end": "INT32",
        "entity": "BYTES",
    }

    def _read_row(self, text: str, row: Mapping[str, np.ndarray]) -> list[Entity]:
        labels = [self._read_label(raw) for raw in row["label"].tolist()]
        count = labels.index("") if "" in labels else len(labels)  # rows are padded with empty labels
        if any(labels[count:]):
            raise self._contradiction(f"label {count} is empty, but later ones are not: {labels}")
        columns = (row[name].tolist()[:count] for name in ("score", "start", "end", "entity"))
        return [self._read_entity(text, *raw) for raw in zip(labels[:count], *columns, strict=True)]

    def _read_entity(
        self, text: str, label: str, score: float, start: int, end: int, entity: bytes
    ) -> Entity:
        if not 0 <= start < end <= len(text):
            raise self._contradiction(f"{label} at {start}:{end} of a text of {len(text)} characters")
        span = text[start:end]
        # The server's own words show whether it counts in characters as the client does.
        if entity != span.encode("utf-8"):
            raise self._contradiction(f"{label} at {start}:{end} is {span!r}, but the server says {entity!r}")
        return Entity(label=label, score=self._read_score(score), start=start, end=end, text=span)


class TextClassifier(TextTask[list[Label]]):
    """Labels texts: a list of :class:`Label` per text, best first, as many as the model gives."""

    name = "text-classification"
    outputs: ClassVar[Mapping[str, str]] = {"label": "BYTES", "score": "FP32"}

    def _read_row(self, text: str, row: Mapping[str, np.ndarray]) -> list[Label]:
        labels = [self._read_label(raw) for raw in row["label"].tolist()]
        scores = [self._read_score(raw) for raw in row["score"].tolist()]
        return [Label(label=label, score=score) for label, score in zip(labels, scores, strict=True)]


_TASKS: dict[str, type[TokenClassifier] | type[TextClassifier]] = {
    kind.name: kind for kind in (TextClassifier, TokenClassifier)
}


def make_task(
    client: Client, metadata: ModelMetadata, config: ModelConfig, *, model: str, version: str
) -> TokenClassifier | TextClassifier:
    """Make the typed call that the model's config asks for.

    Raises:
        ConfigError: the model names no task, or one that this client does not know.
        DecodeError: the model's signature is not that of its task.
    """
    known = ", ".join(sorted(_TASKS))
    said = config.parameters.get("task")
    if said is None:
        raise ConfigError(
            f"model {model!r} does not say its task (parameters.task in its config); known tasks: {known}. "
            "Use Client.infer for a model without one"
        )
    if said not in _TASKS:
        raise ConfigError(f"model {model!r} says task {said!r}, unknown to this client; known tasks: {known}")
    kind = _TASKS[said]
    takes = {(spec.name, spec.datatype, spec.shape) for spec in metadata.inputs}
    gives = {spec.name: spec.datatype for spec in metadata.outputs}
    lacks = kind.outputs.items() - gives.items()
    if takes != {("text", "BYTES", (-1, 1))} or lacks or config.max_batch_size < 1:
        raise DecodeError(
            f"model {model!r} says task {said!r}, but its signature is not that of one: it takes "
            f"{[str(spec) for spec in metadata.inputs]}, gives {[str(spec) for spec in metadata.outputs]}, "
            f"max_batch_size {config.max_batch_size}; expected it to take text BYTES[-1, 1], to give "
            f"{dict(kind.outputs)}, and max_batch_size above 0"
        )
    return kind(client, model, version)
