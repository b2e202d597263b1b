"""Files of examples: CoNLL columns for token classification, CSV for texts and whatever else has rows.

Readers are strict: every malformed line is an error with its path and number, never a skipped example.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from mooring import DataError, RecipeError
from mooring_build.examples import Example, LabelledText, TaggedSentence
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import Data


def data_file(recipe: Recipe, data: Data, name: str) -> Path:
    """The file of a split, or another one that ``data`` names.

    Raises:
        DataError: there is none.
        RecipeError: the recipe names none.
    """
    key, value = f"{recipe.place_of(data)}.{name}", getattr(data, name)
    if value is None:
        raise RecipeError(f"{key}: is missing")
    return named_file(recipe, key, value)


def named_file(recipe: Recipe, key: str, value: str) -> Path:
    """The file that a key of the recipe names.

    Raises:
        DataError: there is none.
    """
    path = recipe.path(value)
    if not path.is_file():
        raise DataError(f"{key} {value!r}: no file {path}")
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
        if not is_bio(tag):
            raise DataError(f"{path}:{number}: tag {tag!r} is none of O, B-<type>, I-<type>")
        if tag.startswith("I-") and (not tags or tags[-1][2:] != tag[2:]):
            raise DataError(
                f"{path}:{number}: {tag!r} follows {tags[-1] if tags else 'the start of the sentence'!r}; "
                "IOB2 starts each entity with B-"
            )
        tokens.append(columns[0])
        tags.append(tag)
    finish()
    if not sentences:
        raise DataError(f"{path} holds no example")
    return sentences


def is_bio(tag: str) -> bool:
    """Whether a tag is one of ``O``, ``B-<type>`` and ``I-<type>``."""
    return tag == "O" or (tag[:2] in ("B-", "I-") and len(tag) > 2)


def read_csv(path: Path, *, text_column: str, label_column: str, place: str = "data") -> list[Example]:
    """Read texts and their labels from a CSV file; ``place`` is the recipe's table that names the columns.

    Raises:
        DataError: with path and line number.
    """
    called = {text_column: f"{place}.text_column", label_column: f"{place}.label_column"}
    rows = read_rows(path, (text_column, label_column), called=called)
    return [LabelledText(row[text_column], row[label_column]) for row in rows]


def read_rows(
    path: Path,
    columns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    called: Mapping[str, str] = MappingProxyType({}),
) -> list[dict[str, str]]:
    """Read columns of a CSV file with a header row, without the white space around values.

    Args:
        path: the file.
        columns: those that are read; others may be there.
        optional: those of them that may be empty.
        called: what a message calls a column, such as the key that names it.

    Raises:
        DataError: with path and line number.
    """
    cells_of = read_cells(path)
    _, header = next(cells_of, (0, []))
    for column in columns:
        named = f"{path}: {called.get(column, 'column')} {column!r}"
        if column not in header:
            raise DataError(f"{named} is not among its columns {header}{_hint(header)}")
        if header.count(column) > 1:
            raise DataError(f"{named} is the name of several of its columns {header}: rename the others")
    rows = []
    for line, cells in cells_of:
        if any(cell.strip() for cell in cells[len(header) :]):
            raise DataError(
                f"{path}:{line}: more cells than the {len(header)} of the header; put quotes around what "
                "holds a comma"
            )
        row = dict(zip(header, cells, strict=False))
        rows.append({column: row.get(column, "").strip() for column in columns})
        empty = [column for column, value in rows[-1].items() if not value and column not in optional]
        if empty:
            raise DataError(f"{path}:{line}: empty {empty[0]}")
    if not rows:
        raise DataError(f"{path} holds no row")
    return rows


def read_catalogue(recipe: Recipe, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read columns of the recipe's catalogue, of which ``item`` names each row.

    Raises:
        DataError: with path and row.
    """
    path = named_file(recipe, "catalogue.file", recipe.catalogue.file)
    rows, known = read_rows(path, columns), set()
    for number, row in enumerate(rows, start=1):
        if row["item"] in known:
            raise DataError(f"{path}, row {number} after the header: item {row['item']!r} is there twice")
        known.add(row["item"])
    return rows


def read_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of each row of a CSV file, the header among them, but not of empty lines.

    Raises:
        DataError: with path and line number.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    line = 0
    try:
        for cells in reader:
            line = reader.line_num
            if cells:
                yield line, cells
    except csv.Error as exc:
        raise DataError(f"{path}:{line + 1}: the row that begins here: {exc}") from exc


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        DataError: it can't be read, or is not UTF-8; with path and line number.
    """
    try:
        raw = path.read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as exc:
        raise DataError(f"{path} can't be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise DataError(
            f"{path}:{line}: byte {raw[exc.start]:#04x} is not UTF-8; convert the file first"
        ) from exc


def _hint(header: Sequence[str]) -> str:
    if len(header) == 1 and (found := re.search(r"[;\t|]", header[0])):
        return f"; its cells seem to be parted by {found.group()!r}: save it with commas"
    return ", which are what its first row holds" if header else ""
