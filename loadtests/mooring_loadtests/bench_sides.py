"""What the benchmark measures: ONNX Runtime by itself, Mooring's engine and pipeline, and other servers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mooring import AsyncClient, RetryPolicy
from mooring_loadtests.alternatives import Alternative, ServingSettings, serve
from mooring_loadtests.bench_clients import Run, drive, http_caller
from mooring_serve import TritonServer

#: Callers at a time.
CONCURRENCIES = (8, 32)


@dataclass(frozen=True, kw_only=True)
class Built:
    """One model, released once in each precision, and the checkpoint that it came from."""

    name: str
    task: str
    #: Model repositories by precision.
    repositories: Mapping[str, Path]
    versions: Mapping[str, int]
    checkpoint: Path

    def tokenize(self, texts: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """The engine's inputs, ``[1, L]`` each, not padded."""
        from mooring._served.encoding import TextEncoder

        version = self.versions["fp32"]
        encoder = TextEncoder.load(self.repositories["fp32"] / f"{self.name}_tokenizer" / str(version))
        encoded = [encoder.encode([text]) for text in texts]
        return [
            {
                "input_ids": one.input_ids[:, : int(one.attention_mask.sum())],
                "attention_mask": one.attention_mask[:, : int(one.attention_mask.sum())],
            }
            for one in encoded
        ]

    def onnx_file(self, precision: str) -> Path:
        """The engine's ONNX file."""
        folder = self.repositories[precision] / f"{self.name}_onnx" / str(self.versions[precision])
        return folder / "model.onnx"


class BareOnnxRuntime:
    """ONNX Runtime in this process, fed with token ids text by text: no server could answer more.

    Args:
        file: the engine.
        sessions: answering at a time, each on its own thread.
        threads: of each session.
    """

    def __init__(self, file: Path, *, sessions: int, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._sessions = [
            onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            for _ in range(sessions)
        ]

    def per_s(self, inputs: Sequence[Mapping[str, np.ndarray]]) -> float:
        """Texts a second."""
        waiting: Iterator[Mapping[str, np.ndarray]] = iter(inputs)

        def work(session: Any) -> None:
            for one in waiting:
                session.run(None, one)

        for session in self._sessions:
            session.run(None, inputs[0])
        with ThreadPoolExecutor(len(self._sessions)) as pool:
            began_s = time.perf_counter()
            list(pool.map(work, self._sessions))
            return len(inputs) / (time.perf_counter() - began_s)


@contextmanager
def served(repository: Path, log_file: Path) -> Iterator[TritonServer]:
    """Mooring's side: a tritonserver with one repository."""
    with TritonServer(repository, log_file=log_file) as server:
        yield server


async def drive_mooring(
    server: TritonServer, name: str, texts: Sequence[str], inputs: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Run]:
    """Runs of engine and pipeline, by side and concurrency, such as ``pipeline 8``."""
    runs: dict[str, Run] = {}
    async with (
        AsyncClient(server.grpc_url, timeout_s=60.0, retry=RetryPolicy(max_retries=0)) as client,
        http_caller(server.http_url, lambda number: post_text(name, texts[number])) as ask_by_http,
    ):
        pipeline = await client.task(name)

        async def ask_engine(number: int) -> object:
            return await client.infer(f"{name}_onnx", inputs[number])

        async def ask_pipeline(number: int) -> object:
            return await pipeline(texts[number])

        sides = {"engine": ask_engine, "pipeline": ask_pipeline, "pipeline over HTTP": ask_by_http}
        for concurrency in CONCURRENCIES:
            for side, ask in sides.items():
                runs[f"{side} {concurrency}"] = await drive(ask, range(len(texts)), concurrency=concurrency)
    return runs


def post_text(name: str, text: str) -> tuple[str, bytes]:
    """Path and body of the request that asks Triton's HTTP service about a text."""
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    return f"/v2/models/{name}/infer", json.dumps({"inputs": [tensor]}).encode("utf-8")


def drive_alternative(
    alternative: Alternative,
    python: Path,
    built: Built,
    texts: Sequence[str],
    *,
    settings: ServingSettings,
    log_file: Path,
) -> dict[str, Run]:
    """Runs of another server, by concurrency.

    Raises:
        MooringError: it does not start, or an answer is none.
    """

    async def run(url: str) -> dict[str, Run]:
        async with http_caller(url, lambda number: alternative.request(texts[number])) as ask:
            return {
                str(concurrency): await drive(ask, range(len(texts)), concurrency=concurrency)
                for concurrency in CONCURRENCIES
            }

    place = {"checkpoint": built.checkpoint, "task": built.task, "log_file": log_file}
    with serve(alternative, python, settings=settings, **place) as url:
        return asyncio.run(run(url))
