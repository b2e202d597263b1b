"""Convert published data sets into the files that recipes read, with the splits that Mooring measures on.

Each function takes the folder with the original files and a folder for the converted ones, and returns the
written files by split. All raise :class:`~mooring.DataError` where a file is missing or malformed.
"""

from __future__ import annotations

import csv
import html
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from mooring import DataError
from mooring_build.data_files import read_rows, read_text

#: Topics of the financial_topic set, by its label ids.
FINANCIAL_TOPICS = (
    "Analyst Update",
    "Fed / Central Banks",
    "Company / Product News",
    "Treasuries / Corporate Debt",
    "Dividend",
    "Earnings",
    "Energy / Oil",
    "Financials",
    "Currencies",
    "General News / Opinion",
    "Gold / Metals / Materials",
    "IPO",
    "Legal / Regulation",
    "M&A / Investments",
    "Macro",
    "Markets",
    "Politics",
    "Personnel Change",
    "Stock Commentary",
    "Stock Movement",
)
_HELD_OUT = 0.2
# Split here, split there, columns.
_CLINC150 = (
    ("train", "train", ("text", "label")),
    ("evaluation", "val", ("text", "label")),
    ("test", "test", ("text", "label")),
    ("out_of_scope_train", "oos_train", ("text",)),
    ("out_of_scope", "oos_val", ("text",)),
    ("out_of_scope_test", "oos_test", ("text",)),
)
_URL = re.compile(r"https?://\S+")


def phrasebank(folder: Path, target: Path) -> dict[str, Path]:
    """Financial PhraseBank, sentences on which half of the annotators or more agree; CSV of ``text,label``.

    It has no split of its own: a fifth of the sentences is held out for ``evaluation``, always the same ones.
    A sentence that occurs twice, be it with two labels, is in one split only.
    """
    path = _existing(folder / "Sentences_50Agree.txt")
    rows: dict[str, list[tuple[str, str]]] = {}
    for number, line in enumerate(path.read_text(encoding="iso-8859-1").splitlines(), start=1):
        text, separator, label = line.rpartition("@")
        if not separator or not text.strip() or label not in ("negative", "neutral", "positive"):
            raise DataError(f"{path}:{number}: {line!r} is not SENTENCE@LABEL")
        rows.setdefault(same_text(text), []).append((text.strip(), label))
    sentences = sorted(rows)
    random.Random(0).shuffle(sentences)
    held_out = round(len(sentences) * _HELD_OUT)
    return {
        "train": _write_csv(target / "train.csv", (row for key in sentences[held_out:] for row in rows[key])),
        "evaluation": _write_csv(
            target / "evaluation.csv", (row for key in sentences[:held_out] for row in rows[key])
        ),
    }


def financial_topic(folder: Path, target: Path) -> dict[str, Path]:
    """Topics of financial tweets, without the links in them; CSV of ``text,label``, labels by name.

    Without their links many tweets are there again: those of ``evaluation`` are left out of ``train``.
    """
    train, evaluation = (
        list(_tweets(_existing(folder / name))) for name in ("train_data.csv", "valid_data.csv")
    )
    held_out = {same_text(text) for text, _ in evaluation}
    return {
        "train": _write_csv(
            target / "train.csv", (row for row in train if same_text(row[0]) not in held_out)
        ),
        "evaluation": _write_csv(target / "evaluation.csv", evaluation),
    }


def same_text(text: str) -> str:
    """What two texts have in common that differ in case and white space alone."""
    return " ".join(text.casefold().split())


def _tweets(path: Path) -> Iterable[tuple[str, str]]:
    for row in read_rows(path, ["text", "label"]):
        if not row["label"].isdecimal() or int(row["label"]) >= len(FINANCIAL_TOPICS):
            raise DataError(f"{path}: label {row['label']!r} is not one of {len(FINANCIAL_TOPICS)}")
        text = html.unescape(row["text"])
        # A few are nothing but a link.
        yield " ".join(_URL.sub(" ", text).split()) or text, FINANCIAL_TOPICS[int(row["label"])]


def zh_resume(folder: Path, target: Path) -> dict[str, Path]:
    """Entities in Chinese resumes, a character and its tag a line; from BMES tags to BIO."""
    splits = {"train": "train", "development": "dev", "evaluation": "test"}
    return {
        split: _write_bio(target / f"{split}.conll", _existing(folder / f"{name}.char.bmes"))
        for split, name in splits.items()
    }


