"""The trade-off that a search saw: latency against rate, a line a candidate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from mooring_loadtests.tuner import Probe

_LABELLED = 5


def plot(probes: Iterable[Probe], p99_ms: float, path: Path) -> None:
    """Draw the probes into a picture; the best of the last round are named."""
    probes = [probe for probe in probes if probe.stages]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    last = max((probe.round for probe in probes), default=0)
    best = sorted(
        (probe for probe in probes if probe.round == last), key=lambda probe: -probe.rate_within(p99_ms)
    )
    for probe in probes:
        points = [(stage.rate, stage.p99_ms) for stage in probe.stages if math.isfinite(stage.p99_ms)]
        if not points:
            continue
        named = probe in best[:_LABELLED]
        axes.plot(
            *zip(*points, strict=True),
            marker="o",
            markersize=4 if named else 2,
            linewidth=1.8 if named else 0.6,
            color=None if named else "0.75",
            zorder=3 if named else 1,
            label=str(probe.candidate) if named else None,
        )
    axes.axhline(p99_ms, color="black", linewidth=1, linestyle="--")
    axes.annotate("bound", (0.005, p99_ms), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    axes.set(yscale="log", xlabel="requests a second", ylabel="99th percentile of latency, ms")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc="upper left")
    figure.savefig(path)
