"""Drive ``Client`` and ``AsyncClient`` through one face, so that a test is written once for both."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from mooring import AsyncClient, Client, MooringError
from mooring_serve import TritonServer

#: What a deadline may be missed by, in seconds, beside a tenth of it: threads wait for a busy machine.
SLACK_S = 1.0
# Bounds what should take a moment, so that a broken client fails tests and does not hang them.
_LIMIT_S = 60.0

Responses = list[dict[str, np.ndarray]]


class ThreadsClient:
    """A ``Client``, with ``collect`` beside its own methods."""

    def __init__(self, url: Any, **options: Any) -> None:
        self.client = Client(url, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def ask(self, model: str, items: Any, **options: Any) -> Any:
        """The task's answer."""
        return self.client.task(model, **options)(items)

    def collect(
        self, model: str, inputs: Mapping[str, np.ndarray], *, limit: int | None = None, **options: Any
    ) -> tuple[Responses, MooringError | None]:
        """All responses of a stream, or the first ``limit``, and the error that ended it."""
        responses: Responses = []
        try:
            with closing(self.client.stream(model, inputs, **options)) as stream:
                for response in stream:
                    responses.append(response)
                    if len(responses) == limit:
                        break
        except MooringError as error:
            return responses, error
        return responses, None


class CoroutinesClient:
    """An ``AsyncClient`` in an event loop of its own thread; its methods wait for their results."""

    def __init__(self, url: Any, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="event-loop")
        self._thread.start()
        self.client = self.run(self._make(url, options))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        return (lambda *args, **options: self._call(method, args, options)) if callable(method) else method

    def run(self, work: Any) -> Any:
        """The result of a coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(_LIMIT_S)

    def ask(self, model: str, items: Any, **options: Any) -> Any:
        """As :meth:`ThreadsClient.ask`."""

        async def work() -> Any:
            return await (await self.client.task(model, **options))(items)

        return self.run(work())

    def shared_memory(self, **options: Any) -> _CoroutinesMemory:
        return _CoroutinesMemory(self, self.client.shared_memory(**options))

    def collect(
        self, model: str, inputs: Mapping[str, np.ndarray], *, limit: int | None = None, **options: Any
    ) -> tuple[Responses, MooringError | None]:
        """As :meth:`ThreadsClient.collect`."""

        async def work() -> tuple[Responses, MooringError | None]:
            responses: Responses = []
            try:
                async with aclosing(self.client.stream(model, inputs, **options)) as stream:
                    async for response in stream:
                        responses.append(response)
                        if len(responses) == limit:
                            break
            except MooringError as error:
                return responses, error
            return responses, None

        return self.run(work())  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the client; no task may be left behind."""
        if not self._thread.is_alive():
            return
        try:
            self.run(self.client.aclose())
            left = self.run(self._tasks_left())
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(_LIMIT_S)
            self.loop.close()
        assert not left, f"tasks were left behind: {left}"

    async def _make(self, url: Any, options: dict[str, Any]) -> AsyncClient:
        return AsyncClient(url, **options)

    def _call(self, method: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
        memory = options.get("shared_memory")
        if isinstance(memory, _CoroutinesMemory):
            options["shared_memory"] = memory.memory
        called = method(*args, **options)
        return self.run(called) if inspect.isawaitable(called) else called

    async def _tasks_left(self) -> list[str]:
        for _ in range(100):
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            if not left:
                return []
            await asyncio.sleep(0.01)
        return list(map(repr, left))


class _CoroutinesMemory:
    """An ``AsyncSharedMemory`` in a plain ``with`` block."""

    def __init__(self, driver: CoroutinesClient, memory: Any) -> None:
        self._driver = driver
        self.memory = memory
        self.name: str = memory.name

    def __enter__(self) -> _CoroutinesMemory:
        self._driver.run(self.memory.__aenter__())
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._driver.run(self.memory.__aexit__(*exc_info))


AnyClient = ThreadsClient | CoroutinesClient


@dataclass(frozen=True)
class Pair:
    """A kind of client and a protocol; called, it opens such a client for a ``with`` block."""

    is_async: bool
    protocol: str

    def __str__(self) -> str:
        return f"{'async' if self.is_async else 'sync'}-{self.protocol}"

    def url(self, server: TritonServer) -> str:
        """The server's URL for this protocol."""
        return server.grpc_url if self.protocol == "grpc" else server.http_url

    def address(self, server: TritonServer) -> tuple[str, int]:
        """Where the server speaks it."""
        host, _, port = self.url(server).partition("://")[2].partition(":")
        return host, int(port)

    @contextmanager
    def __call__(self, url: Any, **options: Any) -> Iterator[AnyClient]:
        options.setdefault("timeout_s", 30.0)
        opened: AnyClient = (CoroutinesClient if self.is_async else ThreadsClient)(url, **options)
        try:
            yield opened
        finally:
            opened.close()


PAIRS = [Pair(is_async, protocol) for is_async in (False, True) for protocol in ("grpc", "http")]
THREADS_PAIRS = [pair for pair in PAIRS if not pair.is_async]
#: Each kind and each protocol once, for tests that take seconds.
TWO_PAIRS = [PAIRS[0], PAIRS[-1]]
COROUTINES_PAIRS = [pair for pair in PAIRS if pair.is_async]


@pytest.fixture(params=PAIRS, ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    """The same test for each kind of client and each protocol."""
    return request.param  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a call ended."""

    value: Any = None
    error: MooringError | None = None
    seconds: float

    @property
    def kind(self) -> type[MooringError] | None:
        """Class of the error; ``None`` for an answer."""
        return None if self.error is None else type(self.error)


def timed(call: Callable[[], Any], *, timeout_s: float) -> Ended:
    """Make a call, which has to end by its deadline in an answer or in one of Mooring's errors."""
    began_s = time.monotonic()
    try:
        value, error = call(), None
    except MooringError as exc:
        value, error = None, exc
    ended = Ended(value=value, error=error, seconds=time.monotonic() - began_s)
    assert ended.seconds <= timeout_s * 1.1 + SLACK_S, f"{ended} with a deadline of {timeout_s} s"
    return ended
