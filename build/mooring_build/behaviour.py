"""What users did with items, and the items themselves: events and catalogue of a recommender."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mooring import DataError
from mooring._monitor.texts import read_seconds
from mooring_build.data_files import data_file, read_catalogue, read_rows
from mooring_build.digests import digest_of
from mooring_build.examples import NextItem, Split, Visits
from mooring_build.hub_data import read_hub_rows
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import Data

#: A user with fewer events is left out: one is held out for the test and one for validation, and at least
#: one has to be there before them.
FEWEST_EVENTS = 3


def read_behaviour(recipe: Recipe, data: Data, name: str) -> Split:
    """One split of the events, parted user by user in the order of time.

    The training split's digest covers the texts of its items, and of no others: an item that nobody has
    chosen yet changes the catalogue, but nothing that is trained.

    Raises:
        DataError: a file or a split of the hub is missing or malformed, an item is not in the catalogue, or
            no user has enough events; with path and row.
        RecipeError: the recipe names no events.
    """
    histories, source = _read_histories(recipe, data)
    users = [items for items in histories.values() if len(items) >= FEWEST_EVENTS]
    if not users:
        raise DataError(f"{source}: no user has {FEWEST_EVENTS} events or more")
    texts = read_items(recipe)
    used = {item for items in users for item in items}
    unknown = sorted(used - texts.keys())
    if unknown:
        raise DataError(f"{source} has {len(unknown)} item(s) that are not in the catalogue: {unknown[:5]}")
    if name == "evaluation":
        asked = [NextItem(tuple(items[:-1]), items[-1]) for items in users]
        return Split(asked, source, digest_of([[*example.history, example.item] for example in asked]))
    visits = [Visits(tuple(items[:-1])) for items in users]
    digest = digest_of([[example.items for example in visits], sorted((item, texts[item]) for item in used)])
    return Split(visits, source, digest)


def _read_histories(recipe: Recipe, data: Data) -> tuple[dict[str, list[str]], str]:
    """Items of each user, and where they came from."""
    if data.format != "hub":
        path = data_file(recipe, data, "train")
        return read_events(path, min_rating=data.min_rating), str(path)
    rows, source = read_hub_rows(recipe, data, "train", _columns(data.min_rating))
    events = ((f"{source}, row {number}", row) for number, row in enumerate(rows))
    return _histories(events, data.min_rating), source


def read_events(path: Path, *, min_rating: float | None = None) -> dict[str, list[str]]:
    """Read CSV with the columns ``user``, ``item`` and ``time``, in any order of rows.

    Events of one moment keep the order of the file. Of several events of a user with one item the first
    counts: what a user has seen is not recommended again.

    Args:
        path: the file; times are seconds since 1970 or ISO 8601 (UTC where they name no zone; eight digits
            are a date).
        min_rating: leaves out events whose column ``rating`` is lower.

    Returns:
        Items of each user, oldest first.

    Raises:
        DataError: with path and row.
    """
    rows = enumerate(read_rows(path, _columns(min_rating)), start=1)
    return _histories(((f"{path}, row {number} after the header", row) for number, row in rows), min_rating)


def _columns(min_rating: float | None) -> list[str]:
    return ["user", "item", "time"] + (["rating"] if min_rating is not None else [])


def _histories(
    rows: Iterable[tuple[str, Mapping[str, str]]], min_rating: float | None
) -> dict[str, list[str]]:
    events: list[tuple[float, str, str]] = []
    for where, row in rows:
        if min_rating is None or _number(row["rating"], "rating", where) >= min_rating:
            events.append((_time(row["time"], where), row["user"], row["item"]))
    users: dict[str, dict[str, None]] = {}
    for _, user, item in sorted(events, key=lambda event: event[0]):
        users.setdefault(user, {}).setdefault(item)
    return {user: list(items) for user, items in users.items()}


def read_items(recipe: Recipe) -> dict[str, str]:
    """Read the recipe's catalogue, CSV with the columns ``item`` and ``text``.

    Returns:
        Text of each item, in the order of the file.

    Raises:
        DataError: with path and row.
    """
    return {row["item"]: row["text"] for row in read_catalogue(recipe, ("item", "text"))}


def count_events(histories: Iterable[Sequence[str]]) -> dict[str, int]:
    """How many users have each item in their history."""
    counts: dict[str, int] = {}
    for history in histories:
        for item in history:
            counts[item] = counts.get(item, 0) + 1
    return counts


def _time(value: str, where: str) -> float:
    seconds = read_seconds(value)
    if seconds is None:
        raise DataError(
            f"{where}: time {value!r} is neither seconds since 1970 nor a date and time of ISO 8601"
        )
    if not math.isfinite(seconds):
        raise DataError(f"{where}: time {value!r} is not finite")
    return seconds


def _number(value: str, column: str, where: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise DataError(f"{where}: {column} {value!r} is no number") from None
    if math.isnan(number):
        raise DataError(f"{where}: {column} {value!r} is no number")
    return number
