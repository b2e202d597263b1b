"""Labelled rows of numbers: CSV files, and scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mooring import DataError
from mooring_build.datasets import load_dataset
from mooring_build.examples import LabelledRow
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.tabular_data import read_table


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def recipe_of(train: Path, evaluation: Path, *more: str) -> Recipe:
    files = ["data.format=csv", f"data.train={train}", f"data.evaluation={evaluation}"]
    return load_recipe("tabular", [*files, "features.count=2", *more])


def test_a_table_of_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "\ufeffheight,kind,width\n1,x, 2.5\n-1e3,y,.5\n\n")
    columns, rows = read_table(path, label_column="kind")
    assert columns == ["height", "width"]
    assert rows == [LabelledRow((1.0, 2.5), "x"), LabelledRow((-1000.0, 0.5), "y")]


MISTAKES = [
    ("a,b\n1,2\n", r"data\.label_column 'label' is not among its columns.*\['a', 'b'\]"),
    ("", r"is not among its columns, or two have one name: \[\]"),
    ("a,a,label\n1,2,x\n", "or two have one name"),
    ("label\nx\n", "has no column but 'label'"),
    ("a,label\n1,x\n2\n", r":3: 1 cells, the header has 2"),
    ("a,label\n1,\n", r":2: empty label"),
    ("a,label\none,x\n", r":2: column 'a': 'one' is no number"),
    ("a,label\n,x\n", r":2: column 'a': '' is no number"),
    ("a,label\n1,x\nnan,x\n", r":3: column 'a': 'nan' is not finite"),
    ("a,label\ninf,x\n", r":2: column 'a': 'inf' is not finite"),
    ("a,label\n1e39,x\n", r":2: column 'a': '1e39' is not finite in FP32"),
    ('"a,label\n1,x\n', ":1: the row that begins here: unexpected end of data"),
    ("a,label\n", "holds no example"),
    ('a,label\n"1,x\n', "unexpected end of data"),
]


@pytest.mark.parametrize(("content", "complaint"), MISTAKES, ids=range(len(MISTAKES)))
def test_malformed_tables(tmp_path: Path, content: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_table(write(tmp_path / "a.csv", content), label_column="label")


def test_both_files_have_the_same_columns_in_one_order(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "a,b,label\n1,2,x\n3,4,y\n")
    same = write(tmp_path / "same.csv", "a,label,b\n1,x,2\n")
    assert load_dataset(recipe_of(train, same)).evaluation[0].features == (1.0, 2.0)
    other = write(tmp_path / "other.csv", "b,a,label\n1,2,x\n")
    with pytest.raises(DataError, match=r"other.csv has the columns \['b', 'a'\], those of .*train.csv are"):
        load_dataset(recipe_of(train, other))


def test_the_recipe_says_how_many_features_there_are(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "a,b,label\n1,2,x\n3,4,y\n")
    with pytest.raises(DataError, match=r"train.csv has 2 features, the recipe says 3 \(features.count\)"):
        load_dataset(recipe_of(train, train, "features.count=3"))


def test_a_fixed_fifth_of_the_digits_is_held_out() -> None:
    dataset = load_dataset(load_recipe("tabular"))
    assert dataset.labels == list("0123456789")
    assert (len(dataset.train), len(dataset.evaluation)) == (1437, 360)
    counts = np.bincount([int(row.label) for row in dataset.evaluation])
    assert counts.min() >= 34
    assert counts.max() <= 38
    rows = sorted((*row.features, int(row.label)) for row in [*dataset.train, *dataset.evaluation])
    digits = load_digits()
    assert rows == sorted(
        (*row, label) for row, label in zip(digits.data.tolist(), digits.target, strict=True)
    )
    again = load_dataset(load_recipe("tabular"))
    assert (again.digest, list(again.evaluation)) == (dataset.digest, list(dataset.evaluation))