def _write_bio(target: Path, path: Path) -> Path:
    lines, inside = [], ""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            lines.append("")
            inside = ""
            continue
        token, _, tag = line.strip().partition(" ")
        place, _, kind = tag.partition("-")
        if tag != "O" and (place not in "BMES" or not kind):
            raise DataError(f"{path}:{number}: tag {tag!r} is none of O, B-, M-, E-, S-<type>")
        # The training split has an M and an E that continue nothing.
        bio = "O" if tag == "O" else f"{'I' if place in 'ME' and inside == kind else 'B'}-{kind}"
        lines.append(f"{token} {bio}")
        inside = kind if place in "BM" else ""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def movielens(folder: Path, target: Path) -> dict[str, Path]:
    """MovieLens: ratings as events, ``user,item,time,rating``, and the rated films as items, ``item,text``.

    A text is a film's title, its genres and what users tagged it with. Every rating counts as a view,
    whatever it says; the file keeps it for ``data.min_rating``.
    """
    ratings = read_rows(_existing(folder / "ratings.csv"), ["userId", "movieId", "timestamp", "rating"])
    tags: dict[str, dict[str, None]] = {}
    for row in read_rows(_existing(folder / "tags.csv"), ["movieId", "tag"]):
        tags.setdefault(row["movieId"], {}).setdefault(row["tag"].casefold())
    rated = {row["movieId"] for row in ratings}
    items = []
    for row in read_rows(_existing(folder / "movies.csv"), ["movieId", "title", "genres"]):
        genres = "" if row["genres"].startswith("(") else row["genres"].replace("|", ", ")
        parts = [row["title"], genres, ", ".join(tags.get(row["movieId"], {}))]
        if row["movieId"] in rated:
            items.append((row["movieId"], ". ".join(part for part in parts if part)))
    lacking = sorted(rated - {item for item, _ in items})
    if lacking:
        raise DataError(f"{folder / 'movies.csv'}: no title of movies {lacking[:5]} that are rated")
    events = [(row["userId"], row["movieId"], row["timestamp"], row["rating"]) for row in ratings]
    return {
        "events": _write_csv(target / "events.csv", events, ("user", "item", "time", "rating")),
        "items": _write_csv(target / "items.csv", items, ("item", "text")),
    }


def stackfaq(folder: Path, target: Path) -> dict[str, Path]:
    """StackFAQ: each thread's question and first answer as the catalogue, ``item,question,answer``; its
    queries before the ``*`` for training and those after it for evaluation, ``text,item``."""
    path = _existing(folder / "stackExchange-FAQ.xml")
    try:
        threads = ElementTree.parse(path).getroot().findall("qapair")
    except ElementTree.ParseError as exc:
        raise DataError(f"{path} is not XML: {exc}") from exc
    catalogue, train, evaluation = [], [], []
    for number, thread in enumerate(threads):
        item = f"thread-{number:03d}"
        question, answers, queries = (
            [" ".join((element.text or "").split()) for element in thread.findall(name)]
            for name in ("question", "answer", "rephr")
        )
        if len(question) != 1 or not answers or "*" not in queries:
            raise DataError(f"{path}: thread {number} has no question, no answer, or no * among its queries")
        middle = queries.index("*")
        catalogue.append((item, question[0], answers[0]))
        train += [(query, item) for query in queries[:middle] if query]
        evaluation += [(query, item) for query in queries[middle + 1 :] if query]
    columns = ("text", "item")
    return {
        "catalogue": _write_csv(target / "catalogue.csv", catalogue, ("item", "question", "answer")),
        "train": _write_csv(target / "train.csv", train, columns),
        "evaluation": _write_csv(target / "eval.csv", evaluation, columns),
    }


def clinc150(folder: Path, target: Path) -> dict[str, Path]:
    """CLINC150: CSV of ``text,label``, and the texts out of scope, ``text``.

    The validation split is for ``evaluation``, which the acceptance is calibrated on; ``test`` and
    ``out_of_scope_test`` are left to measure with.
    """
    path = _existing(folder / "data_full.json")
    try:
        content = json.loads(read_text(path))
        return {
            split: _write_csv(
                target / f"{split}.csv", [tuple(row[: len(columns)]) for row in content[key]], columns
            )
            for split, key, columns in _CLINC150
        }
    except (ValueError, KeyError, TypeError) as exc:
        raise DataError(f"{path} is not as CLINC150 has it: {exc!r}") from exc


def _write_csv(
    path: Path, rows: Iterable[tuple[str, ...]], columns: tuple[str, ...] = ("text", "label")
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"no file {path}")
    return path
