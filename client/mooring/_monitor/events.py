"""What a monitor says: a topic's negative share surges, and it has ended."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

#: Significant digits of shares and p-values in JSON.
_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Alert:
    """The share of negative texts on a topic surged. Times are seconds since 1970, UTC."""

    topic: str
    #: Begin and end of the window that raised the alert.
    window_start_s: float
    window_end_s: float
    #: Texts of the window, and negative ones among them.
    texts: int
    negatives: int
    #: The same of the trailing baseline.
    baseline_texts: int
    baseline_negatives: int
    #: See ``docs/monitor.md``; at most ``level``.
    p_value: float
    #: Largest p-value that raises an alert.
    level: float
    #: Estimated correlation of two texts of the same window; 0 for independent ones.
    correlation: float
    #: Negative texts of the window, newest first, redacted.
    examples: tuple[str, ...] = ()

    @property
    def alert_id(self) -> str:
        """The same for the same topic and window, also when a stream is replayed."""
        key = f"{self.topic}\0{float(self.window_end_s)!r}".encode()
        return hashlib.sha256(key).hexdigest()[:16]

    @property
    def time_s(self) -> float:
        """When the alert was raised, in the time of the texts."""
        return self.window_end_s

    @property
    def share(self) -> float:
        """Negative share of the window."""
        return self.negatives / self.texts

    @property
    def baseline_share(self) -> float:
        """Negative share of the baseline."""
        return self.baseline_negatives / self.baseline_texts

    def to_dict(self) -> dict[str, Any]:
        """The alert as JSON holds it; see ``docs/monitor.md``."""
        return {
            "type": "alert",
            "id": self.alert_id,
            "topic": self.topic,
            "time": format_time(self.time_s),
            "window": {
                "start": format_time(self.window_start_s),
                "end": format_time(self.window_end_s),
                "texts": self.texts,
                "negatives": self.negatives,
                "negative_share": _short(self.share),
            },
            "baseline": {
                "texts": self.baseline_texts,
                "negatives": self.baseline_negatives,
                "negative_share": _short(self.baseline_share),
            },
            "p_value": _short(self.p_value),
            "level": _short(self.level),
            "correlation": _short(self.correlation),
            "examples": list(self.examples),
        }

    def to_json(self) -> str:
        """The alert as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class AlertEnded:
    """An alert is over. Times are seconds since 1970, UTC."""

    alert: Alert
    #: End of the window with which it ended.
    time_s: float
    #: ``subsided``, or ``persisted``: the new share lasted so long that it is the baseline now.
    reason: str
    #: Largest negative share of a window while it lasted.
    peak_share: float

    @property
    def topic(self) -> str:
        """The alert's."""
        return self.alert.topic

    def to_dict(self) -> dict[str, Any]:
        """The end as JSON holds it; see ``docs/monitor.md``."""
        return {
            "type": "alert_ended",
            "id": self.alert.alert_id,
            "topic": self.topic,
            "time": format_time(self.time_s),
            "started": format_time(self.alert.time_s),
            "reason": self.reason,
            "peak_negative_share": _short(self.peak_share),
        }

    def to_json(self) -> str:
        """The end as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


AlertEvent = Alert | AlertEnded


def format_time(time_s: float) -> str:
    """Seconds since 1970 as ISO-8601 in UTC."""
    return datetime.fromtimestamp(time_s, UTC).isoformat().replace("+00:00", "Z")


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
