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
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mooring import AsyncClient, ConfigError, MooringError, RetryPolicy
from mooring_loadtests.alternatives import (
    ALTERNATIVES,
    OPENVINO,
    ServingSettings,
    candidate_settings,
    install,
    post_text,
)
from mooring_loadtests.bench_clients import (
    CONCURRENCIES,
    Ask,
    Flood,
    Run,
    draw_texts,
    drive,
    flood,
    lean_http_caller,
)
from mooring_loadtests.bench_report import check_report, summary, write_report
from mooring_loadtests.bench_sides import (
    BareOnnxRuntime,
    BareSettings,
    Built,
    CoresUsed,
    best_labels,
    drive_alternative,
    drive_mooring,
)
from mooring_loadtests.commands import count, exit_code
from mooring_loadtests.cores import usable_cores
from mooring_loadtests.load_profile import Payload, Profile, Stage
from mooring_loadtests.load_run import machine, run_load
from mooring_serve import TritonServer
from mooring_serve.cli import resource_arguments

#: Which texts are asked: of mixed lengths; most of a few words and some of very many; or the same ones again.
Texts = Literal["mixed", "few long", "repeating"]
#: Models by part: the recipe, its task, and overrides.
MODELS = {
    "classifier": ("intent", "text-classification", ("data.out_of_scope=", "data.out_of_scope_train=")),
    "ner": ("ner", "token-classification", ("verify.lowered_tolerance=5",)),
}
#: In an engine's config, for ONNX Runtime's backend and for the Python backend below the embedded one.
_OPENVINO = """
optimization {{ execution_accelerators {{ cpu_execution_accelerator {{ name: "openvino" }} }} }}
parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{environment}" }} }}
"""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One row of what single settings do."""

    #: Of the classifier's recipe.
    overrides: tuple[str, ...] = ()
    texts: Texts = "mixed"
    #: That the server has, ``name:count``.
    resources: tuple[str, ...] = ()
    #: ONNX Runtime gives the engine to OpenVINO.
    openvino: bool = False


#: Settings whose effect is measured, by what they are called in the report.
OPTIONS = {
    "as the recipe says": Option(),
    'serving.mixed_lengths = "padded"': Option(overrides=("serving.mixed_lengths=padded",)),
    'serving.mixed_lengths = "none"': Option(overrides=("serving.mixed_lengths=none",)),
    "serving.max_queue_delay_microseconds = 500": Option(
        overrides=("serving.max_queue_delay_microseconds=500",)
    ),
    "serving.instance_count = 4": Option(overrides=("serving.instance_count=4",)),
    "the same, two runs at a time": Option(
        overrides=("serving.instance_count=4", "serving.resources={runs = 1}"), resources=("runs:2",)
    ),
    "as the recipe says, OpenVINO": Option(openvino=True),
    'serving.mixed_lengths = "none", OpenVINO': Option(
        overrides=("serving.mixed_lengths=none",), openvino=True
    ),
    "as the recipe says, few long texts": Option(texts="few long"),
    "serving.max_batch_tokens = 128, few long texts": Option(
        overrides=("serving.max_batch_tokens=128",), texts="few long"
    ),
    "serving.max_batch_tokens = 256, few long texts": Option(
        overrides=("serving.max_batch_tokens=256",), texts="few long"
    ),
    "as the recipe says, texts repeat": Option(texts="repeating"),
    "serving.response_cache = true, texts repeat": Option(
        overrides=("serving.response_cache=true",), texts="repeating"
    ),
}
PARTS = (*MODELS, "overload", "options", "locust")
#: Of every release: one engine is enough, and nothing may refuse a long text. The shipped sets are small: one
#: answer of 108 that int8 changes is more than the half point that recipes allow.
_SETTINGS = (
    'export.formats=["onnx"]',
    "text.truncation=true",
    "quality.max_drop=0.01",
    # Every other side has all cores, too.
    f"serving.instance_count={usable_cores()}",
)
_PLAIN = "serving.mixed_lengths=none"
_PRECISIONS = ("fp32", "int8")
#: Folder of what is trained and exported.
_BUILDS = "builds"
#: Folder of what is installed for other sides.
_ENVIRONMENTS = "alternatives"
_TEXTS = 2000
#: For choosing among settings.
_FEW_TEXTS = 400
#: Whose answers are held against transformers' own.
_CHECKED_TEXTS = 50
#: Of each way to use ONNX Runtime by itself.
_BARE_TURNS = 3
_QUEUE = 16
_FLOOD_S = 20.0
_TIMES_CAPACITY = 5
#: Half of the texts have up to five words, one of forty more than 50.
_FEW_LONG = Payload(median_words=5.0, sigma=1.2, max_words=100)
#: Exponent of how often texts are asked.
_ZIPF = 1.0


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
    parser.add_argument("--work", type=Path, default=Path("artifacts/bench"), metavar="FOLDER")
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
    args.known = None if args.settings is None else _read_settings(args.settings)
    for part in parts:
        say(part)
        measure = {"overload": _overload, "options": _options, "locust": _locust}.get(part)
        found = measure(args) if measure else _compare(part, args)
        results[part] = found | {"machine": {**machine(), "python": platform.python_version()}}
        path.write_text(json.dumps(results, indent=1, allow_nan=False), encoding="utf-8")
        write_report(args.report, {part: results[part]})
    say(json.dumps(summary({part: results[part] for part in parts}), allow_nan=False))
    return 0


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


def _release(recipe: str, overrides: Sequence[str], repository: Path, work: Path) -> Path:
    """Build a shipped recipe with overrides; returns the repository."""
    from mooring_build.building import build
    from mooring_build.recipe import load_recipe

    build(
        load_recipe(recipe, overrides),
        repository=repository,
        artifacts=work / _BUILDS,
        say=lambda line: say(f"  {line}"),
    )
    return repository


def _build(part: str, work: Path) -> Built:
    from mooring_build.stages import newest_stage

    name, task, overrides = MODELS[part]
    repositories, plain = {}, {}
    for precision in _PRECISIONS:
        settings = [*overrides, *_SETTINGS, f"export.precision={precision}"]
        repositories[precision] = _release(name, settings, work / f"{part}-{precision}", work)
        plain[precision] = _release(name, [*settings, _PLAIN], work / f"{part}-{precision}-plain", work)
    checkpoint = newest_stage(work / _BUILDS, name, "trained")
    return Built(name=name, task=task, repositories=repositories, plain=plain, checkpoint=checkpoint)


def _release_classifier(more: Sequence[str], repository: Path, work: Path) -> Path:
    name, _, overrides = MODELS["classifier"]
    return _release(name, [*overrides, *_SETTINGS, *more], repository, work)


def _compare(part: str, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of every side of one model, over rounds in which each had its turn."""
    built = _build(part, args.work)
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
    bare = {precision: _best_bare(built, precision, inputs) for precision in _PRECISIONS}
    seen: dict[str, list[dict[str, float]]] = {}
    cores: dict[str, list[dict[str, float]]] = {}

    def note(side: str, run: dict[str, float]) -> None:
        seen.setdefault(side, []).append(run)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in run.items())
        say(f"  {side:<36} {shown}")

    for number in range(args.rounds):
        say(f"  round {number + 1} of {args.rounds}")
        for precision in _PRECISIONS:
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


