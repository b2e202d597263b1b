"""Take personal data out of texts before they are sent, logged, stored or trained on.

::

    from mooring.redaction import Redactor

    redact = Redactor()
    found = redact("Write to anna@example.com or call +44 20 7946 0958.")
    print(found.text)  # Write to [EMAIL] or call [PHONE].
    print([(part.kind, part.start, part.end) for part in found.findings])

============  ==========================================================================================
replacement   what it stands for
============  ==========================================================================================
``[EMAIL]``   an e-mail address, also with letters beyond ASCII
``[IBAN]``    an account number of a country in the IBAN registry: its length and check digits are right
``[CARD]``    a payment card's number: 12 to 19 digits, spaces or hyphens between them, right by Luhn's check
``[PHONE]``   a phone number, see below
``[NAME]``    a name, where a token classifier is given
============  ==========================================================================================

Phone numbers have no check digit, and the patterns of every country, as the library ``phonenumbers`` has
them, are more than a light client should carry. The rule here knows how numbers are written instead:

- ``+`` and 7 to 15 digits (E.164), or ``00`` and 7 to 15 more;
- a first group of two digits or more that starts with 0, and 9 to 12 digits in all: the national numbers of
  most countries;
- North American numbers, ten digits alone or as 3-3-4, with or without 1 before;
- Chinese mobile numbers, eleven digits alone or as 3-4-4.

Digits may be parted by spaces, hyphens, brackets, dots (all through) and one slash. Dates, decimal numbers
and amounts with a currency sign before them are left alone. So the rule misses numbers without any prefix,
such as ``555-0123`` or ``612 34 56 78``, and takes an order number that begins with 0 for a phone number.

Cards are found in groups of four digits or more (the last may be shorter) with up to three spaces and hyphens
between them, or where all of a row of digits is one card number in groups of one length. One in ten numbers
of such a length passes Luhn's check by chance.

Where two kinds could claim the same characters, the one with the harder proof has them: e-mail, IBAN, card,
phone, name; among numbers of one kind the first, and of those that start together the longest.

Redacting twice changes nothing more, as long as ``names`` finds nothing new in a redacted text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from mooring._errors import ConfigError
from mooring._personal_data import Finding, find_personal_data, gaps
from mooring._task_kinds import Entity

__all__ = ["Finding", "Redaction", "Redactor"]

_NAME = "NAME"
_REPLACED = re.compile(r"\[(EMAIL|IBAN|CARD|PHONE|NAME)\]")


@dataclass(frozen=True, kw_only=True)
class Redaction:
    """A text without its personal data, and what was taken out."""

    #: Each finding replaced by its kind in brackets, such as ``[EMAIL]``.
    text: str
    #: Places in the original text, in order; none overlaps another.
    findings: tuple[Finding, ...]


class Redactor:
    """Finds personal data and replaces it.

    Args:
        names: finds names: any callable from a text to entities, such as ``client.task("ner")``. ``None``
            looks for none. What it raises ends the call: a text whose names are unknown is not given back.
        name_labels: labels of entities that are names.
    """

    def __init__(
        self,
        *,
        names: Callable[[str], Sequence[Entity]] | None = None,
        name_labels: Collection[str] = ("PER",),
    ) -> None:
        if isinstance(name_labels, str):
            raise ConfigError(f"name_labels is the str {name_labels!r}: expected a collection of labels")
        self._names = names
        self._name_labels = frozenset(name_labels)

    def __call__(self, text: str) -> Redaction:
        """Redact one text.

        Raises:
            ConfigError: ``names`` gave an entity that is not within the text.
        """
        asks = self._names is not None and bool(text) and not text.isspace()
        return self.redact(text, self._names(text) if asks and self._names else ())

    def redact(self, text: str, entities: Sequence[Entity] = ()) -> Redaction:
        """Redact a text whose entities are known already, as after a request for many texts.

        Args:
            text: as it came.
            entities: of this text; those with other labels than ``name_labels`` are passed over.

        Raises:
            ConfigError: an entity is not within the text.
        """
        replaced = [
            Finding(start=match.start(), end=match.end(), kind=match[1]) for match in _REPLACED.finditer(text)
        ]
        found = find_personal_data(text, replaced)
        names = self._name_findings(text, entities, [*replaced, *found])
        if names:
            found += names
            # A number that a name was glued to stands alone now.
            found += find_personal_data(text, [*replaced, *found])
        found.sort()
        parts: list[str] = []
        at = 0
        for finding in found:
            parts += text[at : finding.start], f"[{finding.kind}]"
            at = finding.end
        return Redaction(text="".join([*parts, text[at:]]), findings=tuple(found))

    def _name_findings(
        self, text: str, entities: Sequence[Entity], taken: Sequence[Finding]
    ) -> list[Finding]:
        """What the entities cover and nothing stronger does."""
        covered = bytearray(len(text))
        for entity in entities:
            if not 0 <= entity.start < entity.end <= len(text):
                raise ConfigError(
                    f"names gave an entity at {entity.start}:{entity.end} of a text of {len(text)} characters"
                )
            if entity.label in self._name_labels:
                covered[entity.start : entity.end] = b"\1" * (entity.end - entity.start)
        names = []
        for low, high in gaps(sorted(taken), len(text)):
            for match in re.finditer(b"\1+", covered[low:high]):
                part = text[low + match.start() : low + match.end()]
                start = low + match.start() + len(part) - len(part.lstrip())
                if any(map(str.isalnum, part)):
                    names.append(Finding(start=start, end=start + len(part.strip()), kind=_NAME))
        return names
