"""Labelled examples: CoNLL columns for token classification, CSV for text classification.

Readers are strict: every malformed line is an error with its path and number, never a skipped example.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from mooring import DataError, RecipeError
from mooring_build.digests import digest_of
from mooring_build.recipe import LABELLED_TASKS, Data, Recipe


@dataclass(frozen=True)
class TaggedSentence:
    """A sentence as CoNLL has it: ``tokens[i]`` carries the BIO tag ``tags[i]``."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.tokens)


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


Example = TaggedSentence | LabelledText | LabelledRow


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Both splits of a recipe, and the labels in the order of the model's outputs."""

    #: Empty where the recipe does not train.
    train: Sequence[Example]
    evaluation: Sequence[Example]
    labels: list[str]
    #: SHA-256 over labels and examples as they were read.
    digest: str


def load_dataset(recipe: Recipe, *, labels: list[str] | None = None) -> Dataset:
    """Read the recipe's data.

    Args:
        recipe: names the files and their format; without ``[data]`` both splits are empty.
        labels: labels that are already fixed, by a fine-tuned checkpoint; otherwise the recipe's, or
            those of the training data.

    Raises:
        DataError: a file is missing, not UTF-8, malformed, or has a label that is not among the labels.
        RecipeError: the labels of a token classifier are not BIO.
    """
    splits: dict[str, Sequence[Example]] = {"train": [], "evaluation": []}
    sources: dict[str, str] = {}
    digests: list[str] = []
    if recipe.data is not None:
        for name in ["train", "evaluation"] if recipe.training is not None else ["evaluation"]:
            split = _read_split(recipe, recipe.data, name)
            splits[name], sources[name] = split.examples, split.source
            digests.append(split.digest)
    if recipe.task in LABELLED_TASKS:
        labels = labels or recipe.labels or _labels_in(recipe, splits["train"])
        if recipe.task == "token-classification":
            _check_bio(labels)
        for name, source in sources.items():
            _check_labels(source, splits[name], labels)
    return Dataset(
        train=splits["train"],
        evaluation=splits["evaluation"],
        labels=labels or [],
        digest=digest_of([labels, digests]),
    )


def read_labels(recipe: Recipe) -> list[str]:
    """The labels of a recipe that trains: its own list, or those found in its data."""
    return recipe.labels or load_dataset(recipe).labels


def read_conll(path: Path) -> list[Example]:
    """Read CoNLL columns: token first, IOB2 tag last, sentences parted by blank lines.

    Raises:
        DataError: with path and line number.
    """
    sentences: list[Example] = []
    tokens: list[str] = []
    tags: list[str] = []

    def finish() -> None:
        if tokens:
            sentences.append(TaggedSentence(tuple(tokens), tuple(tags)))
            tokens.clear()
            tags.clear()

    # Not splitlines() and split(): Unicode's other line ends and spaces may be part of a token.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        columns = [column for column in re.split(r"[ \t\r]+", line) if column]
        if not columns or columns[0] == "-DOCSTART-":
            finish()
            continue
        if len(columns) < 2:
            raise DataError(f"{path}:{number}: {line!r} has one column; a token and its tag are expected")
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
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    columns = reader.fieldnames or []
    for key, column in (("data.text_column", text_column), ("data.label_column", label_column)):
        if column not in columns:
            raise DataError(f"{path}: {key} {column!r} is not among its columns {list(columns)}")
    examples: list[Example] = []
    try:
        for row in reader:
            text, label = (row[text_column] or "").strip(), (row[label_column] or "").strip()
            if not text or not label:
                raise DataError(f"{path}:{reader.line_num}: empty {'label' if text else 'text'}")
            examples.append(LabelledText(text, label))
    except csv.Error as exc:
        raise DataError(f"{path}:{reader.line_num}: {exc}") from exc
    return _not_empty(path, examples)


@dataclass(frozen=True)
class Split:
    """One split as it was read."""

    examples: Sequence[Example]
    #: Where it came from, for messages.
    source: str
    #: SHA-256 over the examples, or over the files that they came from.
    digest: str


def _read_split(recipe: Recipe, data: Data, name: str) -> Split:
    path = _data_file(recipe, data, name)
    if data.format == "conll":
        examples = read_conll(path)
    else:
        examples = read_csv(path, text_column=data.text_column, label_column=data.label_column)
    return Split(examples, str(path), digest_of([astuple(example) for example in examples]))


def _data_file(recipe: Recipe, data: Data, name: str) -> Path:
    value = getattr(data, name)
    if value is None:
        raise RecipeError(f"data.{name}: is missing")
    path = recipe.path(value)
    if not path.is_file():
        raise DataError(f"data.{name} {value!r}: no file {path}")
    return path


def _read_text(path: Path) -> str:
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


def _check_labels(source: str, examples: Sequence[Example], labels: list[str]) -> None:
    known = set(labels)
    unknown = sorted({label for example in examples for label in _labels_of(example)} - known)
    if unknown:
        raise DataError(f"{source} has labels {unknown} that are not among the model's labels {labels}")


def _check_bio(labels: list[str]) -> None:
    wrong = [label for label in labels if label != "O" and label[:2] not in ("B-", "I-")]
    if wrong or "O" not in labels:
        raise RecipeError(f"labels: token classification needs O, B-<type>, I-<type>; got {labels}")
