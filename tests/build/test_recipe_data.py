"""The data sets that ship with the recipes are what their README says."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest

from mooring_build.data_files import read_conll, read_csv
from mooring_build.examples import LabelledText, TaggedSentence

DATA = Path(__file__).parents[2] / "build/recipes/data"
README = (DATA / "README.md").read_text(encoding="utf-8")
SPLITS = ("train", "eval")
#: Begins the README's rows that belong to the set above them.
DASH = "\N{EN DASH}"

#: Every CSV file of texts here; none may repeat another's.
TEXT_FILES = [
    *(f"{name}/{split}.csv" for name in ("intent", "topic", "sentiment") for split in SPLITS),
    "intent/out_of_scope.csv",
    "intent/out_of_scope_eval.csv",
    "opinion_monitor/stream.csv",
]

#: Enough to tell the stream's surge from the other headlines of those hours.
ENERGY_WORDS = re.compile(
    r"\b(gas|power|electricity|energy|oil|blackouts|pipeline|fuel|nordgass|skarvoy)\b", re.I
)


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def labelled(name: str) -> list[LabelledText]:
    return cast("list[LabelledText]", read_csv(DATA / name, text_column="text", label_column="label"))


def tagged(name: str) -> list[TaggedSentence]:
    return cast("list[TaggedSentence]", read_conll(DATA / name))


def stated(row: str) -> list[str]:
    """The training and evaluation cells of the README's row that starts with `row`."""
    found = re.findall(rf"^\| {re.escape(row)} \| ([^|]*) \| ([^|]*) \|", README, re.MULTILINE)
    assert found, f"the README has no row {row!r}"
    return list(found[0])


def section(heading: str) -> str:
    return README.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def comparable(text: str) -> str:
    """The text without case, punctuation and spaces, so that near copies look alike."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum()) or text


def entities(sentences: list[TaggedSentence]) -> Counter[tuple[str, str]]:
    """How often each (type, name) occurs."""
    found: list[tuple[str, str]] = []
    for sentence in sentences:
        for token, tag in zip(sentence.tokens, sentence.tags, strict=True):
            if tag.startswith("B-"):
                found.append((tag[2:], token))
            elif tag != "O":
                found[-1] = (found[-1][0], f"{found[-1][1]} {token}")
    return Counter(found)


def repeated(texts: list[str]) -> list[str]:
    return [text for text, count in Counter(map(comparable, texts)).items() if count > 1]


def test_no_text_occurs_twice() -> None:
    assert repeated([row["text"] for name in TEXT_FILES for row in rows(name)]) == []


@pytest.mark.parametrize("name", ["ner", "ner_zh"])
def test_no_sentence_occurs_twice(name: str) -> None:
    sentences = [sentence.text for split in SPLITS for sentence in tagged(f"{name}/{split}.conll")]
    assert repeated(sentences) == []


@pytest.mark.parametrize(
    "path", [*TEXT_FILES, *(f"{n}/{s}.conll" for n in ("ner", "ner_zh") for s in SPLITS)]
)
def test_files_are_plain_text(path: str) -> None:
    text = (DATA / path).read_bytes().decode("utf-8")
    assert text.endswith("\n")
    assert unicodedata.is_normalized("NFC", text)
    assert [c for c in text if c != "\n" and not c.isprintable()] == []


@pytest.mark.parametrize("path", [path for path in TEXT_FILES if path != "opinion_monitor/stream.csv"])
def test_texts_are_single_trimmed_lines(path: str) -> None:
    assert [row["text"] for row in rows(path) if row["text"] != " ".join(row["text"].split())] == []


@pytest.mark.parametrize(
    ("name", "noun"), [("intent", "messages"), ("topic", "headlines"), ("sentiment", "sentences")]
)
def test_labels_are_complete_and_balanced(name: str, noun: str) -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", section(f"`{name}/` labels"), re.MULTILINE))
    for split, cell in zip(SPLITS, stated(f"`{name}/` {noun}"), strict=True):
        counts = Counter(example.label for example in labelled(f"{name}/{split}.csv"))
        assert set(counts) == documented
        assert set(counts.values()) == {min(counts.values())}
        assert cell == f"{counts.total()} ({min(counts.values())} a label)"


def test_out_of_scope_sizes() -> None:
    files = ("intent/out_of_scope.csv", "intent/out_of_scope_eval.csv")
    assert stated("`intent/out_of_scope*` messages") == [str(len(rows(name))) for name in files]
    assert all(list(row) == ["text"] for name in files for row in rows(name))


@pytest.mark.parametrize(
    ("name", "unit", "types"),
    [("ner", "tokens", ["PER", "ORG", "LOC", "MISC"]), ("ner_zh", "characters", ["PER", "ORG", "LOC"])],
)
def test_sizes_of_tagged_sentences(name: str, unit: str, types: list[str]) -> None:
    table = README[README.index(f"| `{name}/` sentences") :]
    for column, split in enumerate(SPLITS):
        sentences = tagged(f"{name}/{split}.conll")
        counts = Counter(tag for sentence in sentences for tag in sentence.tags)
        expected = {
            f"`{name}/` sentences": f"{len(sentences)}",
            f"{DASH} {unit}": f"{counts.total():,}",
            f"{DASH} {' / '.join(types)}": " / ".join(str(counts[f"B-{kind}"]) for kind in types),
            f"{DASH} sentences without entity": f"{sum(set(s.tags) == {'O'} for s in sentences)}",
        }
        cells = {row: table.split(f"| {row} | ", 1)[1].split(" | ")[column] for row in expected}
        assert cells == expected
        assert set(counts) == {"O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in types)}


def test_chinese_sentences_have_one_character_a_line() -> None:
    sentences = [sentence for split in SPLITS for sentence in tagged(f"ner_zh/{split}.conll")]
    assert {len(token) for sentence in sentences for token in sentence.tokens} == {1}


def test_chinese_evaluation_names_other_people_and_organisations() -> None:
    train, evaluation = (
        {key for key in entities(tagged(f"ner_zh/{split}.conll")) if key[0] != "LOC"} for split in SPLITS
    )
    assert train & evaluation == set()


def test_the_stream_is_in_time_order_and_as_described() -> None:
    text = section("`opinion_monitor/stream.csv`")
    stream = rows("opinion_monitor/stream.csv")
    times = [datetime.strptime(row["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC) for row in stream]
    assert all(earlier < later for earlier, later in pairwise(times))
    days = Counter(time.day for time in times)
    assert f"{len(stream)} headlines in time order" in text
    assert f"{days[11]} on 11 March 2031 and {days[12]} on 12 March" in text
    assert days.total() == days[11] + days[12]
    surge = [
        row["text"]
        for row, time in zip(stream, times, strict=True)
        if (12, 9, 24) <= (time.day, time.hour, time.minute) <= (12, 12, 57)
    ]
    energy = [title for title in surge if ENERGY_WORDS.search(title)]
    assert (
        f"of the {len(surge)} headlines from 09:24 to 12:57, {len(energy)} are bad news about energy" in text
    )
