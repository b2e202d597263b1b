"""Plots of a load test, as SVG that takes its colours and its font from the page around it."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mooring_loadtests.load_result import LoadResult, StageFigures
from mooring_loadtests.load_statistics import Estimate, percentile
from mooring_loadtests.recorder import Second
from mooring_loadtests.server_times import StepTimes

#: Colours that stand for the page's; no plot shows them as they are.
INK, MUTED, RULE, SHADE = "#010101", "#020202", "#030303", "#040404"
ACCENT, SECOND, BAD, THIRD, FOURTH = "#050505", "#060606", "#070707", "#080808", "#090909"
_PAGE = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    SHADE: "var(--shade)",
    ACCENT: "var(--accent)",
    SECOND: "var(--second)",
    BAD: "var(--bad)",
    THIRD: "var(--third)",
    FOURTH: "var(--fourth)",
}
_STYLE = {
    "svg.fonttype": "none",
    # A name may hold a dollar sign.
    "text.parse_math": False,
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}
#: Of a figure over the whole page, in inches; the page scales it.
_WIDE = 9.4
_HALF = 4.6
_BUCKETS = 120
_TAIL = (0.0, 0.5, 0.9, 0.95, 0.99, 0.999)
#: Above every latency that is drawn.
_BEYOND = 1e12
_PARTS = {
    "queue": ("queue_ms", SECOND),
    "input": ("input_ms", THIRD),
    "compute": ("compute_ms", ACCENT),
    "output": ("output_ms", FOURTH),
}


def distribution(result: LoadResult, *, wide: bool) -> str:
    """Latencies of the measured stages: a histogram, and the tail up to p99.9 below it (``wide``: beside)."""
    seconds = result.seconds()
    counts: Counter[float] = sum((second.latencies_ms for second in seconds), Counter())
    failures = sum(second.failures_ms.total() for second in seconds)
    if not counts:
        return ""
    with matplotlib.rc_context(_STYLE):
        if wide:
            figure = Figure(figsize=(_WIDE, 2.6), layout="constrained")
            upper, lower = figure.subplots(1, 2)
        else:
            figure = Figure(figsize=(_HALF, 3.5), layout="constrained")
            upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        values = np.array(sorted(counts))
        weights = np.array([counts[value] for value in values], float)
        reached = weights.cumsum() / (weights.sum() + failures)
        low, high = max(values[0], 1e-3), values[min(np.searchsorted(reached, 0.999), len(values) - 1)]
        # Latencies have three digits: narrower bars would show the rounding.
        edges = np.geomspace(low * 0.97, high * 1.03, 48)
        upper.hist(values, bins=edges, weights=100 * weights / weights.sum(), color=ACCENT, rwidth=0.88)
        upper.set_ylabel("% of answers")
        upper.yaxis.set_major_locator(MaxNLocator(3))
        upper.grid(visible=False, axis="x")
        lower.step(values, _nines(reached), where="post", color=ACCENT, linewidth=1.6)
        lower.set_yticks([_nines(share) for share in _TAIL], [f"{share:.3g}" for share in _percent(_TAIL)])
        lower.set(ylim=(0, _nines(0.9994)), ylabel="percentile", xlabel="latency, ms")
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            value = percentile(counts + Counter({math.inf: failures}), share)
            if math.isfinite(value):
                lower.plot(value, _nines(share), "o", color=ACCENT, markersize=4)
                lower.annotate(
                    f"{name} · {value:,.6g} ms",
                    (value, _nines(share)),
                    xytext=(-7, 4),
                    textcoords="offset points",
                    ha="right",
                )
        if wide:
            upper.set_xlabel("latency, ms")
        for axes in (upper, lower):
            _log_axis(axes, "x", low, high)
        return _svg(figure, "Distribution of latency")


def over_time(result: LoadResult) -> str:
    """Answers a second, and percentiles of latency, over the whole run; what does not count is shaded."""
    spans = result.profile.spans()
    seconds = result.seconds(spans=[replace(span, settling_s=0) for span in spans])
    width = max(1, math.ceil(len(seconds) / _BUCKETS))
    buckets = [seconds[first : first + width] for first in range(0, len(seconds), width)]
    times = np.array([min((place + 0.5) * width, len(seconds)) for place in range(len(buckets))])
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDE, 3.9), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        for axes in (upper, lower):
            for span in spans:
                counts_from_s = span.counted.start if span.measured else span.end_s
                if counts_from_s > span.start_s:
                    axes.axvspan(span.start_s, counts_from_s, color=SHADE, linewidth=0, zorder=0)
            for span in spans[1:]:
                axes.axvline(span.start_s, color=RULE, linewidth=0.8)
            axes.grid(visible=False, axis="x")
        answers = [sum(second.answers for second in part) / len(part) for part in buckets]
        failed = [sum(second.failures_ms.total() for second in part) / len(part) for part in buckets]
        if result.profile.loop == "open":
            upper.step(
                [spans[0].start_s, *(span.end_s for span in spans)],
                [spans[0].amount, *(span.amount for span in spans)],
                color=MUTED,
                linewidth=1,
                linestyle=(0, (4, 3)),
                label="should be sent",
            )
        upper.plot(times, answers, color=ACCENT, linewidth=1.6, label="answers")
        if any(failed):
            upper.plot(times, failed, color=BAD, linewidth=1.4, label="failures")
        upper.set(ylabel="a second", ylim=(0, None))
        _label_stages(upper, result)
        _legend(upper)
        _draw_latency(lower, times, buckets)
        lower.set(xlim=(0, len(seconds)), xlabel="seconds since the start", ylabel="latency, ms")
        return _svg(figure, "Throughput and latency over time")


def against_load(stages: Sequence[StageFigures], loop: str) -> str:
    """Latency and throughput of each stage over its load; empty where all stages have the same."""
    if len({stage.span.amount for stage in stages}) < 2:
        return ""
    stages = sorted(stages, key=lambda stage: stage.span.amount)
    amounts = [stage.span.amount for stage in stages]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_HALF, 3.5), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        if loop == "open":
            upper.plot([0, max(amounts)], [0, max(amounts)], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        _points(upper, amounts, [stage.figures["throughput"] for stage in stages], ACCENT, "answers")
        upper.set(ylabel="answers/s", ylim=(0, None))
        for name, colour in (("p99", ACCENT), ("p50", SECOND)):
            _points(lower, amounts, [stage.figures[f"{name}_ms"] for stage in stages], colour, name)
        finite = [
            end
            for stage in stages
            for name in ("p50_ms", "p99_ms")
            for end in (stage.figures[name].value, stage.figures[name].low, stage.figures[name].high)
            if end is not None and math.isfinite(end)
        ]
        if finite:
            _log_axis(lower, "y", min(finite), max(finite))
        words = "requests a second" if loop == "open" else "users"
        lower.set(xlim=(0, max(amounts) * 1.06), xlabel=words, ylabel="latency, ms")
        _legend(lower)
        return _svg(figure, "Latency against load")


def breakdown(rows: Sequence[tuple[str, StepTimes | float]], title: str) -> str:
    """Where a request spends its time, one row after the other.

    Args:
        rows: words, and a step's times a request or a time in milliseconds without parts.
        title: what it shows, for those who can't see it.
    """
    lengths = [step if isinstance(step, float) else step.total_ms for _, step in rows]
    total = sum(lengths)
    if not total:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDE, 0.95 + 0.32 * len(rows)), layout="constrained")
        axes = figure.subplots()
        at = 0.0
        for place, ((_, step), length) in enumerate(zip(rows, lengths, strict=True)):
            parts = (
                [(step, MUTED)]
                if isinstance(step, float)
                else [(getattr(step, field), colour) for field, colour in _PARTS.values()]
            )
            begin = at
            for part, colour in parts:
                axes.barh(place, part, left=at, color=colour, height=0.62)
                at += part
            axes.text(
                max(at, begin) + total * 0.008,
                place,
                f"{length:.3g} ms · {_percentage(length / total)}",
                va="center",
            )
        axes.set_yticks(range(len(rows)), [words for words, _ in rows], color=INK)
        axes.set(xlim=(0, total * 1.15), xlabel="ms", ylim=(len(rows) - 0.5, -0.5))
        axes.grid(visible=False, axis="y")
        for name, (_, colour) in _PARTS.items():
            axes.barh(0, 0, color=colour, label=name)
        _legend(axes)
        return _svg(figure, title)


def batch_sizes(steps: Sequence[tuple[str, StepTimes]]) -> str:
    """Batches that were formed, a panel a step; the first is the largest."""
    steps = [(words, step) for words, step in steps if step.batches]
    if not steps:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDE, 2.2), layout="constrained")
        panels = figure.subplots(1, len(steps), width_ratios=[2.2] + [1] * (len(steps) - 1), squeeze=False)[0]
        for axes, (words, step) in zip(panels, steps, strict=True):
            sizes, counts = np.array(sorted(step.batches.items()), float).T
            axes.bar(sizes, 100 * counts / counts.sum(), color=ACCENT, width=0.8)
            mean = float(sizes @ counts / counts.sum())
            axes.set_title(f"{words}: mean {mean:.3g}", loc="left", color=INK)
            axes.set_xlabel("items in a batch")
            axes.set_xlim(0.3, max(sizes.max(), 3) + 0.7)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.set_ylim(0, 105)
            axes.grid(visible=False, axis="x")
        panels[0].set_ylabel("% of the executions")
        return _svg(figure, "Batch sizes")


def _nines(share: np.ndarray | float) -> np.ndarray | float:
    """0.9 becomes 1, 0.99 becomes 2: a scale on which the tail has room."""
    return -np.log10(np.maximum(1 - np.asarray(share, float), 1e-9))


def _percentage(share: float) -> str:
    return "< 1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def _percent(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]


def _draw_latency(axes: Axes, times: np.ndarray, buckets: Sequence[Sequence[Second]]) -> None:
    answered = [sum((second.latencies_ms for second in part), Counter()) for part in buckets]
    drawn = []
    for name, share, colour in (("p99", 0.99, ACCENT), ("p50", 0.5, SECOND)):
        values = [percentile(counts, share) if counts else math.nan for counts in answered]
        drawn += [value for value in values if not math.isnan(value)]
        axes.plot(times, values, color=colour, linewidth=1.6, label=name)
    if drawn:
        _log_axis(axes, "y", min(drawn), max(drawn))
    else:
        axes.set_yticks([])
    failed = [any(second.failures_ms for second in part) for part in buckets]
    if any(failed):
        # A failure has no latency to be drawn at.
        axes.plot(
            times[failed],
            np.full(sum(failed), 0.98),
            "v",
            color=BAD,
            markersize=4,
            transform=axes.get_xaxis_transform(),
            label="some failed",
        )
    _legend(axes)


def _points(
    axes: Axes, amounts: Sequence[float], figures: Sequence[Estimate], colour: str, name: str
) -> None:
    values = np.array([figure.value if math.isfinite(figure.value) else math.nan for figure in figures])
    axes.plot(amounts, values, "o-", color=colour, linewidth=1.4, markersize=4, label=name)
    for amount, figure in zip(amounts, figures, strict=True):
        if figure.low is not None and figure.high is not None and math.isfinite(figure.low):
            # One that ends among failures leaves the plot.
            axes.plot([amount, amount], [figure.low, min(figure.high, _BEYOND)], color=colour, linewidth=1)


def _label_stages(axes: Axes, result: LoadResult) -> None:
    """Write each stage's load above it, if it is not the same all the time, and the warm-up."""
    spans = result.profile.spans()
    unit = "/s" if result.profile.loop == "open" else " users"
    differ = len({span.amount for span in spans}) > 1
    narrow = result.profile.seconds / 22
    for span in spans:
        wide = span.end_s - span.start_s >= narrow
        words = [f"{span.amount:g}{unit}"] if differ and wide else []
        words += [] if span.measured else ["warm-up"]
        if words:
            axes.annotate(
                "\n".join(reversed(words)),
                ((span.start_s + span.end_s) / 2 / result.profile.seconds, 1.0),
                xytext=(0, 3),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="center",
                va="bottom",
                color=MUTED,
                fontsize=7.5,
            )


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=1.2, borderaxespad=0.6
    )


def _log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """A logarithmic scale with plain numbers and a tick or more on any range."""
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    low, high = max(low, 1e-3), max(high, 1e-3)
    margin = (high / low) ** 0.05 * 1.03
    limits = (low / margin, high * margin)
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(*limits)
    for subs in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)):
        locator = LogLocator(subs=subs, numticks=20)
        ticks = [tick for tick in locator.tick_values(*limits) if limits[0] <= tick <= limits[1]]
        if len(ticks) >= 3:
            axis.set_major_locator(locator)
            break
    else:
        axis.set_major_locator(MaxNLocator(4))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _svg(figure: Figure, title: str) -> str:
    """The figure as an element of a page."""
    written = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The ids of parts repeat from plot to plot, those of clips and markers come from the title.
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg role="img" aria-label="{title}" \1>', text)
    for colour, page in _PAGE.items():
        text = text.replace(colour, page)
    return text
