"""What the benchmark measures: ONNX Runtime by itself, Mooring's engine and pipeline, and other servers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mooring import AsyncClient, MooringError, RetryPolicy
from mooring_loadtests.alternatives import Alternative, ServingSettings, post_text, serve
from mooring_loadtests.bench_clients import CONCURRENCIES, Run, drive, http_caller
from mooring_serve import TritonServer

#: Share of answers that rounding may change.
_ROUNDED = 0.05


@dataclass(frozen=True, kw_only=True)
class Built:
    """One model, released once in each precision, and the checkpoint that it came from."""

    name: str
    task: str
    #: Model repositories by precision, as the recipe says, and of engines that take no packed texts.
    repositories: Mapping[str, Path]
    plain: Mapping[str, Path]
    checkpoint: Path

    def tokenize(self, texts: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """The engine's inputs, ``[1, L]`` each, not padded."""
        from mooring._served.encoding import TextEncoder

        encoder = TextEncoder.load(_version(self.repositories["fp32"] / f"{self.name}_tokenizer"))
        # Of a packed engine's tokenizer a text alone is never padded.
        encoded = [encoder.encode([text]) for text in texts]
        return [{"input_ids": one.input_ids, "attention_mask": one.attention_mask} for one in encoded]

    def onnx_file(self, precision: str, *, packed: bool) -> Path:
        """The engine's ONNX file: one that takes texts packed, or one that takes a text at a time."""
        if packed:
            return _version(self.repositories[precision] / self.engine) / "model.onnx"
        return _version(self.plain[precision] / f"{self.name}_onnx") / "model.onnx"

    @property
    def engine(self) -> str:
        """Name of the served engine."""
        return f"{self.name}_onnx_ragged"


