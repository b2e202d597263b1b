"""Labelled rows of numbers."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from mooring import DataError
from mooring_build.datasets import LabelledRow, Split, data_file, read_text
from mooring_build.digests import digest_of
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import Data

#: Share of scikit-learn's digits that is held out; which ones is fixed.
_HELD_OUT = 0.2


def read_tabular(recipe: Recipe, data: Data, name: str) -> Split:
    """One split of ``[data]``, as wide as ``features.count``.

    Raises:
        DataError: a file is missing or malformed, or another number of features; with path and line.
    """
    rows: list[LabelledRow]
    if data.format == "digits":
        rows, source = _read_digits(name), "scikit-learn's digits"
    else:
        path = data_file(recipe, data, name)
        columns, rows = read_table(path, label_column=data.label_column)
        source = str(path)
        if name == "evaluation" and recipe.training is not None:
            _check_columns(path, columns, data_file(recipe, data, "train"), data.label_column)
    found = len(rows[0].features)
    if recipe.features is not None and found != recipe.features.count:
        raise DataError(
            f"{source} has {found} features, the recipe says {recipe.features.count} (features.count)"
        )
    return Split(rows, source, digest_of([[row.features, row.label] for row in rows]))


def read_table(path: Path, *, label_column: str) -> tuple[list[str], list[LabelledRow]]:
    """Read a CSV file with a header row, whose columns are all numbers but the label's.

    Returns:
        The names of the number columns, and the rows.

    Raises:
        DataError: with path and line number.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[LabelledRow] = []
    try:
        columns = next(reader, [])
        if columns.count(label_column) != 1 or len(set(columns)) != len(columns):
            raise DataError(
                f"{path}: data.label_column {label_column!r} is not among its columns, or two have one name: "
                f"{columns}"
            )
        place = columns.index(label_column)
        if len(columns) == 1:
            raise DataError(f"{path} has no column but {label_column!r}")
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if len(cells) != len(columns):
                raise DataError(f"{where}: {len(cells)} cells, the header has {len(columns)}")
            label = cells[place].strip()
            if not label:
                raise DataError(f"{where}: empty label")
            numbers = [
                _number(cell, f"{where}: column {column!r}")
                for i, (cell, column) in enumerate(zip(cells, columns, strict=True))
                if i != place
            ]
            rows.append(LabelledRow(tuple(numbers), label))
    except csv.Error as exc:
        raise DataError(f"{path}:{reader.line_num}: {exc}") from exc
    if not rows:
        raise DataError(f"{path} holds no example")
    return columns[:place] + columns[place + 1 :], rows


def _number(cell: str, where: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        raise DataError(f"{where}: {cell!r} is no number") from None
    if not math.isfinite(number):
        raise DataError(f"{where}: {cell!r} is not finite")
    return number


def _check_columns(path: Path, columns: list[str], train: Path, label_column: str) -> None:
    """Features are known by their place alone, so both files must have them in one order."""
    trained, _ = read_table(train, label_column=label_column)
    if columns != trained:
        raise DataError(f"{path} has the columns {columns}, those of {train} are {trained}")


def _read_digits(name: str) -> list[LabelledRow]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    splits = train_test_split(
        digits.data, digits.target, test_size=_HELD_OUT, stratify=digits.target, random_state=0
    )
    features, labels = splits[name == "evaluation"], splits[2 + (name == "evaluation")]
    return [
        LabelledRow(tuple(map(float, row)), str(label)) for row, label in zip(features, labels, strict=True)
    ]
