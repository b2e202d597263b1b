"""The monitor on streams drawn from real data: false alarms within the bound, surges noticed in time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mooring_loadtests import monitor_simulation
from mooring_loadtests.monitor_simulation import (
    RealData,
    load_data,
    main,
    measure_delays,
    measure_false_alarms,
    poisson_upper,
    quiet_day,
    surging_day,
)
from shared_data import shared_data


@pytest.fixture(scope="module")
def data() -> RealData:
    folder = shared_data("financial_phrasebank").parent
    shared_data("financial_topic")
    return load_data(folder)


def test_the_real_labels_are_read(data: RealData) -> None:
    assert len(data.sentiments) == 4846
    assert set(data.sentiments) == {"negative", "neutral", "positive"}
    assert data.negative_share == pytest.approx(604 / 4846)
    assert (len(data.topics), sum(data.topics.values())) == (20, 16990)


@pytest.mark.parametrize("correlation", [0.0, 0.02])
def test_false_alarms_are_within_what_was_allowed(data: RealData, correlation: float) -> None:
    rates = measure_false_alarms(data, days=30, seed=11, allowed=(0.2, 1.0), correlation=correlation)
    for found in rates:
        assert found.topic_days > 200
        assert found.upper_per_day <= found.allowed_per_day, found
    # A rule that never says anything would keep to the bound too.
    assert rates[-1].alerts > 20


@pytest.mark.parametrize(
    ("texts_per_hour", "share", "within_min"), [(60, 0.6, 60), (60, 0.4, 90), (20, 0.6, 120)]
)
def test_surges_are_noticed_in_time_and_once(
    data: RealData, texts_per_hour: float, share: float, within_min: float
) -> None:
    found = measure_delays(data, surges=60, seed=5, texts_per_hour=texts_per_hour, share=share)
    # A window lasts 60 minutes.
    assert found.percentile_min(90) <= within_min
    assert np.mean(np.array(found.alerts) == 1) >= 0.9


def test_what_is_no_surge_is_not_noticed(data: RealData) -> None:
    found = measure_delays(data, surges=40, seed=5, texts_per_hour=60, share=data.negative_share)
    assert found.detected <= 0.1


def test_streams_have_the_stated_shares(data: RealData) -> None:
    rng = np.random.default_rng(0)
    texts = list(quiet_day(data, rng, day=0, texts=20_000))
    assert [time_s for time_s, _ in texts] == sorted(time_s for time_s, _ in texts)
    negative = np.mean([said.sentiment.label == "negative" for _, said in texts])
    assert negative == pytest.approx(data.negative_share, abs=0.015)
    begin_s, texts = surging_day(data, rng, day=0, texts_per_hour=2000, share=0.4)
    within = [
        said.sentiment.label == "negative"
        for time_s, said in texts
        if begin_s <= time_s < begin_s + monitor_simulation.SURGE_S
    ]
    assert np.mean(within) == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(("count", "upper"), [(0, 3.689), (1, 5.572), (10, 18.390), (100, 121.627)])
def test_the_interval_of_a_poisson_mean_is_that_of_the_tables(count: int, upper: float) -> None:
    assert poisson_upper(count) == pytest.approx(upper, abs=0.002)


def test_the_command_ends_with_its_figures(data: RealData, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(shared_data("financial_phrasebank").parent)
    assert main(["--data", folder, "--days", "1", "--surges", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert {tuple(one) for one in map(sorted, figures["delays"])} == {
        ("detected", "median_min", "p90_min", "share", "texts_per_hour")
    }
    assert len(figures["delays"]) == 9
    assert [one["allowed_per_day"] for one in figures["false_alarms"]] == [0.01, 0.1, 1.0] * 3
    assert any("allowed a day" in line for line in lines)


def test_missing_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path)]) == 2
    assert "Sentences_50Agree.txt can't be read: No such file" in capsys.readouterr().err
