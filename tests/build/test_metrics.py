from __future__ import annotations

import pytest

from mooring_build.metrics import format_report, label_metrics, label_report, ranking_metrics, token_metrics

TRUTH = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "O"]]
CHOSEN = [["B-PER", "O", "O", "B-LOC"], ["O", "B-LOC"]]


def test_label_metrics_by_hand() -> None:
    # Two of three right; F1 of a is 1, of b 2/3 (precision 1/2, recall 1), of c 0.
    assert label_metrics(["a", "b", "c"], ["a", "b", "b"]) == pytest.approx(
        {"accuracy": 2 / 3, "macro_f1": (1 + 2 / 3 + 0) / 3}
    )


def test_token_metrics_by_hand() -> None:
    metrics = token_metrics(TRUTH, CHOSEN)
    # Entities: PER 0:2 and LOC 3 are right ones; PER 0:1, LOC 3 and another LOC are found.
    assert metrics["entity_precision"] == pytest.approx(1 / 3)
    assert metrics["entity_recall"] == pytest.approx(1 / 2)
    assert metrics["entity_f1"] == pytest.approx(2 / 5)
    assert metrics["token_micro_f1"] == pytest.approx(4 / 6)
    # B-PER 1, I-PER 0, O 2/3 (2 of 3 found, 2 of 3 right), B-LOC 2/3 (1 of 2 found is right, all are found).
    assert metrics["token_macro_f1"] == pytest.approx((1 + 0 + 2 / 3 + 2 / 3) / 4)
    assert metrics["token_weighted_f1"] == pytest.approx((1 * 1 + 0 * 1 + 2 / 3 * 3 + 2 / 3 * 1) / 6)


def test_the_report_has_each_label_and_the_averages() -> None:
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    report = label_report(
        [tag for row in TRUTH for tag in row], [tag for row in CHOSEN for tag in row], labels
    )
    assert list(report) == ["O", "B-PER", "I-PER", "B-LOC", "micro avg", "macro avg", "weighted avg"]
    assert report["O"] == pytest.approx(
        {"precision": 2 / 3, "recall": 2 / 3, "f1-score": 2 / 3, "support": 3}
    )
    assert report["micro avg"]["f1-score"] == pytest.approx(4 / 6)
    assert report["micro avg"]["support"] == 6
    lines = format_report(report)
    assert lines[0].split() == ["precision", "recall", "F1", "support"]
    assert lines[1].split() == ["O", "0.667", "0.667", "0.667", "3"]


def test_labels_may_be_called_as_the_figures_are() -> None:
    truth = ["accuracy", "price", "accuracy", "price"]
    report = label_report(truth, ["accuracy", "price", "price", "price"], ["accuracy", "price"])
    assert list(report) == ["accuracy", "price", "micro avg", "macro avg", "weighted avg"]
    assert report["accuracy"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1-score": pytest.approx(2 / 3),
        "support": 2,
    }
    assert report["micro avg"]["f1-score"] == 0.75


def test_ranking_metrics_by_hand() -> None:
    metrics = ranking_metrics([0, 1, None, 20])
    assert metrics == pytest.approx(
        {
            "hit_at_1": 1 / 4,
            "mrr": (1 + 1 / 2 + 1 / 21) / 4,
            "ndcg_at_10": (1 + 1 / 1.584962500721156) / 4,
            "recall_at_50": 3 / 4,
        }
    )
