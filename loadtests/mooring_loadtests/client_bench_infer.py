"""What ``client.infer`` costs beside tritonclient itself, over each protocol, with threads and coroutines.

The bare sides are written as tritonclient's documentation shows: an ``InferInput`` for each request, the
output read with ``as_numpy``. Threads share its gRPC client and have an HTTP client each, which belongs to
the thread that made it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio

from mooring import AsyncClient, Client, MooringError
from mooring_loadtests.client_bench_echo import ECHO, ROW
from mooring_loadtests.client_bench_pairs import Comparison, Side, compare

Protocol = Literal["grpc", "http"]

Call = Callable[[], np.ndarray]
AsyncCall = Callable[[], Awaitable[np.ndarray]]

_WIRES = {"grpc": tritonclient.grpc, "http": tritonclient.http}


@dataclass(frozen=True, kw_only=True)
class InferCase:
    """One way to call."""

    protocol: Protocol
    #: Whether coroutines of one event loop call, instead of threads.
    is_async: bool
    #: How many call at a time.
    concurrency: int

    @property
    def key(self) -> str:
        """Its name in the results, such as ``infer_grpc_async_c8``."""
        return f"infer_{self.protocol}{'_async' if self.is_async else ''}_c{self.concurrency}"


CASES = tuple(
    InferCase(protocol=protocol, is_async=is_async, concurrency=concurrency)
    for is_async in (False, True)
    for protocol in ("grpc", "http")
    for concurrency in (1, 8)
)


def compare_infer(case: InferCase, *, grpc_url: str, http_url: str, pairs: int, slice_s: float) -> Comparison:
    """Time one case against a server of the echo model.

    Args:
        case: what is called how.
        grpc_url: as in ``mooring.Client``.
        http_url: likewise.
        pairs: as in :func:`mooring_loadtests.client_bench_pairs.compare`.
        slice_s: likewise.

    Raises:
        MooringError: a side did not get back what it sent, or the client's own.
    """
    url = grpc_url if case.protocol == "grpc" else http_url
    sides = _async_sides if case.is_async else _thread_sides
    with sides(case, url) as (sdk, bare):
        return compare(sdk, bare, workers=case.concurrency, pairs=pairs, slice_s=slice_s)


class ThreadSide:
    """Threads that each do the same call over and over.

    Args:
        make_call: makes a thread's call, in that thread, and registers what the call needs closed.
        workers: how many threads.
    """

    def __init__(self, make_call: Callable[[ExitStack], Call], workers: int) -> None:
        self._make_call = make_call
        self._orders: list[queue.SimpleQueue[int]] = [queue.SimpleQueue() for _ in range(workers)]
        self._ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, args=(orders,), daemon=True) for orders in self._orders
        ]
        for thread in self._threads:
            thread.start()

    def __call__(self, requests: int) -> float:
        """Let each thread do so many requests; returns how long that took, in seconds."""
        began_s = time.perf_counter()
        for orders in self._orders:
            orders.put(requests)
        failures = [self._ended.get() for _ in self._orders]
        lasted_s = time.perf_counter() - began_s
        for failure in failures:
            if failure is not None:
                raise failure
        return lasted_s

    def close(self) -> None:
        """End the threads."""
        for orders in self._orders:
            orders.put(0)
        for thread in self._threads:
            thread.join()

    def _work(self, orders: queue.SimpleQueue[int]) -> None:
        with ExitStack() as opened:
            call: Call | None = None
            while requests := orders.get():
                try:
                    if call is None:
                        call = self._make_call(opened)
                        check_answer(call())
                    for _ in range(requests):
                        call()
                except Exception as exc:  # noqa: BLE001 - raised by __call__, in the thread that waits
                    self._ended.put(exc)
                else:
                    self._ended.put(None)


class CoroutineSide:
    """Coroutines of one event loop that each do the same call over and over.

    Args:
        runner: of the loop.
        call: what they do.
        workers: how many coroutines.
    """

    def __init__(self, runner: asyncio.Runner, call: AsyncCall, workers: int) -> None:
        self._runner = runner
        self._call = call
        self._workers = workers

    def __call__(self, requests: int) -> float:
        """Let each coroutine do so many requests; returns how long that took, in seconds."""
        return self._runner.run(self._run(requests))

    async def _run(self, requests: int) -> float:
        began_s = time.perf_counter()
        await asyncio.gather(*[self._work(requests) for _ in range(self._workers)])
        return time.perf_counter() - began_s

    async def _work(self, requests: int) -> None:
        call = self._call
        for _ in range(requests):
            await call()


def check_answer(array: np.ndarray) -> None:
    """See that an echo is one.

    Raises:
        MooringError: it is not.
    """
    if array.dtype != ROW.dtype or not np.array_equal(array, ROW):
        raise MooringError(f"{ECHO} was sent {ROW!r}, but answered {array!r}")


def address_of(url: str) -> str:
    """A URL without its scheme, as tritonclient takes it."""
    return url.partition("://")[2]


@contextmanager
def _thread_sides(case: InferCase, url: str) -> Iterator[tuple[Side, Side]]:
    wire = _WIRES[case.protocol]
    with ExitStack() as opened:
        client = opened.enter_context(Client(url))
        shared = None
        if case.protocol == "grpc":
            shared = opened.enter_context(wire.InferenceServerClient(address_of(url)))

        def make_bare(own: ExitStack) -> Call:
            return bare_call(wire, shared or own.enter_context(wire.InferenceServerClient(address_of(url))))

        sdk = opened.enter_context(closing(ThreadSide(lambda _: sdk_call(client), case.concurrency)))
        bare = opened.enter_context(closing(ThreadSide(make_bare, case.concurrency)))
        yield sdk, bare


@contextmanager
def _async_sides(case: InferCase, url: str) -> Iterator[tuple[Side, Side]]:
    wire = _WIRES[case.protocol]
    with asyncio.Runner() as runner:
        opened = AsyncExitStack()

        async def open_calls() -> tuple[AsyncCall, AsyncCall]:
            client = await opened.enter_async_context(AsyncClient(url))
            bare_client = await opened.enter_async_context(wire.aio.InferenceServerClient(address_of(url)))
            calls = async_sdk_call(client), async_bare_call(wire, bare_client)
            for call in calls:
                check_answer(await call())
            return calls

        try:
            sdk, bare = runner.run(open_calls())
            yield (
                CoroutineSide(runner, sdk, case.concurrency),
                CoroutineSide(runner, bare, case.concurrency),
            )
        finally:
            runner.run(opened.aclose())


def sdk_call(client: Client) -> Call:
    """What a thread does with the SDK."""

    def call() -> np.ndarray:
        return client.infer(ECHO, {"x": ROW})["y"]

    return call


def bare_call(wire: ModuleType, client: Any) -> Call:
    """What a thread does with tritonclient; ``wire`` is its package of the protocol."""

    def call() -> np.ndarray:
        tensor = wire.InferInput("x", [1, 8], "FP32")
        tensor.set_data_from_numpy(ROW)
        return client.infer(ECHO, [tensor]).as_numpy("y")

    return call


def async_sdk_call(client: AsyncClient) -> AsyncCall:
    """What a coroutine does with the SDK."""

    async def call() -> np.ndarray:
        return (await client.infer(ECHO, {"x": ROW}))["y"]

    return call


def async_bare_call(wire: ModuleType, client: Any) -> AsyncCall:
    """What a coroutine does with tritonclient; ``wire`` is its package of the protocol."""

    async def call() -> np.ndarray:
        tensor = wire.InferInput("x", [1, 8], "FP32")
        tensor.set_data_from_numpy(ROW)
        return (await client.infer(ECHO, [tensor])).as_numpy("y")

    return call
