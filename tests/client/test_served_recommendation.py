"""Histories to vectors and users' vectors to items, as the server does it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mooring._served.recommendation import HistoryError, ItemCatalogue

ITEMS = ["tea", "coffee", "Käse", "bread"]
VECTORS = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.float32)
BIASES = np.array([0, 0, -0.5, 0.25], np.float32)


def catalogue(*, skip_unknown: bool = False) -> ItemCatalogue:
    return ItemCatalogue(ITEMS, VECTORS, BIASES, skip_unknown=skip_unknown)


def histories(*rows: tuple[str, ...]) -> np.ndarray:
    width = max(map(len, rows))
    table = np.full((len(rows), width), b"", np.object_)
    for target, row in zip(table, rows, strict=True):
        target[: len(row)] = [item.encode() for item in row]
    return table


def test_histories_become_vectors_with_a_mask() -> None:
    vectors, mask = catalogue().look_up(histories(("Käse", "tea"), ("bread",)), 3)
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[[1, 1], [1, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]]]
    assert mask.dtype == np.int64
    assert mask.tolist() == [[1, 1, 0], [1, 0, 0]]


def test_the_latest_items_of_a_long_history_are_taken() -> None:
    vectors, mask = catalogue().look_up(histories(("tea", "coffee", "Käse")), 2)
    assert vectors.tolist() == [[[0, 1], [1, 1]]]
    assert mask.tolist() == [[1, 1]]


def test_empty_entries_are_padding_wherever_they_stand() -> None:
    assert catalogue().find(histories(("", "tea", "", "coffee"), ("", "", "", ""))) == [[0, 1], []]
    vectors, mask = catalogue().look_up(histories(("", "")), 2)
    assert not vectors.any()
    assert not mask.any()


def test_an_unknown_item_is_named() -> None:
    with pytest.raises(HistoryError, match=r"history 1 names item 'milk', which is not among the 4 items"):
        catalogue().find(histories(("tea",), ("tea", "milk", "honey")))
    with pytest.raises(HistoryError, match=r"history 0 names item '\\\\xff'"):
        catalogue().find(np.array([[b"\xff"]], object))


def test_unknown_items_are_left_out_where_the_recipe_says_so() -> None:
    assert catalogue(skip_unknown=True).find(histories(("milk", "tea"), ("milk", ""))) == [[0], []]


def test_items_come_best_first_without_those_of_the_history() -> None:
    users = np.array([[1, 0], [0, 2]], np.float32)
    items, scores = catalogue().recommend(users, histories(("tea",), ("bread", "coffee")), 2)
    assert items.tolist() == [["Käse".encode(), b"bread"], ["Käse".encode(), b"tea"]]
    assert scores.tolist() == [[0.5, 0.25], [1.5, 0.0]]
    assert scores.dtype == np.float32


def test_equal_scores_keep_the_order_of_the_catalogue() -> None:
    items, _ = catalogue().recommend(np.zeros((1, 2), np.float32), histories(("bread",)), 2)
    assert items.tolist() == [[b"tea", b"coffee"]]


def test_an_answer_has_one_width_however_little_is_left() -> None:
    user = np.array([[1, 0]], np.float32)
    items, scores = catalogue().recommend(user, histories(("tea", "coffee", "bread")), 6)
    assert items.tolist() == [["Käse".encode(), *[b""] * 5]]
    assert scores.tolist() == [[0.5, 0, 0, 0, 0, 0]]


def test_vectors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"user \[1, 3\] does not fit 1 histories and vectors of 2 values"):
        catalogue().recommend(np.zeros((1, 3), np.float32), histories(("tea",)), 2)
    with pytest.raises(ValueError, match=r"user \[2, 2\] does not fit 1 histories"):
        catalogue().recommend(np.zeros((2, 2), np.float32), histories(("tea",)), 2)
    with pytest.raises(ValueError, match=r"the user of row 0 is not finite"):
        catalogue().recommend(np.array([[np.nan, 0]], np.float32), histories(("tea",)), 2)
    with pytest.raises(ValueError, match=r"vectors \[4, 2\] and biases \[3\] do not fit 4 items"):
        ItemCatalogue(ITEMS, VECTORS, BIASES[:3])


def test_a_catalogue_is_read_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "items.json").write_text(json.dumps(ITEMS), encoding="utf-8")
    np.savez(tmp_path / "items.npz", vectors=VECTORS, biases=BIASES)
    loaded = ItemCatalogue.load(tmp_path, skip_unknown=True)
    assert loaded.find(histories(("milk", "Käse"))) == [[2]]
    items, scores = loaded.recommend(np.zeros((1, 2), np.float32), histories(("bread",)), 3)
    assert items.tolist() == [[b"tea", b"coffee", "Käse".encode()]]
    assert scores.tolist() == [[0, 0, -0.5]]
