"""What one process's requests did, second by second: small enough to keep for hours and to send on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Messages that hold a time or an address differ each time: after so many, errors count by their class.
_MOST_ERRORS = 50


@dataclass(kw_only=True)
class Health:
    """How the generating processes did in one second of the run."""

    #: How late requests left, in milliseconds, to one decimal; in a closed loop, how late the process was.
    lateness_ms: Counter[float] = field(default_factory=Counter)
    #: CPU by the number of the process, in shares of a core.
    cpu: dict[int, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class Second:
    """Requests that should have left in one second of the run."""

    #: Answered requests by latency in milliseconds, to three digits.
    latencies_ms: Counter[float] = field(default_factory=Counter)
    #: Failed requests by latency.
    failures_ms: Counter[float] = field(default_factory=Counter)
    #: Answers that came in this second, whenever they were asked for.
    answers: int = 0

    def add(self, other: Second) -> None:
        """Count another's requests too."""
        self.latencies_ms.update(other.latencies_ms)
        self.failures_ms.update(other.failures_ms)
        self.answers += other.answers


class Recorder:
    """Collects; :meth:`take` hands over what has come since the last time."""

    def __init__(self) -> None:
        self.seconds: defaultdict[tuple[str, int], Second] = defaultdict(Second)
        self.health: defaultdict[int, Health] = defaultdict(Health)
        self.errors: Counter[str] = Counter()

    def request(
        self,
        name: str,
        *,
        intended_s: float,
        sent_s: float | None,
        ended_s: float,
        error: str | None = None,
    ) -> None:
        """Note one request; times are seconds since the start of the run.

        Args:
            name: under which it is counted, such as ``ner grpc``.
            intended_s: when it should have left.
            sent_s: when it left; ``None`` where it had no set time.
            ended_s: when its answer was there.
            error: why there is none: a class, a colon, a message.
        """
        latency_ms = round_ms((ended_s - intended_s) * 1000)
        second = self.seconds[name, int(intended_s)]
        if error is None:
            second.latencies_ms[latency_ms] += 1
            self.seconds[name, int(ended_s)].answers += 1
        else:
            second.failures_ms[latency_ms] += 1
            self._count_error(error, 1)
        if sent_s is not None:
            self.late(intended_s, sent_s - intended_s)

    def late(self, at_s: float, by_s: float) -> None:
        """Note how late something was done that was due at ``at_s``."""
        self.health[int(at_s)].lateness_ms[round(max(0.0, by_s * 1000), 1)] += 1

    def take(self) -> dict[str, Any]:
        """Everything as JSON, and forget it."""
        taken = self.to_dict()
        self.__init__()  # type: ignore[misc]
        return taken

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON, for :meth:`add`."""
        return {
            "seconds": [
                {
                    "name": name,
                    "second": number,
                    "latencies_ms": _pairs(second.latencies_ms),
                    "failures_ms": _pairs(second.failures_ms),
                    "answers": second.answers,
                }
                for (name, number), second in sorted(self.seconds.items())
            ],
            "health": [
                {
                    "second": number,
                    "lateness_ms": _pairs(health.lateness_ms),
                    "cpu": sorted(health.cpu.items()),
                }
                for number, health in sorted(self.health.items())
            ],
            "errors": dict(self.errors),
        }

    def add(self, taken: Mapping[str, Any]) -> None:
        """Count what another recorder handed over."""
        for entry in taken["seconds"]:
            second = Second(
                latencies_ms=Counter(dict(entry["latencies_ms"])),
                failures_ms=Counter(dict(entry["failures_ms"])),
                answers=entry["answers"],
            )
            self.seconds[entry["name"], entry["second"]].add(second)
        for entry in taken["health"]:
            self.health[entry["second"]].lateness_ms.update(dict(entry["lateness_ms"]))
            self.health[entry["second"]].cpu.update(entry["cpu"])
        for error, count in taken["errors"].items():
            self._count_error(error, count)

    def _count_error(self, error: str, count: int) -> None:
        known = error in self.errors or len(self.errors) < _MOST_ERRORS
        self.errors[error if known else error.partition(":")[0]] += count


def round_ms(time_ms: float) -> float:
    """Round to three significant digits: few bars in a histogram, and percentiles err by 0.5 % at most."""
    return float(f"{time_ms:.3g}")


def _pairs(counts: Counter[float]) -> list[tuple[float, int]]:
    return sorted(counts.items())
