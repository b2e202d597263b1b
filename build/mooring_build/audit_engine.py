"""Answers of an exported engine in this process, as a served pipeline gives them but with every label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mooring import ConfigError, Entity, Label
from mooring._served.encoding import EncodedTexts, TextEncoder
from mooring._served.entities import BioLabels
from mooring._served.softmax import softmax
from mooring_build.audit import Ask
from mooring_build.engines import Engine, run_texts


def ask_engine(engine: Engine, encoder: TextEncoder, labels: Sequence[str], task: str) -> Ask:
    """The ``ask`` of :func:`mooring_build.audit.audit` for an engine.

    Args:
        engine: takes ``input_ids`` and ``attention_mask`` ``[B, L]``, gives logits.
        encoder: the release's tokenizer with its settings.
        labels: in the order of the logits.
        task: ``text-classification`` or ``token-classification``.

    Raises:
        ConfigError: another task.
    """
    readers = {"text-classification": _labels, "token-classification": _entities}
    if task not in readers:
        raise ConfigError(f"engines for {task!r} can't be audited; those for {', '.join(readers)} can")
    read: Callable[[Sequence[str], EncodedTexts, np.ndarray, Sequence[str]], list[Any]] = readers[task]

    def ask(texts: Sequence[str]) -> list[Any]:
        answers = []
        for some, encoded, logits in run_texts(engine, encoder, texts, "texts of the audit"):
            answers += read(some, encoded, logits, labels)
        return answers

    return ask


def _labels(
    texts: Sequence[str], encoded: EncodedTexts, logits: np.ndarray, labels: Sequence[str]
) -> list[list[Label]]:
    return [
        [Label(label=label, score=score) for label, score in zip(labels, row, strict=True)]
        for row in softmax(logits).tolist()
    ]


def _entities(
    texts: Sequence[str], encoded: EncodedTexts, logits: np.ndarray, labels: Sequence[str]
) -> list[list[Entity]]:
    found = BioLabels(labels).decode(texts, logits, encoded.words)
    return [
        [
            Entity(label=label, score=score, start=start, end=end, text=text[start:end])
            for label, score, start, end in entities
        ]
        for text, entities in zip(texts, found, strict=True)
    ]
