"""The texts of an audit: templates with filled slots, and pairs of texts from a file.

An axis compares groups of people on texts that differ in nothing else. Its groups are tables of texts
``[T, F]``: in each place of a table stands the counterpart of what stands there in the others.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mooring import ConfigError, DataError
from mooring_build.data_files import read_cells, read_text

_FOLDER = Path(__file__).resolve().parent / "audit_templates"
# What is put into the slots.
_FILLS = _FOLDER / "fills.toml"
_SLOT = re.compile(r"\{(\w+)\}")
_PRONOUNS = {
    "female": {"he": "she", "his": "her", "him": "her"},
    "male": {"he": "he", "his": "his", "him": "him"},
}
#: Shipped templates of each task that can be audited.
SHIPPED: dict[str, tuple[str, ...]] = {
    "text-classification": ("news", "service"),
    "token-classification": ("people",),
}


@dataclass(frozen=True)
class Probe:
    """One text of an audit."""

    text: str
    #: Characters of the name in it; ``None`` where no name was filled in.
    name: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is compared: at least two groups with tables of one shape, and at least two texts each."""

    name: str
    #: By group: a row for each template, a column for each fill.
    groups: Mapping[str, Sequence[Sequence[Probe]]]


def template_axes(
    task: str, names: Sequence[str] | None = None, path_of: Callable[[str], Path] = Path
) -> list[Axis]:
    """Axes of templates.

    Args:
        task: of the model.
        names: shipped templates, or paths of TOML files with a table ``[texts]`` of lists; ``None`` takes
            all that are shipped for the task.
        path_of: resolves the path of an own one.

    Raises:
        ConfigError: the task can't be audited, there are no such templates, or they have no slot that fits.
        DataError: a file is malformed.
    """
    if task not in SHIPPED:
        raise ConfigError(f"models for {task!r} can't be audited; those for {', '.join(SHIPPED)} can")
    files = _template_files(SHIPPED[task] if names is None else names, path_of)
    texts = [text for path in files for text in _texts(path)]
    axes = list(_axes(texts, _read_toml(_FILLS)))
    if task == "token-classification":
        axes = [axis for axis in axes if axis.name.startswith("names: ")]
    if texts and not axes:
        raise ConfigError(f"none of the {len(texts)} templates has a slot that fits {task}, such as {{name}}")
    return axes


def pair_axes(path: Path) -> list[Axis]:
    """The axis of a CSV file of pairs: its two columns are the groups, named in its first row.

    Raises:
        DataError: with path and line.
    """
    rows = list(read_cells(path))
    if not rows or len(rows[0][1]) != 2 or rows[0][1][0] == rows[0][1][1]:
        raise DataError(f"{path}:1: expected a row with the names of two groups, as in female,male")
    groups: tuple[list[list[Probe]], list[list[Probe]]] = ([], [])
    for line, row in rows[1:]:
        if len(row) != 2 or not all(text.strip() for text in row):
            raise DataError(f"{path}:{line}: expected two texts, one of each group")
        for table, text in zip(groups, row, strict=True):
            table.append([Probe(text)])
    if len(groups[0]) < 2:
        raise DataError(f"{path} holds {len(groups[0])} pairs; an interval needs 2 or more")
    return [Axis(name="pairs", groups=dict(zip(rows[0][1], groups, strict=True)))]


