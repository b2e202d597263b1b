"""How often redaction fires on real texts: customers' questions and news, with hardly any personal data."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooring.redaction import Redactor
from shared_data import shared_data


def _banking77(folder: Path) -> Iterator[str]:
    for name in ("train.csv", "test.csv"):
        with (folder / name).open(encoding="utf-8", newline="") as file:
            yield from (row["text"] for row in csv.DictReader(file))


def _clinc150(folder: Path) -> Iterator[str]:
    splits = json.loads((folder / "data_full.json").read_text(encoding="utf-8"))
    yield from (text for rows in splits.values() for text, _ in rows)


def _financial_phrasebank(folder: Path) -> Iterator[str]:
    lines = (folder / "Sentences_50Agree.txt").read_text(encoding="latin-1").splitlines()
    yield from (line.rpartition("@")[0] for line in lines)


def _financial_topic(folder: Path) -> Iterator[str]:
    for name in ("train_data.csv", "valid_data.csv"):
        with (folder / name).open(encoding="utf-8", newline="") as file:
            yield from (row["text"] for row in csv.DictReader(file))


# Texts, what is found, and how much of that is wrong: each find was looked at.
SETS = {
    "banking77": (_banking77, 13_083, {}, 0),
    "clinc150": (_clinc150, 23_700, {}, 0),
    # One is a company's register number, the others are phone numbers.
    "financial_phrasebank": (_financial_phrasebank, 4_846, {"PHONE": 16}, 1),
    "financial_topic": (_financial_topic, 21_107, {}, 0),
}


@pytest.mark.parametrize("name", SETS)
def test_it_fires_on_what_is_there_and_hardly_on_more(name: str) -> None:
    read, size, kinds, wrong = SETS[name]
    redact = Redactor()
    count, found, plain = 0, {}, 0
    for text in read(shared_data(name)):
        count += 1
        redaction = redact(text)
        assert redact(redaction.text).findings == ()
        for part in redaction.findings:
            found[part.kind] = found.get(part.kind, 0) + 1
            # All phone numbers in these sets are international ones.
            plain += not text[part.start : part.end].startswith("+")
    assert (count, found, plain) == (size, kinds, wrong)
