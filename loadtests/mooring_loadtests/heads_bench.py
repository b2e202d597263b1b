"""What one encoder with several heads gains over a model for each classification.

::

    python -m mooring_loadtests.heads_bench --repository model_repository

Serves the recipe with heads beside the recipes that do the same one by one, asks both for all answers to the
same texts, in turns, and ends with one line of JSON. ``heads_over_separate`` is the ratio of texts per
second: with ``n`` heads and nothing but encoders to run it would be ``n``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mooring import Client, ConfigError, TextMultiClassifier
from mooring._commands import add_folder_option
from mooring_loadtests.client_bench_pairs import Comparison, Side, compare
from mooring_loadtests.commands import count, exit_code
from mooring_loadtests.cores import usable_cores
from mooring_loadtests.releases import check_built
from mooring_loadtests.texts import endless_sentences


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Returns:
        0 if it was measured, whatever came out, 1 if something failed, 2 if something is missing.
    """
    args = _parser().parse_args(argv)
    return exit_code(lambda: _measure(args))


def _measure(args: argparse.Namespace) -> int:
    began_s = time.monotonic()
    seen = _run(args)
    low, high = seen.quartiles
    figures = {
        "heads_texts_per_s": round(seen.sdk_per_s, 1),
        "separate_texts_per_s": round(seen.bare_per_s, 1),
        "heads_over_separate": round(seen.ratio, 3),
        "quartiles": [round(low, 3), round(high, 3)],
    }
    _say(
        f"  {args.model} {seen.sdk_per_s:.0f} texts/s, {' and '.join(args.separate)} {seen.bare_per_s:.0f} "
        f"texts/s: ratio {seen.ratio:.2f} (quartiles {low:.2f} and {high:.2f})"
    )
    _say(f"{time.monotonic() - began_s:.0f} s on {usable_cores()} cores, which the server shares")
    _say(json.dumps(figures))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mooring_loadtests.heads_bench",
        description="Measure one model with several heads beside separate models; the last line is JSON.",
    )
    add_folder_option(parser, "--repository", "model_repository", "where it is")
    parser.add_argument("--model", default="opinion_heads", metavar="MODEL", help="the one with the heads")
    parser.add_argument(
        "--separate", nargs="+", default=["topic", "sentiment"], metavar="MODEL", help="one for each head"
    )
    parser.add_argument("--workers", type=count, default=8, help="callers at a time (default: 8)")
    parser.add_argument("--pairs", type=count, default=15, help="turns of each side (default: 15)")
    parser.add_argument("--slice-ms", type=count, default=2000, help="length of a turn (default: 2000)")
    return parser


def _run(args: argparse.Namespace) -> Comparison:
    from mooring_serve import TritonServer

    models = [args.model, *args.separate]
    check_built(args.repository, *models)
    _say(f"Serving {', '.join(models)} of {args.repository}")
    alone = TritonServer(
        args.repository,
        model_control_mode="explicit",
        extra_args=[f"--load-model={model}" for model in models],
    )
    with alone as server, Client(server.grpc_url, timeout_s=60.0) as client:
        _say(
            f"{args.workers} callers, {args.pairs} pairs of turns of {args.slice_ms} ms: every text gets "
            f"{len(args.separate)} answers, by one request or by {len(args.separate)}"
        )
        return _compare(client, args)


def _compare(client: Client, args: argparse.Namespace) -> Comparison:
    heads = client.task(args.model)
    if not isinstance(heads, TextMultiClassifier) or len(heads.heads) != len(args.separate):
        raise ConfigError(f"model {args.model!r} has not {len(args.separate)} heads: name one model for each")
    separate = [client.task(model) for model in args.separate]

    def ask_separately(text: str) -> None:
        for task in separate:
            task(text)

    with ThreadPoolExecutor(args.workers) as pool:
        return compare(
            _side(pool, args.workers, heads),
            _side(pool, args.workers, ask_separately),
            workers=args.workers,
            pairs=args.pairs,
            slice_s=args.slice_ms / 1000,
        )


def _side(pool: ThreadPoolExecutor, workers: int, ask: Callable[[str], object]) -> Side:
    """Let each worker ask about so many texts, the same ones in every turn and on every side."""

    def work(worker: int, requests: int) -> None:
        for text in itertools.islice(endless_sentences(seed=0, user=worker), requests):
            ask(text)

    def side(requests: int) -> float:
        began_s = time.perf_counter()
        for done in [pool.submit(work, worker, requests) for worker in range(workers)]:
            done.result()
        return time.perf_counter() - began_s

    return side


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
