"""Coroutines' objects with the face of their twins for threads, so that one test body serves both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from inspect import isasyncgen, isawaitable
from typing import Any

from mooring._async._tasks import AsyncTask

#: What the twins for threads call otherwise.
_NAMES = {"close": "aclose", "send": "asend", "stream": "astream", "__enter__": "__aenter__"}


class Awaited:
    """Waits in place for what a client, task or transport of coroutines gives.

    Args:
        loop: runs them, and only while something is waited for.
        wrapped: the object.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, wrapped: Any) -> None:
        self._loop = loop
        self.wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        if not hasattr(self.wrapped, name):
            name = _NAMES.get(name, name)
        value = getattr(self.wrapped, name)
        return self._waiting(value) if callable(value) else value

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._waiting(self.wrapped)(*args, **options)

    def __enter__(self) -> Awaited:
        self._wait(self.wrapped.__aenter__())
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._wait(self.wrapped.__aexit__(*exc_info))

    def __repr__(self) -> str:
        return repr(self.wrapped)

    def _waiting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: self._result(method(*args, **options))

    def _result(self, value: Any) -> Any:
        if isawaitable(value):
            value = self._wait(value)
        if isasyncgen(value):
            return self._iterate(value)
        return Awaited(self._loop, value) if isinstance(value, AsyncTask) else value

    def _wait(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        return self._loop.run_until_complete(wait())

    def _iterate(self, answers: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    answer = self._wait(anext(answers))
                except StopAsyncIteration:
                    return
                yield answer
        finally:
            self._wait(answers.aclose())


async def as_async(items: Any) -> AsyncIterator[Any]:
    """The items, one turn of the event loop apart."""
    for item in items:
        await asyncio.sleep(0)
        yield item


def tasks_left(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Tasks that are still there after everything had a moment to end."""

    async def wait() -> list[str]:
        for _ in range(100):
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if not left:
                return []
            await asyncio.sleep(0.01)
        return list(map(repr, left))

    return loop.run_until_complete(wait())
