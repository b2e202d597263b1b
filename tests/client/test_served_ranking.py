"""Query vectors to the items of a catalogue."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mooring._served.ranking import Catalogue

# The second item is known by two vectors; the first and the third are the same.
VECTORS = np.array([[1, 0], [0, 1], [0.6, 0.8], [1, 0]], np.float32)
OWNERS = np.array([0, 1, 1, 2], np.int32)
ITEMS, ANSWERS = ["a", "b", "c"], ["A", "B", ""]


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue(VECTORS, OWNERS, ITEMS, ANSWERS)


def test_an_item_is_as_near_as_its_nearest_vector(catalogue: Catalogue) -> None:
    order, scores = catalogue.rank(np.array([[0.8, 0.6], [0, 1]], np.float32), 3)
    assert order.tolist() == [[1, 0, 2], [1, 0, 2]]
    assert scores == pytest.approx(np.array([[0.96, 0.8, 0.8], [1, 0, 0]]), abs=1e-6)
    assert scores.dtype == np.float32


def test_equal_scores_keep_the_catalogue_s_order(catalogue: Catalogue) -> None:
    order, _ = catalogue.rank(np.array([[1, 0], [-1, 0]], np.float32), 3)
    assert order.tolist() == [[0, 2, 1], [1, 0, 2]]


@pytest.mark.parametrize(("top_k", "columns"), [(1, 1), (2, 2), (9, 3)])
def test_no_more_items_than_there_are(catalogue: Catalogue, top_k: int, columns: int) -> None:
    order, scores = catalogue.rank(np.array([[1, 0]], np.float32), top_k)
    assert order.shape == scores.shape == (1, columns)


def test_it_is_read_from_a_version_folder(tmp_path: Path) -> None:
    np.savez(tmp_path / "catalogue.npz", vectors=VECTORS, owners=OWNERS)
    (tmp_path / "catalogue.json").write_text(json.dumps({"items": ITEMS, "answers": ANSWERS}))
    read = Catalogue.load(tmp_path)
    assert (read.items, read.answers, read.dimension) == (ITEMS, ANSWERS, 2)
    assert read.rank(np.array([[0, 1]], np.float32), 1)[0].tolist() == [[1]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_is_refused(catalogue: Catalogue, value: float) -> None:
    with pytest.raises(ValueError, match="the embedding of row 1 is not finite"):
        catalogue.rank(np.array([[0, 1], [value, 0]], np.float32), 1)


@pytest.mark.parametrize("queries", [np.ones((1, 3), np.float32), np.ones(2, np.float32)])
def test_queries_of_another_length_are_refused(catalogue: Catalogue, queries: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"embedding \[.*\] does not fit a catalogue of 2 values each"):
        catalogue.rank(queries, 1)


@pytest.mark.parametrize(
    ("owners", "items", "answers"),
    [
        ([0, 1, 1], ITEMS, ANSWERS),
        ([0, 1, 1, 1], ITEMS, ANSWERS),
        ([0, 2, 2, 1], ITEMS, ANSWERS),
        ([1, 1, 2, 2], ITEMS, ANSWERS),
        ([0, 1, 1, 2], ITEMS, ["A"]),
    ],
)
def test_what_does_not_fit_is_refused(owners: list[int], items: list[str], answers: list[str]) -> None:
    with pytest.raises(ValueError, match=r"vectors \[4, 2\] of owners .* do not fit 3 items"):
        Catalogue(VECTORS, np.array(owners, np.int32), items, answers)
