"""What the rule of :mod:`mooring.monitor` keeps to: false alarms and detection delays on simulated streams.

::

    python -m mooring_loadtests.monitor_simulation --data ../shared/data

The streams are drawn from real data: sentiments, with replacement, from the labels of Financial PhraseBank
(``financial_phrasebank/Sentences_50Agree.txt``), and as many texts on each topic as the classes of the
financial tweets (``financial_topic/train_data.csv``) are large. Texts come at random (a Poisson process). No
model is asked: the labels are the opinions. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mooring import ConfigError, Label, Opinion
from mooring._commands import add_folder_option
from mooring.monitor import Alert, MonitorPolicy, OpinionMonitor
from mooring_loadtests.commands import count, exit_code
from mooring_loadtests.summary import table

DAY_S = 86_400
HOUR_S = 3600
#: Any time will do; this one is the beginning of a day.
START_S = 1_700_006_400
TEXTS_A_DAY = 6000
ALLOWED_A_DAY = (0.01, 0.1, 1.0)
#: Correlation of two texts of the same topic and hour.
CORRELATIONS = (0.0, 0.02, 0.1)
TEXTS_AN_HOUR = (5, 20, 60)
SURGES = (0.25, 0.4, 0.6)
SURGE_S = 6 * HOUR_S
#: Surges that are tried upon the same quiet week before another one is drawn.
SURGES_A_WEEK = 10


@dataclass(frozen=True, kw_only=True)
class RealData:
    """What streams are drawn from."""

    #: One label a sentence.
    sentiments: Sequence[str]
    #: Texts of each topic.
    topics: Mapping[str, int]

    @property
    def negative_share(self) -> float:
        """Of the sentences."""
        return self.sentiments.count("negative") / len(self.sentiments)


class FalseAlarms(NamedTuple):
    """Alerts while nothing changed."""

    allowed_per_day: float
    correlation: float
    topic_days: float
    alerts: int

    @property
    def per_day(self) -> float:
        """Of a topic."""
        return self.alerts / self.topic_days

    @property
    def upper_per_day(self) -> float:
        """Upper end of the exact 95 % confidence interval, for alerts that come independently."""
        return poisson_upper(self.alerts) / self.topic_days


class Delays(NamedTuple):
    """What became of surges of one size."""

    texts_per_hour: float
    share: float
    #: Time from a surge's begin to its alert, in seconds; infinite where none came while it lasted.
    delays_s: Sequence[float]
    #: Alerts raised during each surge.
    alerts: Sequence[int]

    @property
    def detected(self) -> float:
        """Share of the surges that raised an alert."""
        return float(np.mean(np.isfinite(self.delays_s)))

    def percentile_min(self, percent: float) -> float:
        """Percentile of the delays in minutes; missed surges count as infinite."""
        return float(np.percentile(self.delays_s, percent, method="higher")) / 60


def load_data(folder: Path) -> RealData:
    """Read the labels.

    Raises:
        ConfigError: a file is missing.
    """
    try:
        phrases = (folder / "financial_phrasebank" / "Sentences_50Agree.txt").read_text(encoding="latin-1")
        with (folder / "financial_topic" / "train_data.csv").open(encoding="utf-8", newline="") as file:
            topics = Counter(row["label"] for row in csv.DictReader(file))
    except OSError as exc:
        raise ConfigError(f"--data {str(folder)!r}: {exc.filename} can't be read: {exc.strerror}") from exc
    sentiments = [line.rpartition("@")[2] for line in phrases.splitlines() if line]
    return RealData(sentiments=sentiments, topics=dict(topics))


def quiet_day(
    data: RealData, rng: np.random.Generator, *, day: int, texts: int = TEXTS_A_DAY, correlation: float = 0.0
) -> Iterator[tuple[float, Opinion]]:
    """A day of texts on all topics without any surge.

    Args:
        data: what is drawn from.
        rng: draws.
        day: number of the day.
        texts: on all topics, on average.
        correlation: of two texts of the same topic and hour; each hour's negative share is drawn from a beta
            distribution then.
    """
    names = list(data.topics)
    weights = np.array([data.topics[name] for name in names], float)
    counts = rng.poisson(texts * weights / weights.sum())
    topics = np.repeat(np.arange(len(names)), counts)
    times = rng.uniform(0, DAY_S, len(topics))
    drawn = rng.integers(0, len(data.sentiments), len(topics))
    sentiments = np.array(data.sentiments, object)[drawn]
    if correlation:
        share = data.negative_share
        strength = (1 - correlation) / correlation
        shares = rng.beta(share * strength, (1 - share) * strength, (len(names), 24))
        sentiments = _draw(data, rng, shares[topics, (times // HOUR_S).astype(int)])
    for i in np.argsort(times):
        yield START_S + day * DAY_S + times[i], _opinion(names[topics[i]], sentiments[i])


def surging_day(
    data: RealData, rng: np.random.Generator, *, day: int, texts_per_hour: float, share: float
) -> tuple[float, list[tuple[float, Opinion]]]:
    """A day of texts on one topic with a surge of :data:`SURGE_S`; returns its begin and the texts."""
    count = rng.poisson(24 * texts_per_hour)
    times = np.sort(rng.uniform(0, DAY_S, count))
    begin = rng.uniform(0, DAY_S - SURGE_S - 3 * HOUR_S)
    surges = (times >= begin) & (times < begin + SURGE_S)
    sentiments = _draw(data, rng, np.where(surges, share, data.negative_share))
    first_s = START_S + day * DAY_S
    return first_s + begin, [
        (first_s + t, _opinion("topic", sentiment)) for t, sentiment in zip(times, sentiments, strict=True)
    ]


def _draw(data: RealData, rng: np.random.Generator, shares: np.ndarray) -> np.ndarray:
    """A sentiment for each negative share: negative, or one of the other real ones."""
    others = np.array([label for label in data.sentiments if label != "negative"], object)
    drawn = others[rng.integers(0, len(others), len(shares))]
    return np.where(rng.uniform(size=len(shares)) < shares, "negative", drawn)


_OPINIONS: dict[tuple[str, str], Opinion] = {}


def _opinion(topic: str, sentiment: str) -> Opinion:
    key = (topic, sentiment)
    if key not in _OPINIONS:
        _OPINIONS[key] = Opinion(
            topic=Label(label=topic, score=1.0), sentiment=Label(label=sentiment, score=1.0)
        )
    return _OPINIONS[key]


def measure_false_alarms(
    data: RealData,
    *,
    days: int,
    seed: int,
    allowed: Sequence[float] = ALLOWED_A_DAY,
    correlation: float = 0.0,
) -> list[FalseAlarms]:
    """Count alerts on quiet days, after a warm-up of a week, for several allowed rates at once.

    Only hours in which a topic has texts enough to be judged count as its days.
    """
    monitors = [OpinionMonitor(MonitorPolicy(false_alarms_per_day=rate)) for rate in allowed]
    rng = np.random.default_rng(seed)
    warm_up = 7
    before = [0] * len(monitors)
    judged_hours, hour = 0, (START_S + warm_up * DAY_S) // HOUR_S
    for day in range(warm_up + days):
        if day == warm_up:
            before = [monitor.counters.alerts for monitor in monitors]
        for time_s, opinion in quiet_day(data, rng, day=day, correlation=correlation):
            for monitor in monitors:
                monitor.feed(time_s, opinion)
            if time_s // HOUR_S > hour:
                hour += 1
                judged_hours += sum(monitors[0].judged_topics.values())
    return [
        FalseAlarms(rate, correlation, judged_hours / 24, monitor.counters.alerts - earlier)
        for rate, monitor, earlier in zip(allowed, monitors, before, strict=True)
    ]


def measure_delays(data: RealData, *, surges: int, seed: int, texts_per_hour: float, share: float) -> Delays:
    """Let a topic surge after a quiet week, again and again, and see when it is noticed."""
    rng = np.random.default_rng(seed)
    delays, alerts = [], []
    for number in range(surges):
        if number % SURGES_A_WEEK == 0:
            calm = OpinionMonitor()
            for day in range(-7, 0):
                for time_s, opinion in surging_day(
                    data, rng, day=day, texts_per_hour=texts_per_hour, share=data.negative_share
                )[1]:
                    calm.feed(time_s, opinion)
        monitor = copy.deepcopy(calm)
        begin_s, texts = surging_day(data, rng, day=0, texts_per_hour=texts_per_hour, share=share)
        # An alert comes with the end of a window that still has part of the surge.
        until_s = begin_s + SURGE_S + monitor.policy.window_s
        raised = [
            event.time_s
            for time_s, opinion in texts
            for event in monitor.feed(time_s, opinion)
            if isinstance(event, Alert) and begin_s <= event.time_s <= until_s
        ]
        alerts.append(len(raised))
        delays.append(raised[0] - begin_s if raised else math.inf)
    return Delays(texts_per_hour, share, delays, alerts)


def poisson_upper(count: int) -> float:
    """Upper end of the exact two-sided 95 % confidence interval of a Poisson distribution's mean."""
    low, high = float(count), count + 10 * math.sqrt(count + 1) + 10
    for _ in range(60):
        middle = (low + high) / 2
        below = sum(math.exp(k * math.log(middle) - middle - math.lgamma(k + 1)) for k in range(count + 1))
        low, high = (middle, high) if below > 0.025 else (low, middle)
    return high


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulation.

    Returns:
        0 if all false-alarm rates of independent texts are within what was allowed, 1 if one is not, 2 if
        data is missing.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mooring_loadtests.monitor_simulation",
        description="False alarms and detection delays of mooring.monitor; the last line is JSON.",
    )
    add_folder_option(parser, "--data", "../shared/data", "the real data sets")
    parser.add_argument("--days", type=count, default=500, help="quiet days (default: %(default)s)")
    parser.add_argument("--surges", type=count, default=200, help="of each size (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args(argv)
    return exit_code(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    began_s = time.monotonic()
    data = load_data(args.data)
    print(
        f"{len(data.sentiments)} sentences, {data.negative_share:.1%} negative; {len(data.topics)} topics, "
        f"{TEXTS_A_DAY} texts a day; seed {args.seed}\n"
    )
    false_alarms = []
    for correlation in CORRELATIONS:
        false_alarms += measure_false_alarms(data, days=args.days, seed=args.seed, correlation=correlation)
    for line in table(_false_alarm_rows(false_alarms), right=(1, 2, 3, 4)):
        print(line)
    print()
    delays = [
        measure_delays(data, surges=args.surges, seed=args.seed, texts_per_hour=rate, share=share)
        for rate in TEXTS_AN_HOUR
        for share in SURGES
    ]
    for line in table(_delay_rows(delays), right=(1, 2, 3, 4, 5)):
        print(line)
    print(f"\n{time.monotonic() - began_s:.0f} s")
    print(json.dumps(figures(false_alarms, delays)))
    kept = all(found.per_day <= found.allowed_per_day for found in false_alarms if not found.correlation)
    return 0 if kept else 1


def _false_alarm_rows(found: Sequence[FalseAlarms]) -> list[list[str]]:
    rows = [["correlation", "allowed a day", "topic days", "alerts", "a day", "95 % below"]]
    return rows + [
        [
            f"{one.correlation:g}",
            f"{one.allowed_per_day:g}",
            f"{one.topic_days:.0f}",
            f"{one.alerts}",
            f"{one.per_day:.4f}",
            f"{one.upper_per_day:.4f}",
        ]
        for one in found
    ]


def _delay_rows(found: Sequence[Delays]) -> list[list[str]]:
    rows = [["texts/h", "surges to", "noticed", "median min", "90 % min", "one alert"]]
    return rows + [
        [
            f"{one.texts_per_hour:g}",
            f"{one.share:.0%}",
            f"{one.detected:.0%}",
            f"{one.percentile_min(50):.0f}",
            f"{one.percentile_min(90):.0f}",
            f"{np.mean(np.array(one.alerts) == 1):.0%}",
        ]
        for one in found
    ]


def figures(false_alarms: Sequence[FalseAlarms], delays: Sequence[Delays]) -> dict[str, Any]:
    """What the last line holds; a delay is ``null`` where too many surges were missed for its percentile."""
    return {
        "false_alarms": [
            {
                "correlation": one.correlation,
                "allowed_per_day": one.allowed_per_day,
                "topic_days": round(one.topic_days),
                "per_day": round(one.per_day, 5),
                "upper_per_day": round(one.upper_per_day, 5),
            }
            for one in false_alarms
        ],
        "delays": [
            {
                "texts_per_hour": one.texts_per_hour,
                "share": one.share,
                "detected": round(one.detected, 3),
                "median_min": _finite(one.percentile_min(50)),
                "p90_min": _finite(one.percentile_min(90)),
            }
            for one in delays
        ],
    }


def _finite(value: float) -> float | None:
    return round(value, 1) if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
