"""One model beside ONNX Runtime by itself and beside other servers, one side after another, in rounds."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mooring import ConfigError, MooringError
from mooring_loadtests.alternatives import ALTERNATIVES, ServingSettings, candidate_settings, install
from mooring_loadtests.bench_clients import CONCURRENCIES, draw_texts
from mooring_loadtests.bench_releases import ENVIRONMENTS, PRECISIONS, build_sides, say
from mooring_loadtests.bench_sides import (
    BareOnnxRuntime,
    BareSettings,
    Built,
    best_labels,
    drive_alternative,
    drive_mooring,
)
from mooring_loadtests.cores import usable_cores
from mooring_serve import TritonServer

#: For choosing among settings.
_FEW_TEXTS = 400
#: Whose answers are held against transformers' own.
_CHECKED_TEXTS = 50
#: Of each way to use ONNX Runtime by itself.
_BARE_TURNS = 3


def compare_sides(part: str, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of every side of one model, over rounds in which each had its turn."""
    built = build_sides(part, args.work)
    texts = draw_texts(args.texts)
    inputs = built.tokenize(texts)
    lengths = sorted(one["input_ids"].shape[1] for one in inputs)
    say(
        f"  {len(texts)} texts of {lengths[0]} to {lengths[-1]} tokens, "
        f"{lengths[len(lengths) // 2]} at the median"
    )
    expected = best_labels(built, texts[:_CHECKED_TEXTS])
    known: Mapping[str, ServingSettings] | None = args.known
    chosen, missing = _choose_settings(built, texts[:_FEW_TEXTS], expected, args.work, known)
    if known is None:
        found = {name: asdict(settings) for name, (_, settings) in chosen.items()}
        (args.work / f"{part}-settings.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    bare = {precision: _best_bare(built, precision, inputs) for precision in PRECISIONS}
    seen: dict[str, list[dict[str, float]]] = {}
    cores: dict[str, list[dict[str, float]]] = {}

    def note(side: str, run: dict[str, float]) -> None:
        seen.setdefault(side, []).append(run)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in run.items())
        say(f"  {side:<36} {shown}")

    for number in range(args.rounds):
        say(f"  round {number + 1} of {args.rounds}")
        for precision in PRECISIONS:
            session = BareOnnxRuntime(built, precision, bare[precision])
            note(f"ONNX Runtime {precision}", {"per_s": session.per_s(inputs)})
            del session
            log_file = args.work / f"{part}-{precision}.log"
            with TritonServer(built.repositories[precision], log_file=log_file) as server:
                runs = asyncio.run(drive_mooring(server, built, texts, inputs))
            for side, (run, used) in runs.items():
                name, _, concurrency = side.rpartition(" ")
                note(f"{name} {precision} {concurrency}", asdict(run))
                cores.setdefault(f"{name} {precision} {concurrency}", []).append(used)
        for alternative in [one for one in ALTERNATIVES if one.name in chosen]:
            python, settings = chosen[alternative.name]
            log_file = args.work / f"{alternative.folder}.log"
            try:
                runs = drive_alternative(
                    alternative, python, built, texts, expected, settings=settings, log_file=log_file
                )
            except (MooringError, OSError) as exc:
                # Rounds are compared with one another: a side that misses one has none.
                del chosen[alternative.name]
                missing[alternative.name] = f"in round {number + 1}: {exc}"
                say(f"  {alternative.name:<36} not measured: {missing[alternative.name]}")
                for concurrency in CONCURRENCIES:
                    seen.pop(f"{alternative.name} {concurrency}", None)
                continue
            for concurrency, run in runs.items():
                note(f"{alternative.name} {concurrency}", asdict(run))
    return {
        "texts": len(texts),
        "tokens": [lengths[0], lengths[len(lengths) // 2], lengths[-1]],
        "rounds": args.rounds,
        "sides": seen,
        "cores": cores,
        "settings": {name: asdict(settings) for name, (_, settings) in chosen.items()},
        "bare": {precision: asdict(settings) for precision, settings in bare.items()},
        "not_measured": missing,
    }


def read_settings(path: Path) -> dict[str, ServingSettings]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: ServingSettings(**settings) for name, settings in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as exc:
        raise ConfigError(f"--settings {path} holds no settings of other servers ({exc!r})") from exc


def _choose_settings(
    built: Built,
    texts: Sequence[str],
    expected: Sequence[Sequence[str]],
    work: Path,
    known: Mapping[str, ServingSettings] | None,
) -> tuple[dict[str, tuple[Path, ServingSettings]], dict[str, str]]:
    """Of each alternative that runs here, the settings that answered most; of the others, the reason.

    Where some are known, they are taken as they are.
    """
    chosen: dict[str, tuple[Path, ServingSettings]] = {}
    missing: dict[str, str] = {}
    for alternative in ALTERNATIVES:
        best, reasons = 0.0, []
        try:
            if built.task not in alternative.tasks:
                raise MooringError(f"it has no {built.task}")
            python = install(alternative.requirements, work / ENVIRONMENTS)
        except (MooringError, OSError) as exc:
            missing[alternative.name] = str(exc)
            say(f"  {alternative.name:<36} not measured: {exc}")
            continue
        if known is not None:
            if alternative.name in known:
                chosen[alternative.name] = python, known[alternative.name]
            else:
                missing[alternative.name] = "no settings of it are known"
            continue
        for settings in candidate_settings(usable_cores()):
            log_file = work / f"{alternative.folder}.log"
            try:
                runs = drive_alternative(
                    alternative, python, built, texts, expected, settings=settings, log_file=log_file
                )
            except (MooringError, OSError) as exc:
                reasons.append(str(exc))
                say(f"  {alternative.name:<36} failed with {asdict(settings)}: {exc}")
                continue
            rate = statistics.geometric_mean(run.per_s for run in runs.values())
            say(f"  {alternative.name:<36} {rate:.1f}/s with {asdict(settings)}")
            if rate > best:
                best, chosen[alternative.name] = rate, (python, settings)
        if alternative.name not in chosen:
            missing[alternative.name] = "; ".join(dict.fromkeys(reasons))
            say(f"  {alternative.name:<36} not measured: {missing[alternative.name]}")
    return chosen, missing


def _best_bare(built: Built, precision: str, inputs: Sequence[Mapping[str, np.ndarray]]) -> BareSettings:
    """Of the ways to use ONNX Runtime by itself, the one that answers most."""
    cores = usable_cores()
    ways = [BareSettings(sessions=cores, threads=1), BareSettings(sessions=1, threads=cores)]
    ways += [BareSettings(sessions=cores, threads=1, batch=batch) for batch in (4, 8, 32)]
    turns = [
        {way: BareOnnxRuntime(built, precision, way).per_s(inputs) for way in ways}
        for _ in range(_BARE_TURNS)
    ]
    rates = {way: statistics.median(turn[way] for turn in turns) for way in ways}
    for way, rate in rates.items():
        say(f"  ONNX Runtime {precision:<23} {rate:.1f}/s with {asdict(way)}")
    return max(rates, key=lambda way: rates[way])