def _read_settings(path: Path) -> dict[str, ServingSettings]:
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
            python = install(alternative.requirements, work / _ENVIRONMENTS)
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


def _overload(args: argparse.Namespace) -> dict[str, Any]:
    """What is answered at capacity and at a multiple of it, with queues that are bounded."""
    texts = draw_texts(args.texts)
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as folder:
        bounded = _release_classifier([f"serving.max_queue_size={_QUEUE}"], Path(folder), args.work)
        with TritonServer(bounded, log_file=args.work / "overload.log") as server:
            return asyncio.run(_flood_rounds(server, MODELS["classifier"][0], texts, args.rounds))


async def _flood_rounds(server: TritonServer, name: str, texts: Sequence[str], rounds: int) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    bodies = [post_text(name, text) for text in texts]
    async with lean_http_caller(server.http_url, bodies.__getitem__) as ask:
        numbers = range(len(texts))
        await flood(ask, numbers, rate=50.0, seconds=2.0)
        for number in range(rounds):
            rate = (await drive(ask, numbers, concurrency=_QUEUE)).per_s
            at_capacity, used = await _flood(server, ask, numbers, rate, seed=number)
            beyond, used_beyond = await _flood(server, ask, numbers, _TIMES_CAPACITY * rate, seed=number)
            figures = {
                "rate": rate,
                "capacity_per_s": _per_s(at_capacity),
                "beyond_per_s": _per_s(beyond),
                "beyond_answer_p99_ms": _p99(beyond.answered_ms),
                "refusal_p99_ms": _p99(beyond.refused_ms),
                "refused": len(beyond.refused_ms),
                "late_p99_ms": _p99(beyond.late_ms),
            }
            shown = (f"{name} {value:.4g}" for name, value in figures.items() if value is not None)
            say(f"  round {number + 1}: {', '.join(shown)}")
            found.append({**figures, "cores": used, "cores_beyond": used_beyond})
    return {"rounds": found, "queue": _QUEUE, "times": _TIMES_CAPACITY, "seconds": _FLOOD_S}


