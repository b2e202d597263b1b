"""``mooring compare``: whether one load test's figures are better or worse than another's."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mooring_loadtests.load_changes import ALL, Change, compare_runs, differences, incomparable
from mooring_loadtests.load_result import INVALID, LoadResult, finite, read_result
from mooring_loadtests.summary import table


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``compare`` to the command line."""
    parser = subparsers.add_parser(
        "compare",
        help="say whether one load test went better or worse than another",
        description="Compare the results of two runs of 'mooring load' figure by figure. A figure is better "
        "or worse where it changed by more than the threshold and beyond chance; with all figures taken "
        "together, chance alone calls one of them different in about 5 % of comparisons. Chance means what "
        "varied within the two runs: it knows nothing of a machine that was busier during one of them, so "
        "repeat a comparison that matters. Exit code: 0 no figure is worse, 1 one is, 2 a file can't be "
        "compared, 3 the runs are not comparable, in one of them the generator did not keep up, or a run was "
        "too short to say anything.",
    )
    parser.add_argument("a", type=Path, metavar="A.json", help="the earlier run, as 'mooring load' wrote it")
    parser.add_argument("b", type=Path, metavar="B.json", help="the later run")
    parser.add_argument(
        "--threshold",
        type=_share,
        default=0.05,
        metavar="SHARE",
        help="smallest change that matters, such as 2%% or 0.02 (default: 5%%)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare two runs; returns the exit code.

    Raises:
        DataError: a file is missing, holds no result, or a result without requests that count.
    """
    a, b = read_result(args.a), read_result(args.b)
    changes = compare_runs(a, b, threshold=args.threshold)
    warnings = incomparable(a, b)
    if args.json:
        print(json.dumps(_document(args, a, b, changes, warnings), indent=1, allow_nan=False))
    else:
        print("\n".join(describe(args, a, b, changes, warnings)))
    if warnings or not _judged(changes):
        return INVALID
    return 1 if any(change.verdict == "worse" for change in changes) else 0


def _judged(changes: Sequence[Change]) -> bool:
    """Whether anything can be said."""
    return any(change.verdict != "unknown" for change in changes)


def describe(
    args: argparse.Namespace,
    a: LoadResult,
    b: LoadResult,
    changes: Sequence[Change],
    warnings: Sequence[str],
) -> list[str]:
    """The comparison as lines of text."""
    lines = table([["A", str(args.a), *_words(a)], ["B", str(args.b), *_words(b)]])
    lines += [f"   {what}: {one} in A, {other} in B" for what, one, other in differences(a, b)]
    if warnings:
        lines += ["", "NOT COMPARABLE: a difference may not come from the model."]
        lines += [f"  {warning}" for warning in warnings]
    for requests in dict.fromkeys(change.requests for change in changes):
        rows = [["all requests" if requests == ALL else requests, "A", "B", "B / A", "95 % interval", ""]]
        rows += [_row(change) for change in changes if change.requests == requests]
        lines += ["", *table(rows, right=(1, 2, 3))]
    return [*lines, "", *_conclusion(changes, args.threshold)]


def _words(run: LoadResult) -> list[str]:
    version = f" {run.version}" if run.version else ""
    return [f"{run.model}{version}", run.name, run.started]


def _row(change: Change) -> list[str]:
    if change.figure == "error_rate":
        shown = [f"{change.a:.3%}", f"{change.b:.3%}", f"{change.change * 100:+.3f}"]
        between = None if change.low is None else [change.low * 100, (change.high or 0.0) * 100]
        interval = "-" if between is None else f"[{between[0]:+.3f}, {between[1]:+.3f}] points"
        return ["failures", *shown, interval, _loud(change)]
    interval = "-" if change.low is None else f"[{change.low:.3f}, {change.high:.3f}]"
    label = "answers/s" if change.figure == "throughput" else change.figure.replace("_ms", " ms")
    return [label, f"{change.a:.4g}", f"{change.b:.4g}", f"{change.change:.3f}", interval, _loud(change)]


def _loud(change: Change) -> str:
    return change.verdict.upper() if change.verdict == "worse" else change.verdict


def _conclusion(changes: Sequence[Change], threshold: float) -> list[str]:
    counts = {
        verdict: sum(change.verdict == verdict for change in changes)
        for verdict in ("worse", "better", "no difference", "unknown")
    }
    said = ", ".join(
        f"{count} {verdict}" for verdict, count in counts.items() if count or verdict in ("worse", "better")
    )
    lines = [
        f"{len(changes)} figures: {said}.",
        f"Different means by more than {100 * threshold:.3g} %, and beyond chance with all figures together "
        "(5 %, Holm).",
    ]
    if counts["no difference"]:
        lines.append("No difference means that none was shown: the interval says how large one may be.")
    if counts["unknown"]:
        lines.append(
            "Unknown: a run had too few seconds or requests for this figure, or a measured stage of a second."
        )
    if not _judged(changes):
        lines.append("NO VERDICT: run both for longer.")
    return lines


def _document(
    args: argparse.Namespace,
    a: LoadResult,
    b: LoadResult,
    changes: Sequence[Change],
    warnings: Sequence[str],
) -> dict[str, Any]:
    return {
        "a": _facts(args.a, a),
        "b": _facts(args.b, b),
        "comparable": not warnings,
        "warnings": list(warnings),
        "judged": _judged(changes),
        "threshold": args.threshold,
        "worse": any(change.verdict == "worse" for change in changes),
        "changes": [finite(asdict(change)) for change in changes],
    }


def _facts(path: Path, run: LoadResult) -> dict[str, Any]:
    return {
        "file": str(path),
        "model": run.model,
        "version": run.version,
        "profile": run.name,
        "started": run.started,
        "versions": dict(run.versions),
        "settings": dict(run.settings),
    }


def _share(text: str) -> float:
    number, percent = (text[:-1], 100) if text.endswith("%") else (text, 1)
    try:
        share = float(number) / percent
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share such as 2% or 0.02")
    return share
