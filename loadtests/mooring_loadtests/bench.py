"""``make bench``: what Mooring serves, beside ONNX Runtime by itself and beside other servers.

::

    python -m mooring_loadtests.bench                        # everything: about two hours on 2 cores
    python -m mooring_loadtests.bench classifier overload    # these; other sections stay as they are

Trains the shipped recipes, releases them in fp32 and int8, and gives every side the same 2,000 texts of mixed
lengths, one side after another, in several rounds. Other servers run in environments of their own, which are
installed first, each with those settings of ``alternatives.candidate_settings`` that suit it best; Mooring
runs as its recipes say. Callers and server share the machine's cores. ``docs/performance.md`` gets the
tables; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mooring import ThrottlePolicy
from mooring._commands import add_folder_option
from mooring_loadtests.alternatives import post_text
from mooring_loadtests.bench_clients import Ask, Flood, draw_texts, drive, flood, lean_http_caller
from mooring_loadtests.bench_compare import compare_sides, read_settings
from mooring_loadtests.bench_options import measure_options
from mooring_loadtests.bench_releases import CLASSIFIER, MODELS, release, release_classifier, say
from mooring_loadtests.bench_report import check_report, summary, write_report
from mooring_loadtests.bench_sides import CoresUsed
from mooring_loadtests.commands import count, exit_code
from mooring_loadtests.load_profile import Profile, Stage
from mooring_loadtests.load_run import machine, run_load
from mooring_serve import TritonServer

PARTS = (*MODELS, "overload", "options", "locust")
_TEXTS = 2000
_QUEUE = 16
_FLOOD_S = 20.0
_TIMES_CAPACITY = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Returns:
        0 if everything was measured, whatever came out, 1 if something failed, 2 if something is missing.
    """
    args = _parser().parse_args(argv)
    return exit_code(lambda: _run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mooring_loadtests.bench",
        description="Measure Mooring beside ONNX Runtime and other servers; the last line is JSON.",
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help="default: all")
    parser.add_argument("--rounds", type=count, default=3, help="turns of each side (default: 3)")
    parser.add_argument("--texts", type=count, default=_TEXTS, help="of a run (default: 2000)")
    add_folder_option(parser, "--work", "artifacts/bench", "what is made, and kept")
    parser.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="JSON with the other servers' settings by name, as an earlier run wrote it into --work: they "
        "are not searched for again",
    )
    parser.add_argument("--report", type=Path, default=Path("docs/performance.md"), metavar="FILE")
    return parser


def _run(args: argparse.Namespace) -> int:
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.work / "results.json"
    results: dict[str, Any] = {}
    if path.is_file():
        # Of before it may hold NaN.
        results = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: None)
    parts = args.parts or PARTS
    # Before hours of measuring.
    check_report(args.report, parts)
    args.known = None if args.settings is None else read_settings(args.settings)
    for part in parts:
        say(part)
        measure = {"overload": _overload, "options": measure_options, "locust": _locust}.get(part)
        found = measure(args) if measure else compare_sides(part, args)
        results[part] = found | {"machine": {**machine(), "python": platform.python_version()}}
        path.write_text(json.dumps(results, indent=1, allow_nan=False), encoding="utf-8")
        write_report(args.report, {part: results[part]})
    say(json.dumps(summary({part: results[part] for part in parts}), allow_nan=False))
    return 0


def _overload(args: argparse.Namespace) -> dict[str, Any]:
    """What is answered at capacity and at a multiple of it, with queues that are bounded, where callers send
    everything, and where they hold back as a client with a ``ThrottlePolicy`` does."""
    texts = draw_texts(args.texts)
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as folder:
        bounded = release_classifier([f"serving.max_queue_size={_QUEUE}"], Path(folder), args.work)
        with TritonServer(bounded, log_file=args.work / "overload.log") as server:
            return asyncio.run(_flood_rounds(server, CLASSIFIER, texts, args.rounds))


