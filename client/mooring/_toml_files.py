"""Recipes and load profiles on a command line: TOML files by path or shipped name, and changes of theirs."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mooring._errors import ConfigError


def add_override_option(options: argparse._ActionsContainer, words: str) -> None:
    """Add ``--set``, whose values :func:`find_override` takes; ``words`` is its help."""
    options.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help=words
    )


def find_file(
    kind: str, file: str | Path, shipped: Mapping[str, Path], error: type[ConfigError] = ConfigError
) -> Path:
    """The path of a file that is named by it, or by the name of a shipped one.

    Raises:
        ConfigError: there is none; ``kind`` says of what, and ``error`` is what is raised.
    """
    path = Path(file).expanduser()
    if path.is_file():
        return path
    if str(file) in shipped:
        return shipped[str(file)]
    raise error(f"no {kind} {str(file)!r}: give the path of a TOML file, or one of {', '.join(shipped)}")


def find_override(
    table: dict[str, Any], override: str, error: type[ConfigError] = ConfigError
) -> tuple[dict[str, Any], str, Any]:
    """Read ``key.path=value``, the value in TOML; a bare word is a text.

    Returns:
        The table that holds the last key, made where it is missing, then that key and the value.

    Raises:
        ConfigError: it is of another form, or leads through a value; ``error`` is what is raised.
    """
    key, separator, text = override.partition("=")
    if not separator or not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", key):
        raise error(f"override {override!r} is not of the form key.path=value")
    *tables, last = key.split(".")
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise error(f"override {override!r}: {name!r} is a value, not a table")
    try:
        return table, last, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return table, last, text
