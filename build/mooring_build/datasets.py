"""Labelled examples: CoNLL columns for token classification, CSV for text classification.

Readers are strict: every malformed line is an error with its path and number, never a skipped example.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from mooring import DataError, RecipeError
from mooring_build.digests import digest_of
from mooring_build.recipe import COMPOSED_TASKS, LABELLED_TASKS, Recipe
from mooring_build.recipe_tables import Data


@dataclass(frozen=True)
class TaggedSentence:
    """A sentence as CoNLL has it: ``tokens[i]`` carries the BIO tag ``tags[i]``."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    #: What stands between two tokens in the text; nothing where tokens are characters.
    separator: str = " "

    @property
    def text(self) -> str:
        return self.separator.join(self.tokens)


@dataclass(frozen=True)
class LabelledText:
    """A text and its one label."""

    text: str
    label: str


@dataclass(frozen=True)
class LabelledRow:
    """A row of numbers and its label."""

    features: tuple[float, ...]
    label: str


@dataclass(frozen=True)
class LabelledImage:
    """An image among others, which is not looked at before it is asked for, and its label."""

    images: Sequence[Any]
    index: int
    label: str

    @property
    def image(self) -> Any:
        """An encoded file's bytes, or uint8 ``[H, W]`` or ``[H, W, 3]``."""
        return self.images[self.index]


@dataclass(frozen=True)
class HeadText:
    """A text and its label for one of several classifications."""

    text: str
    head: str
    label: str


@dataclass(frozen=True)
class Visits:
    """What one user chose, oldest first, without the last, which is held out."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class NextItem:
    """What one user chose last, after everything else that the user chose, oldest first."""

    history: tuple[str, ...]
    item: str


@dataclass(frozen=True)
class Message:
    """A customer's message, with what is right for it."""

    text: str
    #: Empty where it has none of the known ones.
    intent: str
    #: Empty where the knowledge base does not answer it.
    item: str
    handover: bool


Example = TaggedSentence | LabelledText | LabelledRow | LabelledImage | HeadText | Visits | NextItem | Message


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Both splits of a recipe, and the labels in the order of the model's outputs."""

    #: Empty where the recipe does not train.
    train: Sequence[Example]
    evaluation: Sequence[Example]
    labels: list[str]
    #: SHA-256 over labels and examples as they were read.
    digest: str
    #: The same over the evaluation split alone; empty where there is none.
    evaluation_digest: str = ""
    #: Texts for training that fit no label.
    out_of_scope: Sequence[str] = ()
    #: What a text ranking chooses from.
    entries: Sequence[Any] = ()


def load_dataset(
    recipe: Recipe, *, labels: list[str] | None = None, evaluation_only: bool = False
) -> Dataset:
    """Read the recipe's data.

    Args:
        recipe: names the files and their format; without ``[data]`` both splits are empty.
        labels: labels that are already fixed, by a fine-tuned checkpoint; otherwise the recipe's, or
            those of the training data.
        evaluation_only: leave the training split out.

    Raises:
        DataError: a file is missing, not UTF-8, malformed, or has a label that is not among the labels.
        RecipeError: the labels of a token classifier are not BIO.
    """
    if recipe.heads is not None:
        return _load_heads(recipe, evaluation_only=evaluation_only)
    splits: dict[str, Sequence[Example]] = {"train": [], "evaluation": []}
    sources: dict[str, str] = {}
    digests: dict[str, str] = {}
    outside: list[str] = []
    # What joins other pipelines trains nothing, and reads its data itself.
    if recipe.data is not None and recipe.task not in COMPOSED_TASKS:
        trains = recipe.training is not None and not evaluation_only
        for name in ["train", "evaluation"] if trains else ["evaluation"]:
            split = read_split(recipe, recipe.data, name, labels or recipe.labels)
            splits[name], sources[name], digests[name] = split.examples, split.source, split.digest
        if trains and recipe.data.out_of_scope_train is not None:
            outside = read_texts(recipe, recipe.data.out_of_scope_train)
            digests["out_of_scope"] = digest_of(outside)
        if trains and recipe.data.out_of_scope is not None:
            # Needed after the training; a mistake in it is better told before.
            read_texts(recipe, recipe.data.out_of_scope)
    if recipe.task in LABELLED_TASKS:
        labels = labels or recipe.labels or _labels_in(recipe, splits["train"])
        if recipe.task == "token-classification":
            _check_bio(labels)
        for name, source in sources.items():
            _check_labels(
                source, splits[name], labels, fixed=recipe.training is not None and bool(recipe.labels)
            )
    return Dataset(
        train=splits["train"],
        evaluation=splits["evaluation"],
        labels=labels or [],
        digest=digest_of([labels, digests]),
        evaluation_digest=digests.get("evaluation", ""),
        out_of_scope=outside,
    )


