"""Servers that do what a test tells them, behind fake transports for threads and for coroutines.

A :class:`ScriptedServer` stands for what answers at one address. Actions, by type of operation:

- an error's class: raised anew with a plain message; an error: raised as it is;
- :class:`Hold`: no answer until the given time has passed, its condition holds, or
  :meth:`ScriptedServer.release` is called;
- anything else is the answer. Without an action, a :class:`FakeTransport` answers.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mooring import DeadlineExceeded, MooringError, TransportError
from mooring._cancellation import RequestCancelledError, current_cancellation
from mooring._operations import GetServerReady, Infer, InferAnswer
from mooring.testing import FakeModel, FakeTransport

#: Bounds what takes a moment unless it hangs, in seconds.
LIMIT_S = 10.0
_TICK_S = 0.001

DOUBLE = FakeModel(
    inputs={"x": ("FP32", [-1, 2])},
    outputs={"y": ("FP32", [-1, 2])},
    max_batch_size=8,
    answer=lambda inputs: {"y": 2 * inputs["x"]},
)
INPUTS = {"x": np.ones((1, 2), np.float32)}


@dataclass(frozen=True)
class Hold:
    """Keeps a request waiting; then follows the other action."""

    seconds: float = float("inf")
    then: Any = None
    #: Ends it sooner.
    until: Callable[[], bool] = lambda: False


class ScriptedServer:
    """What answers at one address.

    Args:
        models: what it serves.

    Attributes:
        received: every operation that arrived, probes included, oldest first.
        headers: the headers of each of them.
        timeouts_s: the time budget of each of them, in seconds.
        cancelled: operations that were given up by the client.
        transports: every transport that was opened to it, oldest first.
    """

    def __init__(self, models: dict[str, FakeModel]) -> None:
        self.fake = FakeTransport(models)
        self.received: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.timeouts_s: list[float] = []
        self.cancelled: list[Any] = []
        self.transports: list[ScriptedTransport] = []
        self.waiting = 0
        self._next: defaultdict[type[Any], deque[Any]] = defaultdict(deque)
        self._always: dict[type[Any], Any] = {}
        self._released = 0

    def next(self, operation: type[Any], *actions: Any) -> None:
        """What the next operations of a type meet, one action each."""
        self._next[operation].extend(actions)

    def always(self, action: Any, *operations: type[Any]) -> None:
        """What all operations of these types meet, of all types where none is given; ``None`` ends that."""
        for operation in operations or (object,):
            self._always[operation] = action

    def release(self) -> None:
        """Let everything go on that is held now."""
        self._released += 1

    def count(self, operation: type[Any]) -> int:
        """Operations of a type that arrived."""
        return sum(isinstance(one, operation) for one in self.received)

    @property
    def probes(self) -> int:
        """Times that it was asked whether it lives."""
        return self.count(GetServerReady)

    @property
    def open_transports(self) -> int:
        """Transports to it that were not closed."""
        return sum(transport.closed == 0 for transport in self.transports)

    def action_for(self, operation: Any) -> Any:
        kind = type(operation)
        if self._next[kind]:
            return self._next[kind].popleft()
        found = self._always.get(kind)
        return self._always.get(object) if found is None else found

    def steps(
        self, transport: ScriptedTransport, operation: Any, timeout_s: float
    ) -> Generator[None, None, Any]:
        """The course of one request: yields while it waits, returns its answer."""
        action = self.action_for(operation)
        began_s = time.monotonic()
        if isinstance(action, Hold):
            released = self._released
            self.waiting += 1
            try:
                while not (
                    time.monotonic() - began_s >= action.seconds
                    or self._released != released
                    or action.until()
                ):
                    if time.monotonic() - began_s >= timeout_s:
                        raise DeadlineExceeded(f"no answer within {timeout_s:.3g} s")
                    if transport.closed:
                        raise TransportError("the transport was closed while the request was under way")
                    yield
            finally:
                self.waiting -= 1
            action = action.then
        if isinstance(action, type):
            raise action(f"scripted {action.__name__}")
        if isinstance(action, MooringError):
            raise action
        return self.fake.send(operation, timeout_s=timeout_s) if action is None else action


class ScriptedTransport:
    """One transport to a :class:`ScriptedServer`; ``closed`` and ``abandoned`` count calls."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.closed = 0
        self.abandoned = 0
        #: Requests that began after the transport was closed: there must be none.
        self.late = 0
        server.transports.append(self)

    def _begin(self, operation: Any, timeout_s: float, headers: Any) -> Generator[None, None, Any]:
        self.late += bool(self.closed)
        self.server.received.append(operation)
        self.server.headers.append(dict(headers))
        self.server.timeouts_s.append(timeout_s)
        return self.server.steps(self, operation, timeout_s)

    def send(self, operation: Any, *, timeout_s: float, headers: Any = ()) -> Any:
        """As a transport for threads."""
        steps = self._begin(operation, timeout_s, headers)
        cancellation = current_cancellation()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            time.sleep(_TICK_S)
            if cancellation is not None and cancellation.is_cancelled:
                steps.close()
                self.server.cancelled.append(operation)
                raise RequestCancelledError("the request was cancelled")

    async def asend(self, operation: Any, *, timeout_s: float, headers: Any = ()) -> Any:
        """As a transport for coroutines."""
        steps = self._begin(operation, timeout_s, headers)
        try:
            await asyncio.sleep(0)
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    return end.value
                await asyncio.sleep(_TICK_S)
        except asyncio.CancelledError:
            steps.close()
            self.server.cancelled.append(operation)
            raise

    def stream(
        self, request: Infer, *, timeout_s: float, headers: Any = ()
    ) -> Generator[InferAnswer, None, None]:
        """As a transport for threads; the answer of the action is the list of responses."""
        for answer in self.send(request, timeout_s=timeout_s, headers=headers):
            if isinstance(answer, MooringError):
                raise answer
            yield answer

    async def astream(
        self, request: Infer, *, timeout_s: float, headers: Any = ()
    ) -> AsyncGenerator[InferAnswer, None]:
        """As a transport for coroutines; the answer of the action is the list of responses."""
        for answer in await self.asend(request, timeout_s=timeout_s, headers=headers):
            if isinstance(answer, MooringError):
                raise answer
            yield answer

    def close(self) -> None:
        """Count the call."""
        self.closed += 1

    async def aclose(self) -> None:
        """Count the call."""
        self.closed += 1

    def abandon(self) -> None:
        """Count the call."""
        self.abandoned += 1


