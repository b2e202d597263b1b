"""Data sets on the Hugging Face hub, or in a local folder as the hub keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from mooring import DataError, RecipeError
from mooring_build.data_files import is_bio
from mooring_build.digests import digest_of
from mooring_build.examples import Example, LabelledText, Split, TaggedSentence
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import Data


def load_hub_split(recipe: Recipe, data: Data, name: str, columns: Mapping[str, str]) -> tuple[Any, str]:
    """Load a split with the ``datasets`` library.

    Args:
        recipe: that ``data`` is part of; a relative folder starts from its own.
        data: ``dataset`` is its name or folder, ``train`` and ``evaluation`` are names of splits.
        name: ``train`` or ``evaluation``.
        columns: those that it must have, and what messages call each.

    Returns:
        The rows, and where they came from, for messages.

    Raises:
        DataError: it can't be loaded, has no rows, or lacks a column.
        RecipeError: the recipe names no split.
    """
    from datasets import load_dataset

    place, split = recipe.place_of(data), getattr(data, name)
    if split is None:
        raise RecipeError(f"{place}.{name}: is missing")
    configuration = "" if data.configuration is None else f", configuration {data.configuration!r}"
    source = f"{data.dataset}{configuration}, split {split!r}"
    folder = recipe.path(str(data.dataset))
    # Of a folder the library would pass over the revision without a word.
    path, revision = (str(folder), None) if folder.is_dir() else (data.dataset, data.revision)
    try:
        rows = load_dataset(path, data.configuration, split=split, revision=revision)
    except Exception as exc:
        # The library lets through whatever hub, network and file formats raise.
        raise DataError(f"{place}.dataset: {source} can't be loaded: {exc}") from exc
    for column, called in columns.items():
        if column not in rows.column_names:
            raise DataError(f"{source}: {called} {column!r} is not among its columns {rows.column_names}")
    if not len(rows):
        raise DataError(f"{source} holds no example")
    return rows, source


def read_hub_texts(recipe: Recipe, data: Data, name: str) -> Split:
    """One split of labelled texts, or of sentences as lists of tokens and of tags.

    Labels and tags may be names, or numbers that the data set has names for (``ClassLabel``).

    Raises:
        DataError: as :func:`load_hub_split`; or a row has no text, no label, or not a BIO tag for each token.
        RecipeError: as :func:`load_hub_split`.
    """
    place = recipe.place_of(data)
    columns = {data.text_column: f"{place}.text_column", data.label_column: f"{place}.label_column"}
    rows, source = load_hub_split(recipe, data, name, columns)
    tagged = recipe.task == "token-classification"
    feature = rows.features[data.label_column]
    named = label_names(getattr(feature, "feature", feature) if tagged else feature)
    examples: list[Example] = []
    pairs = zip(rows[data.text_column], rows[data.label_column], strict=True)
    for number, (text, label) in enumerate(pairs):
        tokens, tags = (text, label) if tagged else ([_strip(text)], [_strip(label)])
        names = _names_of(tokens, tags, named)
        if not names:
            raise DataError(f"{source}, row {number}: {text!r} with {label!r} is no example")
        if tagged:
            if wrong := [tag for tag in names if not is_bio(tag)]:
                raise DataError(f"{source}, row {number}: tag {wrong[0]!r} is none of O, B-<type>, I-<type>")
            examples.append(TaggedSentence(tuple(tokens), names, data.token_separator))
        else:
            examples.append(LabelledText(text, names[0]))
    return Split(examples, source, digest_of([astuple(example) for example in examples]))


def _strip(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _names_of(tokens: Any, tags: Any, named: Callable[[Any], str]) -> tuple[str, ...]:
    """A name for each token's tag; nothing where the two do not fit."""
    if not isinstance(tokens, list) or not isinstance(tags, list) or len(tokens) != len(tags):
        return ()
    if not any(tokens) or not all(isinstance(token, str) for token in tokens):
        return ()
    names = tuple("" if isinstance(tag, list) else named(tag) for tag in tags)
    return names if all(names) else ()


def read_hub_rows(
    recipe: Recipe, data: Data, name: str, columns: Sequence[str]
) -> tuple[list[dict[str, str]], str]:
    """Columns of a split as texts, as :func:`~mooring_build.data_files.read_rows` has those of a CSV file.

    Returns:
        The rows, and where they came from, for messages.

    Raises:
        DataError: as :func:`load_hub_split`; or a value is empty.
        RecipeError: as :func:`load_hub_split`.
    """
    rows, source = load_hub_split(recipe, data, name, dict.fromkeys(columns, "column"))
    named = {column: label_names(rows.features[column]) for column in columns}
    texts: list[dict[str, str]] = []
    for number, row in enumerate(rows.select_columns(list(columns))):
        texts.append({column: named[column](row[column]).strip() for column in columns})
        empty = [column for column, value in texts[-1].items() if not value]
        if empty:
            raise DataError(f"{source}, row {number}: empty {empty[0]}")
    return texts, source


def label_names(feature: Any) -> Callable[[Any], str]:
    """What tells the name of a value in a column with this feature; nothing (``""``) where it has none, as
    of -1, which the hub's data sets have where a label is not known."""
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        names = dict(enumerate(feature.names))
        return lambda number: names.get(number, "")
    return lambda value: "" if value is None else str(value)
