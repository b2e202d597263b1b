"""The monitor: opinions in the order of their times in, alerts out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from typing import Self

from mooring._errors import ConfigError, MooringError
from mooring._log import LOG, describe_error
from mooring._monitor.events import Alert, AlertEvent
from mooring._monitor.policy import MonitorPolicy
from mooring._monitor.state import read_state, write_state
from mooring._monitor.timeline import Timeline, WindowPoint
from mooring._monitor.topic import Step, Topic
from mooring._task_kinds import Opinion
from mooring.redaction import Redaction, Redactor

Redact = Callable[[str], str | Redaction]

_NEGATIVE = "negative"
_SENTIMENTS = (_NEGATIVE, "neutral", "positive")
_MOST_CHARACTERS = 500
#: Up to the end of the year 9999, the last that a date can have.
MAX_TIME_S = 253_402_300_799.0


@dataclass(frozen=True, kw_only=True)
class MonitorCounters:
    """What became of the texts that a monitor got, since it or the one that saved its state was made."""

    #: In a window.
    counted: int = 0
    #: Left out: older than the lateness allows, after their step was judged.
    late: int = 0
    #: Left out: topic or sentiment with a score below ``min_score``.
    unsure: int = 0
    #: Left out: on topics beyond ``max_topics``.
    crowded: int = 0
    #: No opinion: the model failed.
    failed: int = 0
    #: Alerts raised.
    alerts: int = 0


class OpinionMonitor:
    """Keeps negative shares by topic over sliding windows and says when one surges.

    Times are seconds since 1970, those of the texts and not of their arrival; they may be out of order by
    ``lateness_s``. A step ends once a text that much newer than its end was seen; what comes later still is
    left out and counted. Not for several threads at once.

    Args:
        policy: windows and rule; ``None`` takes the defaults.
        redact: returns a text without personal data; called for every negative text before it is stored.
            ``None`` takes :class:`mooring.redaction.Redactor`, which knows no names. A ``MooringError`` from
            it leaves the text out of the examples.
        timeline: gets every window and event, for a picture.

    Raises:
        ConfigError: the arguments can't be right.
    """

    def __init__(
        self,
        policy: MonitorPolicy | None = None,
        *,
        redact: Redact | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        self.policy = policy or MonitorPolicy()
        self._redact: Redact = redact or Redactor()
        self._timeline = timeline
        self._counts = dict.fromkeys((field.name for field in fields(MonitorCounters)), 0)
        self._topics: dict[str, Topic] = {}
        # Steps before this one are closed; no text came yet where there is none.
        self._next_step: int | None = None
        self._newest_s = -math.inf

    @property
    def counters(self) -> MonitorCounters:
        """What became of the texts so far."""
        return MonitorCounters(**self._counts)

    @property
    def newest_s(self) -> float | None:
        """Time of the newest text, in seconds since 1970; ``None`` before the first."""
        return None if self._next_step is None else self._newest_s

    @property
    def open_alerts(self) -> list[Alert]:
        """Alerts that have not ended."""
        return [topic.alert.alert for topic in self._topics.values() if topic.alert]

    @property
    def judged_topics(self) -> dict[str, bool]:
        """Every topic known, and whether it has texts enough for a test by now."""
        return {name: topic.is_judged for name, topic in sorted(self._topics.items())}

    def feed(self, time_s: float, opinion: Opinion, text: str | None = None) -> list[AlertEvent]:
        """Take one opinion.

        Args:
            time_s: of the text, in seconds since 1970.
            opinion: of the model.
            text: for the examples of an alert.

        Returns:
            What happened, in the order of time; mostly nothing.

        Raises:
            ConfigError: the time is none, or the sentiment is not negative, neutral or positive.
        """
        sentiment = opinion.sentiment.label
        if sentiment not in _SENTIMENTS:
            # Counted as not negative, it would keep every alert away.
            raise ConfigError(
                f"sentiment {sentiment!r} is none of {', '.join(_SENTIMENTS)}: give the model's labels these "
                "names (id2label in its checkpoint's config.json), or judge by a function that does"
            )
        events = self.advance(time_s)
        number = int(time_s // self.policy.step_s)
        assert self._next_step is not None
        if number < self._next_step:
            self._counts["late"] += 1
            return events
        if min(opinion.topic.score, opinion.sentiment.score) < self.policy.min_score:
            self._counts["unsure"] += 1
            return events
        name = opinion.topic.label
        topic = self._topics.get(name)
        if topic is None:
            if len(self._topics) >= self.policy.max_topics:
                self._counts["crowded"] += 1
                return events
            topic = self._topics[name] = Topic(name, self.policy)
        step = topic.open.get(number)
        if step is None:
            step = topic.open[number] = Step()
        self._counts["counted"] += 1
        step.texts += 1
        if sentiment == _NEGATIVE:
            step.negatives += 1
            if self.policy.examples and text:
                self._keep_example(step, text)
        return events

    def note_failure(self, time_s: float) -> list[AlertEvent]:
        """Take note of a text without an opinion, because the model failed; returns as :meth:`feed` does."""
        self._counts["failed"] += 1
        return self.advance(time_s)

    def advance(self, time_s: float, *, final: bool = False) -> list[AlertEvent]:
        """Let time pass without a text, so that windows end and alerts with them.

        Args:
            time_s: seconds since 1970; an earlier one than was seen changes nothing.
            final: whether nothing older than this comes any more, so that the lateness is not waited for.

        Returns:
            What happened, in the order of time.

        Raises:
            ConfigError: the time is none.
        """
        if not isinstance(time_s, Real) or not 0 <= time_s <= MAX_TIME_S:
            raise ConfigError(
                f"time {time_s!r} must be seconds since 1970, as datetime.timestamp() gives, from 0 to "
                f"{MAX_TIME_S:.0f}"
            )
        time_s = float(time_s)  # NumPy's numbers are no JSON
        if time_s > self._newest_s:
            self._newest_s = time_s
        elif not final:
            return []
        lateness_s = 0 if final else self.policy.lateness_s
        target = int((self._newest_s - lateness_s) // self.policy.step_s)
        if self._next_step is None:
            self._next_step = target
        return self._close_steps(target) if target > self._next_step else []

    def _close_steps(self, target: int) -> list[AlertEvent]:
        """Close all steps before ``target``."""
        assert self._next_step is not None
        policy = self.policy
        events: list[AlertEvent] = []
        # After so many empty steps there is nothing left that a further one could change.
        last_text = max((max(topic.open, default=0) for topic in self._topics.values()), default=0)
        longest = sum(
            map(policy.steps, ("lateness_s", "window_s", "baseline_s", "cooldown_s", "max_alert_s"))
        )
        until = min(target, max(self._next_step, last_text) + longest + 2)
        for number in range(self._next_step, until):
            for topic in list(self._topics.values()):
                event = topic.close(number)
                if event is not None:
                    events.append(event)
                if self._timeline is not None:
                    self._timeline.add(_point(topic, number, policy))
                if topic.is_empty:
                    del self._topics[topic.name]
        self._next_step = target
        self._counts["alerts"] += sum(isinstance(event, Alert) for event in events)
        if self._timeline is not None:
            self._timeline.add_events(events)
        return events

    def _keep_example(self, step: Step, text: str) -> None:
        try:
            redacted = self._redact(text)
        except MooringError as exc:
            LOG.warning("a text could not be redacted and is no example: %s", describe_error(exc))
            return
        shown = redacted.text if isinstance(redacted, Redaction) else redacted
        step.examples.append(shown[:_MOST_CHARACTERS])
        del step.examples[: -self.policy.examples]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that the monitor knows to a JSON file, in one step: the file is the old or the new one.

        Raises:
            ConfigError: the file can't be written.
        """
        write_state(
            path,
            policy=self.policy,
            counts=self._counts,
            topics=self._topics.values(),
            next_step=self._next_step,
            newest_s=self.newest_s,
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        policy: MonitorPolicy | None = None,
        *,
        redact: Redact | None = None,
        timeline: Timeline | None = None,
    ) -> Self:
        """Go on from what :meth:`save` wrote.

        Args:
            path: of the file.
            policy: may differ from the earlier one, but not in ``step_s``, ``window_s`` and ``baseline_s``.
            redact: see the class.
            timeline: see the class.

        Raises:
            DataError: the file can't be read, or is no state of a monitor.
            ConfigError: the policy does not fit it.
        """
        monitor = cls(policy, redact=redact, timeline=timeline)
        state = read_state(path, monitor.policy)
        monitor._counts.update(state.counts)
        monitor._topics = {topic.name: topic for topic in state.topics}
        monitor._next_step = state.next_step
        monitor._newest_s = -math.inf if state.newest_s is None else state.newest_s
        if timeline is not None:
            timeline.add_events(monitor.open_alerts)
        return monitor


def _point(topic: Topic, number: int, policy: MonitorPolicy) -> WindowPoint:
    limit = topic.judge().limit(policy) if topic.is_judged else None
    texts, baseline_texts = topic.texts, topic.baseline_texts
    return WindowPoint(
        topic=topic.name,
        end_s=(number + 1) * policy.step_s,
        texts=texts,
        share=topic.negatives / texts if texts else None,
        baseline_share=topic.baseline_negatives / baseline_texts if baseline_texts else None,
        limit_share=None if limit is None else limit / texts,
    )
