"""The load of the benchmark: the same callers for every side, and what they saw."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from urllib.parse import urlsplit

import numpy as np
from httptools import HttpParserError, HttpResponseParser

from mooring import MooringError, Overloaded, ThrottlePolicy, TransportError
from mooring._throttle import Throttle
from mooring_loadtests.load_profile import Payload
from mooring_loadtests.payloads import draw_text

#: Callers at a time, of sides that are compared.
CONCURRENCIES = (8, 32)
_OVERLOADED = (429, 503)
_BETWEEN_CONNECTIONS_S = 0.005
#: Of a flood, which asks one only.
_MODEL = "flooded"
#: Asks about the text of this number.
Ask = Callable[[int], Awaitable[object]]
#: A POST that asks about the text of this number: path and body.
Post = Callable[[int], tuple[str, bytes]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What callers saw that each waited for an answer before they asked again."""

    per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(kw_only=True)
class Flood:
    """What callers saw that did not wait."""

    seconds: float
    answered_ms: list[float] = field(default_factory=list)
    #: Of those that the server refused.
    refused_ms: list[float] = field(default_factory=list)
    #: Requests that were not sent.
    held_back: int = 0
    #: How much later than intended each request left.
    late_ms: list[float] = field(default_factory=list)


def draw_texts(count: int, payload: Payload | None = None) -> list[str]:
    """Texts of mixed lengths, as the load tests draw them: lognormal, by default as :class:`Payload`
    says."""
    payload = payload or Payload()
    random = Random(payload.seed)
    return [draw_text(random, payload) for _ in range(count)]


async def drive(ask: Ask, numbers: Sequence[int], *, concurrency: int) -> Run:
    """Ask about every text once, ``concurrency`` at a time.

    Raises:
        Exception: what ``ask`` raised; a side that fails has no figures.
    """
    waiting: Iterator[int] = iter(numbers)
    latencies_s: list[float] = []

    async def call() -> None:
        for number in waiting:
            began_s = time.perf_counter()
            await ask(number)
            latencies_s.append(time.perf_counter() - began_s)

    # The first ones find caches empty, connections closed and clocks low. They come one after the other: of
    # connections that are opened all at once, the first process of a server that looks may take every one.
    first = []
    for number in islice(numbers, concurrency):
        first.append(asyncio.ensure_future(ask(number)))
        await asyncio.sleep(_BETWEEN_CONNECTIONS_S)
    await asyncio.gather(*first)
    began_s = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(concurrency)))
    lasted_s = time.perf_counter() - began_s
    p50, p99 = np.quantile(latencies_s, [0.5, 0.99], method="inverted_cdf") * 1000
    return Run(per_s=len(latencies_s) / lasted_s, p50_ms=float(p50), p99_ms=float(p99))


async def flood(
    ask: Ask,
    numbers: Sequence[int],
    *,
    rate: float,
    seconds: float,
    seed: int = 0,
    policy: ThrottlePolicy | None = None,
) -> Flood:
    """Ask ``rate`` times a second at random times (Poisson), whether or not answers come.

    The latency of an answer counts from the time at which its request should have left, that of a refusal
    from when it did leave: it is the server that is to refuse at once. With a policy requests are held back
    as by a client that has it.

    Raises:
        Exception: what ``ask`` raised first, but Overloaded.
    """
    random, seen = Random(seed), Flood(seconds=seconds)
    throttle = None if policy is None else Throttle(policy)
    began_s = time.perf_counter()

    async def call(number: int, due_s: float) -> None:
        sent_s = time.perf_counter()
        seen.late_ms.append((sent_s - due_s) * 1000)
        try:
            await ask(number)
        except Overloaded:
            seen.refused_ms.append((time.perf_counter() - sent_s) * 1000)
            if throttle is not None:
                throttle.refused(_MODEL)
        else:
            seen.answered_ms.append((time.perf_counter() - due_s) * 1000)

    try:
        async with asyncio.TaskGroup() as group:
            due_s, number = began_s, 0
            while (due_s := due_s + random.expovariate(rate)) < began_s + seconds:
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                if throttle is not None and throttle.holds_back(_MODEL):
                    seen.held_back += 1
                else:
                    group.create_task(call(numbers[number % len(numbers)], due_s))
                number += 1
    except ExceptionGroup as several:
        raise several.exceptions[0] from several
    seen.seconds = time.perf_counter() - began_s
    return seen


@asynccontextmanager
async def http_caller(url: str, post: Post) -> AsyncIterator[Ask]:
    """Ask by POST over connections that are kept, with aiohttp: tritonclient brings it, so it is there.

    What it yields raises Overloaded where the server refuses, MooringError where it answers anything else.

    Args:
        url: of the server, with no path.
        post: makes the request.
    """
    import aiohttp

    headers = {"Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector, headers=headers) as session:

        async def ask(number: int) -> bytes:
            path, body = post(number)
            try:
                async with session.post(path, data=body) as answer:
                    said = await answer.read()
            except aiohttp.ClientError as exc:
                raise TransportError(f"{url}{path}: {exc!r}") from exc
            _check_status(f"{url}{path}", answer.status, said)
            return said

        yield ask


@asynccontextmanager
async def lean_http_caller(url: str, post: Post) -> AsyncIterator[Ask]:
    """Ask as :func:`http_caller` does, with half of what aiohttp takes of a core: beyond the capacity callers
    have several times as much to do, at the server's cost.
    """
    address, loop = urlsplit(url), asyncio.get_running_loop()
    every: list[_Connection] = []
    free: list[_Connection] = []

    async def connection() -> _Connection:
        while free:
            # The server closes what has long been idle.
            if not (one := free.pop()).closed:
                return one
        _, one = await loop.create_connection(_Connection, address.hostname, address.port)
        every.append(one)
        return one

    async def ask(number: int) -> bytes:
        path, body = post(number)
        one = await connection()
        status, said = await one.ask(
            f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode("ascii")
            + body
        )
        free.append(one)
        _check_status(f"{url}{path}", status, said)
        return said

    try:
        yield ask
    finally:
        for one in every:
            one.close()


class _Connection(asyncio.Protocol):
    """An HTTP connection that is kept, with one request at a time; its parser calls the ``on_`` methods."""

    def __init__(self) -> None:
        #: No more requests can go over it.
        self.closed = False
        self._body: list[bytes] = []
        self.on_body = self._body.append
        self._parser = HttpResponseParser(self)
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; status and body come later."""
        self._body.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError as exc:
            self._fail(f"no HTTP response: {exc}")
            self.close()

    def on_message_complete(self) -> None:
        self.closed = not self._parser.should_keep_alive()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), b"".join(self._body)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was lost: {exc!r}")

    def _fail(self, why: str) -> None:
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(TransportError(why))


def _check_status(asked: str, status: int, said: bytes) -> None:
    if status in _OVERLOADED:
        raise Overloaded(f"{asked} answered {status}")
    if status != 200:
        raise MooringError(f"{asked} answered {status}: {said[:300]!r}")
