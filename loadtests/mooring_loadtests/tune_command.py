"""``mooring tune``: find the settings that serve most within a bound on latency."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import importlib.metadata
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mooring import (
    CheckpointError,
    ConfigError,
    InvalidInput,
    MooringError,
    RecipeError,
    VerificationError,
)
from mooring._commands import add_folder_option
from mooring._toml_files import add_override_option
from mooring_loadtests.commands import number
from mooring_loadtests.cores import usable_cores
from mooring_loadtests.load_profile import Payload
from mooring_loadtests.load_profile import Stage as ProfileStage
from mooring_loadtests.load_result import finite
from mooring_loadtests.load_run import machine
from mooring_loadtests.tune_choice import (
    USUAL_CONFIRMATIONS,
    Confirmed,
    Outcome,
    TimeLeft,
    choose,
    confirmation_s,
    in_words,
)
from mooring_loadtests.tune_journal import Journal, Plan
from mooring_loadtests.tune_probe import Prober, Release
from mooring_loadtests.tuner import (
    LEAST_SHARE,
    TURN_SHARES,
    TURNS,
    Candidate,
    Probe,
    affordable,
    finalists,
    rate_within,
    search,
    stage_s,
    take_turns,
)
from mooring_serve.cli import add_resource_option

#: Users of the first guess, a core each.
_USERS_PER_CORE = 4
_GUESS_S = 4
#: Their time budget at least: the present settings may have a queue that is far longer than the bound.
_GUESS_TIMEOUT_S = 30.0
#: Then the present settings are probed, each stage for so many seconds, at shares of what they answered.
_SCOUT_S = 2
_SCOUT_SHARES = (0.3, 0.5, 0.7, 0.9)
#: Share of requests that the model may refuse as none of its inputs.
_REFUSED_SHARE = 0.01
#: How long to tune, about.
MINUTES = 10.0


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``tune`` to the command line."""
    parser = subparsers.add_parser(
        "tune",
        help="find the settings that serve most within a bound on latency",
        description="Serve a released model with other settings on this machine (instances, threads, "
        "batches, engine), load each for a moment, and propose the settings that answer most requests a "
        "second within the bound. An interrupted search goes on where it was. Exit code: 0 some settings "
        "keep the bound, 1 none do, or the present ones answer nothing, 2 the input was wrong.",
    )
    parser.add_argument("model", metavar="MODEL", help="name of a released pipeline, such as ner")
    parser.add_argument("--slo", required=True, type=slo, metavar="p99=TIME", help="such as p99=50ms")
    add_folder_option(parser, "--repository", "model_repository", "where it is")
    parser.add_argument(
        "--mixed-lengths",
        nargs="+",
        default=[],
        choices=["none", "padded", "ragged"],
        metavar="WAY",
        help="also try these ways for texts of different lengths to share a batch: none, padded, ragged",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        default=[],
        choices=["fp32", "int8"],
        help="also try engines of these precisions",
    )
    parser.add_argument(
        "--recipe", metavar="RECIPE", help="what the release was built from (default: the recipe MODEL)"
    )
    parser.add_argument("--checkpoint", metavar="PATH", help="as it was built")
    add_override_option(parser, "as it was built")
    add_folder_option(parser, "--artifacts", "artifacts", "what its build made")
    parser.add_argument(
        "--minutes",
        type=number,
        default=MINUTES,
        metavar="N",
        help=f"about how long to take, builds aside; longer tries more settings (default: {MINUTES:g})",
    )
    add_resource_option(
        parser, "as 'mooring serve' is given it, where recipes take some by serving.resources"
    )
    parser.add_argument("--items", metavar="FILE", help="JSON lines to ask; texts are drawn otherwise")
    add_folder_option(parser, "--reports", "reports", "where the report goes")
    parser.add_argument(
        "--apply",
        action="store_true",
        help="write the settings into the repository; publish a version if need be",
    )
    parser.set_defaults(run=run)