def read_texts(recipe: Recipe, file: str) -> list[str]:
    """Read the text column of a CSV file that the recipe names.

    Raises:
        DataError: with path and line number.
    """
    path = recipe.path(file)
    if not path.is_file():
        raise DataError(f"{file!r}: no file {path}")
    column = recipe.data.text_column if recipe.data is not None else "text"
    return [row[column] for row in read_rows(path, [column])]


def _load_heads(recipe: Recipe, *, evaluation_only: bool) -> Dataset:
    """The examples of all heads, one head after the other."""
    trains = recipe.training is not None and not evaluation_only
    examples: dict[str, list[Example]] = {"train": [], "evaluation": []}
    digests: dict[str, list[str]] = {"train": [], "evaluation": []}
    for name, head in (recipe.heads or {}).items():
        for part in ["train", "evaluation"] if trains else ["evaluation"]:
            # Without training, evaluation may be left out.
            if getattr(head, part) is None:
                continue
            split = read_split(recipe, head, part, head.labels)
            _check_labels(split.source, split.examples, head.labels)
            examples[part] += [HeadText(example.text, name, example.label) for example in split.examples]
            digests[part].append(split.digest)
    # Pairs, as a digest of keys and values knows no order, which is that of the logits.
    labels = [[name, head.labels] for name, head in (recipe.heads or {}).items()]
    return Dataset(
        **examples,
        labels=[],
        digest=digest_of([labels, digests]),
        evaluation_digest=digest_of(digests["evaluation"]) if digests["evaluation"] else "",
    )


def read_labels(recipe: Recipe) -> list[str]:
    """The labels of a recipe that trains: its own list, or those found in its data."""
    return recipe.labels or load_dataset(recipe).labels


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


@dataclass(frozen=True)
class Split:
    """One split as it was read."""

    examples: Sequence[Example]
    #: Where it came from, for messages.
    source: str
    #: SHA-256 over the examples, or over the files that they came from.
    digest: str


def read_split(recipe: Recipe, data: Data, name: str, labels: Sequence[str] | None = None) -> Split:
    """Read one split.

    Args:
        recipe: that ``data`` is part of.
        data: format and place.
        name: ``train`` or ``evaluation``.
        labels: names of the classes, where image data has only their numbers.

    Raises:
        DataError: it is missing or malformed.
        RecipeError: the recipe names none.
    """
    # These modules import this one.
    if recipe.task == "image-classification":
        from mooring_build.image_data import read_images

        return read_images(recipe, data, name, labels)
    if recipe.task == "recommendation":
        from mooring_build.behaviour import read_behaviour

        return read_behaviour(recipe, data, name)
    if recipe.task == "tabular-classification":
        from mooring_build.tabular_data import read_tabular

        return read_tabular(recipe, data, name)
    if data.format == "hub":
        from mooring_build.hub_data import read_hub_texts

        return read_hub_texts(recipe, data, name)
    path = data_file(recipe, data, name)
    if data.format == "conll":
        examples = read_conll(path, separator=data.token_separator)
    else:
        examples = read_csv(path, text_column=data.text_column, label_column=data.label_column)
    return Split(examples, str(path), digest_of([astuple(example) for example in examples]))


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


def _not_empty(path: Path, examples: list[Example]) -> list[Example]:
    if not examples:
        raise DataError(f"{path} holds no example")
    return examples


def _labels_in(recipe: Recipe, examples: Sequence[Example]) -> list[str]:
    found = {label for example in examples for label in _labels_of(example)}
    if not found:
        raise RecipeError("labels: is missing, and there is no training data to take them from")
    if len(found) == 1:
        raise DataError(f"the training data has the single label {found.pop()!r}: there is nothing to learn")
    if recipe.task == "token-classification":
        types = sorted({label[2:] for label in found - {"O"}})
        return ["O", *(f"{prefix}-{name}" for name in types for prefix in "BI")]
    return sorted(found)


def _labels_of(example: Example) -> tuple[str, ...]:
    return example.tags if isinstance(example, TaggedSentence) else (example.label,)


def _check_labels(
    source: str, examples: Sequence[Example], labels: list[str], *, fixed: bool = False
) -> None:
    known = set(labels)
    unknown = sorted({label for example in examples for label in _labels_of(example)} - known)
    if unknown:
        hint = ", which the recipe fixes; --set labels= takes them from the training data" if fixed else ""
        raise DataError(f"{source} has labels {unknown} that are not among the model's labels {labels}{hint}")


def _check_bio(labels: list[str]) -> None:
    wrong = [label for label in labels if label != "O" and label[:2] not in ("B-", "I-")]
    if wrong or "O" not in labels:
        raise RecipeError(
            f"labels: token classification needs O, B-<type>, I-<type>; got {labels}. A checkpoint whose "
            "labels are types without a prefix means I-<type>: call them that in its config.json (id2label); "
            "other schemes (BIOES, BILOU) are not served"
        )
