"""``task.map`` over many texts beside a plain loop of single calls and a hand-tuned asyncio loop.

The hand-tuned loop is what a careful user of tritonclient writes: so many coroutines take texts from one
iterator, so many texts go into one request, and the outputs become tuples. Its two numbers are the best of
:data:`GRID`, found on the texts that are timed.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio

from mooring import AsyncClient, Client, Entity, MooringError, TokenClassifier
from mooring_loadtests.client_bench_infer import address_of

#: Coroutines, and texts in one request, that are tried for the hand-tuned loop.
GRID = tuple(itertools.product((4, 8, 16, 32), (1, 4, 8)))
#: The grid's first point is slower while the server warms up.
_WARM_UP = 200
_OUTPUTS = ("label", "score", "start", "end", "entity")

#: What the hand-tuned loop makes of one text: label, score, start, end and words of each entity.
Rows = list[tuple[str, float, int, int, str]]


@dataclass(frozen=True, kw_only=True)
class MapTiming:
    """Texts per second of each run of each side."""

    loop: tuple[float, ...]
    asyncio_loop: tuple[float, ...]
    map: tuple[float, ...]
    async_map: tuple[float, ...]

    @property
    def map_over_loop(self) -> float:
        """Throughput of ``task.map`` over that of the plain loop."""
        return _mean_rate(self.map) / _mean_rate(self.loop)

    @property
    def map_over_asyncio(self) -> float:
        """Throughput of ``task.map`` over that of the hand-tuned loop."""
        return _mean_rate(self.map) / _mean_rate(self.asyncio_loop)

    @property
    def async_map_over_asyncio(self) -> float:
        """Throughput of the ``AsyncClient``'s ``task.map`` over that of the hand-tuned loop."""
        return _mean_rate(self.async_map) / _mean_rate(self.asyncio_loop)


