"""Texts to token ids, for a whole batch of requests at once."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from .texts import TextError, decode_texts

#: Scripts without spaces between words: Han, kana, Thai, Lao, Tibetan, Burmese, Khmer.
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """How texts become token ids: the content of ``settings.json``."""

    #: ``token-classification`` asks for words too.
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
    #: ``[B, L, 2]`` int32: on the first token of each word (see :func:`_words`) the word's first character
    #: and the one after its last, in the text as it came; -1 on all other tokens and on padding. ``None`` for
    #: text classification.
    words: np.ndarray | None = None


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
        self._special_tokens = tokenizer.num_special_tokens_to_add(False)

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
        return self._arrays(self._tokenize(texts), 0, len(texts))

    def encode_requests(self, requests: Sequence[Iterable[bytes]]) -> list[EncodedTexts | TextError]:
        """Encode requests that Triton batched: tokenized in one call, but each request is padded to its
        own longest text, and an unusable text fails its own request alone.

        Args:
            requests: UTF-8 texts of each request.

        Returns:
            One result a request, in order.
        """
        texts: list[str] = []
        parts: list[tuple[int, int] | TextError] = []
        for raw in requests:
            try:
                decoded = decode_texts(raw)
            except TextError as exc:
                parts.append(exc)
            else:
                parts.append((len(texts), len(texts) + len(decoded)))
                texts += decoded
        tokens = self._tokenize(texts)
        return [part if isinstance(part, TextError) else self._try_arrays(tokens, *part) for part in parts]

    def _tokenize(self, texts: Sequence[str]) -> _Tokens:
        # The fast variant leaves out offsets; token ids are the same.
        encode = self._tokenizer.encode_batch if self._with_words else self._tokenizer.encode_batch_fast
        encodings = encode(list(texts))
        ids = [encoding.ids for encoding in encodings]
        lengths = [len(row) for row in ids]
        count = sum(lengths)
        flat = np.fromiter(chain.from_iterable(ids), np.int64, count)
        starts = list(accumulate(lengths, initial=0))
        words = _words(texts, encodings, starts) if self._with_words else None
        return _Tokens(encodings, lengths, starts, flat, words)

    def _try_arrays(self, tokens: _Tokens, first: int, end: int) -> EncodedTexts | TextError:
        try:
            return self._arrays(tokens, first, end)
        except TextError as exc:
            return exc

    def _arrays(self, tokens: _Tokens, first: int, end: int) -> EncodedTexts:
        """Rows of the texts from ``first`` to ``end``."""
        lengths = tokens.lengths[first:end]
        self._check(tokens.encodings[first:end], lengths)
        longest = max(lengths, default=0)
        width = next((length for length in self._settings.padded_lengths if length >= longest), longest)
        cells = slice(tokens.starts[first], tokens.starts[end])
        # None is needed where every row is as long, as that of a single text.
        filled = None
        if len(lengths) * width != cells.stop - cells.start:
            filled = np.arange(width) < np.array(lengths)[:, None]  # [B, L]
        shape = (len(lengths), width)

        def rows(values: np.ndarray, padding: int) -> np.ndarray:
            """``[B, L, …]`` of the tokens' values ``[T, …]``."""
            own = values[cells]
            if filled is None:
                return own.reshape(*shape, *own.shape[1:])
            padded = np.full((*shape, *own.shape[1:]), padding, own.dtype)
            padded[filled] = own
            return padded

        return EncodedTexts(
            rows(tokens.ids, self._settings.pad_token_id),
            np.ones(shape, np.int64) if filled is None else filled.astype(np.int64),
            None if tokens.words is None else rows(tokens.words, -1),
        )

    def _check(self, encodings: Sequence[Encoding], lengths: Sequence[int]) -> None:
        limit = self._settings.max_length
        for index, (encoding, length) in enumerate(zip(encodings, lengths, strict=True)):
            if length > limit:
                raise TextError(
                    f"text {index} has {length} tokens, this model takes at most {limit}: "
                    "shorten it, or build with text.truncation = true"
                )
            # Only then can the special tokens be all that there is.
            if length <= self._special_tokens and all(encoding.special_tokens_mask):
                raise TextError(f"text {index} has no tokens: the tokenizer drops every character of it")


@dataclass(frozen=True)
class _Tokens:
    """Texts of several requests, their ``T`` tokens one after the other."""

    encodings: list[Encoding]
    #: Tokens of each text.
    lengths: list[int]
    #: Where each text begins, and at last where they all end.
    starts: list[int]
    #: ``[T]``.
    ids: np.ndarray
    #: ``[T, 2]``, as in :class:`EncodedTexts`.
    words: np.ndarray | None


def _words(texts: Sequence[str], encodings: Sequence[Encoding], starts: Sequence[int]) -> np.ndarray:
    """Begin and end of each word on its first token, ``[T, 2]``; texts begin at ``starts``.

    Words are the pre-tokenizer's, parted where a token ends at white space or punctuation, or in a script
    without spaces: SentencePiece's pre-tokenizers leave ``("Paris",`` and a whole Chinese sentence one word,
    whose first token would decide for all of it.
    """
    count = starts[-1]
    named = chain.from_iterable(encoding.word_ids for encoding in encodings)
    word_ids = np.fromiter((-1 if word is None else word for word in named), np.int32, count)
    pairs = chain.from_iterable(encoding.offsets for encoding in encodings)
    offsets = np.fromiter(chain.from_iterable(pairs), np.int32, 2 * count).reshape(count, 2)
    # Where a token does not go on with the word before it; a text always begins with one that doesn't.
    new = np.ones(count + 1, bool)
    new[1:-1] = word_ids[1:] != word_ids[:-1]
    new[starts] = True
    real = word_ids >= 0
    later = np.flatnonzero(real & ~new[:-1])
    rows = np.searchsorted(starts, later, side="right") - 1
    for token, row, before, here in zip(
        later.tolist(), rows.tolist(), offsets[later - 1].tolist(), offsets[later].tolist(), strict=True
    ):
        new[token] = _parts(texts[row], *before, *here)
    words = np.full((count, 2), -1, np.int32)
    first = real & new[:-1]
    words[first, 0] = offsets[first, 0]
    words[first, 1] = offsets[real & new[1:], 1]
    return words


def _parts(text: str, begin: int, end: int, start: int, stop: int) -> bool:
    """Whether the token ``text[start:stop]`` begins a word, after ``text[begin:end]`` of the same one."""
    # Tokens of bytes share a character; the space before a word may be a token, or in its first one.
    if start < end or start == stop or not text[begin:end].strip():
        return False
    kinds = _kind(text[end - 1]), _kind(text[start])
    return "other" in kinds and kinds[1] != "mark"


@lru_cache(maxsize=65536)
def _kind(character: str) -> str:
    """``letter`` (or digit) of a script with spaces, ``mark`` on or within a word, or ``other``."""
    category = unicodedata.category(character)
    if category[0] == "M" or category == "Cf":
        return "mark"
    return "letter" if character.isalnum() and not _UNSPACED.match(character) else "other"
