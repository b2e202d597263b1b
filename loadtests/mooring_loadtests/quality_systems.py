"""Which systems are scored on which real data, with which settings, and what they should reach."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mooring import Client
from mooring_build import real_data
from mooring_build.data_files import read_rows
from mooring_build.recipe import Recipe
from mooring_loadtests.quality import Figure, Files, Measured, Training, evaluate

#: One of so many training examples picks the best epoch, where a set has no validation split of its own.
_EVERY = 10


def _conll(source: Path, target: Path) -> Files:
    return Files(
        training=[f"data.train={source / 'train.txt'}", f"data.evaluation={source / 'valid.txt'}"],
        test=[f"data.evaluation={source / 'test.txt'}"],
    )


def _banking(source: Path, target: Path) -> Files:
    files = _held_out(source / "train.csv", source / "test.csv", target)
    # The recipe's texts out of scope are a shop's, not a bank's.
    foreign = ["data.out_of_scope_train=", "data.out_of_scope="]
    return replace(files, training=[*files.training, *foreign])


def _converted(convert: Callable[[Path, Path], Mapping[str, Path]]) -> Callable[[Path, Path], Files]:
    def prepare(source: Path, target: Path) -> Files:
        files = convert(source, target)
        return _held_out(files["train"], files["evaluation"], target)

    return prepare


def _held_out(train: Path, test: Path, target: Path) -> Files:
    """Part a validation split from the training rows: every tenth, and a text that is there again goes with
    its first row."""
    with train.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    column, first = header.index("text"), {}
    parts: dict[str, list[list[str]]] = {"fit": [], "validation": []}
    for number, row in enumerate(rows):
        place = first.setdefault(real_data.same_text(row[column]), number)
        parts["fit" if place % _EVERY else "validation"].append(row)
    for name, part in parts.items():
        with (target / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *part])
    return Files(
        training=[f"data.train={target / 'fit.csv'}", f"data.evaluation={target / 'validation.csv'}"],
        test=[f"data.evaluation={test}"],
    )


def _clinc(source: Path, target: Path) -> Files:
    files = real_data.clinc150(source, target)
    return Files(
        training=[
            f"data.train={files['train']}",
            f"data.evaluation={files['evaluation']}",
            f"data.out_of_scope_train={files['out_of_scope_train']}",
            f"data.out_of_scope={files['out_of_scope_test']}",
        ],
        test=[f"data.evaluation={files['test']}"],
    )


def _recognise(client: Client, recipe: Recipe, recorded: Mapping[str, Any]) -> Measured:
    """Share of the texts out of scope that the served model does not accept."""
    threshold = float(client.config(recipe.name).parameters["acceptance_threshold"])

    def accepted(file: str | None) -> list[bool]:
        texts = [row["text"] for row in read_rows(recipe.path(file), ["text"])]
        answers = (
            client.infer(recipe.name, {"text": np.array([[text]], np.object_)}, outputs=["acceptance"])
            for text in texts
        )
        return [bool(answer["acceptance"][0, 0] >= threshold) for answer in answers]

    inside, outside = accepted(recipe.data.evaluation), accepted(recipe.data.out_of_scope)
    print(f"  accepts {sum(inside) / len(inside):.1%} of {len(inside)} test texts in scope", flush=True)
    recall = 1 - sum(outside) / len(outside)
    return Measured(served={"oos_recall": recall}, pytorch=recorded, examples=len(outside))


def _stackfaq(source: Path, target: Path) -> Files:
    files = real_data.stackfaq(source, target)
    return Files(
        training=[
            f"catalogue.file={files['catalogue']}",
            f"data.train={files['train']}",
            f"data.evaluation={files['evaluation']}",
        ]
    )


def _movielens(source: Path, target: Path) -> Files:
    files = real_data.movielens(source, target)
    return Files(training=[f"data.train={files['events']}", f"catalogue.file={files['items']}"])


def _against_simpler(client: Client, recipe: Recipe, recorded: Mapping[str, Any]) -> Measured:
    """The ranking's NDCG and recall, and how many times those of simpler rankings they are."""
    measured = evaluate(client, recipe, recorded, None)

    def with_ratios(figures: Mapping[str, float]) -> dict[str, float]:
        ratios = {
            f"{name}_over_{other}": figures[metric] / recorded[f"{other}_{metric}"]
            for name, metric in (("ndcg", "ndcg_at_10"), ("recall", "recall_at_50"))
            for other in ("popularity", "similarity")
        }
        return {**figures, **ratios}

    return replace(measured, served=with_ratios(measured.served), pytorch=with_ratios(measured.pytorch))


