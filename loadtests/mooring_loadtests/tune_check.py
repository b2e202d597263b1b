"""``make tune-check``: is what ``mooring tune`` chooses as good as the best of everything it chooses from?

::

    python -m mooring_loadtests.tune_check intent --slo p99=100ms

Chooses as ``mooring tune`` does, then probes every candidate of the grid, each rate as long as in the tuner's
turns, and at last lets the choice, the present settings and the grid's best few take turns, as the best of
many noisy probes looks better than it is. The last line is JSON: ``tuner_over_grid`` is the ratio of the
rates at which the choice and the best of these keep the bound, by the medians of the latencies in the turns.
More than an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

from mooring._commands import add_folder_option
from mooring_loadtests.commands import count, exit_code
from mooring_loadtests.cores import usable_cores
from mooring_loadtests.load_profile import Payload
from mooring_loadtests.tune_choice import TimeLeft, in_words
from mooring_loadtests.tune_command import MINUTES, find, make_plan, request_timeout_s, slo
from mooring_loadtests.tune_probe import Prober, Release
from mooring_loadtests.tuner import Candidate, Probe, pooled, rate_within, take_turns

#: Of the grid, so many are probed again beside the choice.
_FINALISTS = 4
#: Rates as shares of the best known before; much of the grid keeps the bound at far lower ones.
_SHARES = (0.4, 0.6, 0.75, 0.85, 0.95, 1.05, 1.15, 1.3)


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
    add_folder_option(parser, "--repository", "model_repository", "where it is")
    parser.add_argument("--turns", type=count, default=5, metavar="N", help="of each finalist (default: 5)")
    add_folder_option(parser, "--work", "artifacts/tune-check", "what is made, and kept")
    args = parser.parse_args(argv)
    return exit_code(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    release = Release(args.repository, args.model)
    args.work.mkdir(parents=True, exist_ok=True)
    timeout_s = request_timeout_s(args.slo)
    prober = Prober(release, payload=Payload(), timeout_s=timeout_s, folder=args.work)
    candidates = release.candidates(usable_cores(), engine=args.engine)

    def say(probe: Probe) -> None:
        print(f"  {probe.told(args.slo)}", flush=True)

    print(f"Searching among {len(candidates)} candidates", flush=True)
    began_s, time_left = time.monotonic(), TimeLeft.of(MINUTES)
    plan = make_plan(prober, candidates, minutes=MINUTES, p99_ms=args.slo)
    outcome = find(prober, candidates, plan, args.slo, note=say, time_left=time_left)
    choice = outcome.choice
    for candidate, rate in outcome.rates.items():
        print(f"  in turns {candidate}: {rate:.1f} requests/s", flush=True)
    for candidate, one in outcome.confirmed.items():
        print(f"  {in_words(candidate, one, args.slo)}", flush=True)
    search_s = time.monotonic() - began_s
    # Not from the choice alone: what it is held against may take far more.
    rate = max(*outcome.rates.values(), plan.guess)
    print(f"Every candidate ({search_s:.0f} s went into the choice)", flush=True)

    def kept(chosen: Sequence[Candidate], turns: int) -> dict[Candidate, float]:
        rates = [share * rate for share in _SHARES]
        probes = take_turns(chosen, prober.run, rates=rates, turns=turns, note=say)
        return {candidate: rate_within(pooled(its), args.slo) for candidate, its in probes.items()}

    everything = kept(candidates, 1)
    ranked = sorted(candidates, key=lambda candidate: -everything[candidate])
    # Where the best took the highest rate that was tried, the last turns go on beyond it.
    rate = max(rate, everything[ranked[0]])
    last = list(dict.fromkeys([choice, release.default, *ranked[:_FINALISTS]]))
    print(f"The choice, the present settings and the best of the grid, {args.turns} turns", flush=True)
    rates = kept(last, args.turns)
    for candidate, one_rate in rates.items():
        whose = "choice" if candidate == choice else "present" if candidate == release.default else "grid"
        print(f"{whose:<7}  {candidate}: {one_rate:.1f} requests/s")
    ratio = rates[choice] / max(rates.values()) if any(rates.values()) else 0.0
    figures = {"tuner_over_grid": round(ratio, 3), "search_s": round(search_s), "candidates": len(candidates)}
    print(json.dumps(figures))
    return int(ratio < 0.95)


if __name__ == "__main__":
    sys.exit(main())
