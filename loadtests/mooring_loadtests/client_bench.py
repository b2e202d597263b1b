"""``make bench-client``: what the client costs, and what its ``map`` gains, beside bare tritonclient.

::

    python -m mooring_loadtests.client_bench --repository model_repository

Ends with one line of JSON. ``infer_*`` and ``map_*`` are ratios of throughput, Mooring's over the other
side's, both measured in turns against the same embedded server, which shares the machine's cores with them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mooring._commands import add_folder_option
from mooring_loadtests.client_bench_echo import write_echo
from mooring_loadtests.client_bench_import import measure_import
from mooring_loadtests.client_bench_infer import CASES, compare_infer
from mooring_loadtests.client_bench_map import time_map
from mooring_loadtests.client_bench_memory import measure_memory
from mooring_loadtests.commands import count, exit_code
from mooring_loadtests.cores import usable_cores
from mooring_loadtests.releases import check_built
from mooring_loadtests.summary import table
from mooring_loadtests.texts import endless_sentences

Figure = float | list[str]

PARTS = ("import", "infer", "memory", "map")
#: At least this much.
FLOORS = {**{case.key: 0.95 for case in CASES}, "map_over_loop": 1.5, "map_over_asyncio": 0.9}
#: At most this much.
CEILINGS = {"import_s": 0.3, "memory_growth_mib": 5.0}
_MODEL = "ner"
_IMPORTS = 11


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Returns:
        0 if everything was measured, whatever came out, 1 if something failed, 2 if something is missing.
    """
    args = _parser().parse_args(argv)
    return exit_code(lambda: _measure(args))


def _measure(args: argparse.Namespace) -> int:
    began_s = time.monotonic()
    figures = _run(args)
    _say("")
    for line in verdicts(figures):
        _say(line)
    _say(f"{time.monotonic() - began_s:.0f} s on {usable_cores()} cores, which the server shares")
    _say(json.dumps(figures))
    return 0


def verdicts(figures: Mapping[str, Figure]) -> list[str]:
    """A line for each figure: its value, its limit, and whether it keeps to it."""
    rows = []
    for key, figure in figures.items():
        if isinstance(figure, list):
            rows.append([key, " ".join(figure) or "none", "none", "missed" if figure else "ok"])
        elif key in FLOORS:
            rows.append([key, f"{figure:.3f}", f">= {FLOORS[key]:g}", _word(figure >= FLOORS[key])])
        elif key in CEILINGS:
            rows.append([key, f"{figure:.3f}", f"<= {CEILINGS[key]:g}", _word(figure <= CEILINGS[key])])
        else:
            rows.append([key, f"{figure:.3f}", "-", "-"])
    return table(rows, right=(1,))


def _word(kept: bool) -> str:
    return "ok" if kept else "missed"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mooring_loadtests.client_bench",
        description="Measure the client beside bare tritonclient; the last line is JSON.",
    )
    add_folder_option(parser, "--repository", "model_repository", "what is served")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="measure no more than this")
    parser.add_argument("--pairs", type=count, default=31, help="turns of each side (default: 31)")
    parser.add_argument("--slice-ms", type=count, default=200, help="length of a turn (default: 200)")
    parser.add_argument("--requests", type=count, default=100_000, help="for memory (default: 100000)")
    parser.add_argument("--texts", type=count, default=5_000, help="for map (default: 5000)")
    return parser


def _run(args: argparse.Namespace) -> dict[str, Figure]:
    from mooring_serve import TritonServer

    if "map" in args.only:
        check_built(args.repository, _MODEL)
    figures: dict[str, Figure] = {}
    if "import" in args.only:
        figures |= _import()
    if "infer" in args.only or "memory" in args.only:
        with tempfile.TemporaryDirectory(prefix="mooring-bench-") as folder:
            _say("Serving a model that returns what it gets")
            with TritonServer(write_echo(Path(folder))) as server:
                if "infer" in args.only:
                    figures |= _infer(server.grpc_url, server.http_url, args.pairs, args.slice_ms / 1000)
                if "memory" in args.only:
                    figures |= _memory([server.grpc_url, server.http_url], args.requests)
    if "map" in args.only:
        _say(f"Serving {_MODEL} of {args.repository}")
        # Alone, with what it calls: other models need not be built.
        alone = TritonServer(
            args.repository, model_control_mode="explicit", extra_args=[f"--load-model={_MODEL}"]
        )
        with alone as server:
            figures |= _map(server.grpc_url, args.texts)
    return figures


def _import() -> dict[str, Figure]:
    _say(f"import mooring in {_IMPORTS} interpreters")
    cost = measure_import(_IMPORTS)
    _say(f"  median {cost.seconds * 1000:.0f} ms; heavy packages: {', '.join(cost.heavy) or 'none'}")
    return {"import_s": round(cost.seconds, 3), "heavy_imports": list(cost.heavy)}


def _infer(grpc_url: str, http_url: str, pairs: int, slice_s: float) -> dict[str, Figure]:
    _say(
        f"infer beside tritonclient, requests/s, medians of {pairs} pairs of turns of {slice_s * 1000:.0f} ms"
    )
    figures: dict[str, Figure] = {}
    for case in CASES:
        seen = compare_infer(case, grpc_url=grpc_url, http_url=http_url, pairs=pairs, slice_s=slice_s)
        low, high = seen.quartiles
        _say(
            f"  {case.key:20}  mooring {seen.sdk_per_s:6.0f}  tritonclient {seen.bare_per_s:6.0f}"
            f"  ratio {seen.ratio:.3f}  (quartiles {low:.3f} and {high:.3f})"
        )
        figures[case.key] = round(seen.ratio, 3)
    return figures


def _memory(urls: Sequence[str], requests: int) -> dict[str, Figure]:
    _say(f"Memory over {requests:,} requests from 8 threads, freed memory not given back by hand")
    growths_mib = []
    for url in urls:
        use = measure_memory(url, requests)
        shown = " ".join(f"{rss_mib:.1f}" for rss_mib in use.rss_mib)
        _say(f"  {url}: MiB after each tenth: {shown}")
        growths_mib.append(use.growth_mib)
    return {"memory_growth_mib": round(max(growths_mib), 2)}


def _map(grpc_url: str, count: int) -> dict[str, Figure]:
    texts = list(itertools.islice(endless_sentences(seed=0, user=0), count))
    words = sorted(len(text.split()) for text in texts)
    _say(f"{count:,} texts of {words[0]} to {words[-1]} words, {words[count // 2]} at the median")
    timing = time_map(
        grpc_url,
        texts,
        model=_MODEL,
        loop_texts=max(1, count // 10),
        sample=max(1, count // 12),
        report=_say,
    )
    return {
        "map_over_loop": round(timing.map_over_loop, 3),
        "map_over_asyncio": round(timing.map_over_asyncio, 3),
        "async_map_over_asyncio": round(timing.async_map_over_asyncio, 3),
    }


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
