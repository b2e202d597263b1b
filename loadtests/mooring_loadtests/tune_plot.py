"""The trade-off that a search saw: latency against rate, a line a candidate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from mooring_loadtests.tuner import Candidate, Probe, Stage, is_turn, pooled


def plot(probes: Iterable[Probe], p99_ms: float, path: Path) -> None:
    """Draw the probes into a picture; what took turns is named, by the medians of the turns."""
    probes = list(probes)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for probe in probes:
        if not is_turn(probe):
            axes.plot(*_points(probe.stages), marker="o", markersize=2, linewidth=0.6, color="0.75", zorder=1)
    for candidate, stages in _turns(probes).items():
        axes.plot(*_points(stages), marker="o", markersize=4, linewidth=1.8, zorder=3, label=str(candidate))
    axes.axhline(p99_ms, color="black", linewidth=1, linestyle="--")
    axes.annotate("bound", (0.005, p99_ms), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    axes.set(yscale="log", xlabel="requests a second", ylabel="99th percentile of latency, ms")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc="upper left")
    figure.savefig(path)


def _turns(probes: Iterable[Probe]) -> dict[Candidate, list[Stage]]:
    """What each did in its turns; one that failed counts as it does in the choice."""
    turns = [probe for probe in probes if is_turn(probe)]
    # A search that was resumed may have others, at rates that it gave up.
    last = next((_rates(probe) for probe in reversed(turns) if probe.stages), set())
    turns = [probe for probe in turns if not probe.stages or _rates(probe) & last]
    return {
        candidate: pooled([probe for probe in turns if probe.candidate == candidate])
        for candidate in dict.fromkeys(probe.candidate for probe in turns)
    }


def _rates(probe: Probe) -> set[float]:
    return {stage.rate for stage in probe.stages}


def _points(stages: Iterable[Stage]) -> tuple[list[float], list[float]]:
    finite = [stage for stage in stages if math.isfinite(stage.p99_ms)]
    return [stage.rate for stage in finite], [stage.p99_ms for stage in finite]
