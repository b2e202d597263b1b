"""``make tune-check``: is what ``mooring tune`` chooses as good as the best of everything it chooses from?

::

    python -m mooring_loadtests.tune_check intent --slo p99=100ms

Searches as ``mooring tune`` does, then probes every candidate of the grid as long as the search's last round
does, and at last probes the search's choice and the grid's best few anew, in turns, as the best of many noisy
probes looks better than it is. The last line is JSON: ``tuner_over_grid`` is the ratio of the rates at which
the choice and the best of the grid keep the bound, medians over the turns. An hour on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mooring_loadtests.commands import exit_code
from mooring_loadtests.load_profile import Payload
from mooring_loadtests.tune_command import first_guess, request_timeout_s, slo
from mooring_loadtests.tune_probe import Prober, Release
from mooring_loadtests.tuner import Candidate, Probe, grid, probe_all, search

#: Of the grid, so many are probed again beside the choice.
_FINALISTS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Compare.

    Returns:
        0 if the choice is within 5 % of the grid's best, 1 if not, 2 if something needed is missing.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mooring_loadtests.tune_check",
        description="Compare what mooring tune chooses with an exhaustive grid; the last line is JSON.",
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--slo", type=slo, default=100.0, metavar="p99=TIME", help="default: p99=100ms")
    parser.add_argument("--engine", metavar="FORMAT", help="look at this engine alone")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), metavar="FOLDER")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="of each finalist (default: 3)")
    parser.add_argument("--work", type=Path, default=Path("artifacts/tune-check"), metavar="FOLDER")
    args = parser.parse_args(argv)
    return exit_code(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    release = Release(args.repository, args.model)
    args.work.mkdir(parents=True, exist_ok=True)
    timeout_s = request_timeout_s(args.slo)
    prober = Prober(release, payload=Payload(), timeout_s=timeout_s, folder=args.work)
    variants = [variant for variant in release.variants if args.engine in (None, variant.engine)]
    candidates = grid(
        cores=os.cpu_count() or 1,
        variants=variants,
        default=release.default,
        vary_batches=release.varies_batches,
    )

    def say(probe: Probe) -> None:
        said = probe.error or f"{probe.rate_within(args.slo):.1f} requests/s"
        print(f"  {probe.candidate!s:<60}  {said}", flush=True)

    print(f"Searching among {len(candidates)} candidates", flush=True)
    began_s = time.monotonic()
    guess = first_guess(prober, release.default)
    chosen, *_ = search(candidates, prober.run, p99_ms=args.slo, guess=guess, note=say)
    search_s = time.monotonic() - began_s
    # Not from the choice alone: what it is held against may take far more.
    rate = max(chosen.rate_within(args.slo), guess)
    print(f"Every candidate ({search_s:.0f} s went into the search)", flush=True)
    everything = probe_all(candidates, prober.run, rate=rate, note=say)
    everything.sort(key=lambda probe: -probe.rate_within(args.slo))
    # Where the best took the highest rate that was tried, the last turns go on beyond it.
    rate = max(rate, everything[0].rate_within(args.slo))
    finalists = dict.fromkeys([chosen.candidate, *(probe.candidate for probe in everything[:_FINALISTS])])
    print(f"The choice and the best of the grid again, {args.turns} turns", flush=True)
    rates: dict[Candidate, list[float]] = {candidate: [] for candidate in finalists}
    for _ in range(args.turns):
        for probe in probe_all(list(finalists), prober.run, rate=rate, note=say):
            rates[probe.candidate].append(probe.rate_within(args.slo))
    medians = {candidate: statistics.median(found) for candidate, found in rates.items()}
    best = max(medians, key=lambda candidate: medians[candidate])
    ratio = medians[chosen.candidate] / medians[best] if medians[best] else 0.0
    print(f"choice  {chosen.candidate}: {medians[chosen.candidate]:.1f} requests/s", flush=True)
    print(f"best    {best}: {medians[best]:.1f} requests/s", flush=True)
    figures = {"tuner_over_grid": round(ratio, 3), "search_s": round(search_s), "candidates": len(candidates)}
    print(json.dumps(figures))
    return int(ratio < 0.95)


if __name__ == "__main__":
    sys.exit(main())