async def _flood(
    server: TritonServer, ask: Ask, numbers: Sequence[int], rate: float, *, seed: int
) -> tuple[Flood, dict[str, float]]:
    """A flood, and the cores used meanwhile."""
    cores = CoresUsed(server)
    seen = await flood(ask, numbers, rate=rate, seconds=_FLOOD_S, seed=seed)
    return seen, cores.so_far()


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What single settings do; texts that repeat do so by Zipf's law."""
    mixed = draw_texts(args.texts)
    random = np.random.default_rng(0)
    shares = np.arange(1, len(mixed) + 1) ** -_ZIPF
    repeating = [mixed[number] for number in random.choice(len(mixed), len(mixed), p=shares / shares.sum())]
    repeated = 1 - len(set(repeating)) / len(repeating)
    texts = {"mixed": mixed, "few long": draw_texts(args.texts, _FEW_LONG), "repeating": repeating}
    seen: dict[str, list[dict[str, float]]] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="mooring-bench-") as folder:
        repositories = {}
        for number, (name, option) in enumerate(OPTIONS.items()):
            if option.openvino:
                try:
                    environment = install(OPENVINO, args.work / _ENVIRONMENTS).parent.parent
                except (MooringError, OSError) as exc:
                    missing[name] = str(exc)
                    continue
            try:
                repositories[name] = _release_classifier(
                    option.overrides, Path(folder) / str(number), args.work
                )
            except MooringError as exc:
                # Such as no C compiler for a limit of tokens: the other rows are measured all the same.
                missing[name] = str(exc)
                continue
            if option.openvino:
                _use_openvino(repositories[name], environment)
        for _ in range(args.rounds):
            for name, repository in repositories.items():
                extra = resource_arguments(OPTIONS[name].resources)
                asked = texts[OPTIONS[name].texts]
                with TritonServer(repository, log_file=args.work / "options.log", extra_args=extra) as server:
                    run = asyncio.run(_drive_pipeline(server, MODELS["classifier"][0], asked))
                seen.setdefault(name, []).append(asdict(run))
                say(f"  {name:<44} {run.per_s:.4g}/s, p50 {run.p50_ms:.4g} ms, p99 {run.p99_ms:.4g} ms")
    return {
        "rounds": args.rounds,
        "repeated": repeated,
        "callers": CONCURRENCIES[-1],
        "sides": seen,
        "not_measured": missing,
    }


def _use_openvino(repository: Path, environment: Path) -> None:
    (engine,) = repository.glob("*_onnx*/config.pbtxt")
    with engine.open("a", encoding="utf-8") as config:
        config.write(_OPENVINO.format(environment=environment))


async def _drive_pipeline(server: TritonServer, name: str, texts: Sequence[str]) -> Run:
    async with AsyncClient(server.grpc_url, timeout_s=60.0, retry=RetryPolicy(max_retries=0)) as client:
        pipeline = await client.task(name)
        return await drive(
            lambda number: pipeline(texts[number]), range(len(texts)), concurrency=CONCURRENCIES[-1]
        )


def _per_s(seen: Flood) -> float:
    return len(seen.answered_ms) / seen.seconds


def _p99(values: Sequence[float]) -> float | None:
    return float(np.quantile(values, 0.99, method="inverted_cdf")) if values else None


def _locust(args: argparse.Namespace) -> dict[str, Any]:
    """What one generating process sends for each second of a core, to a model that costs nothing."""
    repository = _release("tabular", ['export.formats=["onnx"]'], args.work / "locust", args.work)
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