def time_map(
    grpc_url: str,
    texts: Sequence[str],
    *,
    model: str,
    loop_texts: int,
    sample: int,
    report: Callable[[str], None],
) -> MapTiming:
    """Time every side twice over gRPC, in turns.

    Args:
        grpc_url: as in ``mooring.Client``.
        texts: what the model is asked.
        model: name of a token classifier.
        loop_texts: about so many, of all parts of the texts, are a run of the plain loop, the slowest side;
            the others take all.
        sample: texts on which the hand-tuned loop's numbers are tried.
        report: takes a line for each step.

    Raises:
        MooringError: the sides' answers differ, or the client's own.
    """
    with MapSides(grpc_url, model) as sides:
        found = sides.check(texts[:_WARM_UP])
        report(f"  every side finds the same {found} entities in the first {len(texts[:_WARM_UP])} texts")
        concurrency, batch_size = _tune(sides, texts[:sample], report)
        runs = [
            ("loop", "a loop of single calls", texts[:: -(-len(texts) // loop_texts)], sides.loop),
            (
                "asyncio_loop",
                f"the asyncio loop with {concurrency} coroutines, {batch_size} texts a request",
                texts,
                lambda some: sides.asyncio_loop(some, concurrency, batch_size),
            ),
            ("map", "task.map of Client", texts, sides.map),
            ("async_map", "task.map of AsyncClient", texts, sides.async_map),
        ]
        rates: dict[str, list[float]] = {name: [] for name, *_ in runs}
        for name, words, some, side in [*runs, *reversed(runs)]:
            requests = sides.requests
            began_s = time.perf_counter()
            side(some)
            rate = len(some) / (time.perf_counter() - began_s)
            rates[name].append(rate)
            sent = f" in {sides.requests - requests:,} requests" if "map" in name else ""
            report(f"  {words}: {len(some):,} texts{sent}, {rate:.1f} texts/s")
    return MapTiming(**{name: tuple(each) for name, each in rates.items()})


class MapSides:
    """The sides, connected.

    Args:
        grpc_url: as in ``mooring.Client``.
        model: name of a token classifier.
    """

    def __init__(self, grpc_url: str, model: str) -> None:
        self._url = grpc_url
        self._model = model

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._client = opened.enter_context(Client(self._url))
            self._task = self._client.task(self._model)
            if not isinstance(self._task, TokenClassifier):
                raise MooringError(f"model {self._model!r} is no token classifier, but {self._task!r}")
            self._runner = opened.enter_context(asyncio.Runner())
            async_opened = AsyncExitStack()
            opened.callback(lambda: self._runner.run(async_opened.aclose()))
            self._runner.run(self._open(async_opened))
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.close()

    async def _open(self, opened: AsyncExitStack) -> None:
        self._async_client = await opened.enter_async_context(AsyncClient(self._url))
        self._async_task = await self._async_client.task(self._model)
        self._bare_client = await opened.enter_async_context(
            tritonclient.grpc.aio.InferenceServerClient(address_of(self._url))
        )

    @property
    def requests(self) -> int:
        """Requests that both of Mooring's clients sent so far."""
        return self._client.counters().requests + self._async_client.counters().requests

    def check(self, texts: Sequence[str]) -> int:
        """Let every side answer; returns the number of entities.

        Raises:
            MooringError: the answers differ.
        """
        answers = {
            "loop": [_spans(entities) for entities in self.loop(texts)],
            "map": [_spans(entities) for entities in self.map(texts)],
            "async_map": [_spans(entities) for entities in self.async_map(texts)],
            "asyncio_loop": [
                [(label, start, end) for label, _, start, end, _ in rows]
                for rows in self.asyncio_loop(texts, 8, 4)
            ],
        }
        for side, said in answers.items():
            for text, found, expected in zip(texts, said, answers["loop"], strict=True):
                if found != expected:
                    raise MooringError(f"{side} finds {found} in {text!r}, the plain loop {expected}")
        return sum(map(len, answers["loop"]))

    def loop(self, texts: Sequence[str]) -> list[list[Entity]]:
        """One call a text, one after the other."""
        return [self._task(text) for text in texts]

    def map(self, texts: Sequence[str]) -> list[list[Entity]]:
        """``task.map`` as it comes."""
        return [outcome.unwrap() for outcome in self._task.map(texts)]

    def async_map(self, texts: Sequence[str]) -> list[list[Entity]]:
        """``task.map`` of the ``AsyncClient`` as it comes."""

        async def run() -> list[list[Entity]]:
            return [outcome.unwrap() async for outcome in self._async_task.map(texts)]

        return self._runner.run(run())

    def asyncio_loop(self, texts: Sequence[str], concurrency: int, batch_size: int) -> list[Rows]:
        """The hand-tuned loop with so many coroutines, and so many texts in one request."""
        return self._runner.run(self._asyncio_loop(texts, concurrency, batch_size))

    async def _asyncio_loop(self, texts: Sequence[str], concurrency: int, batch_size: int) -> list[Rows]:
        answers: list[Rows] = [[]] * len(texts)
        starts = iter(range(0, len(texts), batch_size))

        async def work() -> None:
            for first in starts:
                batch = texts[first : first + batch_size]
                tensor = tritonclient.grpc.InferInput("text", [len(batch), 1], "BYTES")
                tensor.set_data_from_numpy(np.array([[text.encode()] for text in batch], dtype=np.object_))
                result = await self._bare_client.infer(self._model, [tensor])
                outputs = [result.as_numpy(name).tolist() for name in _OUTPUTS]
                for i, row in enumerate(zip(*outputs, strict=True)):
                    answers[first + i] = [
                        (label.decode(), score, start, end, words.decode())
                        for label, score, start, end, words in zip(*row, strict=True)
                        # Rows of one request are padded to the same length.
                        if label
                    ]

        await asyncio.gather(*[work() for _ in range(concurrency)])
        return answers


def _tune(sides: MapSides, texts: Sequence[str], report: Callable[[str], None]) -> tuple[int, int]:
    """The grid's best point."""
    report(f"  trying the asyncio loop on {len(texts):,} texts")
    rates: dict[tuple[int, int], float] = {}
    for concurrency, batch_size in GRID:
        began_s = time.perf_counter()
        sides.asyncio_loop(texts, concurrency, batch_size)
        rates[concurrency, batch_size] = rate = len(texts) / (time.perf_counter() - began_s)
        report(f"    {concurrency:2d} coroutines, {batch_size} texts a request: {rate:.1f} texts/s")
    return max(rates, key=rates.__getitem__)


def _mean_rate(rates: Sequence[float]) -> float:
    """Texts per second over runs of equally many texts."""
    return len(rates) / sum(1 / rate for rate in rates)


def _spans(entities: Sequence[Entity]) -> list[tuple[str, int, int]]:
    return [(entity.label, entity.start, entity.end) for entity in entities]
