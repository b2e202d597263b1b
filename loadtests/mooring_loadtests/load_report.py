"""The report of a load test: one page of HTML that needs nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from mooring_loadtests.load_plots import against_load, batch_sizes, breakdown, distribution, over_time
from mooring_loadtests.load_result import LoadResult
from mooring_loadtests.load_statistics import FIGURES, Estimate
from mooring_loadtests.server_times import ServerTimes, StepTimes
from mooring_loadtests.slo import Bound, bounds

_TEMPLATE = Path(__file__).with_name("load_report.html")
_NAMES = {
    "p50_ms": "p50",
    "p95_ms": "p95",
    "p99_ms": "p99",
    "mean_ms": "mean",
    "throughput": "answers/s",
    "error_rate": "failures",
    "min_throughput": "throughput",
}
_Row = tuple[str, StepTimes | float]


def write_report(result: LoadResult, path: Path) -> None:
    """Write the page of a run.

    Args:
        result: the run.
        path: HTML file, in a folder that is there.

    Raises:
        DataError: the run sent nothing that counts.
    """
    from jinja2 import Environment, StrictUndefined

    stages = result.stages()
    by_load = against_load(stages, result.profile.loop)
    plots = {
        "over_time": over_time(result),
        "distribution": distribution(result, wide=not by_load),
        "against_load": by_load,
        **_server_plots(result),
    }
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    differ = len(stages) > 1
    numbers = {span: number for number, span in enumerate(result.profile.spans(), start=1)}
    page = template.render(
        result=result,
        started=_moment(result.started),
        verdict=_verdict(result),
        tiles=_tiles(result),
        bounds=[_bound(bound, valid=not result.doubts) for bound in bounds(result)],
        plots=plots,
        over_time_words=_over_time_words(result),
        by_name=_by_name(result),
        by_stage=_table(
            {f"{numbers[one.span]}: {_load_words(result, one.span.amount)}": one.figures for one in stages}
        )
        if differ
        else None,
        errors=[(error, f"{count:,}") for error, count in result.recorder.errors.most_common()],
        load=list(_load(result)),
        machine=[*result.machine.items(), ("generating processes", result.processes)],
        versions=list(result.versions.items()),
        settings=list(result.settings.items()),
    )
    path.write_text(page, encoding="utf-8")


def _verdict(result: LoadResult) -> dict[str, Any]:
    held = bounds(result)
    broken = [bound for bound in held if not bound.kept]
    if result.doubts:
        words = "Invalid: the load generator did not keep up, so the figures say nothing of the server"
        if result.changes:
            words = "Invalid: the model was served otherwise at the end, so the figures are of no one version"
        return {
            "state": "invalid",
            "words": words,
            "reasons": result.doubts,
        }
    reasons = [
        f"{_bound_words(bound.name)} is {_show(bound.name, bound.figure.value)}, {_limit(bound)} allowed"
        for bound in broken
    ]
    if not result.answered:
        return {"state": "broken", "words": "No request of the last stage was answered", "reasons": reasons}
    if not held:
        return {"state": "none", "words": "No bounds were set", "reasons": []}
    if broken:
        words = f"{len(broken)} of {len(held)} bounds broken" if len(held) > 1 else "The bound was broken"
        return {"state": "broken", "words": words, "reasons": reasons}
    words = f"{len(held)} of {len(held)} bounds kept" if len(held) > 1 else "The bound was kept"
    return {"state": "kept", "words": words, "reasons": []}


def _tiles(result: LoadResult) -> Iterator[dict[str, str]]:
    figures, (requests, failures) = result.figures(), result.count()
    for name in ("p50_ms", "p99_ms", "throughput", "error_rate"):
        value, _, unit = _show(name, figures[name].value).partition(" ")
        words = {"p50_ms": "p50 latency", "p99_ms": "p99 latency", "throughput": "throughput"}
        yield {
            "name": words.get(name, _NAMES[name]),
            "value": value,
            "unit": unit,
            "note": f"95 %: {interval}" if (interval := _interval(name, figures[name])) else "",
        }
    yield {
        "name": "requests",
        "value": f"{requests:,}",
        "unit": "",
        "note": f"in {sum(len(span.counted) for span in result.measured):,} s, {failures:,} failed",
    }


def _bound(bound: Bound, *, valid: bool) -> dict[str, Any]:
    state, mark = ("kept", "✓ kept") if bound.kept else ("broken", "✗ broken")
    return {
        "name": _bound_words(bound.name),
        "limit": _limit(bound),
        "value": _show(bound.name, bound.figure.value),
        "interval": _interval(bound.name, bound.figure),
        "state": state if valid else "",
        "mark": mark if valid else "no verdict",
        "sure": bound.sure or not valid,
    }


def _bound_words(name: str) -> str:
    return f"{_NAMES[name]} latency" if name.endswith("_ms") else _NAMES[name]


def _limit(bound: Bound) -> str:
    least = "at least" if bound.name == "min_throughput" else "at most"
    return f"{least} {_show(bound.name, bound.limit)}"


def _by_name(result: LoadResult) -> dict[str, Any]:
    names = {} if len(result.names) < 2 else {name: result.figures(name) for name in result.names}
    sent = {name: result.count(name) for name in names} | {"all": result.count()}
    table = _table({**names, "all": result.figures()})
    table["heads"].insert(0, "requests")
    for row in table["rows"]:
        requests, failures = sent[row["name"]]
        row["cells"].insert(0, {"value": f"{requests:,}", "interval": f"{failures:,} failed"})
    return table


def _table(rows: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    return {
        "heads": [_NAMES[name] for name in FIGURES],
        "rows": [
            {
                "name": words,
                "cells": [
                    {
                        "value": _show(name, figures[name].value, unit=False),
                        "interval": _interval(name, figures[name]),
                    }
                    for name in FIGURES
                ],
            }
            for words, figures in rows.items()
        ],
    }


def _show(name: str, value: float, *, unit: bool = True) -> str:
    """A figure as people read it, with a space before its unit."""
    if name == "error_rate":
        return f"{100 * value:.3g} %"
    words = " ms" if name.endswith("_ms") else " /s"
    # What three digits would round to a thousand is one.
    shown = "∞" if math.isinf(value) else f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
    return shown + words * unit


def _interval(name: str, figure: Estimate) -> str:
    if figure.low is None or figure.high is None:
        return ""
    low, high = (_show(name, end, unit=False).removesuffix(" %") for end in (figure.low, figure.high))
    return f"{low} to {high}" + (" %" if name == "error_rate" else "")


def _server_plots(result: LoadResult) -> dict[str, str]:
    plots = {"breakdown": "", "slowest": "", "batch_sizes": ""}
    server = result.server
    if server is not None and server.requests:
        beyond = max(0.0, _mean_ms(result) - server.total_ms)
        rows: list[_Row] = [("client and network", beyond), *_server_rows(server)]
        plots["breakdown"] = breakdown(rows, "Mean time of a request by step")
        # The engine first: it is what batches are for.
        steps = sorted(server.steps, key=lambda step: -step.compute_ms)
        plots["batch_sizes"] = batch_sizes([(_step_name(server, step), step) for step in steps])
    if result.slowest is not None:
        plots["slowest"] = breakdown(
            _server_rows(result.slowest), "Mean time of the slowest requests by step"
        )
    return plots


def _server_rows(server: ServerTimes) -> list[_Row]:
    rows: list[_Row] = [(_step_name(server, step), step) for step in server.steps if step.total_ms]
    rest = server.total_ms - sum(step.total_ms for step in server.steps)
    # Steps that run side by side take longer together than the whole.
    return [*rows, ("between the steps", rest)] if rest > 0.005 * server.total_ms else rows


def _step_name(server: ServerTimes, step: StepTimes) -> str:
    """``ner_tokenizer`` of ``ner`` is its tokenizer."""
    return step.model.removeprefix(f"{server.model}_")


def _mean_ms(result: LoadResult) -> float:
    """Mean latency of every answer of the run: the server's statistics hold the warm-up too."""
    counts: Counter[float] = Counter()
    for second in result.recorder.seconds.values():
        counts.update(second.latencies_ms)
    return sum(value * count for value, count in counts.items()) / max(1, counts.total())


