"""Labelled rows of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mooring import DataError
from mooring_build.data_files import data_file, read_cells
from mooring_build.digests import digest_of
from mooring_build.examples import LabelledRow, Split
from mooring_build.hub_data import label_names, load_hub_split
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import Data

#: Share of scikit-learn's digits that is held out; which ones is fixed.
_HELD_OUT = 0.2
_LARGEST = float(np.finfo(np.float32).max)


def read_tabular(recipe: Recipe, data: Data, name: str) -> Split:
    """One split of ``[data]``, as wide as ``features.count``.

    Raises:
        DataError: a file or a split of the hub is missing or malformed, or has other columns or another
            number of features; with path and line.
        RecipeError: the recipe names no split.
    """
    rows: list[LabelledRow]
    if data.format == "digits":
        rows, source = _read_digits(name), "scikit-learn's digits"
    else:
        columns, rows, source = _read_columns(recipe, data, name)
        if name == "evaluation" and recipe.training is not None:
            # Features are known by their place alone, so both splits must have them in one order.
            trained, _, train = _read_columns(recipe, data, "train")
            if columns != trained:
                raise DataError(f"{source} has the columns {columns}, those of {train} are {trained}")
    found = len(rows[0].features)
    if recipe.features is not None and found != recipe.features.count:
        raise DataError(
            f"{source} has {found} features, the recipe says {recipe.features.count} (features.count)"
        )
    return Split(rows, source, digest_of([[row.features, row.label] for row in rows]))


def _read_columns(recipe: Recipe, data: Data, name: str) -> tuple[list[str], list[LabelledRow], str]:
    """The names of the number columns, the rows, and where they came from."""
    if data.format != "hub":
        path = data_file(recipe, data, name)
        return *read_table(path, label_column=data.label_column), str(path)
    split, source = load_hub_split(recipe, data, name, {data.label_column: "data.label_column"})
    columns = split.column_names
    named = label_names(split.features[data.label_column])
    cells = (
        (
            f"{source}, row {number}",
            [named(row[column]) if column == data.label_column else str(row[column]) for column in columns],
        )
        for number, row in enumerate(split)
    )
    return *_labelled_rows(source, columns, cells, data.label_column), source


def read_table(path: Path, *, label_column: str) -> tuple[list[str], list[LabelledRow]]:
    """Read a CSV file with a header row, whose columns are all numbers but the label's.

    Returns:
        The names of the number columns, and the rows.

    Raises:
        DataError: with path and line number.
    """
    rows = read_cells(path)
    _, columns = next(rows, (0, []))
    places = ((f"{path}:{line}", cells) for line, cells in rows)
    return _labelled_rows(str(path), columns, places, label_column)


def _labelled_rows(
    source: str, columns: list[str], rows: Iterable[tuple[str, Sequence[str]]], label_column: str
) -> tuple[list[str], list[LabelledRow]]:
    """Check and convert cells, each row with its place for messages."""
    if columns.count(label_column) != 1 or len(set(columns)) != len(columns):
        raise DataError(
            f"{source}: data.label_column {label_column!r} is not among its columns, or two have one name: "
            f"{columns}"
        )
    place = columns.index(label_column)
    if len(columns) == 1:
        raise DataError(f"{source} has no column but {label_column!r}")
    labelled: list[LabelledRow] = []
    for where, cells in rows:
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
        labelled.append(LabelledRow(tuple(numbers), label))
    if not labelled:
        raise DataError(f"{source} holds no example")
    return columns[:place] + columns[place + 1 :], labelled


def _number(cell: str, where: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        raise DataError(f"{where}: {cell!r} is no number") from None
    if not abs(number) <= _LARGEST:
        raise DataError(f"{where}: {cell!r} is not finite in FP32, which the engine takes")
    return number


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
