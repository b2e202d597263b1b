from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mooring import DataError
from mooring_loadtests import quality
from mooring_loadtests.quality import Figure, Measured, Row, Training, _table, main, read_rows
from mooring_loadtests.quality_systems import TRAININGS, _fashion, _held_out
from shared_data import shared_data


def row(name: str, at_least: float | None, served: float) -> Row:
    return Row(
        system="ner",
        data="conll2003",
        examples=7,
        figure=Figure(name, at_least),
        served=served,
        pytorch=served,
        minutes=19.6,
    )


def test_every_system_has_its_figures() -> None:
    found: dict[str, set[str]] = {}
    for training in TRAININGS:
        names = {figure.name for figure in training.figures if figure.summed_up}
        found.setdefault(training.system, set()).update(names)
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


def test_a_figure_below_its_goal_is_not_reached() -> None:
    assert row("entity_f1", 0.86, 0.86).reached
    assert not row("entity_f1", 0.86, 0.8599).reached
    assert row("entity_f1", None, 0.0).reached


def test_the_page_holds_the_results(tmp_path: Path) -> None:
    rows = [row("entity_f1", 0.86, 0.8712), replace(row("token_macro_f1", 0.84, 0.85), minutes=None)]
    page = tmp_path / "quality.md"
    page.write_text(_table(rows), encoding="utf-8")
    assert "| ner | conll2003 | 7 | entity_f1 | 0.86 | 0.8712 | 0.8712 | 20 |" in page.read_text()
    assert "| ner | conll2003 | 7 | token_macro_f1 | 0.84 | 0.8500 | 0.8500 | - |" in page.read_text()
    assert read_rows(page) == [replace(rows[0], minutes=20.0), rows[1]]
    assert read_rows(tmp_path / "none.md") == []
    page.write_text(page.read_text().replace(" | 0.84 |", " |"), encoding="utf-8")
    with pytest.raises(DataError, match=r"quality\.md has a row that this version does not know: '\| ner"):
        read_rows(page)


def test_a_system_replaces_its_own_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "quality.md"
    page.write_text(_table([row("entity_f1", 0.86, 0.8712)]), encoding="utf-8")
    found = iter([({"accuracy": 0.97501}, 2.0), ({"accuracy": 0.9}, None)])

    def measure(training: Training, data: Path, work: Path) -> Measured:
        figures, minutes = next(found)
        return Measured(served=figures, pytorch=figures, examples=360, minutes=minutes)

    monkeypatch.setattr(quality, "_measure", measure)
    assert main(["tabular", "--table", str(page)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"tabular": {"accuracy": 0.975}}
    # Missed; the model was there already, so that its minutes are those of before.
    assert main(["tabular", "--table", str(page)]) == 1
    assert [(one.system, one.served, one.minutes) for one in read_rows(page)] == [
        ("ner", 0.8712, 20.0),
        ("tabular", 0.9, 2.0),
    ]


def test_every_tenth_row_is_held_out(tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    with train.open("w", newline="") as file:
        rows = [(f"text {i}", "a") for i in range(25)]
        # Rows 3 and 20 have texts of other rows.
        rows[3], rows[20] = ("TEXT  10", "b"), ("text 9", "b")
        csv.writer(file).writerows([("text", "label"), *rows])
    files = _held_out(train, tmp_path / "test.csv", tmp_path)
    fit, validation = (
        list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines()))
        for name in ("fit", "validation")
    )
    assert [row["text"] for row in validation] == ["text 0"]
    assert len(fit) == 24
    assert [row["text"] for row in fit].count("text 9") == 2
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


def test_missing_data_are_named_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "_measure", lambda *given: pytest.fail("it trains"))
    (tmp_path / "conll2003").mkdir()
    options = ["--data", str(tmp_path), "--table", str(tmp_path / "quality.md")]
    assert main(["ner", "intent", *options]) == 2
    assert f"{tmp_path / 'banking77'} is missing: intent is scored on it" in capsys.readouterr().err


def test_a_table_that_has_no_place_is_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "_measure", lambda *given: pytest.fail("it trains"))
    assert main(["tabular", "--table", str(tmp_path / "nowhere" / "quality.md")]) == 2
    assert "nowhere is not there: run this from the project's folder" in capsys.readouterr().err
