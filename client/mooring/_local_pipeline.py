"""A pipeline's steps around its engine, run in the caller's process.

An ensemble that Mooring published chains a tokenizer, an engine and a postprocessor, each in the version that
the ensemble pins. :class:`LocalPipeline` does the work of the first and the last with the very modules that
run on the server (:mod:`mooring._served`). Everything that it knows belongs to one release: the tokenizer and
its settings come from the pinned tokenizer's version, the labels from the config that pins it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mooring._errors import ConfigError, DecodeError
from mooring._models import EnsembleStep
from mooring._served.classification import rank_labels
from mooring._served.entities import BioLabels, tabulate
from mooring._served.texts import TextError, check_text
from mooring._task_kind import invalid
from mooring._tensors import Signature

if TYPE_CHECKING:
    from mooring._served.encoding import EncodedTexts, TextEncoder

#: Outputs of a tokenizer that give its files, see ``mooring_build/served/tokenizer_model.py``.
TOKENIZER, SETTINGS = "tokenizer", "settings"
#: Tells tokenizers apart: cases, accents, digits, scripts. Few tokens, so that it fits any model.
PROBE = "Zoë's 42 東京 Café"

# Texts, their tokens and logits to output arrays.
_Reader = Callable[[Sequence[str], "EncodedTexts", np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class PipelineParts:
    """Who does what in an ensemble, and what the ensemble says of the answers."""

    task: str
    #: Name and version of the model that makes token ids.
    tokenizer: str
    tokenizer_version: str
    #: Name and version of the model that makes logits, and its own name for them.
    engine: str
    engine_version: str
    logits_name: str
    #: In the order of the logits.
    labels: tuple[str, ...]
    #: How many labels a text classifier answers with; -1 where that varies, as with entities.
    top_k: int

    @classmethod
    def of(cls, signature: Signature) -> PipelineParts:
        """Read them from an ensemble's signature.

        Raises:
            ConfigError: the model is no ensemble as Mooring publishes them, or its task is another one.
        """
        model, config = signature.metadata.name, signature.config
        task = config.parameters.get("task", "")
        if task not in _READERS:
            raise _unfit(
                model, f"its task is {task!r}, and only {' and '.join(_READERS)} have one to do here"
            )
        by_output = {tensor: step for step in config.steps for tensor in step.outputs.values()}
        tokenizer, engine = by_output.get("input_ids"), by_output.get("logits")
        if tokenizer is None or engine is None or tokenizer is engine:
            raise _unfit(model, "it is no ensemble of a tokenizer (input_ids) and an engine (logits)")
        for step in (tokenizer, engine):
            if not step.version:
                raise _unfit(model, f"it pins no version of {step.model!r}, so versions could be mixed")
        shapes = {spec.name: spec.shape for spec in signature.metadata.outputs}
        top_k = shapes.get("label", (-1,))[-1]
        if task == "text-classification" and top_k < 1:
            raise _unfit(model, f"its output label has {top_k} columns; expected how many labels it gives")
        return cls(
            task=task,
            tokenizer=tokenizer.model,
            tokenizer_version=tokenizer.version,
            engine=engine.model,
            engine_version=engine.version,
            logits_name=_own_name(engine, "logits"),
            labels=_labels(model, config.parameters.get("labels", "")),
            top_k=top_k,
        )


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Checked texts as the engine takes them; ``B`` texts, ``L`` tokens in the padded row."""

    texts: Sequence[str]
    #: With words, where the task needs them.
    tokens: EncodedTexts

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """``input_ids`` and ``attention_mask``, ``[B, L]`` int64 each."""
        return {"input_ids": self.tokens.input_ids, "attention_mask": self.tokens.attention_mask}