class ScriptedServers:
    """A :class:`ScriptedServer` for each address that a transport is opened to, by ``str(endpoint)``."""

    def __init__(self, models: dict[str, FakeModel] | None = None) -> None:
        self._models = {"double": DOUBLE} if models is None else models
        self._lock = threading.Lock()
        self.by_url: dict[str, ScriptedServer] = {}

    def __getitem__(self, url: str) -> ScriptedServer:
        with self._lock:
            if url not in self.by_url:
                self.by_url[url] = ScriptedServer(self._models)
            return self.by_url[url]

    def open(self, endpoint: Any, tls: Any = None) -> ScriptedTransport:
        """Make a transport, in place of ``open_transport`` and ``open_async_transport``."""
        return ScriptedTransport(self[str(endpoint)])


class Clock:
    """Stands in for the ``time`` module in one of ours; runs, and can be put forward."""

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Put it forward."""
        self._ahead_s += seconds


class StoppedClock:
    """Stands in for the ``time`` module; goes on only when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens in a moment."""
    ends_at_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < ends_at_s, "it did not come to that"
        await asyncio.sleep(_TICK_S)


def run(scenario: Callable[[], Any]) -> None:
    """Run a coroutine function, and see to it that it leaves no task and none of our threads."""

    before = set(threading.enumerate())

    def ours() -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            if thread.name.startswith("mooring-") and thread not in before
        ]

    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 3 * LIMIT_S)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left
        await until(lambda: not ours())

    asyncio.run(bounded())
