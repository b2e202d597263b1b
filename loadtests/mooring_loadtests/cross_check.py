"""Hold the load generator against a C++ one: NVIDIA's perf_analyzer, at half of what the model takes.

::

    python -m mooring_loadtests.cross_check ner --url grpc://127.0.0.1:8001 --perf-analyzer PATH

perf_analyzer is not installed with the project. One ships in the manylinux wheel ``tritonclient==2.50.0``
(``pip download --no-deps``, then unzip: ``tritonclient-2.50.0.data/data/bin/perf_analyzer``); it needs
Debian's ``libb64-0d`` and a ``libcudart.so.12`` on ``LD_LIBRARY_PATH``. Both sides send the same texts at the
same constant rate over the URL's protocol, in turns. Ratios are of this generator over perf_analyzer; the
last line has their medians over the turns, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np

from mooring import Client, ConfigError, MooringError
from mooring_loadtests.commands import count, exit_code, number
from mooring_loadtests.load_profile import Payload, Profile, Stage
from mooring_loadtests.load_result import LoadResult, finite
from mooring_loadtests.load_run import run_load
from mooring_loadtests.payloads import draw_text

_TEXTS = 200
_WARM_UP_S = 3
#: What perf_analyzer may take beyond the requests themselves. With ``--request-count`` it may wait for ever,
#: though all is answered (seen with 2.50.0).
_OVERHEAD_S = 60
_ATTEMPTS = 3
_ALLOWED = {"throughput": 0.05, "p50_ms": 0.10, "p99_ms": 0.10}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare.

    Returns:
        0 if throughput agrees within 5 % and latency within 10 %, 1 if not, 2 if something needed is missing.
    """
    args = _parser().parse_args(argv)
    return exit_code(lambda: _run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mooring_loadtests.cross_check",
        description="Compare the load generator with NVIDIA's perf_analyzer on a model of texts.",
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--url", default="grpc://127.0.0.1:8001", metavar="URL", help="grpc:// or http://")
    parser.add_argument("--perf-analyzer", type=Path, required=True, metavar="PATH")
    parser.add_argument(
        "--rate", type=number, metavar="R", help="requests a second (default: half of what it takes)"
    )
    parser.add_argument("--seconds", type=count, default=8, metavar="S", help="length of a turn (default: 8)")
    parser.add_argument("--turns", type=count, default=12, metavar="N", help="of each side (default: 12)")
    return parser


def _run(args: argparse.Namespace) -> int:
    if not os.access(args.perf_analyzer, os.X_OK):
        raise ConfigError(f"--perf-analyzer {args.perf_analyzer} is no program")
    args.protocol, _, args.address = args.url.partition("://")
    if args.protocol not in ("grpc", "http"):
        raise ConfigError(f"--url {args.url!r} begins with neither grpc:// nor http://")
    random, payload = Random(0), Payload()
    texts = [draw_text(random, payload) for _ in range(_TEXTS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
        (folder / "texts.json").write_text(
            json.dumps({"data": [{"text": [text]} for text in texts]}), encoding="utf-8"
        )
        rate = args.rate or _capacity(args, folder) / 2
        print(f"{rate:.1f} requests/s for {args.seconds} s, {args.turns} turns of each side", flush=True)
        ratios: dict[str, list[float]] = {figure: [] for figure in _ALLOWED}
        for turn in range(args.turns):
            sides = {"mooring": _ours, "perf_analyzer": _theirs}
            # Each side goes first in every other turn.
            order = sorted(sides, reverse=bool(turn % 2))
            figures = {side: _measured(sides[side], args, rate, folder) for side in order}
            for side in sides:
                shown = ", ".join(f"{figure} {value:.4g}" for figure, value in figures[side].items())
                print(f"  {side:<14} {shown}", flush=True)
            for figure, values in ratios.items():
                values.append(figures["mooring"][figure] / figures["perf_analyzer"][figure])
    for figure, values in ratios.items():
        print(f"{figure} ratio: {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    medians = {figure: statistics.median(values) for figure, values in ratios.items()}
    said = {f"{figure}_ratio": round(median, 4) for figure, median in medians.items()}
    print(json.dumps(finite(said), allow_nan=False))
    return int(any(abs(median - 1) > _ALLOWED[figure] for figure, median in medians.items()))


def _measured(
    side: Callable[[argparse.Namespace, float, Path], dict[str, float]],
    args: argparse.Namespace,
    rate: float,
    folder: Path,
) -> dict[str, float]:
    """Figures of one turn, and of what the server says that requests took it, warm-up included."""
    before = _counted(args)
    figures = side(args, rate, folder)
    requests, spent_ns = (now - then for now, then in zip(_counted(args), before, strict=True))
    return {**figures, "server_mean_ms": spent_ns / requests / 1e6}


def _counted(args: argparse.Namespace) -> tuple[int, int]:
    """Requests that the server answered, and the nanoseconds that it had them."""
    with Client(args.url) as client:
        answered = [version.success for version in client.statistics(args.model)]
    return sum(one.count for one in answered), sum(one.ns for one in answered)


def _capacity(args: argparse.Namespace, folder: Path) -> float:
    stages = (Stage(seconds=2, measured=False), Stage(seconds=8))
    profile = Profile(
        loop="closed", users=8, stages=stages, payload=Payload(file=str(folder / "texts.jsonl"))
    )
    return _load(args, "capacity", profile, folder).figures()["throughput"].value


def _ours(args: argparse.Namespace, rate: float, folder: Path) -> dict[str, float]:
    profile = Profile(
        loop="open",
        rate=rate,
        arrivals="constant",
        stages=(Stage(seconds=_WARM_UP_S, measured=False), Stage(seconds=args.seconds)),
        payload=Payload(file=str(folder / "texts.jsonl")),
    )
    result = _load(args, "cross-check", profile, folder)
    for doubt in result.doubts:
        print(f"  doubtful: {doubt}", flush=True)
    figures = result.figures()
    return {figure: figures[figure].value for figure in (*_ALLOWED, "mean_ms")}


def _load(args: argparse.Namespace, name: str, profile: Profile, folder: Path) -> LoadResult:
    url = {f"{args.protocol}_url": args.url}
    return run_load(model=args.model, name=name, profile=profile, log=folder / "locust.log", **url)


def _theirs(args: argparse.Namespace, rate: float, folder: Path) -> dict[str, float]:
    export = folder / "requests.json"
    wanted = round(rate * (_WARM_UP_S + args.seconds))
    command = [str(args.perf_analyzer), "-m", args.model, "-u", args.address, "-i", args.protocol]
    command += ["--async", "--input-data", str(folder / "texts.json"), "--request-count", str(wanted)]
    command += [f"--request-rate-range={rate}", "--request-distribution", "constant"]
    command += ["--profile-export-file", str(export)]
    done = _ended(command, wanted / rate + _OVERHEAD_S, export)
    if done.returncode or not export.is_file():
        raise MooringError(f"perf_analyzer failed ({done.returncode}): {(done.stderr + done.stdout)[:500]}")
    requests = json.loads(export.read_text(encoding="utf-8"))["experiments"][0]["requests"]
    requests = [request for request in requests if request["response_timestamps"]]
    if len(requests) < 0.99 * wanted:
        raise MooringError(f"perf_analyzer has {len(requests)} answers to {wanted} requests")
    sent = np.array([request["timestamp"] for request in requests]) / 1e9
    answered = np.array([request["response_timestamps"][0] for request in requests]) / 1e9
    counted = sent >= sent.min() + _WARM_UP_S
    latencies = (answered - sent)[counted] * 1000
    lasted = answered[counted].max() - sent[counted].min()
    p50, p99 = np.quantile(latencies, [0.5, 0.99], method="inverted_cdf")
    figures = {
        "throughput": len(latencies) / lasted,
        "p50_ms": p50,
        "p99_ms": p99,
        "mean_ms": latencies.mean(),
    }
    return {figure: float(value) for figure, value in figures.items()}


def _ended(command: list[str], limit_s: float, export: Path) -> subprocess.CompletedProcess[str]:
    for _ in range(_ATTEMPTS):
        # It refuses to write over a file.
        export.unlink(missing_ok=True)
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
        except subprocess.TimeoutExpired:
            print(f"  perf_analyzer did not end within {limit_s:.0f} s and was killed", flush=True)
    raise MooringError(f"perf_analyzer did not end, {_ATTEMPTS} times")


if __name__ == "__main__":
    sys.exit(main())