def slo(text: str) -> float:
    """The bound of an option such as ``p99=50ms``, in milliseconds."""
    match = re.fullmatch(r"p99=(\d+(?:\.\d+)?)(ms|s)", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form p99=50ms")
    return float(match[1]) * (1000 if match[2] == "s" else 1)


def run(args: argparse.Namespace) -> int:
    """Search, confirm and propose; returns 0, or 1 where nothing keeps the bound."""
    from mooring_serve.cli import sigterm_as_ctrl_c

    with sigterm_as_ctrl_c():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from mooring_loadtests.tune_plot import plot

    release = Release(args.repository, args.model)
    folder = args.reports / f"{args.model}-tune"
    folder.mkdir(parents=True, exist_ok=True)
    _add_variants(release, args, folder)
    prober = Prober(
        release,
        payload=Payload(file=args.items),
        timeout_s=request_timeout_s(args.slo),
        folder=folder,
        resources=args.resource,
    )
    about = {
        "model": args.model,
        "release": release.digest,
        "p99_ms": args.slo,
        "minutes": args.minutes,
        "items": None if args.items is None else _digest(Path(args.items)),
        "present": asdict(release.default)
        | {"preferred_batch_size": [*release.default.preferred_batch_size]},
        "variants": [list(variant) for variant in release.variants],
        "resources": sorted(args.resource),
        # What it is, not what it did at the moment.
        "machine": {key: words for key, words in machine().items() if key != "load average"},
        "software": _software(),
    }
    time_left = TimeLeft.of(args.minutes)
    journal = Journal(folder / "probes.jsonl", about)
    candidates = release.candidates(usable_cores())
    plan = journal.plan or make_plan(prober, candidates, minutes=args.minutes, p99_ms=args.slo)
    for name in ("probes.svg", "result.json"):
        # Of a search before; where this one does not come to its end they would pass for its own.
        (folder / name).unlink(missing_ok=True)
    journal.start(plan)
    if journal.probes:
        probes = f"{len(journal.probes)} probe{'s' if len(journal.probes) > 1 else ''}"
        print(f"Going on with {probes} of a search that was interrupted", flush=True)
    more = "" if plan.first_round > 1 else ": more take more time (--minutes)"
    print(f"Trying {plan.first_round} of {len(candidates)} settings{more}", flush=True)
    outcome = find(
        prober,
        candidates,
        plan,
        args.slo,
        known=list(journal.probes),
        note=lambda probe: _note(journal, probe, args.slo),
        time_left=time_left,
    )
    plot(journal.probes, args.slo, folder / "probes.svg")
    choice, confirmed = outcome.choice, outcome.confirmed
    result = {
        "p99_ms": args.slo,
        "chosen": asdict(choice),
        "turns": [
            {"settings": asdict(candidate), "rate": round(rate, 1)}
            for candidate, rate in outcome.rates.items()
        ],
        "runs": [_json(candidate, one, args.slo) for candidate, one in confirmed.items()],
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    journal.finish()
    if not confirmed[choice].rate:
        print(f"\nno settings keep p99 within {args.slo:g} ms; those that came closest:")
        print("\n".join(in_words(*one, args.slo) for one in confirmed.items()))
        return 1
    print("\nIn turns, and in a longer run:")
    for candidate, rate in outcome.rates.items():
        whose = "present" if candidate == release.default else "found"
        print(f"{whose:<7}  {candidate}: {rate:.1f} requests/s")
    for candidate, one in confirmed.items():
        print(f"{'chosen' if candidate == choice else 'run':<7}  {in_words(candidate, one, args.slo)}")
    if choice == release.default:
        print("\nThe present settings stay.")
        return 0
    print("\n".join(_proposal(release, choice)))
    if args.apply:
        release.apply(choice, artifacts=args.artifacts)
        print(f"\nwritten into {args.repository}; a server takes it up when it loads the model again")
    return 0


def _software() -> dict[str, str]:
    """What serves and measures, by its version."""
    from mooring_serve._installation import server_in_use

    found = {"tritonserver": server_in_use()}
    for name in ("mooring", "onnxruntime", "onnxruntime-gpu", "torch"):
        # A server of one's own brings its backends.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _add_variants(release: Release, args: argparse.Namespace, folder: Path) -> None:
    """Build what is to be tried beside the release's own engines; what a recipe can't be is left out."""
    from mooring_build.recipe import load_recipe

    default, recipe_name = release.default, args.recipe or args.model
    if args.precision or args.mixed_lengths:
        # Before the loop: a mistake in what was given is not left out.
        load_recipe(recipe_name, args.overrides, fine_tuned=args.checkpoint)
    elif args.recipe or args.overrides or args.checkpoint:
        raise ConfigError(
            "--recipe, --set and --checkpoint say how variants are built: name some (--precision, "
            "--mixed-lengths); everything else is tuned as it was released"
        )
    wanted = itertools.product(
        dict.fromkeys([default.precision, *args.precision]),
        dict.fromkeys([default.mixed_lengths, *args.mixed_lengths]),
    )
    for precision, mixed_lengths in wanted:
        if (precision, mixed_lengths) == (default.precision, default.mixed_lengths):
            continue
        settings = [f"export.precision={precision}", f"serving.mixed_lengths={mixed_lengths}"]
        print(f"Building {precision}, {mixed_lengths}", flush=True)
        try:
            recipe = load_recipe(recipe_name, [*args.overrides, *settings], fine_tuned=args.checkpoint)
            release.add(recipe, folder=folder / "variants", artifacts=args.artifacts)
        except (CheckpointError, RecipeError, VerificationError) as exc:
            print(f"  left out: {exc}", flush=True)


def request_timeout_s(p99_ms: float) -> float:
    """Budget of a probe's request: beyond the bound it is of no use, and waiting lengthens the probes."""
    return max(1.0, p99_ms * 4 / 1000)


def make_plan(prober: Prober, candidates: Sequence[Candidate], *, minutes: float, p99_ms: float) -> Plan:
    """Ask the present settings, by users who wait for their answers, and see how long that takes.

    Args:
        prober: serves and loads candidates.
        candidates: the first are the present settings.
        minutes: for everything, this included.
        p99_ms: the bound.

    Raises:
        ConfigError: the model does not take what is asked.
        MooringError: the present settings answer nothing.
    """
    began_s = time.monotonic()
    users = _USERS_PER_CORE * usable_cores()
    stages = (ProfileStage(seconds=1, measured=False), ProfileStage(seconds=_GUESS_S))
    timeout_s = max(_GUESS_TIMEOUT_S, request_timeout_s(p99_ms))
    result = prober.load(candidates[0], loop="closed", users=users, stages=stages, timeout_s=timeout_s)
    (requests, _), errors = result.count(), result.recorder.errors
    # Other failures may be the settings'.
    refused = {words: number for words, number in errors.items() if words.startswith(InvalidInput.__name__)}
    if sum(refused.values()) > _REFUSED_SHARE * requests:
        raise ConfigError(
            f"the model does not take what is asked: {refused}; give other items (--items), or build it with "
            "text.truncation = true where texts are too long"
        )
    throughput = result.figures()["throughput"].value if requests else 0.0
    if not throughput:
        raise MooringError(f"the present settings answered nothing in {_GUESS_S} s: {dict(errors)}")
    rates = [share * throughput for share in _SCOUT_SHARES]
    seconds = stage_s(_SCOUT_S, rates[0])
    guess = max(rate_within(prober.run(candidates[0], rates, seconds), p99_ms), LEAST_SHARE * throughput)
    took_s = time.monotonic() - began_s
    # Of a probe, its second of warm-up included.
    overhead_s = (took_s - _GUESS_S - seconds * len(rates)) / 2
    later_s = USUAL_CONFIRMATIONS * (overhead_s + 1 + confirmation_s(p99_ms, minutes))
    budget_s = minutes * 60 - took_s - later_s
    first_round = affordable(len(candidates), overhead_s=overhead_s, budget_s=budget_s, guess=guess)
    return Plan(guess=guess, first_round=first_round)


def find(
    prober: Prober,
    candidates: Sequence[Candidate],
    plan: Plan,
    p99_ms: float,
    *,
    known: Sequence[Probe] = (),
    note: Callable[[Probe], None] = lambda probe: None,
    time_left: TimeLeft = TimeLeft(),  # noqa: B008 (frozen)
) -> Outcome:
    """Search among candidates, let the best take turns with the first, and confirm what is best then.

    Args:
        prober: serves and loads candidates.
        candidates: the first are the present settings.
        plan: of :func:`make_plan`.
        p99_ms: the bound.
        known: as for :func:`mooring_loadtests.tuner.search`.
        note: likewise.
        time_left: for longer runs.

    Raises:
        MooringError: nothing that took turns served.
    """
    default = candidates[0]
    probes = search(
        candidates,
        prober.run,
        p99_ms=p99_ms,
        guess=plan.guess,
        first_round=plan.first_round,
        known=known,
        note=note,
    )
    rate = max(probes[0].rate_within(p99_ms), LEAST_SHARE * plan.guess)
    rates = [share * rate for share in TURN_SHARES]
    last = finalists(default, probes)
    turns = TURNS if len(last) > 1 else 1
    probes_of = take_turns(last, prober.run, rates=rates, turns=turns, known=known, note=note)
    took_turns = [probe for its in probes_of.values() for probe in its]
    if all(probe.error for probe in took_turns):
        # That is no fault of the settings: the disk may be full.
        raise MooringError(f"the present settings served no more, nor did others: {took_turns[0].error}")
    return choose(prober, default, probes_of, p99_ms, time_left=time_left)


def _note(journal: Journal, probe: Probe, p99_ms: float) -> None:
    journal.add(probe)
    print(f"  round {probe.round + 1}  {probe.told(p99_ms)}", flush=True)


def _json(candidate: Candidate, confirmed: Confirmed, bound_ms: float) -> dict[str, Any]:
    return {
        "settings": asdict(candidate),
        "rate": confirmed.rate,
        "p99_ms": finite(asdict(confirmed.p99_ms)),
        "headroom": round(confirmed.headroom(bound_ms), 3),
        "doubts": list(confirmed.doubts),
    }


def _proposal(release: Release, candidate: Candidate) -> Iterator[str]:
    """The recipe's new lines, and what they change in the repository."""
    yield "\nIn the recipe, so that the next build keeps them:\n"
    yield "[export]"
    yield f'engine = "{candidate.engine}"'
    yield f'precision = "{candidate.precision}"'
    yield "[serving]"
    yield from (f"{key} = {json.dumps(value)}" for key, value in candidate.serving().items())
    if candidate.max_batch_size < release.default.max_batch_size:
        items = "one item" if candidate.max_batch_size == 1 else f"{candidate.max_batch_size} items"
        yield f"\nRequests of more than {items} will be refused then."
    if not release.is_configured(candidate):
        yield "\nThis takes a build: these settings are not in the configs alone."
        return
    before, after = release.configs(release.default), release.configs(candidate)
    for model, text in after.items():
        path = f"{release.repository / model}/config.pbtxt"
        lines = difflib.unified_diff(
            before[model].splitlines(), text.splitlines(), path, path, lineterm="", n=1
        )
        yield from ("", *lines) if before[model] != text else ()


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as exc:
        raise ConfigError(f"--items {path} can't be read: {exc.strerror}") from exc
