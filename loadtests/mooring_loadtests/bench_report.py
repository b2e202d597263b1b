"""The benchmark's figures: ratios for the closing line of JSON, and sections of ``docs/performance.md``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring import DataError
from mooring_loadtests.alternatives import ALTERNATIVES
from mooring_loadtests.bench_clients import CONCURRENCIES
from mooring_loadtests.load_result import finite

#: What each ratio should reach.
GOALS = {
    "engine_over_onnxruntime": 0.85,
    "engine_int8_over_onnxruntime_int8": 0.85,
    "pipeline_over_engine": 0.8,
    "pipeline_over_best_alternative": 1.35,
    "pipeline_int8_over_best_alternative": 2.5,
    "goodput_at_5x": 0.9,
    "goodput_at_5x_throttled": 0.9,
    "locust_rps_per_core": 1500.0,
}
#: What must stay below.
LIMITS = {"pipeline_p99_over_best_alternative": 1.0, "refusal_p99_ms": 50.0}
#: Between these two lines of the report a part's section is written anew; what else it says is left alone.
BEGIN, END = "<!-- written by make bench PART={part} -->", "<!-- until here -->"

# Ratios by name: the side above and the one below; ``{c}`` stands for the callers.
_RATIOS = {
    "engine_over_onnxruntime": ("engine fp32 {c}", "ONNX Runtime fp32"),
    "engine_int8_over_onnxruntime_int8": ("engine int8 {c}", "ONNX Runtime int8"),
    "pipeline_over_engine": ("pipeline fp32 {c}", "engine fp32 {c}"),
    "pipeline_int8_over_engine_int8": ("pipeline int8 {c}", "engine int8 {c}"),
    "pipeline_over_best_alternative": ("pipeline fp32 {c}", "{best} {c}"),
    "pipeline_int8_over_best_alternative": ("pipeline int8 {c}", "{best} {c}"),
    "pipeline_over_http_over_best_alternative": ("pipeline over HTTP fp32 {c}", "{best} {c}"),
}
#: Of the 99th percentiles: the lower, the better.
_LATENCY_RATIO = "pipeline_p99_over_best_alternative"
_CORES = ("cores", "cores_beyond", "cores_throttled")
#: In the order of the columns.
_OVERLOAD = (
    "rate",
    "capacity_per_s",
    "beyond_per_s",
    "beyond_answer_p99_ms",
    "refusal_p99_ms",
    "late_p99_ms",
    "throttled_per_s",
    "throttled_answer_p99_ms",
    "throttled_refused",
    "held_back",
)
Sides = Mapping[str, Sequence[Mapping[str, float]]]


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """Figures by name; of each ratio the worst over models and numbers of callers.

    Args:
        results: by part; the figures of a part that is left out are ``None``.
    """
    found: dict[str, Any] = {}
    raw: dict[str, Any] = {}
    missing = {
        part: dict(result["not_measured"]) for part, result in results.items() if result.get("not_measured")
    }
    models = {part: results[part]["sides"] for part in ("classifier", "ner") if part in results}
    for sides in models.values():
        for callers in CONCURRENCIES:
            for name, ratio in ratios(sides, callers).items():
                lowest = name != _LATENCY_RATIO
                if name not in found or (ratio < found[name]) == lowest:
                    found[name] = ratio
                    if name == "pipeline_over_best_alternative":
                        found["best_alternative"] = best_alternative(sides, callers)
    for part, sides in models.items():
        raw[part] = {side: _rounded(medians(sides, side)) for side in sides}
    if "overload" in results:
        rounds = results["overload"]["rounds"]
        # What users who wait for their answers get is what it can take.
        for name, key in (("goodput_at_5x", "beyond"), ("goodput_at_5x_throttled", "throttled")):
            found[name] = statistics.median(one[f"{key}_per_s"] / one["rate"] for one in rounds)
        found["refusal_p99_ms"] = _median(rounds, "refusal_p99_ms")
    if "locust" in results:
        found["locust_rps_per_core"] = statistics.median(
            one["per_core_s"] for one in results["locust"]["rounds"]
        )
    if "options" in results:
        sides = results["options"]["sides"]
        raw["options"] = {side: _rounded(medians(sides, side)) for side in sides}
    for part in ("overload", "locust"):
        if part in results:
            rounds = results[part]["rounds"]
            raw[part] = _rounded({key: _median(rounds, key) for key in rounds[0] if key not in _CORES})
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}
    closing = dict.fromkeys([*GOALS, "best_alternative", *LIMITS]) | dict(finite(rounded))
    return closing | {"not_measured": missing, "medians": raw}


def ratios(sides: Sides, callers: int) -> dict[str, float]:
    """Ratios with so many callers, of throughput but for one: medians of what each round gave."""
    best = best_alternative(sides, callers)
    found = {}
    for name, (above, below) in _RATIOS.items():
        pair = [side.format(c=callers, best=best) for side in (above, below)]
        if all(side in sides for side in pair):
            rounds = zip(*(sides[side] for side in pair), strict=True)
            found[name] = statistics.median(one["per_s"] / other["per_s"] for one, other in rounds)
    if best is not None:
        rounds = zip(sides[f"pipeline fp32 {callers}"], sides[f"{best} {callers}"], strict=True)
        found[_LATENCY_RATIO] = statistics.median(one["p99_ms"] / other["p99_ms"] for one, other in rounds)
    return found


def best_alternative(sides: Sides, callers: int) -> str | None:
    """The other server that answered most; ``None`` where none was measured."""
    rates = {
        one.name: medians(sides, f"{one.name} {callers}")["per_s"]
        for one in ALTERNATIVES
        if f"{one.name} {callers}" in sides
    }
    return max(rates, key=lambda name: rates[name]) if rates else None


def medians(sides: Sides, side: str) -> dict[str, float]:
    """Medians of a side's figures over the rounds."""
    rounds = sides[side]
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def _median(rounds: Sequence[Mapping[str, float | None]], key: str) -> float | None:
    """Of the rounds that have it."""
    known = [value for one in rounds if (value := one[key]) is not None]
    return statistics.median(known) if known else None


