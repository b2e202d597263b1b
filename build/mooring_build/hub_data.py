"""Data sets on the Hugging Face hub, or in a local folder as the hub keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any

from mooring import DataError
from mooring_build.datasets import Example, LabelledText, Split, TaggedSentence
from mooring_build.digests import digest_of
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import Data


def load_hub_split(data: Data, name: str, columns: Mapping[str, str]) -> tuple[Any, str]:
    """Load a split with the ``datasets`` library.

    Args:
        data: ``dataset`` is its name or folder, ``train`` and ``evaluation`` are names of splits.
        name: ``train`` or ``evaluation``.
        columns: those that it must have, by the recipe's keys.

    Returns:
        The rows, and where they came from, for messages.

    Raises:
        DataError: it can't be loaded, has no rows, or lacks a column.
    """
    from datasets import load_dataset

    split = getattr(data, name)
    source = f"{data.dataset}, split {split!r}"
    try:
        rows = load_dataset(data.dataset, split=split)
    except Exception as exc:
        # The library lets through whatever hub, network and file formats raise.
        raise DataError(f"data.dataset: {source} can't be loaded: {exc}") from exc
    for key, column in columns.items():
        if column not in rows.column_names:
            raise DataError(f"{source}: {key} {column!r} is not among its columns {rows.column_names}")
    if not len(rows):
        raise DataError(f"{source} holds no example")
    return rows, source


def read_hub_texts(recipe: Recipe, data: Data, name: str) -> Split:
    """One split of labelled texts, or of sentences as lists of tokens and of tags.

    Labels and tags may be names, or numbers that the data set has names for (``ClassLabel``).

    Raises:
        DataError: as :func:`load_hub_split`; or a row has no text, or not a tag for each token.
    """
    tagged = recipe.task == "token-classification"
    columns = {"data.text_column": data.text_column, "data.label_column": data.label_column}
    rows, source = load_hub_split(data, name, columns)
    feature = rows.features[data.label_column]
    named = _names(getattr(feature, "feature", feature) if tagged else feature)
    examples: list[Example] = []
    pairs = zip(rows[data.text_column], rows[data.label_column], strict=True)
    for number, (text, label) in enumerate(pairs):
        if not text or (tagged and len(text) != len(label)):
            raise DataError(f"{source}, row {number}: {text!r} with {label!r} is no example")
        if tagged:
            tags = tuple(named(tag) for tag in label)
            examples.append(TaggedSentence(tuple(text), tags, data.token_separator))
        else:
            examples.append(LabelledText(text, named(label)))
    return Split(examples, source, digest_of([astuple(example) for example in examples]))


def _names(feature: Any) -> Callable[[Any], str]:
    from datasets import ClassLabel

    name: Callable[[Any], str] = feature.int2str if isinstance(feature, ClassLabel) else str
    return name