async def _flood_rounds(server: TritonServer, name: str, texts: Sequence[str], rounds: int) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    bodies = [post_text(name, text) for text in texts]
    async with lean_http_caller(server.http_url, bodies.__getitem__) as ask:
        numbers = range(len(texts))
        await flood(ask, numbers, rate=50.0, seconds=2.0)
        for number in range(rounds):
            rate = (await drive(ask, numbers, concurrency=_QUEUE)).per_s
            at_capacity, used = await _flood(server, ask, numbers, rate, seed=number)
            floods = {}
            # Each goes first in every other round.
            for policy in (None, ThrottlePolicy())[:: -1 if number % 2 else 1]:
                floods[policy] = await _flood(
                    server, ask, numbers, _TIMES_CAPACITY * rate, seed=number, policy=policy
                )
            beyond, used_beyond = floods[None]
            sparing, used_throttled = floods[ThrottlePolicy()]
            figures = {
                "rate": rate,
                "capacity_per_s": _per_s(at_capacity),
                "beyond_per_s": _per_s(beyond),
                "beyond_answer_p99_ms": _p99(beyond.answered_ms),
                "refusal_p99_ms": _p99(beyond.refused_ms),
                "refused": len(beyond.refused_ms),
                "late_p99_ms": _p99(beyond.late_ms),
                "throttled_per_s": _per_s(sparing),
                "throttled_answer_p99_ms": _p99(sparing.answered_ms),
                "throttled_refused": len(sparing.refused_ms),
                "held_back": sparing.held_back,
            }
            shown = (f"{name} {value:.4g}" for name, value in figures.items() if value is not None)
            say(f"  round {number + 1}: {', '.join(shown)}")
            cores = {"cores": used, "cores_beyond": used_beyond, "cores_throttled": used_throttled}
            found.append(figures | cores)
    return {"rounds": found, "queue": _QUEUE, "times": _TIMES_CAPACITY, "seconds": _FLOOD_S}


async def _flood(
    server: TritonServer,
    ask: Ask,
    numbers: Sequence[int],
    rate: float,
    *,
    seed: int,
    policy: ThrottlePolicy | None = None,
) -> tuple[Flood, dict[str, float]]:
    """A flood, and the cores used meanwhile."""
    cores = CoresUsed(server)
    seen = await flood(ask, numbers, rate=rate, seconds=_FLOOD_S, seed=seed, policy=policy)
    return seen, cores.so_far()


def _per_s(seen: Flood) -> float:
    return len(seen.answered_ms) / seen.seconds


def _p99(values: Sequence[float]) -> float | None:
    return float(np.quantile(values, 0.99, method="inverted_cdf")) if values else None


def _locust(args: argparse.Namespace) -> dict[str, Any]:
    """What one generating process sends for each second of a core, to a model that costs nothing."""
    repository = release("tabular", ['export.formats=["onnx"]'], args.work / "locust", args.work)
    stages = (Stage(seconds=3, measured=False), Stage(seconds=15))
    profile = Profile(loop="closed", users=16, stages=stages)
    rates = []
    with TritonServer(repository, log_file=args.work / "locust-server.log") as server:
        for number in range(args.rounds):
            result = run_load(
                model="tabular",
                name="locust",
                profile=profile,
                grpc_url=server.grpc_url,
                log=args.work / "locust.log",
            )
            used = [shares for span in result.measured for shares in result.cpu(span).values()]
            core_s = sum(share * count for shares in used for share, count in shares.items())
            sent, failed = result.count()
            rates.append(
                {"per_s": result.figures()["throughput"].value, "per_core_s": (sent - failed) / core_s}
            )
            say(
                f"  round {number + 1}: {rates[-1]['per_s']:.0f}/s, "
                f"{rates[-1]['per_core_s']:.0f} for each second of a core"
            )
    return {"rounds": rates}


if __name__ == "__main__":
    sys.exit(main())