def _over_time_words(result: LoadResult) -> str:
    left = "should have left" if result.profile.loop == "open" else "left"
    words = (
        "Answers by the second in which they came; failures, and latency of what was answered, by the "
        f"second in which a request {left}."
    )
    shaded = any(not span.measured or span.settling_s for span in result.profile.spans())
    return words + (" What is shaded does not count." if shaded else "")


def _load_words(result: LoadResult, amount: float) -> str:
    return f"{amount:g}/s" if result.profile.loop == "open" else f"{amount:g} users"


def _load(result: LoadResult) -> Iterator[tuple[str, str]]:
    profile, payload = result.profile, result.profile.payload
    if profile.loop == "open":
        yield "loop", f"open, {profile.rate:g} requests a second, {profile.arrivals} arrivals"
    else:
        yield "loop", f"closed, {profile.users} users"
    if result.urls:
        yield "server", ", ".join(result.urls)
    yield "requests", ", ".join(result.names)
    yield "time budget", f"{profile.timeout_s:g} s"
    for number, span in enumerate(profile.spans(), start=1):
        words = f", of which the first {span.settling_s} s do not count" if span.settling_s else ""
        words = words if span.measured else ", not measured"
        yield f"stage {number}", f"{span.end_s - span.start_s} s at {_load_words(result, span.amount)}{words}"
    if payload.file is not None:
        yield "items", f"of {payload.file}, in turn"
    else:
        yield "items", f"drawn, seed {payload.seed}"
        yield (
            "words of a text",
            f"lognormal, median {payload.median_words:g}, sigma {payload.sigma:g}, "
            f"at most {payload.max_words}",
        )


def _moment(started: str) -> str:
    return f"{datetime.fromisoformat(started):%Y-%m-%d %H:%M} UTC"
