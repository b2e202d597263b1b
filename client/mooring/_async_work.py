"""Waiting, background work and races for coroutines; :mod:`mooring._sync_work` has the same for threads."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import suppress
from inspect import isawaitable
from typing import Any, Generic, TypeVar

from mooring._batching import BatchSize, batches
from mooring._deadline import Deadline
from mooring._errors import ConfigError, DeadlineExceeded

T = TypeVar("T")
R = TypeVar("R")

#: Items that a map holds, finished ones included, as a multiple of those under way.
WINDOW = 4

#: How long an item waits for others that share its request, where more than one would.
_COMPANY_S = 0.005

sleep = asyncio.sleep


async def resolved(source: Callable[[], T | Awaitable[T]], deadline: Deadline) -> T:
    """What a callable gives, awaited where it must be.

    Raises:
        DeadlineExceeded: it did not come in time.
    """
    left_s = deadline.left_s()
    value = source()
    if not isawaitable(value):
        return value
    try:
        async with asyncio.timeout(left_s) as limit:
            return await value
    except TimeoutError as exc:
        if not limit.expired():
            raise  # its own
        raise DeadlineExceeded(
            f"the call's {deadline.timeout_s:g} s were spent before its token or headers were there"
        ) from exc


async def run_apart(work: Callable[[], T]) -> T:
    """The result of work that would hold the event loop up."""
    return await asyncio.to_thread(work)


class AsyncWork:
    """A client's work beside its callers; belongs to the event loop in which it is first used."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def check_place(self, begin_anew: Callable[[], None]) -> None:
        """A client can't follow into another loop, and so never begins anew.

        Raises:
            ConfigError: called from another event loop than before.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:
                raise ConfigError(
                    "an AsyncClient belongs to the event loop of its first call; make one in each loop"
                )
            self._loop = loop

    def spawn(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Begin work that nobody waits for; it is cancelled when the client is closed.

        Returns:
            Whether it was begun, which a thread may not be.
        """

        async def run() -> None:
            await work()

        task = asyncio.ensure_future(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def event(self) -> asyncio.Event:
        """Something that others can wait for."""
        return asyncio.Event()

    async def wait(self, event: asyncio.Event, *, timeout_s: float) -> None:
        """Wait until the event is set, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()

    async def close(self) -> None:
        """End the work that was begun; that of another event loop, which may be closed, is not waited for."""
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            for task in list(self._tasks):
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(task.cancel)
            return
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def look_up(self, host: str, port: int, *, timeout_s: float) -> list[str]:
        """The IP addresses of a host name.

        Raises:
            OSError: there are none, or ``TimeoutError``.
            UnicodeError: that can't be a host name.
        """
        async with asyncio.timeout(timeout_s):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    async def race(
        self,
        first: Callable[[], Awaitable[T]],
        second: Callable[[], Awaitable[T]],
        *,
        after_s: float,
        may_start: Callable[[], bool],
    ) -> tuple[T, bool]:
        """Run ``first``, and ``second`` too if the first takes over ``after_s`` and ``may_start`` agrees.

        Returns:
            The first result, and whether it is the second's; the other is cancelled.

        Raises:
            Exception: the first's, once neither has a result.
        """

        async def run(attempt: Callable[[], Awaitable[T]]) -> T:
            return await attempt()

        tasks = [asyncio.ensure_future(run(first))]
        try:
            done, _ = await asyncio.wait(tasks, timeout=after_s)
            if not done and may_start():
                tasks.append(asyncio.ensure_future(run(second)))
            pending = set(tasks)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task in done and task.exception() is None:
                        return task.result(), task is not tasks[0]
            return tasks[0].result(), False
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def map(
        self,
        work: Callable[[T], Awaitable[R]],
        items: Iterable[T] | AsyncIterable[T],
        *,
        concurrency: int,
        ordered: bool,
    ) -> AsyncGenerator[R, None]:
        """Do the work for each item, at most ``concurrency`` at a time.

        The next item is taken when there is room for it, so neither items nor results pile up: at most
        ``WINDOW * concurrency`` of both are held.
        """
        source = _Source(items)
        changed = asyncio.Event()
        started: deque[asyncio.Task[R]] = deque()
        finished: deque[asyncio.Task[R]] = deque()
        running = held = 0

        async def run(item: T) -> R:
            return await work(item)

        def finish(task: asyncio.Task[R]) -> None:
            nonlocal running
            running -= 1
            if not ordered:
                finished.append(task)
            changed.set()

        try:
            while True:
                while running < concurrency and held < WINDOW * concurrency and source.has_next(changed):
                    task = asyncio.ensure_future(run(source.take()))
                    task.add_done_callback(finish)
                    started.append(task)
                    running, held = running + 1, held + 1
                if ordered and started and started[0].done():
                    held -= 1
                    yield started.popleft().result()
                elif not ordered and finished:
                    held -= 1
                    task = finished.popleft()
                    started.remove(task)
                    yield task.result()
                elif source.exhausted and not held:
                    return
                else:
                    await changed.wait()
                    changed.clear()
        finally:
            for task in started:
                task.cancel()
            await asyncio.gather(*started, return_exceptions=True)
            await source.close()

    @staticmethod
    def number(
        items: Iterable[T] | AsyncIterable[T],
    ) -> Iterable[tuple[int, T]] | AsyncGenerator[tuple[int, T], None]:
        """The items with their places, from 0; an async generator is closed with this one."""
        return AsyncWork._number(items) if isinstance(items, AsyncIterable) else enumerate(items)

    @staticmethod
    async def _number(items: AsyncIterable[T]) -> AsyncGenerator[tuple[int, T], None]:
        index = 0
        source = aiter(items)
        try:
            async for item in source:
                yield index, item
                index += 1
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()

    @staticmethod
    def batches(
        items: Iterable[T] | AsyncIterable[T], size: BatchSize
    ) -> Iterable[list[tuple[int, T]]] | AsyncGenerator[list[tuple[int, T]], None]:
        """As :func:`mooring._batching.batches`, but an item that has come is not held back for one that has
        not."""
        return AsyncWork._batches(items, size) if isinstance(items, AsyncIterable) else batches(items, size)

    @staticmethod
    async def _batches(items: AsyncIterable[T], size: BatchSize) -> AsyncGenerator[list[tuple[int, T]], None]:
        batch: list[tuple[int, T]] = []
        numbered = AsyncWork._number(items)
        coming: asyncio.Future[tuple[int, T]] | None = None
        try:
            while True:
                if batch:
                    coming = asyncio.ensure_future(_next(numbered))
                    await asyncio.wait((coming,), timeout=_COMPANY_S)
                    if not coming.done():
                        yield batch
                        batch = []
                try:
                    batch.append(await (_next(numbered) if coming is None else coming))
                except StopAsyncIteration:
                    break
                finally:
                    coming = None
                if len(batch) >= size.current:
                    yield batch
                    batch = []
            if batch:
                yield batch
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            await numbered.aclose()


async def _next(numbered: AsyncGenerator[T, None]) -> T:
    # A coroutine for a task, which anext() alone need not be.
    return await anext(numbered)


class _Source(Generic[T]):
    """The items of a map, one ahead where they come asynchronously."""

    def __init__(self, items: Iterable[T] | AsyncIterable[T]) -> None:
        self._async_items = aiter(items) if isinstance(items, AsyncIterable) else None
        self._items = None if isinstance(items, AsyncIterable) else iter(items)
        self._fetching: asyncio.Task[T] | None = None
        self._next: list[T] = []
        self.exhausted = False

    def has_next(self, changed: asyncio.Event) -> bool:
        """Whether an item can be taken now; else ``changed`` is set when one can, or none is left."""
        if self.exhausted or self._next:
            return bool(self._next)
        if self._items is not None:
            try:
                self._next.append(next(self._items))
            except StopIteration:
                self.exhausted = True
            return bool(self._next)
        if self._fetching is None:
            self._fetching = asyncio.ensure_future(self._fetch())
            self._fetching.add_done_callback(lambda _: changed.set())
        if self._fetching.done():
            fetching, self._fetching = self._fetching, None
            try:
                self._next.append(fetching.result())
            except StopAsyncIteration:
                self.exhausted = True
        return bool(self._next)

    async def _fetch(self) -> T:
        assert self._async_items is not None
        return await anext(self._async_items)

    def take(self) -> T:
        """The item that :meth:`has_next` promised."""
        return self._next.pop()

    async def close(self) -> None:
        """Leave the items alone; an async generator is closed."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        close = getattr(self._async_items, "aclose", None)
        if close is not None:
            await close()
