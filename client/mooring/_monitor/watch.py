"""A stream of texts through a model into a monitor."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, closing
from typing import Any

from mooring._async._tasks import AsyncOpinionClassifier
from mooring._errors import ConfigError, MooringError
from mooring._monitor.events import AlertEvent
from mooring._monitor.monitor import OpinionMonitor
from mooring._monitor.texts import TimedText
from mooring._outcomes import Outcome
from mooring._sync._tasks import OpinionClassifier
from mooring._task_kinds import Opinion

OnFailure = Callable[[TimedText, MooringError], None]


def watch(
    monitor: OpinionMonitor,
    judge: OpinionClassifier | Callable[[str], Opinion],
    texts: Iterable[TimedText | tuple[float, str]],
    *,
    on_failure: OnFailure | None = None,
    concurrency: int = 8,
    batch_size: int | None = None,
) -> Iterator[AlertEvent]:
    """Watch a stream of texts until it ends.

    Args:
        monitor: keeps the counts.
        judge: says topic and sentiment of a text: a task of the client, several requests of which are kept
            under way, or any callable.
        texts: each with its time in seconds since 1970, in the order of time but for the monitor's lateness;
            taken as fast as they are judged.
        on_failure: gets each text that was not judged, and why; it is counted and stops nothing.
        concurrency: requests of a task under way at a time.
        batch_size: texts in one request of a task; ``None`` finds out while it runs.

    Yields:
        Alerts and their ends, in the order of time. The end of the stream ends the steps that it has seen to
        their end; alerts may be on still.

    Raises:
        ConfigError: a time or an option can't be right.
        Exception: what a callable raises, unless it is a ``MooringError``.
    """
    stream = _Stream(monitor, on_failure)
    if isinstance(judge, OpinionClassifier):
        items = map(stream.add, texts)
        with closing(judge.map(items, concurrency=concurrency, batch_size=batch_size)) as outcomes:
            for outcome in outcomes:
                yield from stream.take(outcome)
    else:
        for index, text in enumerate(map(stream.add, texts)):
            try:
                outcome = Outcome(index=index, value=judge(text))
            except MooringError as error:
                outcome = Outcome(index=index, error=error)
            yield from stream.take(outcome)
    yield from stream.end()


async def awatch(
    monitor: OpinionMonitor,
    judge: AsyncOpinionClassifier,
    texts: Iterable[TimedText | tuple[float, str]] | AsyncIterable[TimedText | tuple[float, str]],
    *,
    on_failure: OnFailure | None = None,
    concurrency: int = 8,
    batch_size: int | None = None,
) -> AsyncGenerator[AlertEvent, None]:
    """The same as :func:`watch` for a task of an ``AsyncClient``; alerts come while a text is waited for.

    Raises:
        ConfigError: as :func:`watch`, or what judges is no such task.
    """
    if not isinstance(judge, AsyncOpinionClassifier):
        raise ConfigError(
            f"awatch asks a task of an AsyncClient, got {judge!r}: give other judges to watch, or feed their "
            "opinions to the monitor"
        )
    stream = _Stream(monitor, on_failure)
    items = judge.map(_added(stream, texts), concurrency=concurrency, batch_size=batch_size)
    async with aclosing(items) as outcomes:
        async for outcome in outcomes:
            for event in stream.take(outcome):
                yield event
    for event in stream.end():
        yield event


class _Stream:
    """The texts that were given out and are not judged, oldest first."""

    def __init__(self, monitor: OpinionMonitor, on_failure: OnFailure | None) -> None:
        self._monitor = monitor
        self._on_failure = on_failure
        self._waiting: deque[TimedText] = deque()
        self._last_s: float | None = None

    def add(self, text: TimedText | tuple[float, str]) -> str:
        timed = TimedText(*text)
        self._waiting.append(timed)
        return timed.text

    def take(self, outcome: Outcome[Any]) -> list[AlertEvent]:
        timed = self._waiting.popleft()
        self._last_s = timed.time_s
        if outcome.error is not None:
            if self._on_failure is not None:
                self._on_failure(timed, outcome.error)
            return self._monitor.note_failure(timed.time_s)
        if not isinstance(outcome.value, Opinion):
            raise ConfigError(f"what judges texts must return an Opinion, got {outcome.value!r}")
        return self._monitor.feed(timed.time_s, outcome.value, timed.text)

    def end(self) -> list[AlertEvent]:
        return [] if self._last_s is None else self._monitor.advance(self._last_s, final=True)


async def _added(stream: _Stream, texts: Any) -> AsyncIterator[str]:
    if not isinstance(texts, AsyncIterable):
        for text in texts:
            yield stream.add(text)
        return
    source = aiter(texts)
    try:
        async for text in source:
            yield stream.add(text)
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()
