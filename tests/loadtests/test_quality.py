from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mooring_loadtests.quality import Row, _rows, _summary, _table, figure, main
from mooring_loadtests.quality_systems import TRAININGS, _fashion, _held_out
from shared_data import shared_data


def row(name: str, at_least: float, served: float | None) -> Row:
    return Row(
        system="ner", data="x", figure=figure(name, at_least), served=served, pytorch=served, examples=7
    )


def test_every_system_has_its_figures() -> None:
    found: dict[str, set[str]] = {}
    for training in TRAININGS:
        found.setdefault(training.system, set()).update(goal.name for goal in training.figures)
    assert found == {
        "ner": {"token_micro_f1", "token_macro_f1", "entity_f1"},
        "intent": {"accuracy", "oos_recall"},
        "faq": {"hit_at_1", "mrr"},
        "sentiment": {"accuracy", "macro_f1"},
        "topic": {"accuracy"},
        "recommender": {"ndcg_at_10", "ndcg_over_popularity"},
        "image": {"accuracy"},
        "tabular": {"accuracy"},
    }


def test_a_figure_below_its_goal_or_without_a_value_is_not_reached() -> None:
    assert row("entity_f1", 0.86, 0.86).reached
    assert not row("entity_f1", 0.86, 0.8599).reached
    assert not row("entity_f1", 0.86, None).reached


def test_the_table_says_what_was_not_measured() -> None:
    table = _table([row("entity_f1", 0.86, 0.871234), row("token_macro_f1", 0.84, None)])
    assert "| ner | x | 7 | entity_f1 | 0.86 | 0.8712 | 0.8712 |" in table
    assert "| ner | x | 7 | token_macro_f1 | 0.84 | not measured | not measured |" in table


def test_results_become_rows_and_one_object() -> None:
    results = {
        "tabular digits": {"served": {"accuracy": 0.97501}, "pytorch": {"accuracy": 0.975}, "examples": 9}
    }
    rows = [row for row in _rows(TRAININGS, results) if row.system in ("tabular", "topic")]
    assert json.loads(json.dumps(_summary(rows))) == {
        "topic": {"accuracy": None},
        "tabular": {"accuracy": 0.975},
    }


def test_every_tenth_row_is_held_out(tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    with train.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((f"text {i}", "a") for i in range(25))])
    files = _held_out(train, tmp_path / "test.csv", tmp_path)
    fit, validation = (
        list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines()))
        for name in ("fit", "validation")
    )
    assert [row["text"] for row in validation] == ["text 0", "text 10", "text 20"]
    assert len(fit) == 22
    assert files.test == [f"data.evaluation={tmp_path / 'test.csv'}"]


def test_fashion_mnist_is_parted_without_loss(tmp_path: Path) -> None:
    from mooring_build.datasets import load_dataset
    from mooring_build.recipe import load_recipe

    files = _fashion(shared_data("fashion_mnist"), tmp_path)
    dataset = load_dataset(load_recipe("image", ["data.format=idx", *files.training]))
    assert (len(dataset.train), len(dataset.evaluation)) == (50_000, 10_000)
    assert len(dataset.labels) == 10


def test_missing_data_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topic", "--data", str(tmp_path), "--work", str(tmp_path / "work")]) == 2
    assert f"{tmp_path / 'financial_topic'} is missing: topic is scored on it" in capsys.readouterr().err