def _fashion(source: Path, target: Path) -> Files:
    """The last sixth of the training images picks the best epoch."""
    files = {}
    for part, first, last in (("fit", 0, 50_000), ("validation", 50_000, 60_000)):
        for kind, size in (("images-idx3", 28 * 28), ("labels-idx1", 1)):
            raw = gzip.decompress((source / f"train-{kind}-ubyte.gz").read_bytes())
            header = len(raw) - 60_000 * size
            # The second word of the header is the number of examples.
            content = raw[:4] + (last - first).to_bytes(4, "big") + raw[8:header]
            content += raw[header + first * size : header + last * size]
            path = target / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(content, compresslevel=1, mtime=0))
            files[part, kind] = path
    return Files(
        training=[
            f"data.train={files['fit', 'images-idx3']}",
            f"data.evaluation={files['validation', 'images-idx3']}",
        ],
        test=[f"data.evaluation={source / 't10k-images-idx3-ubyte.gz'}"],
    )


def _digits(source: Path, target: Path) -> Files:
    return Files(training=[])


TRAININGS = (
    Training(
        system="ner",
        recipe="ner",
        data="conll2003",
        prepare=_conll,
        # The longest test sentence has 124 words.
        settings=["training.epochs=5", "training.batch_size=16", "text.max_length=256"],
        figures=[Figure("token_micro_f1", 0.965), Figure("token_macro_f1", 0.84), Figure("entity_f1", 0.86)],
    ),
    Training(
        system="intent",
        recipe="intent",
        data="banking77",
        prepare=_banking,
        settings=[
            "data.label_column=category",
            "training.epochs=8",
            "training.batch_size=32",
            "training.label_smoothing=0.1",
        ],
        figures=[Figure("accuracy", 0.925)],
    ),
    Training(
        system="intent",
        recipe="intent",
        data="clinc150",
        prepare=_clinc,
        settings=["training.epochs=4", "training.batch_size=32"],
        figures=[Figure("oos_recall", 0.75)],
        measure=_recognise,
    ),
    Training(
        system="faq",
        recipe="faq",
        data="stackfaq",
        prepare=_stackfaq,
        settings=["training.epochs=1", "catalogue.top_k=50"],
        figures=[Figure("hit_at_1", 0.6), Figure("mrr", 0.7)],
    ),
    Training(
        system="sentiment",
        recipe="sentiment",
        data="financial_phrasebank",
        prepare=_converted(real_data.phrasebank),
        settings=["training.epochs=4", "training.learning_rate=2e-4"],
        figures=[Figure("accuracy", 0.83), Figure("macro_f1", 0.8)],
    ),
    Training(
        system="topic",
        recipe="topic",
        data="financial_topic",
        prepare=_converted(real_data.financial_topic),
        settings=["training.epochs=4", "training.learning_rate=2e-4", "training.batch_size=32"],
        figures=[Figure("accuracy", 0.85)],
    ),
    Training(
        system="recommender",
        recipe="recommender",
        data="movielens_small",
        prepare=_movielens,
        settings=[
            "catalogue.top_k=50",
            "training.epochs=8",
            "training.early_stopping_patience=2",
            "text.max_length=64",
        ],
        figures=[
            Figure("ndcg_at_10"),
            Figure("ndcg_over_popularity", 1.3),
            Figure("ndcg_over_similarity", summed_up=False),
            Figure("recall_at_50", summed_up=False),
            Figure("recall_over_popularity", summed_up=False),
            Figure("recall_over_similarity", summed_up=False),
        ],
        measure=_against_simpler,
    ),
    Training(
        system="image",
        recipe="image",
        data="fashion_mnist",
        prepare=_fashion,
        settings=[
            "data.format=idx",
            "image.flip=true",
            "training.epochs=12",
            "training.batch_size=64",
        ],
        figures=[Figure("accuracy", 0.9)],
    ),
    Training(
        system="tabular",
        recipe="tabular",
        data="digits",
        bundled=True,
        prepare=_digits,
        settings=[],
        figures=[Figure("accuracy", 0.97)],
    ),
)