def _version(model: Path) -> Path:
    """The folder of a model's newest version."""
    return max((path for path in model.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


@dataclass(frozen=True, kw_only=True)
class BareSettings:
    """How ONNX Runtime is used by itself."""

    #: Answering at a time, each on its own thread.
    sessions: int
    #: Of each session.
    threads: int
    #: Texts in one run, packed; 1 gives the plain engine a text at a time.
    batch: int = 1


class BareOnnxRuntime:
    """ONNX Runtime in this process, fed with token ids.

    Args:
        built: whose engine.
        precision: of the engine.
        settings: the way to use it.
    """

    def __init__(self, built: Built, precision: str, settings: BareSettings) -> None:
        from mooring_build.engines import open_session

        file = built.onnx_file(precision, packed=settings.batch > 1)
        self._batch = settings.batch
        self._sessions = [open_session(file, threads=settings.threads) for _ in range(settings.sessions)]

    def per_s(self, inputs: Sequence[Mapping[str, np.ndarray]]) -> float:
        """Texts a second."""
        runs = inputs if self._batch == 1 else list(self._pack(inputs))
        waiting: Iterator[Mapping[str, np.ndarray]] = iter(runs)

        def work(session: Any) -> None:
            for one in waiting:
                session.run(None, one)

        for session in self._sessions:
            session.run(None, runs[0])
        with ThreadPoolExecutor(len(self._sessions)) as pool:
            began_s = time.perf_counter()
            list(pool.map(work, self._sessions))
            return len(inputs) / (time.perf_counter() - began_s)

    def _pack(self, inputs: Sequence[Mapping[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        """Texts as Triton packs them: tokens in one row, and the length of each text."""
        lengths = next(one.name for one in self._sessions[0].get_inputs() if one.name not in inputs[0])
        for start in range(0, len(inputs), self._batch):
            batch = inputs[start : start + self._batch]
            packed = {name: np.concatenate([one[name][0] for one in batch]) for name in batch[0]}
            packed[lengths] = np.array([[one["input_ids"].shape[1]] for one in batch], np.int32)
            yield packed


async def drive_mooring(
    server: TritonServer, built: Built, texts: Sequence[str], inputs: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, tuple[Run, dict[str, float]]]:
    """Runs of engine and pipeline, and the cores used meanwhile, by side and concurrency: ``pipeline 8``."""
    runs: dict[str, tuple[Run, dict[str, float]]] = {}
    async with (
        AsyncClient(server.grpc_url, timeout_s=60.0, retry=RetryPolicy(max_retries=0)) as client,
        http_caller(server.http_url, lambda number: post_text(built.name, texts[number])) as ask_by_http,
    ):
        pipeline = await client.task(built.name)

        async def ask_engine(number: int) -> object:
            return await client.infer(built.engine, inputs[number])

        async def ask_pipeline(number: int) -> object:
            return await pipeline(texts[number])

        sides = {"engine": ask_engine, "pipeline": ask_pipeline, "pipeline over HTTP": ask_by_http}
        for concurrency in CONCURRENCIES:
            for side, ask in sides.items():
                cores = CoresUsed(server)
                run = await drive(ask, range(len(texts)), concurrency=concurrency)
                runs[f"{side} {concurrency}"] = run, cores.so_far()
    return runs


class CoresUsed:
    """What the callers, which are this process, and the parts of a served pipeline compute from now on.

    Args:
        server: whose processes.
    """

    def __init__(self, server: TritonServer) -> None:
        self._server = server
        self._began_s, self._before = time.perf_counter(), self._cpu_s()

    def so_far(self) -> dict[str, float]:
        """Cores in use, on average, by what they are used for."""
        seconds = time.perf_counter() - self._began_s
        return {
            name: (cpu_s - self._before.get(name, 0.0)) / seconds for name, cpu_s in self._cpu_s().items()
        }

    def _cpu_s(self) -> dict[str, float]:
        used = {"callers": sum(os.times()[:2])}
        tritonserver = psutil.Process(self._server.pid)
        for process in [tritonserver, *tritonserver.children(recursive=True)]:
            words = " ".join(process.cmdline())
            step = next((step for step in ("tokenizer", "onnx", "postprocessor") if f"_{step}_" in words), "")
            name = {"onnx": "engine", "": "tritonserver"}.get(step, step)
            used[name] = used.get(name, 0.0) + sum(process.cpu_times()[:2])
        return used


def best_labels(built: Built, texts: Sequence[str]) -> list[list[str]]:
    """What transformers' own pipeline says of each text: its label, or that of each entity."""
    from mooring_build.models import load_pipeline

    ask = load_pipeline(built.checkpoint, built.task)
    return [[found.get("entity_group") or found["label"] for found in ask(text)] for text in texts]


def drive_alternative(
    alternative: Alternative,
    python: Path,
    built: Built,
    texts: Sequence[str],
    expected: Sequence[Sequence[str]],
    *,
    settings: ServingSettings,
    log_file: Path,
) -> dict[str, Run]:
    """Runs of another server, by concurrency.

    Args:
        expected: labels of the first texts, as of :func:`best_labels`; a few may differ by rounding.

    Raises:
        MooringError: it does not start with an answer that can be read, answers otherwise than expected, or a
            request fails.
    """

    async def run(url: str) -> dict[str, Run]:
        async with http_caller(url, lambda number: alternative.request(texts[number])) as ask:
            answers = [alternative.read(await ask(number)) for number in range(len(expected))]
            labels = [[label for label, _ in answer] for answer in answers]
            wrong = sum(one != list(other) for one, other in zip(labels, expected, strict=True))
            if wrong > _ROUNDED * len(expected):
                raise MooringError(f"it answers {wrong} of {len(expected)} texts otherwise than transformers")
            return {
                str(concurrency): await drive(ask, range(len(texts)), concurrency=concurrency)
                for concurrency in CONCURRENCIES
            }

    place = {"checkpoint": built.checkpoint, "task": built.task, "log_file": log_file}
    with serve(alternative, python, settings=settings, **place) as url:
        return asyncio.run(run(url))
