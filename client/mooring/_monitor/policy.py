"""What a monitor counts and when it raises an alert: values that are checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass

from mooring._errors import ConfigError
from mooring._policies import check_field

DAY_S = 86_400.0
#: An alert goes on while windows stay above the baseline at this level.
STAYS_LEVEL = 0.05
# Each is kept in memory for each topic.
_MOST_STEPS = 100_000


@dataclass(frozen=True, kw_only=True)
class MonitorPolicy:
    """Windows, baseline and rule of an :class:`OpinionMonitor`; times are those of the texts."""

    #: Length of a window, in seconds.
    window_s: float = 3600.0
    #: A window ends, and is judged, every so many seconds; ``window_s`` is a multiple.
    step_s: float = 900.0
    #: Length of the trailing baseline before the window, in seconds; a multiple of ``window_s``.
    baseline_s: float = 7 * DAY_S
    #: A topic whose baseline is shorter than this, in seconds, raises no alert yet.
    warm_up_s: float = DAY_S
    #: Most false alerts a topic may raise a day, on average, while nothing changes.
    false_alarms_per_day: float = 0.05
    #: Windows with fewer texts are not judged.
    min_texts: int = 10
    #: Nor are windows while the baseline has fewer texts.
    min_baseline_texts: int = 100
    #: A rise of the negative share by less than this is not worth an alert.
    min_rise: float = 0.05
    #: Opinions whose topic or sentiment has a lower score are left out.
    min_score: float = 0.0
    #: An alert ends when no window was above the baseline for so many seconds.
    cooldown_s: float = 3600.0
    #: An alert that lasts so many seconds ends too: what it saw is the new baseline.
    max_alert_s: float = DAY_S
    #: How much older than the newest text another one may be, in seconds; older ones may come too late.
    lateness_s: float = 60.0
    #: Negative texts of the window that an alert quotes, newest first; 0 stores no text anywhere.
    examples: int = 0
    #: Opinions on further topics are left out.
    max_topics: int = 1000

    def __post_init__(self) -> None:
        check_field(self, "step_s", at_least=1)
        check_field(self, "window_s", at_least=self.step_s)
        check_field(self, "baseline_s", at_least=2 * self.window_s, at_most=_MOST_STEPS * self.step_s)
        check_field(self, "warm_up_s", at_least=0, at_most=self.baseline_s)
        check_field(self, "min_texts", whole=True, at_least=1)
        check_field(self, "min_baseline_texts", whole=True, at_least=1)
        check_field(self, "min_rise", at_least=0, at_most=1)
        check_field(self, "min_score", at_least=0, at_most=1)
        check_field(self, "cooldown_s", at_least=self.step_s)
        check_field(self, "max_alert_s", at_least=self.cooldown_s, at_most=_MOST_STEPS * self.step_s)
        check_field(self, "lateness_s", at_least=0, at_most=self.baseline_s)
        check_field(self, "examples", whole=True, at_least=0, at_most=100)
        check_field(self, "max_topics", whole=True, at_least=1)
        most = STAYS_LEVEL * DAY_S / self.step_s
        check_field(self, "false_alarms_per_day", at_least=0, at_most=most)
        if self.false_alarms_per_day == 0:
            raise ConfigError("MonitorPolicy.false_alarms_per_day must be above 0: no test never errs")
        for name, part in (("window_s", "step_s"), ("baseline_s", "window_s")):
            ratio = getattr(self, name) / getattr(self, part)
            if abs(ratio - round(ratio)) > 1e-9:
                raise ConfigError(
                    f"MonitorPolicy.{name} must be a multiple of {part} ({getattr(self, part):g}), "
                    f"got {getattr(self, name)!r}"
                )

    @property
    def level(self) -> float:
        """Largest p-value of one window that raises an alert.

        A day has ``86400 / step_s`` windows, and by chance alone each is below the level with at most that
        probability; expectations add up whether or not the windows overlap. So no more than
        ``false_alarms_per_day`` windows a day are expected there, and no alert begins without one.
        """
        return self.false_alarms_per_day * self.step_s / DAY_S

    def steps(self, name: str) -> int:
        """A time of the policy as a whole number of steps, rounded up."""
        return -int(-getattr(self, name) // self.step_s)