class LocalPipeline:
    """Texts to an engine's inputs, and its logits to the ensemble's outputs.

    Args:
        parts: of the ensemble.
        encoder: the tokenizer of its pinned version.
        model: the ensemble's name, for messages.

    Raises:
        ConfigError: the labels are none of the task's.
    """

    def __init__(self, parts: PipelineParts, encoder: TextEncoder, *, model: str) -> None:
        self.parts = parts
        self._encoder = encoder
        self._model = model
        try:
            self._read = _READERS[parts.task](parts)
        except ValueError as exc:
            raise _unfit(model, str(exc)) from exc

    def encode(self, items: Sequence[str]) -> Encoded:
        """Make token ids of texts.

        Raises:
            InvalidInput: a text is empty, too long, or has no tokens; in the server's own words.
        """
        try:
            texts = [check_text(text, index) for index, text in enumerate(items)]
            return Encoded(texts=texts, tokens=self._encoder.encode(texts))
        except TextError as exc:
            raise invalid(self._model, str(exc)) from exc

    def decode(self, encoded: Encoded, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Make the ensemble's outputs of the engine's.

        Args:
            encoded: what the engine was asked.
            logits: ``[B, L, labels]`` for tokens, ``[B, labels]`` for texts.

        Raises:
            DecodeError: the logits do not fit the texts or the labels.
        """
        try:
            return self._read(encoded.texts, encoded.tokens, logits)
        except ValueError as exc:
            engine = f"{self.parts.engine!r} version {self.parts.engine_version}"
            raise DecodeError(f"model {self._model!r}: the answer of {engine} makes no sense: {exc}") from exc


def require_tokenizers() -> None:
    """Check that token ids can be made here.

    Raises:
        ImportError: ``tokenizers`` is not installed; the message names the extra that brings it.
    """
    try:
        import tokenizers  # noqa: F401
    except ModuleNotFoundError as exc:
        raise ImportError("tokenize='client' needs tokenizers: install Mooring's extra [tokenize]") from exc


def read_tokenizer(folder: str | os.PathLike[str]) -> bytes:
    """Content of a folder's ``tokenizer.json``.

    Raises:
        ConfigError: it can't be read.
    """
    if not isinstance(folder, str | os.PathLike):
        raise ConfigError(f"tokenizer must be a folder, got {folder!r}")
    path = Path(folder) / "tokenizer.json"
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"tokenizer: {path} can't be read: {exc.strerror}") from exc


def make_encoder(tokenizer: bytes, settings: bytes, *, source: str) -> TextEncoder:
    """Make an encoder of the content of ``tokenizer.json`` and ``settings.json``.

    Args:
        tokenizer: content of ``tokenizer.json``.
        settings: content of ``settings.json``.
        source: where the tokenizer comes from, for messages.

    Raises:
        ConfigError: one of them can't be used.
    """
    from tokenizers import Tokenizer

    from mooring._served.encoding import EncodingSettings, TextEncoder

    try:
        parsed = Tokenizer.from_str(tokenizer.decode("utf-8"))
    except Exception as exc:  # the library raises nothing narrower
        raise ConfigError(f"tokenizer: {source} is not a tokenizer.json: {exc}") from exc
    try:
        return TextEncoder(parsed, EncodingSettings.loads(settings.decode("utf-8")))
    except ValueError as exc:
        raise ConfigError(f"the server's tokenizer has settings that this client can't use: {exc}") from exc


def probe_ids(encoder: TextEncoder) -> list[int] | str:
    """Token ids of :data:`PROBE`, padding included, or the words that refuse it."""
    try:
        ids: list[int] = encoder.encode([PROBE]).input_ids[0].tolist()
    except TextError as exc:
        return str(exc)
    return ids


def _read_entities(parts: PipelineParts) -> _Reader:
    labels = BioLabels(parts.labels)

    def read(texts: Sequence[str], tokens: EncodedTexts, logits: np.ndarray) -> dict[str, np.ndarray]:
        if tokens.words is None:
            raise ValueError("the tokenizer gives no words")
        return tabulate(texts, labels.decode(texts, logits, tokens.words))

    return read


def _read_labels(parts: PipelineParts) -> _Reader:
    labels = np.array([label.encode("utf-8") for label in parts.labels], dtype=np.object_)

    def read(texts: Sequence[str], tokens: EncodedTexts, logits: np.ndarray) -> dict[str, np.ndarray]:
        if logits.shape != (len(texts), len(labels)):
            raise ValueError(
                f"logits {list(logits.shape)} do not fit {len(texts)} text(s), {len(labels)} labels"
            )
        order, scores = rank_labels(logits, parts.top_k)
        return {"label": labels[order], "score": scores}

    return read


_READERS: dict[str, Callable[[PipelineParts], _Reader]] = {
    "text-classification": _read_labels,
    "token-classification": _read_entities,
}


def _own_name(step: EnsembleStep, tensor: str) -> str:
    return next(name for name, of_ensemble in step.outputs.items() if of_ensemble == tensor)


def _labels(model: str, text: str) -> tuple[str, ...]:
    try:
        labels: Any = json.loads(text)
    except ValueError:
        labels = None
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise _unfit(model, f"parameters.labels is {text[:200]!r}; expected a JSON list of texts")
    return tuple(labels)


def _unfit(model: str, why: str) -> ConfigError:
    return ConfigError(f"model {model!r} can't be tokenized for by the client: {why}")
