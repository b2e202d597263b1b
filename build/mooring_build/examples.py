"""What models are trained and scored on, example by example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TaggedSentence:
    """A sentence as CoNLL has it: ``tokens[i]`` carries the BIO tag ``tags[i]``."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    #: What stands between two tokens in the text; nothing where tokens are characters.
    separator: str = " "

    @property
    def text(self) -> str:
        return self.separator.join(self.tokens)


@dataclass(frozen=True)
class LabelledText:
    """A text and its one label."""

    text: str
    label: str


@dataclass(frozen=True)
class LabelledRow:
    """A row of numbers and its label."""

    features: tuple[float, ...]
    label: str


@dataclass(frozen=True)
class LabelledImage:
    """An image among others, which is not looked at before it is asked for, and its label."""

    images: Sequence[Any]
    index: int
    label: str

    @property
    def image(self) -> Any:
        """An encoded file's bytes, or uint8 ``[H, W]`` or ``[H, W, 3]``."""
        return self.images[self.index]


@dataclass(frozen=True)
class HeadText:
    """A text and its label for one of several classifications."""

    text: str
    head: str
    label: str


@dataclass(frozen=True)
class Visits:
    """What one user chose, oldest first, without the last, which is held out."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class NextItem:
    """What one user chose last, after everything else that the user chose, oldest first."""

    history: tuple[str, ...]
    item: str


@dataclass(frozen=True)
class Message:
    """A customer's message, with what is right for it."""

    text: str
    #: Empty where it has none of the known ones.
    intent: str
    #: Empty where the knowledge base does not answer it.
    item: str
    handover: bool


Example = TaggedSentence | LabelledText | LabelledRow | LabelledImage | HeadText | Visits | NextItem | Message


@dataclass(frozen=True)
class Split:
    """One split as it was read."""

    examples: Sequence[Example]
    #: Where it came from, for messages.
    source: str
    #: SHA-256 over the examples, or over the files that they came from.
    digest: str