def _rounded(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    return {key: None if value is None else round(value, 2) for key, value in figures.items()}


def check_report(path: Path, parts: Iterable[str]) -> None:
    """Refuse a document into which :func:`write_report` could not put the sections of these parts.

    Raises:
        DataError: it has not both marks of a part, or its folder is not there.
    """
    if not path.parent.is_dir():
        raise DataError(f"{path.parent} is not there: run this from the project's folder, or name a --report")
    text = _document(path)
    for part in parts:
        _cut(path, text, part)


def write_report(path: Path, results: Mapping[str, Any]) -> None:
    """Put a section for each part into a document, between the marks of the part; other sections stay.

    Raises:
        DataError: the document has not both marks of a part; then nothing is written.
    """
    text = _document(path)
    for part, result in results.items():
        before, after = _cut(path, text, part)
        section = "\n".join(_section(part, result))
        text = f"{before}{BEGIN.format(part=part)}\n\n{section}\n\n{END}{after}"
    path.write_text(text, encoding="utf-8")


def _document(path: Path) -> str:
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return "# Performance\n" + "".join(f"\n{BEGIN.format(part=part)}\n{END}\n" for part in _SECTIONS)


def _cut(path: Path, text: str, part: str) -> tuple[str, str]:
    """What stands before and after a part's section and its marks."""
    begin = BEGIN.format(part=part)
    before, found, rest = text.partition(begin)
    old, end, after = rest.partition(END)
    if not found or not end or BEGIN.partition("{")[0] in old:
        raise DataError(f"{path} has not both marks, {begin!r} and {END!r}: nothing is written without")
    return before, after


def _section(part: str, result: Mapping[str, Any]) -> Iterator[str]:
    title, body = _SECTIONS[part]
    yield from (f"### {title}", "")
    yield from _verdicts(summary({part: result}))
    yield from body(result)
    machine = result["machine"]
    where = f"{machine['processor']} ({machine['vector instructions']}), {machine['cores']} cores"
    yield f"On {where}, {machine['system']}, Python {machine['python']}."


def _verdicts(found: Mapping[str, Any]) -> Iterator[str]:
    goals = {name: goal for name, goal in {**GOALS, **LIMITS}.items() if found[name] is not None}
    if not goals:
        return
    yield from ("| figure | measured | wanted | |", "|---|---:|---:|---|")
    for name, goal in goals.items():
        kept = found[name] <= goal if name in LIMITS else found[name] >= goal
        sign = "<=" if name in LIMITS else ">="
        yield f"| `{name}` | {found[name]:.4g} | {sign} {goal:g} | {'reached' if kept else '**missed**'} |"
    yield ""


def _model(result: Mapping[str, Any]) -> Iterator[str]:
    sides: Sides = result["sides"]
    low, middle, high = result["tokens"]
    yield (
        f"{result['texts']} texts of {low} to {high} tokens (median {middle}); medians of "
        f"{result['rounds']} rounds, lowest and highest throughput in brackets; latency in milliseconds."
    )
    yield ""
    heads = [f"{callers} callers: texts/s | p50 | p99" for callers in CONCURRENCIES]
    yield f"| side | {' | '.join(heads)} |"
    yield "|---|" + "---:|---:|---:|" * len(CONCURRENCIES)
    names = dict.fromkeys(side.rpartition(" ")[0] for side in sides if not side.startswith("ONNX Runtime"))
    for precision in ("fp32", "int8"):
        if f"ONNX Runtime {precision}" in sides:
            way = result["bare"][precision]
            name = f"ONNX Runtime {precision} in process, {way['sessions']} x {way['threads']} threads"
            name += f", {way['batch']} texts packed" if way["batch"] > 1 else ""
            yield f"| {name} | {_cells(sides, f'ONNX Runtime {precision}')} | | | |"
    best = {best_alternative(sides, callers) for callers in CONCURRENCIES}
    for name in names:
        shown = f"Mooring, {name}" if name.split()[0] in ("engine", "pipeline") else name
        shown = f"**{shown}**" if name in best else shown
        cells = [_cells(sides, f"{name} {callers}") for callers in CONCURRENCIES]
        yield f"| {shown} | {' | '.join(cells)} |"
    yield ""
    yield "| ratio | " + " | ".join(f"{callers} callers" for callers in CONCURRENCIES) + " |"
    yield "|---|" + "---:|" * len(CONCURRENCIES)
    columns = [ratios(sides, callers) for callers in CONCURRENCIES]
    for name in columns[0]:
        yield f"| `{name}` | {' | '.join(f'{column[name]:.3f}' for column in columns)} |"
    yield ""
    yield from _cores_by_side(result["cores"])
    for name, settings in result["settings"].items():
        yield f"- {name}: {', '.join(f'{key} {value}' for key, value in settings.items())}"
    yield from _not_measured(result)
    yield ""


def _not_measured(result: Mapping[str, Any]) -> Iterator[str]:
    for name, reason in result["not_measured"].items():
        yield f"- {name} was not measured: {reason}"


def _cores_by_side(cores: Sides) -> Iterator[str]:
    parts = dict.fromkeys(part for rounds in cores.values() for part in rounds[0])
    yield f"| cores used (medians) | {' | '.join(parts)} |"
    yield "|---|" + "---:|" * len(parts)
    for side in cores:
        name, _, callers = side.rpartition(" ")
        used = medians(cores, side)
        yield f"| {name}, {callers} callers | {' | '.join(f'{used[part]:.2f}' for part in parts)} |"
    yield ""


def _cells(sides: Sides, side: str) -> str:
    found, rates = medians(sides, side), [one["per_s"] for one in sides[side]]
    latencies = [f"{found[key]:.0f}" if key in found else "" for key in ("p50_ms", "p99_ms")]
    return f"{found['per_s']:.0f} ({min(rates):.0f}-{max(rates):.0f}) | {' | '.join(latencies)}"


def _overload(result: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"The classifier's pipeline with `serving.max_queue_size = {result['queue']}`, asked at random times "
        f"for {result['seconds']:.0f} s: at the rate that it can answer, and at {result['times']} times that "
        "rate by callers that send everything (*beyond*) and by callers that hold back by the client's "
        "`ThrottlePolicy()` (*throttled*). Latency in milliseconds, 99th percentiles."
    )
    yield ""
    yield (
        "| round | rate | answered/s | beyond: answered/s | answers | refusals | requests left late "
        "| throttled: answered/s | answers | number refused | held back |"
    )
    yield "|---:" * (len(_OVERLOAD) + 1) + "|"
    for number, one in enumerate(result["rounds"], start=1):
        shown = ["-" if one[key] is None else f"{one[key]:.0f}" for key in _OVERLOAD]
        yield f"| {number} | {' | '.join(shown)} |"
    yield ""
    yield "| cores used (median) | at capacity | beyond | throttled |"
    yield "|---|---:|---:|---:|"
    for name in result["rounds"][0]["cores"]:
        used = [statistics.median(one[key].get(name, 0.0) for one in result["rounds"]) for key in _CORES]
        yield f"| {name} | {' | '.join(f'{share:.2f}' for share in used)} |"
    yield ""


def _options(result: Mapping[str, Any]) -> Iterator[str]:
    sides: Sides = result["sides"]
    yield (
        f"The classifier's pipeline over gRPC, {result['callers']} callers; medians of {result['rounds']} "
        f"rounds. Where texts repeat, {result['repeated']:.0%} of the requests have had the same text before."
    )
    yield ""
    yield from ("| setting | texts/s | p50 | p99 |", "|---|---:|---:|---:|")
    for name in sides:
        yield f"| {name} | {_cells(sides, name)} |"
    yield ""
    if result["not_measured"]:
        yield from (*_not_measured(result), "")


def _locust(result: Mapping[str, Any]) -> Iterator[str]:
    rounds = result["rounds"]
    yield (
        "The small dense classifier over gRPC, 16 users of one process: "
        + ", ".join(
            f"{one['per_s']:.0f}/s ({one['per_core_s']:.0f} for each second of a core)" for one in rounds
        )
        + "."
    )
    yield ""


_SECTIONS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Iterator[str]]]] = {
    "classifier": ("Text classifier", _model),
    "ner": ("Named entities", _model),
    "overload": ("Overload", _overload),
    "options": ("Single settings", _options),
    "locust": ("What a load-generating process costs", _locust),
}
