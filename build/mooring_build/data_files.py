"""Files of examples: CoNLL columns for token classification, CSV for texts and whatever else has rows.

Readers are strict: every malformed line is an error with its path and number, never a skipped example.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mooring import DataError, RecipeError
from mooring_build.examples import Example, LabelledText, TaggedSentence
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import Data


def data_file(recipe: Recipe, data: Data, name: str) -> Path:
    """The file of a split.

    Raises:
        DataError: there is none.
        RecipeError: the recipe names none.
    """
    value = getattr(data, name)
    if value is None:
        raise RecipeError(f"data.{name}: is missing")
    path = recipe.path(value)
    if not path.is_file():
        raise DataError(f"data.{name} {value!r}: no file {path}")
    return path


def read_conll(path: Path, *, separator: str = " ") -> list[Example]:
    """Read CoNLL columns: token first, IOB2 tag last, sentences parted by blank lines.

    Args:
        path: the file.
        separator: what stands between two tokens in a text.

    Raises:
        DataError: with path and line number.
    """
    sentences: list[Example] = []
    tokens: list[str] = []
    tags: list[str] = []

    def finish() -> None:
        if tokens:
            sentences.append(TaggedSentence(tuple(tokens), tuple(tags), separator))
            tokens.clear()
            tags.clear()

    # Not splitlines() and split(): Unicode's other line ends and spaces may be part of a token.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        columns = [column for column in re.split(r"[ \t\r]+", line) if column]
        if not columns or columns[0] == "-DOCSTART-":
            finish()
            continue
        if len(columns) < 2:
            raise DataError(f"{path}:{number}: {line!r} has one column; a token and its tag are expected")
        # Or what stands between the first column and the last would be lost.
        token, tabbed, _ = line.partition("\t")
        if "\r" in line.rstrip("\r"):
            raise DataError(f"{path}:{number}: lines end in carriage returns alone; save it with line feeds")
        if tabbed and " " in token.strip():
            raise DataError(f"{path}:{number}: token {token!r} has a space: give each of its words a line")
        tag = columns[-1]
        if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) < 3):
            raise DataError(f"{path}:{number}: tag {tag!r} is none of O, B-<type>, I-<type>")
        if tag.startswith("I-") and (not tags or tags[-1][2:] != tag[2:]):
            raise DataError(
                f"{path}:{number}: {tag!r} follows {tags[-1] if tags else 'the start of the sentence'!r}; "
                "IOB2 starts each entity with B-"
            )
        tokens.append(columns[0])
        tags.append(tag)
    finish()
    return _not_empty(path, sentences)


def read_csv(path: Path, *, text_column: str, label_column: str) -> list[Example]:
    """Read a CSV file with a header row.

    Raises:
        DataError: with path and line number.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    columns = reader.fieldnames or []
    for key, column in (("data.text_column", text_column), ("data.label_column", label_column)):
        if column not in columns:
            raise DataError(
                f"{path}: {key} {column!r} is not among its columns {list(columns)}{_separator_hint(columns)}"
            )
    examples: list[Example] = []
    for row in _rows(path, reader):
        text, label = (row[text_column] or "").strip(), (row[label_column] or "").strip()
        if not text or not label:
            raise DataError(f"{path}:{reader.line_num}: empty {'label' if text else 'text'}")
        examples.append(LabelledText(text, label))
    return _not_empty(path, examples)


def read_rows(path: Path, columns: Sequence[str], *, optional: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read columns of a CSV file with a header row, without the white space around values.

    Args:
        path: the file.
        columns: those that are read; others may be there.
        optional: those of them that may be empty.

    Raises:
        DataError: with path and line number.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    lacking = [column for column in columns if column not in (reader.fieldnames or [])]
    if lacking:
        columns_there = list(reader.fieldnames or [])
        raise DataError(
            f"{path}: column {lacking[0]!r} is not among its columns {columns_there}"
            f"{_separator_hint(columns_there)}"
        )
    rows = []
    for row in _rows(path, reader):
        rows.append({column: (row[column] or "").strip() for column in columns})
        empty = [column for column, value in rows[-1].items() if not value and column not in optional]
        if empty:
            raise DataError(f"{path}:{reader.line_num}: empty {empty[0]}")
    if not rows:
        raise DataError(f"{path} holds no row")
    return rows


def read_catalogue(recipe: Recipe, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read columns of the recipe's catalogue, of which ``item`` names each row.

    Raises:
        DataError: with path and row.
    """
    path = recipe.path(recipe.catalogue.file)
    if not path.is_file():
        raise DataError(f"catalogue.file {recipe.catalogue.file!r}: no file {path}")
    rows, known = read_rows(path, columns), set()
    for number, row in enumerate(rows, start=1):
        if row["item"] in known:
            raise DataError(f"{path}, row {number} after the header: item {row['item']!r} is there twice")
        known.add(row["item"])
    return rows


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        DataError: it is not UTF-8; with path and line number.
    """
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise DataError(
            f"{path}:{line}: byte {raw[exc.start]:#04x} is not UTF-8; convert the file first"
        ) from exc


def _separator_hint(columns: Sequence[str]) -> str:
    if len(columns) == 1 and (found := re.search(r"[;\t|]", columns[0])):
        return f"; its cells seem to be parted by {found.group()!r}: save it with commas"
    return ", which are what its first row holds" if columns else ""


def _rows(path: Path, reader: csv.DictReader[str]) -> Iterator[dict[Any, Any]]:
    """Rows of a CSV file, with nothing beyond the header's cells but empty ones.

    Raises:
        DataError: with path and line number.
    """
    try:
        for row in reader:
            if any(cell.strip() for cell in row.get(None) or ()):
                raise DataError(
                    f"{path}:{reader.line_num}: more cells than the {len(reader.fieldnames or [])} of the "
                    "header; put quotes around what holds a comma"
                )
            yield row
    except csv.Error as exc:
        # The reader counts whole rows.
        raise DataError(f"{path}:{reader.line_num + 1}: the row that begins here: {exc}") from exc


def _not_empty(path: Path, examples: list[Example]) -> list[Example]:
    if not examples:
        raise DataError(f"{path} holds no example")
    return examples
