"""A recipe's data: both splits, and the labels in the order of the model's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from mooring import DataError, RecipeError
from mooring_build.behaviour import read_behaviour
from mooring_build.data_files import data_file, is_bio, read_conll, read_csv, read_rows
from mooring_build.digests import digest_of
from mooring_build.examples import Example, HeadText, Split, TaggedSentence
from mooring_build.hub_data import read_hub_texts
from mooring_build.image_data import read_images
from mooring_build.recipe import COMPOSED_TASKS, LABELLED_TASKS, Recipe
from mooring_build.recipe_tables import Data
from mooring_build.tabular_data import read_tabular


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
            outside = read_texts(recipe, recipe.data, "out_of_scope_train")
            digests["out_of_scope"] = digest_of(outside)
        if trains and recipe.data.out_of_scope is not None:
            # Needed after the training; a mistake in it is better told before.
            read_texts(recipe, recipe.data, "out_of_scope")
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


def read_texts(recipe: Recipe, data: Data, name: str) -> list[str]:
    """Read the text column of the CSV file that a key of ``data`` names.

    Raises:
        DataError: with path and line number.
    """
    column = data.text_column
    rows = read_rows(data_file(recipe, data, name), [column], called={column: "data.text_column"})
    return [row[column] for row in rows]


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
    if recipe.task == "image-classification":
        return read_images(recipe, data, name, labels)
    if recipe.task == "recommendation":
        return read_behaviour(recipe, data, name)
    if recipe.task == "tabular-classification":
        return read_tabular(recipe, data, name)
    if data.format == "hub":
        return read_hub_texts(recipe, data, name)
    path = data_file(recipe, data, name)
    if data.format == "conll":
        examples = read_conll(path, separator=data.token_separator)
    else:
        columns = {"text_column": data.text_column, "label_column": data.label_column}
        examples = read_csv(path, **columns, place=recipe.place_of(data))
    return Split(examples, str(path), digest_of([astuple(example) for example in examples]))


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
    if "O" not in labels or not all(map(is_bio, labels)):
        raise RecipeError(
            f"labels: token classification needs O, B-<type>, I-<type>; got {labels}. A checkpoint whose "
            "labels are types without a prefix means I-<type>: call them that in its config.json (id2label); "
            "other schemes (BIOES, BILOU) are not served"
        )
