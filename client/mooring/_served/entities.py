"""Token logits to entities: words, BIO merging, character offsets."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .softmax import softmax

# Name, dtype and padding of each output; one row a text, as wide as the request's longest row.
_OUTPUTS: dict[str, tuple[type, Any]] = {
    "label": (np.object_, b""),
    "score": (np.float32, 0),
    "start": (np.int32, -1),
    "end": (np.int32, -1),
    "entity": (np.object_, b""),
}


class Entity(NamedTuple):
    """A labelled part of a text: ``text[start:end]``."""

    label: str
    #: Mean over the entity's words of the probability of their label.
    score: float
    start: int
    end: int


class BioLabels:
    """Labels of a token classifier, in the order of the logits: ``O``, ``B-<type>``, ``I-<type>``.

    Raises:
        ValueError: a label is none of these.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        for label in labels:
            if label != "O" and not (label[:2] in ("B-", "I-") and label[2:]):
                raise ValueError(f"label {label!r} is not O, B-<type> or I-<type>")
        #: Entity types, in order of first appearance.
        self.types = list(dict.fromkeys(label[2:] for label in labels if label != "O"))
        self.count = len(labels)
        # [labels]: index into types, -1 for O; and whether the label begins an entity.
        self._type_of = np.array([self.types.index(label[2:]) if label != "O" else -1 for label in labels])
        self._begins = np.array([label.startswith("B-") for label in labels])
        # [types]: whether there is no label to continue an entity with.
        self._only_begins = np.array([f"I-{kind}" not in labels for kind in self.types], bool)

    def decode(self, texts: Sequence[str], logits: np.ndarray, words: np.ndarray) -> list[list[Entity]]:
        """Find the entities of each text, in order of appearance.

        A word takes the label of its first token. ``B-X`` starts an entity and ``I-X`` continues one of
        its type; an ``I-X`` that has none to continue starts one, as in seqeval's default mode. Where the
        labels have no ``I-X``, a word that begins where the one before it ends continues with ``B-X``.

        Args:
            texts: ``B`` texts.
            logits: ``[B, L, labels]``.
            words: ``[B, L, 2]``, as in :class:`~.encoding.EncodedTexts`.

        Raises:
            ValueError: the shapes do not fit one another or the labels, a logit of a word is not finite, or a
                word is not in its text.
        """
        self.check(texts, logits, words)
        return self.decode_requests(texts, [(logits, words)])

    def check(self, texts: Sequence[str], logits: np.ndarray, words: np.ndarray) -> None:
        """Raise ValueError where the shapes do not fit one another or the labels."""
        tokens = (len(texts), logits.shape[1] if logits.ndim == 3 else -1)
        if (logits.shape, words.shape) != ((*tokens, self.count), (*tokens, 2)):
            raise ValueError(
                f"logits {list(logits.shape)} and words {list(words.shape)} do not fit {len(texts)} text(s) "
                f"and {self.count} labels"
            )

    def decode_requests(
        self, texts: Sequence[str], requests: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> list[list[Entity]]:
        """Find the entities of several requests' texts in one go; a request's rows are as long as it likes.

        Args:
            texts: of all requests, one after the other.
            requests: ``logits`` and ``words`` of each, checked by :meth:`check`.

        Raises:
            ValueError: a logit of a word is not finite, or a word is not in its text.
        """
        found: list[list[Entity]] = [[] for _ in texts]
        lengths = [words.shape[1] for _, words in requests for _ in range(len(words))]
        spans = _flat([words.reshape(-1, 2) for _, words in requests])  # [T, 2]
        first = np.flatnonzero(spans[:, 0] >= 0)  # [W]: place of each word's first token
        word_logits = _flat([logits.reshape(-1, self.count) for logits, _ in requests])[first]  # [W, labels]
        rows = np.repeat(np.arange(len(lengths)), lengths)[first]  # [W]: the text of each word
        if not np.isfinite(word_logits).all():
            row = rows[np.isfinite(word_logits).all(axis=-1).argmin()]
            raise ValueError(f"the logits of text {row} are not finite")
        labels = word_logits.argmax(axis=-1)
        types = self._type_of[labels]
        inside = np.flatnonzero(types >= 0)
        if not len(inside):
            return found
        goes_on = np.zeros(len(rows), bool)
        follows = (types[1:] == types[:-1]) & (rows[1:] == rows[:-1])
        begins = self._begins[labels[1:]]
        goes_on[1:] = follows & ~begins
        bounds = spans[first]  # [W, 2]
        touches = bounds[1:, 0] == bounds[:-1, 1]
        for word in np.flatnonzero(follows & begins & self._only_begins[types[1:]] & touches) + 1:
            # The space before a word may be counted in, see _fit.
            start = bounds[word, 0]
            goes_on[word] = not texts[rows[word]][start : start + 1].isspace()

        # From here on only words of entities, [E]; an entity is a run of them.
        opens = np.flatnonzero(~goes_on[inside])  # [entities]: index of the first word of each
        closes = np.append(opens[1:], len(inside)) - 1
        scores = np.add.reduceat(softmax(word_logits[inside]).max(axis=-1), opens) / (closes - opens + 1)
        starts, ends = spans[first[inside[opens]], 0], spans[first[inside[closes]], 1]
        beginning = inside[opens]
        columns = (rows[beginning], types[beginning], scores, starts, ends)
        for row, kind, score, start, end in zip(*(column.tolist() for column in columns), strict=True):
            if end > len(texts[row]):
                raise ValueError(f"a word of text {row} ends at {end}, of {len(texts[row])} characters")
            start, end = _fit(texts[row], start, end)
            if start < end:
                found[row].append(Entity(self.types[kind], score, start, end))
        return found


def tabulate(texts: Sequence[str], found: Sequence[Sequence[Entity]]) -> dict[str, np.ndarray]:
    """Lay entities out as output tensors, ``[B, longest row]`` each."""
    shape = (len(texts), max(map(len, found), default=0))
    arrays: dict[str, np.ndarray] = {
        name: np.full(shape, padding, dtype) for name, (dtype, padding) in _OUTPUTS.items()
    }
    for row, (text, entities) in enumerate(zip(texts, found, strict=True)):
        for column, (label, score, start, end) in enumerate(entities):
            values = (label.encode(), score, start, end, text[start:end].encode())
            for array, value in zip(arrays.values(), values, strict=True):
                array[row, column] = value
    return arrays


def _flat(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _fit(text: str, start: int, end: int) -> tuple[int, int]:
    """Fit a span to what a reader calls the word.

    SentencePiece and byte-level tokenizers count the space before a word in, and BERT's normalizer strips
    combining marks, so that a decomposed ``é`` at a word's end would lose its accent.
    """
    while start < end and text[start].isspace():
        start += 1
    while start < end < len(text) and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return start, end
