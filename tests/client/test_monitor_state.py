"""A monitor goes on after a restart as if there had been none."""

from __future__ import annotations

import json
import os
import random
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor_streams import POLICY, opinion, steps
from mooring import ConfigError, DataError
from mooring.monitor import Alert, AlertEnded, OpinionMonitor

#: A quiet time, a surge, a quiet time, and a surge that stays; with texts out of order.
STREAM = sorted(
    [
        *steps(0, 20),
        *steps(20, 30, negatives=8),
        *steps(30, 60),
        *steps(60, 140, negatives=8),
        *steps(0, 140, texts=3, topic="oil"),
    ],
    key=lambda text: text[0] + random.Random(text[2]).uniform(0, 25),
)
TOLERANT = replace(POLICY, lateness_s=25, examples=2)


def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    whole, broken = OpinionMonitor(TOLERANT), OpinionMonitor(TOLERANT)
    expected: list[Alert | AlertEnded] = []
    found: list[Alert | AlertEnded] = []
    draw = random.Random(3)
    restarts = 0
    for time_s, said, text in STREAM:
        expected += whole.feed(time_s, said, text)
        found += broken.feed(time_s, said, text)
        if draw.random() < 0.02:
            broken.save(path)
            broken = OpinionMonitor.load(path, TOLERANT)
            restarts += 1
    assert restarts > 20
    assert [type(event).__name__ for event in expected] == ["Alert", "AlertEnded", "Alert", "AlertEnded"]
    assert found == expected
    assert broken.counters == whole.counters
    assert broken.judged_topics == whole.judged_topics


def test_a_new_monitor_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    OpinionMonitor(POLICY).save(path)
    loaded = OpinionMonitor.load(path, POLICY)
    assert (loaded.counters.counted, loaded.open_alerts) == (0, [])


@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_times_may_be_numbers_of_numpy(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "state.json"
    monitor, same = OpinionMonitor(POLICY), OpinionMonitor(POLICY)
    for time_s in (1000, 1015):
        monitor.feed(kind(time_s), opinion("negative"))
        same.feed(time_s, opinion("negative"))
    monitor.save(path)
    saved = path.read_bytes()
    same.save(path)
    assert path.read_bytes() == saved


def test_replaying_what_was_seen_counts_nothing_twice_but_the_open_step(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    monitor = OpinionMonitor(POLICY)
    texts = list(steps(0, 10))
    for time_s, said, _ in texts:
        monitor.feed(time_s, said)
    monitor.save(path)
    again = OpinionMonitor.load(path, POLICY)
    for time_s, said, _ in texts:
        again.feed(time_s, said)
    assert again.counters.late == 90
    assert again.counters.counted == 110


def test_options_that_do_not_shape_the_counts_may_change(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    monitor = OpinionMonitor(POLICY)
    for time_s, said, _ in [*steps(0, 20), *steps(20, 22, negatives=8)]:
        monitor.feed(time_s, said)
    monitor.save(path)
    strict = OpinionMonitor.load(path, replace(POLICY, min_rise=0.9))
    assert strict.advance(220) == []
    assert len(OpinionMonitor.load(path, POLICY).advance(220)) == 1
    for changes, said in (
        ({"step_s": 20}, "was kept with step_s=10, not 20"),
        ({"window_s": 80}, "was kept with window_s=40, not 80"),
        ({"baseline_s": 800}, "was kept with baseline_s=400, not 800"),
    ):
        with pytest.raises(ConfigError, match=f"state.json {said}: keep the option"):
            OpinionMonitor.load(path, replace(POLICY, **changes))


def test_examples_that_are_asked_for_no_more_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    monitor = OpinionMonitor(replace(POLICY, examples=2))
    for time_s, said, text in [*steps(0, 20), *steps(20, 23, negatives=8)]:
        monitor.feed(time_s, said, text)
    monitor.save(path)
    assert path.read_text(encoding="utf-8").count("negative 2") == 8  # in three steps and in the alert
    for examples, left in ((1, 4), (0, 0)):
        fewer = OpinionMonitor.load(path, replace(POLICY, examples=examples))
        fewer.save(path)
        content = path.read_text(encoding="utf-8")
        assert content.count("negative 2") == left
    assert fewer.open_alerts == [replace(alert, examples=()) for alert in monitor.open_alerts]


def test_a_file_that_can_not_be_replaced_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    monitor = OpinionMonitor(POLICY)
    monitor.save(path)
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    monitor.advance(100)
    with pytest.raises(ConfigError, match=r"can't be written to .*state\.json: No space left on device"):
        monitor.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match="can't be written to"):
        monitor.save(tmp_path / "nowhere" / "state.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "can't be read: Expecting"),
        (b"\xff", "can't be read: "),
        (b"[]", "is no state of a monitor that this version can read"),
        (b'{"format": 99}', "is no state of a monitor that this version can read"),
        (b'{"format": 1}', "is no state of a monitor: KeyError"),
    ],
)
def test_a_file_that_is_no_state_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"state.json {said}"):
        OpinionMonitor.load(path, POLICY)
    with pytest.raises(DataError, match="can't be read: No such file"):
        OpinionMonitor.load(tmp_path / "nothing.json", POLICY)


@pytest.mark.parametrize(
    "damage",
    [
        {"window": [[1, 2, []]]},
        {"baseline": [[1]]},
        {"baseline": "x"},
        {"open": {"x": [1, 1, []]}},
        {"alert": {}},
    ],
)
def test_counts_that_can_not_be_are_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    path = tmp_path / "state.json"
    monitor = OpinionMonitor(POLICY)
    for time_s, said, _ in steps(0, 20):
        monitor.feed(time_s, said)
    monitor.save(path)
    state = json.loads(path.read_text(encoding="utf-8"))
    state["topics"]["bank"].update(damage)
    path.write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(DataError, match=r"state\.json is no state of a monitor: "):
        OpinionMonitor.load(path, POLICY)
