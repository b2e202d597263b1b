"""The windows that a monitor saw, and the picture of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from monitor_streams import POLICY, steps
from mooring import ConfigError
from mooring.monitor import OpinionMonitor, Timeline, WindowPoint, surge_p_value


def watched(timeline: Timeline) -> Timeline:
    monitor = OpinionMonitor(POLICY, timeline=timeline)
    for number in range(60):
        surging = 20 <= number < 28 or number >= 56
        for time_s, said, _ in steps(number, number + 1, negatives=8 if surging else 1):
            monitor.feed(time_s, said)
        for time_s, said, _ in steps(number, number + 1, texts=20, topic="oil"):
            monitor.feed(time_s, said)
    return timeline


def test_each_window_is_kept_with_its_limit() -> None:
    timeline = watched(Timeline())
    points = timeline.points("bank")
    assert [point.end_s for point in points] == [float(10 * n) for n in range(1, 60)]
    assert points[0] == WindowPoint(
        topic="bank", end_s=10, texts=10, share=0.1, baseline_share=None, limit_share=None
    )
    surging = points[21]
    assert (surging.texts, surging.share, surging.baseline_share) == (40, 0.45, 0.1)
    assert surging.limit_share is not None
    limit = round(surging.limit_share * 40)
    for negatives, raises in ((limit, True), (limit - 1, False)):
        found = surge_p_value(texts=40, negatives=negatives, baseline_texts=180, baseline_negatives=18)
        assert (found <= POLICY.level) is raises
    assert timeline.points("nothing") == ()


def test_topics_with_alerts_come_first_then_the_larger_ones() -> None:
    timeline = watched(Timeline())
    assert timeline.topics == ["bank", "oil"]


def test_an_alert_that_was_on_at_the_restart_is_drawn_on(tmp_path: Path) -> None:
    monitor, timeline = OpinionMonitor(POLICY), Timeline()
    for time_s, said, _ in [*steps(0, 20), *steps(20, 24, negatives=8)]:
        monitor.feed(time_s, said)
    (alert,) = monitor.open_alerts
    monitor.save(tmp_path / "state.json")
    monitor = OpinionMonitor.load(tmp_path / "state.json", POLICY, timeline=timeline)
    monitor.advance(260)
    assert timeline._spans("bank", 260) == [(alert.time_s, 260)]


def test_old_windows_are_forgotten() -> None:
    timeline = watched(Timeline(max_windows=5))
    assert [point.end_s for point in timeline.points("bank")] == [550, 560, 570, 580, 590]
    with pytest.raises(ConfigError, match="max_windows must be a whole number from 1, got 0"):
        Timeline(max_windows=0)


def test_the_picture_shows_every_topic_and_alert(tmp_path: Path) -> None:
    timeline = watched(Timeline())
    timeline.plot(tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):
        timeline.plot(tmp_path / "timeline.svg")
        timeline.plot(tmp_path / "oil.svg", topics=["oil"])
    drawn = (tmp_path / "timeline.svg").read_text(encoding="utf-8")
    for text in ("bank", "oil", "negative share", "texts in window", "baseline", "within chance"):
        assert f">{text}<" in drawn, text
    assert drawn.count(">alert<") == 1
    only_oil = (tmp_path / "oil.svg").read_text(encoding="utf-8")
    assert ">bank<" not in only_oil
    assert ">alert<" not in only_oil


@pytest.mark.parametrize("ends", [(20, 30), (20,)], ids=["windows", "one window"])
def test_a_topic_that_was_seen_for_a_while_does_not_cut_the_others_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: tuple[float, ...]
) -> None:
    timeline = Timeline()
    for topic, times in (("bank", (10, 20, 30, 40)), ("oil", ends)):
        for end_s in times:
            timeline.add(WindowPoint(topic, end_s, 5, share=0.2, baseline_share=None, limit_share=None))
    drawn: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    timeline.plot(tmp_path / "timeline.png")
    for axis in drawn[0].axes:
        assert [86_400 * day for day in axis.get_xlim()] == pytest.approx([10, 40])
    timeline.plot(tmp_path / "timeline.png", topics=["oil"])


def test_a_topic_with_dollar_signs_is_no_formula(tmp_path: Path) -> None:
    timeline = Timeline()
    for end_s in (10, 20):
        timeline.add(WindowPoint("$A_$", end_s, 5, share=0.2, baseline_share=None, limit_share=None))
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):
        timeline.plot(tmp_path / "timeline.svg")
    assert ">$A_$<" in (tmp_path / "timeline.svg").read_text(encoding="utf-8")


def test_what_can_not_be_drawn(tmp_path: Path) -> None:
    timeline = watched(Timeline())
    for call, said in (
        (lambda: timeline.plot(tmp_path / "x.doc"), r"x\.doc must end in one of .*\.png"),
        (lambda: timeline.plot(tmp_path / "x"), "must end in one of"),
        (lambda: timeline.plot(tmp_path / "x.png", topics=["gas"]), r"no windows of \['gas'\] to draw"),
        (lambda: Timeline().plot(tmp_path / "x.png"), "no windows of any topic"),
        (lambda: timeline.plot(tmp_path / "nowhere" / "x.png"), "can't be written to .*No such file"),
    ):
        with pytest.raises(ConfigError, match=said):
            call()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"install Mooring's extra \[plot\]"):
        watched(Timeline()).plot(tmp_path / "timeline.png")
