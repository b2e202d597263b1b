"""The trade-off that a search saw: latency against rate, a line a candidate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from mooring_loadtests.tuner import Probe, Stage, is_turn, pooled


def plot(probes: Iterable[Probe], p99_ms: float, path: Path) -> None:
    """Draw the probes into a picture; what took turns is named, by the medians of the turns."""
    probes = [probe for probe in probes if probe.stages]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for probe in probes:
        if not is_turn(probe):
            axes.plot(*_points(probe.stages), marker="o", markersize=2, linewidth=0.6, color="0.75", zorder=1)
    turns = [probe for probe in probes if is_turn(probe)]
    # A search that was resumed may have others, at rates that it gave up.
    turns = [probe for probe in turns if probe.stages[-1].rate == turns[-1].stages[-1].rate]
    for candidate in dict.fromkeys(probe.candidate for probe in turns):
        points = _points(pooled([probe for probe in turns if probe.candidate == candidate]))
        axes.plot(*points, marker="o", markersize=4, linewidth=1.8, zorder=3, label=str(candidate))
    axes.axhline(p99_ms, color="black", linewidth=1, linestyle="--")
    axes.annotate("bound", (0.005, p99_ms), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    axes.set(yscale="log", xlabel="requests a second", ylabel="99th percentile of latency, ms")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc="upper left")
    figure.savefig(path)


def _points(stages: Iterable[Stage]) -> tuple[list[float], list[float]]:
    finite = [stage for stage in stages if math.isfinite(stage.p99_ms)]
    return [stage.rate for stage in finite], [stage.p99_ms for stage in finite]
