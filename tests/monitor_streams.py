"""Streams of opinions whose counts are known, for tests of the monitor."""

from __future__ import annotations

from collections.abc import Iterator

from mooring import Label, Opinion
from mooring.monitor import MonitorPolicy

#: Ten seconds a step, four steps a window; small counts, so that answers can be worked out by hand.
POLICY = MonitorPolicy(
    window_s=40,
    step_s=10,
    baseline_s=400,
    warm_up_s=100,
    false_alarms_per_day=8.64,  # a level of 0.001
    min_texts=10,
    min_baseline_texts=50,
    cooldown_s=40,
    max_alert_s=600,
    lateness_s=0,
)


def opinion(sentiment: str, *, topic: str = "bank", score: float = 1.0) -> Opinion:
    return Opinion(topic=Label(label=topic, score=1.0), sentiment=Label(label=sentiment, score=score))


def step(
    number: int, *, texts: int = 10, negatives: int = 1, topic: str = "bank"
) -> Iterator[tuple[float, Opinion, str]]:
    """The texts of a step of :data:`POLICY`, the negative ones first."""
    for i in range(texts):
        sentiment = "negative" if i < negatives else "positive"
        yield number * 10 + i * 10 / texts, opinion(sentiment, topic=topic), f"{sentiment} {number}.{i}"


def steps(first: int, last: int, **counts: int) -> Iterator[tuple[float, Opinion, str]]:
    """The texts of several steps, ``last`` not included."""
    for number in range(first, last):
        yield from step(number, **counts)
