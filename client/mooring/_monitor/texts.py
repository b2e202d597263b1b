"""Texts with their times, from files and lines."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from mooring._errors import ConfigError, DataError
from mooring._monitor.monitor import MAX_TIME_S

_JSON_ENDINGS = (".jsonl", ".ndjson")
_SHOWN_CHARACTERS = 60


class TimedText(NamedTuple):
    """A text and its time."""

    #: Seconds since 1970, UTC.
    time_s: float
    text: str


def read_texts(
    path: str | os.PathLike[str],
    *,
    time_key: str = "time",
    text_key: str = "text",
    on_error: Callable[[DataError], None] | None = None,
) -> Iterator[TimedText]:
    """Read a file of texts with times, a row at a time.

    Args:
        path: a CSV file with a header (``.csv``), or JSON lines (``.jsonl``, ``.ndjson``), in UTF-8.
        time_key: column or key of the time: ISO-8601 (UTC where it names no zone) or seconds since 1970.
        text_key: column or key of the text.
        on_error: gets the error of each row that can't be read, which is left out then; ``None`` raises it.

    Yields:
        The texts in the order of the file.

    Raises:
        ConfigError: the ending says no format.
        DataError: the file can't be read, or a row and there is no ``on_error``.
    """
    path = Path(path)
    is_csv = path.suffix.lower() == ".csv"
    if not is_csv and path.suffix.lower() not in _JSON_ENDINGS:
        raise ConfigError(f"{path}: the name must end in .csv, {' or '.join(_JSON_ENDINGS)}")
    try:
        # Bytes that are not UTF-8 spoil their row and no other; parse_row finds them.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = _csv_rows(path, file, {time_key, text_key}) if is_csv else enumerate(file, start=1)
            for number, row in rows:
                if isinstance(row, str) and not row.strip():
                    continue
                try:
                    yield parse_row(row, where=f"{path}, line {number}", time_key=time_key, text_key=text_key)
                except DataError as exc:
                    if on_error is None:
                        raise
                    on_error(exc)
    except OSError as exc:
        raise DataError(f"{path} can't be read: {exc.strerror}") from exc


def _csv_rows(path: Path, file: Any, keys: set[str]) -> Iterator[tuple[int, Mapping[str, Any] | Exception]]:
    reader = csv.DictReader(file, strict=True)
    try:
        missing = keys - set(reader.fieldnames or ())
    except csv.Error as exc:
        raise DataError(f"{path}, line 1: {exc}") from exc
    if missing:
        raise DataError(f"{path}: no column {sorted(missing)} in its header {list(reader.fieldnames or ())}")
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            # DictReader updates its own line_num only after a row that it could read.
            yield reader.reader.line_num, exc
            continue
        # What the header has no name for: empty cells are a table program's, others an unquoted comma's.
        if any(cell.strip() for cell in row.get(None) or ()):
            said = f"more cells than the {len(reader.fieldnames or ())} of the header"
            yield reader.line_num, DataError(f"{said}; put quotes around what holds a comma")
        else:
            yield reader.line_num, row


def parse_row(
    row: str | bytes | Mapping[str, Any] | Exception,
    *,
    where: str,
    time_key: str = "time",
    text_key: str = "text",
) -> TimedText:
    """Read one row.

    Args:
        row: a JSON object as text, a row of a CSV file, or why there is none.
        where: names it in messages.
        time_key: key of the time.
        text_key: key of the text.

    Raises:
        DataError: it is no such row.
    """
    if isinstance(row, str | bytes):
        try:
            row = json.loads(row)
        except (ValueError, RecursionError) as exc:
            raise DataError(f"{where} is no JSON: {exc}") from exc
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: {row if isinstance(row, Exception) else 'no JSON object'}")
    for key in (time_key, text_key):
        if row.get(key) is None:
            raise DataError(f"{where} has no {key!r}")
    text = row[text_key]
    if not isinstance(text, str) or not text:
        raise DataError(f"{where}: {text_key} must be a text that is not empty, got {_shown(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise DataError(f"{where}: {text_key} is not valid UTF-8 (character {exc.start})") from exc
    try:
        return TimedText(parse_time(row[time_key]), text)
    except ValueError as exc:
        raise DataError(f"{where}: {time_key} {exc}") from exc


def parse_time(value: Any) -> float:
    """A time as seconds since 1970.

    Args:
        value: a number of seconds, also as text, or ISO-8601; UTC where that names no zone. A text of eight
            digits is a date.

    Raises:
        ValueError: it is none.
    """
    seconds: float | None = None
    if isinstance(value, str):
        seconds = read_seconds(value.strip())
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
    if seconds is None or math.isnan(seconds):
        raise ValueError(f"{_shown(value)} is neither ISO-8601 nor seconds since 1970")
    if not 0 <= seconds <= MAX_TIME_S:
        hint = "; it looks like milliseconds" if 0 <= seconds / 1000 <= MAX_TIME_S else ""
        raise ValueError(f"{_shown(value)} is not between the years 1970 and 9999{hint}")
    return seconds


def read_seconds(text: str) -> float | None:
    """Seconds since 1970, or an ISO-8601 time as such; ``None`` where it is neither.

    Eight digits are a date, ``20240501``, if there is such a date.
    """
    readers = (_timestamp, float) if re.fullmatch("[0-9]{8}", text) else (float, _timestamp)
    for read in readers:
        try:
            return read(text)
        except (ValueError, OverflowError):
            continue
    return None


def _timestamp(text: str) -> float:
    date = datetime.fromisoformat(text)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}…"