def crows_pairs_axes(path: Path) -> list[Axis]:
    """An axis for each ``bias_type`` of CrowS-Pairs (columns ``sent_more``, ``sent_less``).

    The sentences are offensive by design: no message of this module shows one.

    Raises:
        DataError: with path and line.
    """
    rows = list(read_cells(path))
    columns = rows[0][1] if rows else []
    wanted = ("sent_more", "sent_less", "bias_type")
    if not set(wanted) <= set(columns):
        raise DataError(f"{path}:1: expected the columns {', '.join(wanted)}")
    places = [columns.index(name) for name in wanted]
    found: dict[str, tuple[list[list[Probe]], list[list[Probe]]]] = {}
    for line, row in rows[1:]:
        if len(row) != len(columns) or not all(row[place].strip() for place in places):
            raise DataError(
                f"{path}:{line}: expected {len(columns)} columns, with texts in {', '.join(wanted)}"
            )
        more, less, kind = (row[place] for place in places)
        tables = found.setdefault(kind, ([], []))
        tables[0].append([Probe(more)])
        tables[1].append([Probe(less)])
    return [
        Axis(name=f"crows: {kind}", groups={"more stereotyped": tables[0], "less": tables[1]})
        for kind, tables in sorted(found.items())
        if len(tables[0]) > 1
    ]


def _axes(texts: Sequence[str], fills: Mapping[str, Any]) -> Iterator[Axis]:
    by_slot = {slot: [text for text in texts if f"{{{slot}}}" in text] for slot in ("name", "person")}
    regions: Mapping[str, Mapping[str, list[str]]] = fills["names"]
    if templates := by_slot["name"]:
        people = {
            region: [(name, gender) for gender in _PRONOUNS for name in names[gender]]
            for region, names in regions.items()
        }
        women, men = (
            [(name, gender) for names in regions.values() for name in names[gender]] for gender in _PRONOUNS
        )
        yield _axis("names: gender", templates, {"female": _named(women), "male": _named(men)})
        yield _axis("names: origin", templates, {region: _named(fill) for region, fill in people.items()})
    if templates := by_slot["person"]:
        groups = {
            gender: [{"person": word, **pronouns} for word in fills["words"][gender]]
            for gender, pronouns in _PRONOUNS.items()
        }
        yield _axis("words: gender", templates, groups)
    if templates := [text for text in texts if "{nationality}" in text or "{country}" in text]:
        groups = {
            region: [{"nationality": adjective, "country": country} for adjective, country in rows]
            for region, rows in fills["nationalities"].items()
        }
        yield _axis("nationality", templates, groups)


def _named(people: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": name, **_PRONOUNS[gender]} for name, gender in people]


def _axis(name: str, templates: Sequence[str], groups: Mapping[str, Sequence[Mapping[str, str]]]) -> Axis:
    tables = {
        group: [[_fill(template, fill) for fill in fills] for template in templates]
        for group, fills in groups.items()
    }
    return Axis(name=name, groups=tables)


def _fill(template: str, fill: Mapping[str, str]) -> Probe:
    parts, name, length = [], None, 0
    for number, part in enumerate(_SLOT.split(template)):
        if number % 2:
            if part not in fill:
                raise ConfigError(f"template {template!r}: slot {{{part}}} is none of {', '.join(fill)}")
            if part == "name":
                name = length, length + len(fill[part])
            part = fill[part]
        parts.append(part)
        length += len(part)
    return Probe("".join(parts), name)


def _template_files(names: Sequence[str], path_of: Callable[[str], Path]) -> list[Path]:
    shipped = {name for names in SHIPPED.values() for name in names}
    paths = [_FOLDER / f"{name}.toml" if name in shipped else path_of(name) for name in names]
    for name, path in zip(names, paths, strict=True):
        if not path.is_file():
            raise ConfigError(
                f"there are no templates {name!r}: neither one of {', '.join(sorted(shipped))} nor a file "
                f"{path}"
            )
    return paths


def _texts(path: Path) -> list[str]:
    texts = _read_toml(path).get("texts")
    lists = list(texts.values()) if isinstance(texts, dict) else []
    if not lists or not all(
        isinstance(part, list) and all(isinstance(t, str) for t in part) for part in lists
    ):
        raise DataError(f"{path}: expected a table [texts] of lists of texts")
    return [text for part in lists for text in part]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as exc:
        raise DataError(f"{path} is not a TOML file: {exc}") from exc
