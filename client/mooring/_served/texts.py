"""What a request's text may be, whatever the task."""

from __future__ import annotations

from collections.abc import Iterable

#: Longest text in characters, far beyond any model's tokens: tokenizing takes seconds for millions, and all
#: other callers wait meanwhile.
MOST_CHARACTERS = 100_000


class TextError(ValueError):
    """A text that the model does not take; the message names its position in the request."""


def check_text(text: str, index: int) -> str:
    """Return the text at place ``index`` of a request.

    Raises:
        TextError: it has nothing but white space, or more than :data:`MOST_CHARACTERS`.
    """
    if len(text) > MOST_CHARACTERS:
        raise TextError(
            f"text {index} has {len(text):,} characters, at most {MOST_CHARACTERS:,} are taken: cut it up"
        )
    if not text:
        raise TextError(f"text {index} is empty")
    if text.isspace():
        raise TextError(f"text {index} is empty: it has only white space")
    return text


def decode_texts(raw: Iterable[bytes]) -> list[str]:
    """Turn the bytes of a request into texts.

    Raises:
        TextError: a text is not UTF-8, or as in :func:`check_text`.
    """
    texts = []
    for index, value in enumerate(raw):
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise TextError(f"text {index} is not valid UTF-8 (byte {exc.start})") from exc
        texts.append(check_text(text, index))
    return texts
