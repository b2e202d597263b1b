"""The monitor: windows, alerts and their ends, and what it leaves out."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest

import mooring.monitor
from monitor_streams import POLICY, opinion, step, steps
from mooring import ConfigError, ConnectError, Opinion
from mooring._monitor import policy as policy_module
from mooring._monitor.policy import MonitorPolicy
from mooring.monitor import Alert, AlertEnded, MonitorCounters, OpinionMonitor, surge_p_value


def feed(monitor: OpinionMonitor, texts: Iterable[tuple[float, Opinion, str]]) -> list[Alert | AlertEnded]:
    return [event for time_s, said, text in texts for event in monitor.feed(time_s, said, text)]


def surge(monitor: OpinionMonitor, *, until: int = 24) -> list[Alert | AlertEnded]:
    """Ten negatives in a hundred for 20 steps, then eight in ten."""
    return feed(monitor, [*steps(0, 20), *steps(20, until, negatives=8)])


def test_a_surge_raises_one_alert_with_the_counts_of_its_window() -> None:
    (alert,) = surge(OpinionMonitor(POLICY))
    # With step 20 the window has 3 + 8 negatives of 40; 16 steps with one of ten each lie before it.
    expected = surge_p_value(texts=40, negatives=11, baseline_texts=170, baseline_negatives=17)
    assert expected > POLICY.level
    # So step 21 raises it, when its texts are over.
    expected = surge_p_value(texts=40, negatives=18, baseline_texts=180, baseline_negatives=18)
    assert alert == Alert(
        topic="bank",
        window_start_s=180,
        window_end_s=220,
        texts=40,
        negatives=18,
        baseline_texts=180,
        baseline_negatives=18,
        p_value=expected,
        level=0.001,
        correlation=0,
    )
    assert isinstance(alert, Alert)
    assert (alert.time_s, alert.share, alert.baseline_share) == (220, 0.45, 0.1)


def test_a_steady_share_raises_none_however_high_it_is() -> None:
    assert feed(OpinionMonitor(POLICY), steps(0, 100, negatives=8)) == []


def test_a_fall_raises_none() -> None:
    assert feed(OpinionMonitor(POLICY), [*steps(0, 30, negatives=6), *steps(30, 60, negatives=0)]) == []


def test_an_alert_ends_once_the_windows_were_low_for_the_cooldown() -> None:
    monitor = OpinionMonitor(POLICY)
    alert, end = feed(monitor, [*steps(0, 20), *steps(20, 30, negatives=8), *steps(30, 50)])
    assert monitor.open_alerts == []
    # The window of step 32 is the last that has texts of the surge, 11 negatives of 40: high at p = 0.01.
    assert 0.001 < surge_p_value(texts=40, negatives=11, baseline_texts=180, baseline_negatives=18) < 0.05
    assert end == AlertEnded(alert=alert, time_s=330 + POLICY.cooldown_s, reason="subsided", peak_share=0.8)
    assert end.topic == "bank"


def test_a_short_lull_does_not_end_an_alert() -> None:
    monitor = OpinionMonitor(POLICY)
    events = feed(
        monitor,
        [*steps(0, 20), *steps(20, 26, negatives=8), *steps(26, 29), *steps(29, 35, negatives=8)],
    )
    assert [type(event) for event in events] == [Alert]


def test_what_surged_is_no_baseline_for_the_next_surge() -> None:
    monitor = OpinionMonitor(POLICY)
    texts = [*steps(0, 30), *steps(30, 50, negatives=8), *steps(50, 80), *steps(80, 90, negatives=8)]
    first, _, second = feed(monitor, texts)
    assert isinstance(first, Alert)
    assert isinstance(second, Alert)
    assert first.baseline_share == 0.1
    # What is left of the surge are the steps that are in the window when the alert ends.
    assert second.baseline_share == pytest.approx(0.1, abs=0.001)
    assert 800 < second.time_s <= 830


def test_a_surge_that_stays_becomes_the_baseline() -> None:
    monitor = OpinionMonitor(POLICY)
    texts = [*steps(0, 20), *steps(20, 120, negatives=8)]
    alert, end = feed(monitor, texts)
    assert isinstance(end, AlertEnded)
    assert (end.reason, end.time_s - alert.time_s) == ("persisted", POLICY.max_alert_s)
    # From here on only a rise above the new share counts.
    assert feed(monitor, steps(120, 200, negatives=8)) == []


def test_correlated_texts_need_a_larger_surge() -> None:
    """The share moves by itself: eight steps with four negatives of ten, eight without any, by turns."""
    restless = [
        text
        for number in range(0, 40, 8)
        for text in steps(number, number + 8, negatives=0 if number % 16 else 4)
    ]
    calm = steps(0, 40, negatives=2)
    surging = list(steps(40, 44, negatives=6))
    (alert,) = feed(OpinionMonitor(POLICY), [*calm, *surging, *step(44)])
    assert isinstance(alert, Alert)
    assert alert.correlation == 0
    alone = surge_p_value(texts=40, negatives=24, baseline_texts=400, baseline_negatives=96)
    assert alone < POLICY.level / 100
    assert feed(OpinionMonitor(POLICY), [*restless, *surging, *step(44)]) == []


def test_nothing_is_judged_before_the_warm_up() -> None:
    early = [*steps(0, 12), *steps(12, 16, negatives=9), *step(16)]
    assert len(feed(OpinionMonitor(replace(POLICY, warm_up_s=80)), early)) == 1
    monitor = OpinionMonitor(replace(POLICY, warm_up_s=200))
    assert feed(monitor, early) == []
    assert monitor.judged_topics == {"bank": False}


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"min_texts": 41}, 10),
        ({"min_baseline_texts": 401}, 10),
        ({"min_rise": 0.75}, 10),
        ({"false_alarms_per_day": 1e-20}, 10),
    ],
)
def test_what_the_policy_asks_for_must_be_there(changes: dict[str, Any], texts: int) -> None:
    stream = [*steps(0, 50), *steps(50, 54, negatives=8), *step(54)]
    assert len(feed(OpinionMonitor(POLICY), stream)) == 1
    assert feed(OpinionMonitor(replace(POLICY, **changes)), stream) == []


def test_topics_are_judged_each_on_its_own() -> None:
    monitor = OpinionMonitor(POLICY)
    events = []
    for number in range(30):
        texts = [
            *step(number, negatives=8 if number >= 20 else 1, topic="bank"),
            *step(number, negatives=1, topic="oil"),
        ]
        events += feed(monitor, sorted(texts, key=lambda text: text[0]))
    assert [event.topic for event in events] == ["bank"]
    assert monitor.judged_topics == {"bank": True, "oil": True}


def test_texts_may_be_out_of_order_by_the_lateness() -> None:
    texts = [*steps(0, 20), *steps(20, 26, negatives=8)]
    shaken = sorted(texts, key=lambda text: text[0] + 30 * (hash(text[2][::-1]) % 7) / 6)
    assert shaken != texts
    ordered, tolerant = OpinionMonitor(POLICY), OpinionMonitor(replace(POLICY, lateness_s=30))
    expected = feed(ordered, texts) + ordered.advance(400)
    assert feed(tolerant, shaken) + tolerant.advance(430) == expected
    assert tolerant.counters.late == 0


def test_what_comes_too_late_is_left_out_and_counted() -> None:
    monitor = OpinionMonitor(replace(POLICY, lateness_s=30))
    feed(monitor, steps(0, 20))
    # The newest text is of 199: steps until 160 are over.
    monitor.feed(159.9, opinion("negative"))
    monitor.feed(160.0, opinion("negative"))
    assert monitor.counters == MonitorCounters(counted=201, late=1)


def test_uncertain_opinions_and_further_topics_are_left_out_and_counted() -> None:
    monitor = OpinionMonitor(replace(POLICY, min_score=0.6, max_topics=1))
    monitor.feed(1, opinion("negative", score=0.59))
    monitor.feed(1, opinion("negative", score=0.6))
    monitor.feed(1, opinion("negative", topic="oil"))
    assert monitor.counters == MonitorCounters(counted=1, unsure=1, crowded=1)


def test_failed_texts_let_time_pass() -> None:
    monitor = OpinionMonitor(POLICY)
    assert surge(monitor, until=22) == []
    (alert,) = monitor.note_failure(220)
    assert isinstance(alert, Alert)
    assert monitor.counters == MonitorCounters(counted=220, failed=1, alerts=1)


def test_time_passes_without_texts() -> None:
    monitor = OpinionMonitor(POLICY)
    surge(monitor)
    assert monitor.open_alerts
    assert monitor.advance(100) == []
    (end,) = monitor.advance(10_000)
    assert isinstance(end, AlertEnded)
    # The window keeps texts of the surge until step 27, but too few to be judged from step 26 on.
    assert end.time_s <= 270 + POLICY.cooldown_s
    assert monitor.judged_topics == {}


def test_a_jump_over_years_takes_no_longer_than_one_over_the_baseline() -> None:
    monitor = OpinionMonitor(POLICY)
    surge(monitor)
    (end,) = monitor.feed(2e11, opinion("negative"))
    assert end.time_s < 1000
    assert monitor.judged_topics == {"bank": False}


def test_the_last_windows_are_judged_without_waiting_for_late_texts() -> None:
    monitor = OpinionMonitor(replace(POLICY, lateness_s=40))
    assert surge(monitor, until=22) == []
    assert monitor.advance(219) == []
    (alert,) = monitor.advance(220, final=True)
    assert alert.time_s == 220


@pytest.mark.parametrize(
    "time_s", [-1.0, math.nan, math.inf, 1.7e12, "2024-05-01", datetime(2024, 5, 1, tzinfo=UTC), None]
)
def test_a_time_that_is_none_is_refused(time_s: Any) -> None:
    monitor = OpinionMonitor(POLICY)
    for call in (
        lambda: monitor.feed(time_s, opinion("negative")),
        lambda: monitor.advance(time_s),
        lambda: monitor.note_failure(time_s),
    ):
        with pytest.raises(ConfigError, match=f"time {re.escape(repr(time_s))} must be seconds since 1970"):
            call()
    assert monitor.counters.counted == 0


@pytest.mark.parametrize("label", ["Negative", "neg", "LABEL_0"])
def test_a_sentiment_of_another_name_is_refused_and_not_taken_for_a_good_one(label: str) -> None:
    monitor = OpinionMonitor(POLICY)
    with pytest.raises(ConfigError, match=f"^sentiment '{label}' is none of negative, neutral, positive: "):
        monitor.feed(1, opinion(label))
    assert monitor.counters == MonitorCounters()


def test_an_alert_quotes_redacted_texts_newest_first() -> None:
    redacted: list[str] = []

    def redact(text: str) -> str:
        if text == "negative 21.7":
            raise ConnectError("the model for names is away")
        redacted.append(text)
        return text.upper()

    (alert,) = surge(OpinionMonitor(replace(POLICY, examples=3), redact=redact))
    assert isinstance(alert, Alert)
    assert alert.examples == ("NEGATIVE 21.6", "NEGATIVE 21.5", "NEGATIVE 21.4")
    assert all(text.startswith("negative") for text in redacted)


def test_examples_are_redacted_unless_told_otherwise() -> None:
    texts = [
        (time_s, said, f"{text} mail anna@example.com")
        for time_s, said, text in [*steps(0, 20), *steps(20, 24, negatives=8)]
    ]
    policy = replace(POLICY, examples=1)
    (alert,) = feed(OpinionMonitor(policy), texts)
    assert isinstance(alert, Alert)
    assert alert.examples == ("negative 21.7 mail [EMAIL]",)
    (alert,) = feed(OpinionMonitor(policy, redact=str), texts)
    assert isinstance(alert, Alert)
    assert alert.examples == ("negative 21.7 mail anna@example.com",)


def test_no_text_is_stored_unless_examples_are_asked_for() -> None:
    def redact(text: str) -> str:
        raise AssertionError(text)

    monitor = OpinionMonitor(POLICY, redact=redact)
    (alert,) = surge(monitor)
    assert isinstance(alert, Alert)
    assert alert.examples == ()


def test_memory_is_bounded() -> None:
    monitor = OpinionMonitor(replace(POLICY, examples=2))
    feed(monitor, steps(0, 300, texts=3))
    topic = monitor._topics["bank"]
    assert (len(topic.window), len(topic.baseline), len(topic.open)) == (4, 40, 1)
    assert max(len(step.examples) for step in topic.window) <= 2
    for number in range(300, 600):
        feed(monitor, step(number, topic=f"topic {number}"))
    # Topics of which nothing is left in the baseline are forgotten.
    assert len(monitor._topics) <= 46


def test_an_event_as_json() -> None:
    monitor = OpinionMonitor(POLICY)
    alert, end = feed(monitor, [*steps(0, 20), *steps(20, 30, negatives=8), *steps(30, 50)])
    assert isinstance(alert, Alert)
    said = alert.to_dict()
    p_value = said.pop("p_value")
    assert p_value == pytest.approx(alert.p_value, rel=1e-5)
    assert said == {
        "type": "alert",
        "id": alert.alert_id,
        "topic": "bank",
        "time": "1970-01-01T00:03:40Z",
        "window": {
            "start": "1970-01-01T00:03:00Z",
            "end": "1970-01-01T00:03:40Z",
            "texts": 40,
            "negatives": 18,
            "negative_share": 0.45,
        },
        "baseline": {"texts": 180, "negatives": 18, "negative_share": 0.1},
        "level": 0.001,
        "correlation": 0.0,
        "examples": [],
    }
    assert end.to_dict() == {
        "type": "alert_ended",
        "id": alert.alert_id,
        "topic": "bank",
        "time": "1970-01-01T00:06:10Z",
        "started": "1970-01-01T00:03:40Z",
        "reason": "subsided",
        "peak_negative_share": 0.8,
    }
    assert "\n" not in alert.to_json() + end.to_json()
    (again, *_) = surge(OpinionMonitor(POLICY))
    assert isinstance(again, Alert)
    assert again.alert_id == alert.alert_id


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step_s": 0}, "step_s must be at least 1, got 0"),
        ({"window_s": 45}, r"window_s must be a multiple of step_s \(10\), got 45"),
        ({"baseline_s": 410}, r"baseline_s must be a multiple of window_s \(40\), got 410"),
        ({"baseline_s": 40}, "baseline_s must be at least 80"),
        ({"baseline_s": 4e6}, "baseline_s must be at least 80 and at most 1e[+]06"),
        ({"warm_up_s": 500}, "warm_up_s must be at least 0 and at most 400"),
        ({"window_s": math.nan}, "window_s must be at least 10"),
        ({"false_alarms_per_day": 0}, "false_alarms_per_day must be above 0"),
        ({"false_alarms_per_day": 500}, "false_alarms_per_day must be at least 0 and at most 432"),
        ({"min_texts": 0.5}, "min_texts must be a whole number, got 0.5"),
        ({"min_rise": 1.5}, "min_rise must be at least 0 and at most 1"),
        ({"cooldown_s": 5}, "cooldown_s must be at least 10"),
        ({"max_alert_s": 20}, "max_alert_s must be at least 40"),
        ({"lateness_s": -1}, "lateness_s must be at least 0"),
        ({"examples": True}, "examples must be a number, got True"),
    ],
)
def test_a_policy_that_can_not_be_right_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^MonitorPolicy.{said}"):
        replace(POLICY, **changes)


def test_the_level_spreads_the_allowed_false_alarms_over_the_windows_of_a_day() -> None:
    policy = MonitorPolicy(false_alarms_per_day=0.5, step_s=900)
    assert policy.level == pytest.approx(0.5 / 96)


def test_everything_public_is_named_and_documented() -> None:
    assert mooring.monitor.__all__ == sorted(mooring.monitor.__all__, key=lambda name: (name.islower(), name))
    for name in mooring.monitor.__all__:
        kind = getattr(mooring.monitor, name)
        assert inspect.getdoc(kind), name
        for method, value in vars(kind).items() if inspect.isclass(kind) else ():
            if inspect.isfunction(value) and not method.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{method}"
    source = inspect.getsource(policy_module)
    for field in fields(MonitorPolicy):
        assert re.search(rf"    #: [^\n]+\n    {field.name}: ", source), field.name
