"""One topic: its window, its trailing baseline, and the alert that is on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from mooring._monitor.events import Alert, AlertEnded, AlertEvent
from mooring._monitor.policy import STAYS_LEVEL, MonitorPolicy
from mooring._monitor.rule import concentration, estimate_correlation, surge_p_value


@dataclass
class Step:
    """The texts of one step."""

    texts: int = 0
    negatives: int = 0
    #: Redacted negative texts, oldest first.
    examples: list[str] = field(default_factory=list)


@dataclass
class OpenAlert:
    """An alert that has not ended."""

    alert: Alert
    #: Number of the step with which a window was last above the baseline.
    last_high: int
    peak_share: float


class Judgement:
    """What the rule says of a window.

    Args:
        texts: of the window.
        negatives: those of them that are negative.
        baseline_texts: of the baseline.
        baseline_negatives: those of them that are negative.
        baseline: texts and negatives of each window of the baseline.
    """

    def __init__(
        self,
        texts: int,
        negatives: int,
        baseline_texts: int,
        baseline_negatives: int,
        baseline: Iterable[tuple[int, int]],
    ) -> None:
        self.texts = texts
        self._baseline = (baseline_texts, baseline_negatives)
        self._blocks = [block for block in baseline if block[0]]
        self.correlation = estimate_correlation(self._blocks)
        self.p_value = self.p_value_of(negatives)

    def p_value_of(self, negatives: int) -> float:
        """The p-value of a window with so many negative texts."""
        texts, negative = self._baseline
        strengths: list[float | None] = [None]
        if self.correlation > 0:
            strengths.append(concentration(self.texts, self._blocks, self.correlation))
        return max(
            surge_p_value(
                texts=self.texts,
                negatives=negatives,
                baseline_texts=texts,
                baseline_negatives=negative,
                concentration=strength,
            )
            for strength in strengths
        )

    def limit(self, policy: MonitorPolicy) -> int | None:
        """Fewest negative texts that would raise an alert; ``None`` if even all of them would not."""
        texts, negative = self._baseline
        low, high = 0, self.texts + 1
        while low < high:
            middle = (low + high) // 2
            rise = middle / self.texts - negative / texts
            if rise >= policy.min_rise and self.p_value_of(middle) <= policy.level:
                high = middle
            else:
                low = middle + 1
        return low if low <= self.texts else None


class Topic:
    """Counts of a topic by step, and its alert.

    Args:
        name: of the topic.
        policy: the monitor's.
    """

    def __init__(self, name: str, policy: MonitorPolicy) -> None:
        self.name = name
        self._policy = policy
        self._window_steps = policy.steps("window_s")
        self._warm_up_steps = policy.steps("warm_up_s")
        #: Steps that may still get texts, by number.
        self.open: dict[int, Step] = {}
        #: Steps of the window, oldest first.
        self.window: deque[Step] = deque()
        #: Texts and negatives of each step of the baseline, oldest first.
        self.baseline: deque[tuple[int, int]] = deque(maxlen=policy.steps("baseline_s"))
        #: Those that left the window during the alert; they are no baseline unless it persists.
        self.held: deque[tuple[int, int]] = deque(maxlen=policy.steps("baseline_s"))
        self.alert: OpenAlert | None = None
        self.texts = self.negatives = self.baseline_texts = self.baseline_negatives = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of the topic any more."""
        return not (self.texts or self.baseline_texts or self.open or self.alert)

    @property
    def is_judged(self) -> bool:
        """Whether there are texts enough for a test."""
        return (
            self.texts >= self._policy.min_texts
            and self.baseline_texts >= self._policy.min_baseline_texts
            and len(self.baseline) >= self._warm_up_steps
        )

    def recount(self) -> None:
        """Sum up what was put into the window and the baseline."""
        self.texts = sum(step.texts for step in self.window)
        self.negatives = sum(step.negatives for step in self.window)
        self.baseline_texts = sum(n for n, _ in self.baseline)
        self.baseline_negatives = sum(x for _, x in self.baseline)

    def judge(self) -> Judgement:
        """What the rule says of the window; only where :attr:`is_judged`."""
        size = self._window_steps
        newest_first = iter(reversed(self.baseline))
        blocks = []
        while block := list(islice(newest_first, size)):
            blocks.append((sum(n for n, _ in block), sum(x for _, x in block)))
        return Judgement(self.texts, self.negatives, self.baseline_texts, self.baseline_negatives, blocks)

    def close(self, number: int) -> AlertEvent | None:
        """A step gets no more texts: move the window on and judge it.

        Args:
            number: of the step; its window ends at ``(number + 1) * step_s``.
        """
        step = self.open.pop(number, None) or Step()
        self.window.append(step)
        self.texts += step.texts
        self.negatives += step.negatives
        if len(self.window) > self._window_steps:
            self._leave(self.window.popleft())
        return self._follow(number) if self.alert else self._look(number)

    def _leave(self, step: Step) -> None:
        """A step leaves the window."""
        self.texts -= step.texts
        self.negatives -= step.negatives
        counts = (step.texts, step.negatives)
        if self.alert:
            self.held.append(counts)
            return
        if len(self.baseline) == self.baseline.maxlen:
            texts, negatives = self.baseline[0]
            self.baseline_texts -= texts
            self.baseline_negatives -= negatives
        self.baseline.append(counts)
        self.baseline_texts += counts[0]
        self.baseline_negatives += counts[1]

    def _rise(self) -> float:
        return self.negatives / self.texts - self.baseline_negatives / self.baseline_texts

    def _fisher(self) -> float:
        """The p-value without correlation: a lower bound that needs no pass over the baseline."""
        return surge_p_value(
            texts=self.texts,
            negatives=self.negatives,
            baseline_texts=self.baseline_texts,
            baseline_negatives=self.baseline_negatives,
        )

    def _look(self, number: int) -> Alert | None:
        """Raise an alert if the window surges."""
        policy = self._policy
        if not self.is_judged or self._rise() < policy.min_rise or self._fisher() > policy.level:
            return None
        judgement = self.judge()
        if judgement.p_value > policy.level:
            return None
        end_s = (number + 1) * policy.step_s
        newest_first = (text for step in reversed(self.window) for text in reversed(step.examples))
        alert = Alert(
            topic=self.name,
            window_start_s=end_s - policy.window_s,
            window_end_s=end_s,
            texts=self.texts,
            negatives=self.negatives,
            baseline_texts=self.baseline_texts,
            baseline_negatives=self.baseline_negatives,
            p_value=judgement.p_value,
            level=policy.level,
            correlation=judgement.correlation,
            examples=tuple(islice(newest_first, policy.examples)),
        )
        self.held.clear()
        self.alert = OpenAlert(alert, number, alert.share)
        return alert

    def _follow(self, number: int) -> AlertEnded | None:
        """End the alert if it is over."""
        policy, alert = self._policy, self.alert
        assert alert is not None
        if self.is_judged:
            alert.peak_share = max(alert.peak_share, self.negatives / self.texts)
            if self._rise() > 0 and self._fisher() <= STAYS_LEVEL and self.judge().p_value <= STAYS_LEVEL:
                alert.last_high = number
        if number - alert.last_high >= policy.steps("cooldown_s"):
            return self._end(number, "subsided")
        if (number + 1) * policy.step_s - alert.alert.time_s >= policy.max_alert_s:
            self.baseline = self.held.copy()
            self.recount()
            return self._end(number, "persisted")
        return None

    def _end(self, number: int, reason: str) -> AlertEnded:
        alert, self.alert = self.alert, None
        assert alert is not None
        self.held.clear()
        return AlertEnded(
            alert=alert.alert,
            time_s=(number + 1) * self._policy.step_s,
            reason=reason,
            peak_share=alert.peak_share,
        )
