"""Where a text holds e-mail addresses, IBANs, payment cards and phone numbers; see :mod:`mooring.redaction`.

Every search takes time in proportion to the text, whatever the text: the regular expressions have no two ways
to match the same characters, and windows over numbers have a largest width. Each kind is searched in what the
stronger kinds before it left over, and what lies between two finds is judged as if they were brackets. That
is what makes redacting twice the same as redacting once.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

EMAIL, IBAN, CARD, PHONE = "EMAIL", "IBAN", "CARD", "PHONE"


@dataclass(frozen=True, order=True, kw_only=True)
class Finding:
    """Personal data at ``text[start:end]``, in characters (code points)."""

    start: int
    end: int
    #: ``EMAIL``, ``IBAN``, ``CARD``, ``PHONE`` or ``NAME``.
    kind: str


def find_personal_data(text: str, taken: Iterable[Finding] = ()) -> list[Finding]:
    """Everything but names, in the order of the text.

    Args:
        text: any text.
        taken: what is known already; it is not searched, and no find reaches across it.
    """
    before = set(taken)
    known = sorted(before)
    for kinds in (_emails, _ibans, _numbers):
        known += [
            Finding(start=start + low, end=start + high, kind=kind)
            for start, end in gaps(known, len(text))
            for low, high, kind in kinds(text[start:end])
        ]
        known.sort()
    return [finding for finding in known if finding not in before]


def gaps(taken: Sequence[Finding], length: int) -> Iterator[tuple[int, int]]:
    """What lies before, between and after sorted findings that do not overlap."""
    at = 0
    for finding in taken:
        if at < finding.start:
            yield at, finding.start
        at = finding.end
    if at < length:
        yield at, length


_Span = tuple[int, int, str]

# E-mail: from each @ outwards, so that no character is looked at more than twice.

_AT = re.compile("[@\uff20]")
_LOCAL_MARKS = frozenset("._%+-&'*!#$~^")
# Scripts written without spaces: a word in one of them goes straight on into an address.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]"
)


def _emails(text: str) -> Iterator[_Span]:
    floor = 0
    while match := _AT.search(text, floor):
        at = match.start()
        start, end = _local_start(text, floor, at), _domain_end(text, at + 1)
        floor = at + 1
        if start < at and end:
            yield start, end, EMAIL
            floor = end


def _local_start(text: str, floor: int, at: int) -> int:
    start = at
    mixed = at > floor and _UNSPACED.match(text[at - 1])
    while start > floor and (_is_word(text[start - 1]) or text[start - 1] in _LOCAL_MARKS):
        if not mixed and _UNSPACED.match(text[start - 1]):
            break
        start -= 1
    while start < at and not _is_word(text[start]):
        start += 1
    return start


def _domain_end(text: str, start: int) -> int:
    """End of a name with a dot and a last label that can be a top-level domain; 0 without one."""
    end = start
    mixed = start < len(text) and _UNSPACED.match(text[start])
    while end < len(text) and (_is_word(text[end]) or text[end] in "-."):
        if not mixed and _UNSPACED.match(text[end]):
            break
        end += 1
    labels = []
    for label in text[start:end].split("."):
        bare = label.rstrip("-")
        if not bare or bare.startswith("-"):
            break
        labels.append(bare)
        if bare != label:
            break
    while labels and not (len(labels[-1]) > 1 and labels[-1][0].isalpha()):
        labels.pop()
    return start + len(".".join(labels)) if len(labels) > 1 else 0


def _is_word(char: str) -> bool:
    # Marks too: an accent may be a character of its own.
    return unicodedata.category(char)[0] in "LMN"


# IBAN: lengths as in the SWIFT registry (https://www.swift.com/standards/data-standards/iban), check digits
# as in ISO 7064 MOD 97-10.

_COUNTRIES = """
15 NO; 16 BE; 18 DK FI FK FO GL NL SD; 19 MK SI; 20 AT BA EE KZ LT LU MN XK; 21 CH HR LI LV;
22 BG BH CR DE GB GE IE ME RS VA; 23 AE GI IL IQ OM SO TL; 24 AD CZ ES MD PK RO SA SE SK TN VG;
25 LY PT ST; 26 IS TR; 27 BI DJ FR GR IT MC MR SM; 28 AL AZ BY CY DO GT HN HU LB NI PL SV;
29 BR EG PS QA UA; 30 JO KW MU YE; 31 MT SC; 32 LC; 33 RU
"""
IBAN_LENGTHS = {
    country: int(length)
    for length, *countries in (row.split() for row in _COUNTRIES.split(";"))
    for country in countries
}
# Unicode's Zs.
_SPACES = " \u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_HYPHENS = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\uff0d"
_PLUSES = ("+", "\uff0b")
_DOTS = ".\u00b7"
_MARKS = frozenset(_SPACES + _HYPHENS)
#: In a row, between two groups, such as " - ".
_MOST_MARKS = 3
_IBAN_START = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=[Ii][Bb][Aa][Nn]))"
    rf"[A-Za-z]{{2}}[{re.escape(_SPACES + _HYPHENS)}]{{0,{_MOST_MARKS}}}[0-9]{{2}}"
)


def _ibans(text: str) -> Iterator[_Span]:
    floor = 0
    for match in _IBAN_START.finditer(text):
        end = _iban_end(text, match.start()) if match.start() >= floor else 0
        if end:
            yield match.start(), end, IBAN
            floor = end


def _iban_end(text: str, start: int) -> int:
    """End of the IBAN that starts here; 0 where none does."""
    length = IBAN_LENGTHS.get(text[start : start + 2].upper(), 0)
    at, number, marks = start, "", 0
    while at < len(text) and len(number) < length:
        char = text[at]
        if char.isascii() and char.isalnum():
            number += char
            marks = 0
        elif char in _MARKS and marks < _MOST_MARKS:
            marks += 1
        else:
            return 0
        at += 1
    goes_on = at < len(text) and text[at].isascii() and text[at].isalnum()
    if not length or len(number) < length or goes_on:
        return 0
    return at if int("".join(str(int(char, 36)) for char in number[4:] + number[:4])) % 97 == 1 else 0


# Cards and phones: runs of digit groups, parted by up to three marks.

_RUN = re.compile(rf"\d+(?:[{re.escape(_SPACES + _HYPHENS + _DOTS)}/()]{{1,{_MOST_MARKS}}}\d+)*")
_DIGITS = re.compile(r"\d+")


class _Group(NamedTuple):
    """Digits of a run, and the marks between them and the group before."""

    start: int
    end: int
    #: In ASCII, whatever the script.
    digits: str
    before: str


# The index after the last group of a number that starts at group ``at``; 0 where none does. ``low`` is where
# the piece begins: what stood before it counts no more.
_Rule = Callable[[str, Sequence[_Group], int, int], int]


def _numbers(text: str) -> Iterator[_Span]:
    for run in _RUN.finditer(text):
        yield from _judge(text, _groups(text, run.start(), run.end()))


def _judge(text: str, piece: Sequence[_Group]) -> Iterator[_Span]:
    """Cards first: they have a check digit. What is left between two finds may be one as a whole."""
    for part in _split(text, piece, _card_at):
        if isinstance(part, tuple):
            yield *part, CARD
            continue
        for rest in _split(text, part, _phone_at):
            if isinstance(rest, tuple):
                yield *rest, PHONE
            elif _is_card(text, rest):
                yield rest[0].start, rest[-1].end, CARD


def _groups(text: str, start: int, end: int) -> list[_Group]:
    groups: list[_Group] = []
    for match in _DIGITS.finditer(text, start, end):
        before = text[groups[-1].end : match.start()] if groups else ""
        digits = "".join(str(int(char)) for char in match[0])
        groups.append(_Group(match.start(), match.end(), digits, before))
    # Digits that go on as a word are part of a name or a code.
    if groups and _is_letter(text, end):
        groups.pop()
    if groups and start and _is_letter(text, start - 1):
        groups.pop(0)
    return groups


def _is_letter(text: str, at: int) -> bool:
    return at < len(text) and text[at].isascii() and (text[at].isalpha() or text[at] == "_")


def _split(text: str, piece: Sequence[_Group], rule: _Rule) -> Iterator[tuple[int, int] | Sequence[_Group]]:
    """Spans of what the rule finds, from the left, and the pieces between them."""
    low = at = 0
    while at < len(piece):
        after = rule(text, piece, low, at)
        if not after:
            at += 1
            continue
        if low < at:
            yield piece[low:at]
        yield _opening(text, piece[at].start, piece[after - 1].end), piece[after - 1].end
        low = at = after
    if low < len(piece):
        yield piece[low:]


def _opening(text: str, start: int, end: int) -> int:
    """Where a number starts that may have a ``+`` and an open bracket before its first digit."""
    if start and text[start - 1] in _PLUSES:
        start -= 1
    closes, opens = text.find(")", start, end), text.find("(", start, end)
    if start and text[start - 1] == "(" and closes >= 0 and not 0 <= opens < closes:
        start -= 1
    return start


# Payment cards: ISO/IEC 7812, 12 to 19 digits of which the last checks the others; none starts with 0.

_LARGEST_CARD = 19


def _card_at(text: str, piece: Sequence[_Group], low: int, at: int) -> int:
    """Printed as cards are: groups of four digits or more, but for the last."""
    if at == low and _is_card(text, piece[low : low + _LARGEST_CARD + 1]):
        return len(piece)
    number, found = "", 0
    for after in range(at + 1, len(piece) + 1):
        group = piece[after - 1]
        number += group.digits
        if len(number) > _LARGEST_CARD or (after > at + 1 and not _MARKS.issuperset(group.before)):
            break
        if len(group.digits) > 1 and _is_card_number(text, piece[at].start, number):
            found = after
        if len(group.digits) < 4:
            break
    return found


def _is_card(text: str, piece: Sequence[_Group]) -> bool:
    """Whether all of a piece is one card number, read out in groups of one length but for the last.

    Any grouping would do for a card, but would make one of every tenth row of small numbers too.
    """
    if len(piece) > _LARGEST_CARD or any(group.before not in _MARKS for group in piece[1:]):
        return False
    lengths, marks = {len(group.digits) for group in piece[:-1]}, {group.before for group in piece[1:]}
    if len(lengths) > 1 or len(marks) > 1 or len(piece[-1].digits) > min(lengths, default=_LARGEST_CARD):
        return False
    return _is_card_number(text, piece[0].start, "".join(group.digits for group in piece))


def _is_card_number(text: str, start: int, number: str) -> bool:
    if not 12 <= len(number) <= _LARGEST_CARD or number[0] == "0" or text[start - 1 : start] in _PLUSES:
        return False
    # Luhn: every second digit from the right counts twice, and 9 less where that has two digits.
    doubled = (2 * int(digit) for digit in number[-2::-2])
    total = sum(map(int, number[::-2])) + sum(value - 9 if value > 9 else value for value in doubled)
    return total % 10 == 0


# Phones: see the rules in mooring.redaction.

_NANP = re.compile("1?[2-9][0-9]{2}[2-9][0-9]{6}")
_CHINESE_MOBILE = re.compile("1[3-9][0-9]{9}")
_GROUPED = {
    (3, 3, 4): _NANP,
    (1, 3, 3, 4): _NANP,
    (3, 4, 4): _CHINESE_MOBILE,
    (10,): _NANP,
    (11,): re.compile(f"{_NANP.pattern}|{_CHINESE_MOBILE.pattern}"),
}


def _phone_at(text: str, piece: Sequence[_Group], low: int, at: int) -> int:
    first = piece[at]
    mark = text[first.start - 1] if first.start else ""
    if mark in _PLUSES:
        return _longest(piece, at, 7, 15, slash_anywhere=True)
    if at > low and not first.before.strip("(").isspace():
        return 0
    if first.digits.startswith("00"):
        return _longest(piece, at, 9, 17, slash_anywhere=True)
    if first.digits.startswith("0"):
        if len(first.digits) < 2 or _is_date(piece, at):
            return 0
        return _longest(piece, at, 9, 12, shortest_group=2)
    if mark and unicodedata.category(mark) == "Sc":
        return 0
    for sizes, pattern in _GROUPED.items():
        groups = piece[at : at + len(sizes)]
        fits = tuple(len(group.digits) for group in groups) == sizes
        if fits and pattern.fullmatch("".join(group.digits for group in groups)) and _evenly_parted(groups):
            after = at + len(sizes)
            return 0 if after < len(piece) and piece[after].before in _DOTS else after
    return 0


def _longest(
    piece: Sequence[_Group],
    at: int,
    fewest: int,
    most: int,
    *,
    shortest_group: int = 1,
    slash_anywhere: bool = False,
) -> int:
    """The most groups from here on that have so many digits and are parted as a phone number is."""
    count, found = 0, 0
    for after in range(at + 1, len(piece) + 1):
        size = len(piece[after - 1].digits)
        count += size
        if count > most or size < shortest_group:
            break
        if count >= fewest and _evenly_parted(piece[at:after], slash_anywhere=slash_anywhere):
            found = after
    return found


def _evenly_parted(groups: Sequence[_Group], *, slash_anywhere: bool = False) -> bool:
    """Dots only throughout, as otherwise they are decimal points; one slash, after the area code: that is
    the first group, but where a country's code may come before it."""
    marks = [group.before for group in groups[1:]]
    dots = sum(any(dot in mark for dot in _DOTS) for mark in marks)
    slashes = "".join(marks if slash_anywhere else marks[1:]).count("/")
    return dots in (0, len(marks)) and slashes <= slash_anywhere


def _is_date(piece: Sequence[_Group], at: int) -> bool:
    """Day, month and year, or the end of year, month and day."""
    sizes = tuple(len(group.digits) for group in piece[at : at + 3])
    marks = [group.before for group in piece[at + 1 : at + 4]]
    goes_on = len(marks) == 3 and marks[2] == marks[1]
    return sizes in ((2, 2, 4), (2, 2, 2)) and marks[0] == marks[1] in ("-", "/", *_DOTS) and not goes_on
