"""Texts to token ids, for a whole batch of requests at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from .texts import TextError, decode_texts


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """How texts become token ids: the content of ``settings.json``."""

    #: ``token-classification`` asks for offsets and word ids too.
    task: str
    #: Longest text in tokens, special tokens counted.
    max_length: int
    #: False: a longer text is refused. True: what is over is cut off.
    truncation: bool
    #: Rows are padded to the first of these that is long enough, the shortest first; where none is, to the
    #: longest row.
    padded_lengths: list[int]
    #: Id that fills the end of shorter rows.
    pad_token_id: int

    @classmethod
    def loads(cls, text: str) -> EncodingSettings:
        """Read the text of ``settings.json``.

        Raises:
            ValueError: it is not one.
        """
        content = json.loads(text)
        names = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or content.keys() != names:
            raise ValueError(f"expected a JSON object with {', '.join(sorted(names))}, got {text[:200]}")
        return cls(**content)


@dataclass(frozen=True)
class EncodedTexts:
    """One request's texts as arrays; ``B`` texts, ``L`` tokens in the padded row."""

    #: ``[B, L]`` int64.
    input_ids: np.ndarray
    #: ``[B, L]`` int64: 1 on tokens, 0 on padding.
    attention_mask: np.ndarray
    #: ``[B, L, 2]`` int32: first character and the one after the last, in the text as it came; -1 on
    #: special tokens and padding. ``None`` for text classification.
    offsets: np.ndarray | None = None
    #: ``[B, L]`` int32: the pre-tokenizer's word that the token is part of; -1 on special tokens and
    #: padding. ``None`` for text classification.
    word_ids: np.ndarray | None = None


class TextEncoder:
    """A tokenizer with its limits.

    Args:
        tokenizer: its own padding and truncation are switched off; ``settings`` decide.
        settings: limits and padding.
    """

    def __init__(self, tokenizer: Tokenizer, settings: EncodingSettings) -> None:
        tokenizer.no_padding()
        if settings.truncation:
            tokenizer.enable_truncation(settings.max_length)
        else:
            tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._settings = settings
        self._with_words = settings.task == "token-classification"

    @classmethod
    def load(cls, folder: Path) -> TextEncoder:
        """Read ``tokenizer.json`` and ``settings.json`` from a version folder."""
        settings = EncodingSettings.loads((folder / "settings.json").read_text(encoding="utf-8"))
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), settings)

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode texts into rows of one length.

        Raises:
            TextError: a text has too many tokens, or none.
        """
        return self._arrays(self._tokenize(texts))

    def encode_requests(self, requests: Sequence[Iterable[bytes]]) -> list[EncodedTexts | TextError]:
        """Encode requests that Triton batched: tokenized in one call, but each request is padded to its
        own longest text, and an unusable text fails its own request alone.

        Args:
            requests: UTF-8 texts of each request.

        Returns:
            One result a request, in order.
        """
        texts: list[str] = []
        slices: list[slice | TextError] = []
        for raw in requests:
            try:
                decoded = decode_texts(raw)
            except TextError as exc:
                slices.append(exc)
            else:
                slices.append(slice(len(texts), len(texts) + len(decoded)))
                texts += decoded
        encodings = self._tokenize(texts)
        return [part if isinstance(part, TextError) else self._try_arrays(encodings[part]) for part in slices]

    def _tokenize(self, texts: Sequence[str]) -> list[Encoding]:
        # The fast variant leaves out offsets; token ids are the same.
        encode = self._tokenizer.encode_batch if self._with_words else self._tokenizer.encode_batch_fast
        return list(encode(list(texts)))

    def _try_arrays(self, encodings: Sequence[Encoding]) -> EncodedTexts | TextError:
        try:
            return self._arrays(encodings)
        except TextError as exc:
            return exc

    def _arrays(self, encodings: Sequence[Encoding]) -> EncodedTexts:
        ids = [encoding.ids for encoding in encodings]
        lengths = np.array([len(row) for row in ids])
        self._check(encodings, lengths)
        longest = int(lengths.max(initial=0))
        width = next((length for length in self._settings.padded_lengths if length >= longest), longest)
        filled = np.arange(width) < lengths[:, None]  # [B, L]
        input_ids = _rows(filled, ids, np.int64, self._settings.pad_token_id)
        attention_mask = filled.astype(np.int64)
        if not self._with_words:
            return EncodedTexts(input_ids, attention_mask)
        words = [[-1 if word is None else word for word in encoding.word_ids] for encoding in encodings]
        word_ids = _rows(filled, words, np.int32, -1)
        offsets = _rows(filled, [encoding.offsets for encoding in encodings], np.int32, -1, (2,))
        offsets[word_ids < 0] = -1
        return EncodedTexts(input_ids, attention_mask, offsets, word_ids)

    def _check(self, encodings: Sequence[Encoding], lengths: np.ndarray) -> None:
        limit = self._settings.max_length
        too_long = np.flatnonzero(lengths > limit)
        if too_long.size:
            raise TextError(
                f"text {too_long[0]} has {lengths[too_long[0]]} tokens, this model takes at most {limit}: "
                "shorten it, or build with text.truncation = true"
            )
        for index, encoding in enumerate(encodings):
            if all(encoding.special_tokens_mask):
                raise TextError(f"text {index} has no tokens: the tokenizer drops every character of it")


def _rows(
    filled: np.ndarray, values: Sequence[Sequence[Any]], dtype: type, padding: int, item: tuple[int, ...] = ()
) -> np.ndarray:
    """Lay ragged ``values`` into the true cells of ``filled`` ``[B, L]``; ``item`` is one value's shape."""
    rows = np.full((*filled.shape, *item), padding, dtype)
    rows[filled] = np.array(list(chain.from_iterable(values)), dtype).reshape(-1, *item)
    return rows
