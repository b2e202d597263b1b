"""What single settings of the classifier's recipe do."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mooring import AsyncClient, MooringError, RetryPolicy
from mooring_loadtests.alternatives import OPENVINO, install
from mooring_loadtests.bench_clients import CONCURRENCIES, Run, draw_texts, drive
from mooring_loadtests.bench_releases import CLASSIFIER, ENVIRONMENTS, release_classifier, say
from mooring_loadtests.load_profile import Payload
from mooring_serve import TritonServer
from mooring_serve.cli import resource_arguments

#: Which texts are asked: of mixed lengths; most of a few words and some of very many; or the same ones again.
Texts = Literal["mixed", "few long", "repeating"]
#: Half of the texts have up to five words, one of forty more than 50.
_FEW_LONG = Payload(median_words=5.0, sigma=1.2, max_words=100)
#: Exponent of how often texts are asked.
_ZIPF = 1.0
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


def measure_options(args: argparse.Namespace) -> dict[str, Any]:
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
                    environment = install(OPENVINO, args.work / ENVIRONMENTS).parent.parent
                except (MooringError, OSError) as exc:
                    missing[name] = str(exc)
                    continue
            try:
                repositories[name] = release_classifier(
                    option.overrides, Path(folder) / str(number), args.work
                )
            except MooringError as exc:
                # Such as no C compiler for a limit of tokens: the other rows are measured all the same.
                missing[name] = str(exc)
                continue
            if option.openvino:
                _use_openvino(repositories[name], environment)
        for number in range(args.rounds):
            for name, repository in list(repositories.items()):
                option = OPTIONS[name]
                try:
                    run = _drive_option(option, repository, texts[option.texts], args.work / "options.log")
                except MooringError as exc:
                    if not option.openvino:
                        raise
                    # An ONNX Runtime that is not the project's may not take the engine.
                    missing[name] = f"in round {number + 1}: {exc}"
                    say(f"  {name:<44} not measured: {missing[name]}")
                    del repositories[name]
                    seen.pop(name, None)
                    continue
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


def _drive_option(option: Option, repository: Path, texts: Sequence[str], log_file: Path) -> Run:
    extra = resource_arguments(option.resources)
    with TritonServer(repository, log_file=log_file, extra_args=extra) as server:
        return asyncio.run(_drive_pipeline(server, CLASSIFIER, texts))


async def _drive_pipeline(server: TritonServer, name: str, texts: Sequence[str]) -> Run:
    async with AsyncClient(server.grpc_url, timeout_s=60.0, retry=RetryPolicy(max_retries=0)) as client:
        pipeline = await client.task(name)
        return await drive(
            lambda number: pipeline(texts[number]), range(len(texts)), concurrency=CONCURRENCIES[-1]
        )
