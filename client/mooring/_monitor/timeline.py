"""The windows that a monitor saw, and a picture of them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from mooring._errors import ConfigError
from mooring._monitor.events import Alert, AlertEnded, AlertEvent

_PICTURE_TOPICS = 8
_ROW_INCHES = 2.4
_WIDTH_INCHES = 11


class WindowPoint(NamedTuple):
    """One window of a topic."""

    topic: str
    #: End of the window, in seconds since 1970.
    end_s: float
    texts: int
    #: Negative share of the window; ``None`` without texts.
    share: float | None
    #: That of the baseline; ``None`` without texts.
    baseline_share: float | None
    #: Smallest negative share that would have raised an alert; ``None`` where the window was not judged.
    limit_share: float | None


class Timeline:
    """Windows and alerts of each topic, for a picture; goes into :class:`OpinionMonitor`.

    Args:
        max_windows: kept of each topic, and of all alerts; older ones are forgotten.
    """

    def __init__(self, *, max_windows: int = 5000) -> None:
        if isinstance(max_windows, bool) or not isinstance(max_windows, int) or max_windows < 1:
            raise ConfigError(f"max_windows must be a whole number from 1, got {max_windows!r}")
        self._max_windows = max_windows
        self._points: dict[str, deque[WindowPoint]] = {}
        self._alerts: deque[Alert] = deque(maxlen=max_windows)
        self._ends: deque[AlertEnded] = deque(maxlen=max_windows)

    @property
    def topics(self) -> list[str]:
        """Topics of the picture: those with alerts first, then those with the most texts."""
        alerts = {alert.topic for alert in self._alerts}
        volumes = {name: sum(point.texts for point in points) for name, points in self._points.items()}
        return sorted(volumes, key=lambda name: (name not in alerts, -volumes[name], name))

    def points(self, topic: str) -> Sequence[WindowPoint]:
        """The windows of a topic, oldest first."""
        return tuple(self._points.get(topic, ()))

    def add(self, point: WindowPoint) -> None:
        """Take a window; the monitor does."""
        points = self._points.get(point.topic)
        if points is None:
            points = self._points[point.topic] = deque(maxlen=self._max_windows)
        points.append(point)

    def add_events(self, events: Iterable[AlertEvent]) -> None:
        """Take alerts and their ends; the monitor does."""
        for event in events:
            if isinstance(event, Alert):
                self._alerts.append(event)
            else:
                self._ends.append(event)

    def plot(self, path: str | os.PathLike[str], *, topics: Sequence[str] | None = None) -> None:
        """Draw volume, negative share, baseline and alerts of each topic.

        Args:
            path: of the picture; its ending says the format, such as ``.png`` or ``.svg``.
            topics: what is drawn; ``None`` takes the first eight of :attr:`topics`.

        Raises:
            ConfigError: there is nothing to draw, or the file can't be written.
            ImportError: matplotlib is not installed.
        """
        figure_of = check_picture(path)
        names = self.topics[:_PICTURE_TOPICS] if topics is None else list(topics)
        missing = [name for name in names if name not in self._points]
        if missing or not names:
            raise ConfigError(f"there are no windows of {missing or 'any topic'} to draw")
        figure = figure_of(figsize=(_WIDTH_INCHES, _ROW_INCHES * len(names) + 0.6), layout="constrained")
        axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axis, name in zip(axes, names, strict=True):
            self._draw(axis, name)
        ends = [point.end_s for name in names for point in self._points[name]]
        if min(ends) < max(ends):
            # Of all topics, as they share the axis.
            axes[0].set_xlim(_date(min(ends)), _date(max(ends)))
        legend: dict[str, Any] = {}
        for axis in axes:
            handles, labels = axis.get_legend_handles_labels()
            legend.update(zip(labels, handles, strict=True))
        figure.legend(
            legend.values(), legend.keys(), loc="outside upper center", ncols=len(legend), frameon=False
        )
        try:
            figure.savefig(Path(path), dpi=120)
        except OSError as exc:
            raise ConfigError(f"the picture can't be written to {os.fspath(path)}: {exc.strerror}") from exc

    def _draw(self, axis: Any, name: str) -> None:
        points = self._points[name]
        times = [_date(point.end_s) for point in points]
        gap = float("nan")

        def column(field: str) -> list[float]:
            values = (getattr(point, field) for point in points)
            return [gap if value is None else value for value in values]

        volume = axis.twinx()
        volume.fill_between(times, [point.texts for point in points], step="pre", color="0.9", linewidth=0)
        volume.set_ylabel("texts in window", color="0.5")
        # In the lower part, below the curves.
        volume.set_ylim(0, 3 * max(1, *(point.texts for point in points), 0))
        axis.set_zorder(volume.get_zorder() + 1)
        axis.patch.set_visible(False)
        baseline, limit = column("baseline_share"), column("limit_share")
        axis.fill_between(times, baseline, limit, color="tab:blue", alpha=0.15, label="within chance")
        axis.plot(times, baseline, color="tab:blue", linewidth=1, label="baseline")
        axis.plot(times, column("share"), color="black", linewidth=1, label="negative share")
        for start_s, end_s in self._spans(name, points[-1].end_s):
            start, end = _date(start_s), _date(end_s)
            axis.axvspan(start, end, color="tab:red", alpha=0.15, linewidth=0, label="alert")
            axis.axvline(start, color="tab:red", linewidth=1)
        axis.set_ylim(0, 1)
        # Not as a formula, which two dollar signs would make of it.
        axis.set_title(name, loc="left", fontsize="medium", parse_math=False)
        axis.set_ylabel("negative share")

    def _spans(self, name: str, last_s: float) -> list[tuple[float, float]]:
        """Begin and end of each alert of a topic; one that is on lasts until now."""
        ends = {end.alert.alert_id: end.time_s for end in self._ends}
        return [
            (alert.time_s, ends.get(alert.alert_id, last_s)) for alert in self._alerts if alert.topic == name
        ]


def check_picture(path: str | os.PathLike[str]) -> type[Any]:
    """The class of matplotlib's figures, if one could be written there.

    Raises:
        ConfigError: the ending says no format.
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as exc:
        raise ImportError("the timeline needs matplotlib: install Mooring's extra [plot]") from exc
    endings = sorted(Figure().canvas.get_supported_filetypes())
    if Path(path).suffix.lower().removeprefix(".") not in endings:
        raise ConfigError(f"the picture {os.fspath(path)} must end in one of .{', .'.join(endings)}")
    return Figure


def _date(time_s: float) -> datetime:
    return datetime.fromtimestamp(time_s, UTC)
