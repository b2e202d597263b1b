"""Streams of texts through a model into a monitor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from monitor_streams import POLICY, steps
from mooring import AsyncClient, Client, ConfigError, InvalidInput, MooringError, Opinion, RetryPolicy
from mooring.monitor import Alert, AlertEnded, OpinionMonitor, TimedText, awatch, watch
from mooring.testing import FakeTransport
from opinion_models import fake_opinion_model, judge

URL = "grpc://fake:8001"


def as_text(time_s: float, text: str) -> tuple[float, str]:
    """The text that the fake model judges as the stream says."""
    return time_s, f"bank {'bad' if text.startswith('negative') else 'good'} {text}"


TEXTS = [
    as_text(time_s, text) for time_s, _, text in [*steps(0, 20), *steps(20, 24, negatives=8), *steps(24, 40)]
]


@pytest.fixture
def served() -> FakeTransport:
    return FakeTransport({"opinion_monitor": fake_opinion_model()})


@pytest.fixture
def expected() -> list[Alert | AlertEnded]:
    monitor = OpinionMonitor(POLICY)
    events = [event for time_s, text in TEXTS for event in monitor.feed(time_s, judge(text), text)]
    events += monitor.advance(TEXTS[-1][0], final=True)
    assert [type(event) for event in events] == [Alert, AlertEnded]
    return events


def test_any_callable_judges(expected: list[Any]) -> None:
    assert list(watch(OpinionMonitor(POLICY), judge, iter(TEXTS))) == expected


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_a_task_judges_with_several_requests_under_way(
    served: FakeTransport, expected: list[Any], batch_size: int | None
) -> None:
    monitor = OpinionMonitor(POLICY)
    with Client(URL, transport=served) as client:
        task = client.task("opinion_monitor")
        assert list(watch(monitor, task, iter(TEXTS), batch_size=batch_size)) == expected
    assert monitor.counters.counted == len(TEXTS)


@pytest.mark.parametrize("is_async_source", [False, True])
def test_coroutines_do_the_same(served: FakeTransport, expected: list[Any], is_async_source: bool) -> None:
    async def texts() -> AsyncIterator[tuple[float, str]]:
        for text in TEXTS:
            yield text

    async def run() -> list[Any]:
        async with AsyncClient(URL, transport=served) as client:
            task = await client.task("opinion_monitor")
            source = texts() if is_async_source else TEXTS
            return [event async for event in awatch(OpinionMonitor(POLICY), task, source)]

    assert asyncio.run(run()) == expected


def test_an_alert_comes_while_the_next_text_is_waited_for(served: FakeTransport) -> None:
    """The stream goes on only after the alert was seen; otherwise the test's time limit ends it."""

    async def run() -> None:
        seen = asyncio.Event()

        async def texts() -> AsyncIterator[tuple[float, str]]:
            for text in TEXTS[:221]:
                yield text
            await seen.wait()
            yield TEXTS[221]

        async with AsyncClient(URL, transport=served) as client:
            task = await client.task("opinion_monitor")
            async for _ in awatch(OpinionMonitor(POLICY), task, texts(), batch_size=1):
                seen.set()
        assert seen.is_set()

    asyncio.run(run())


@pytest.mark.parametrize("judges", ["task", "callable"])
def test_texts_that_fail_are_counted_and_stop_nothing(
    served: FakeTransport, expected: list[Any], judges: str
) -> None:
    failed: list[tuple[TimedText, MooringError]] = []

    def judge_some(text: str) -> Opinion:
        if "REFUSED" in text:
            raise InvalidInput("the text is too long")
        return judge(text)

    texts = [*TEXTS[:50], (TEXTS[49][0], "bank REFUSED"), *TEXTS[50:]]
    monitor = OpinionMonitor(POLICY)
    with Client(URL, transport=served, retry=RetryPolicy(max_retries=0)) as client:
        source: Any = client.task("opinion_monitor") if judges == "task" else judge_some
        events = list(watch(monitor, source, texts, on_failure=lambda *what: failed.append(what)))
    assert events == expected
    assert (monitor.counters.counted, monitor.counters.failed) == (len(TEXTS), 1)
    ((text, error),) = failed
    assert text == TimedText(TEXTS[49][0], "bank REFUSED")
    assert "the text is too long" in str(error)


def test_texts_are_taken_only_as_fast_as_they_are_judged(served: FakeTransport) -> None:
    taken = 0

    def texts() -> Iterator[tuple[float, str]]:
        nonlocal taken
        for text in TEXTS * 100:
            taken += 1
            yield (min(text[0], 239.0), text[1])

    with Client(URL, transport=served) as client:
        events = watch(
            OpinionMonitor(POLICY), client.task("opinion_monitor"), texts(), concurrency=2, batch_size=1
        )
        assert isinstance(next(events), Alert)
        # The alert came with text 220; a map of two requests holds no more than eight.
        assert 221 <= taken <= 221 + 8
        events.close()  # type: ignore[attr-defined]  # it is a generator


def test_what_is_no_opinion_is_the_callers_mistake() -> None:
    with pytest.raises(ConfigError, match="must return an Opinion, got 'negative'"):
        list(watch(OpinionMonitor(POLICY), lambda text: "negative", TEXTS))  # type: ignore[arg-type, return-value]


def test_coroutines_ask_a_task(served: FakeTransport) -> None:
    async def run(judges: Any) -> None:
        async for _ in awatch(OpinionMonitor(POLICY), judges, TEXTS):
            pass

    with Client(URL, transport=served) as client:
        for judges, shown in ((judge, "<function"), (client.task("opinion_monitor"), "OpinionClassifier")):
            with pytest.raises(ConfigError, match=f"^awatch asks a task of an AsyncClient, got {shown}"):
                asyncio.run(run(judges))


def test_a_time_that_is_no_number_is_named() -> None:
    texts: Any = [(datetime(2024, 5, 1, tzinfo=UTC), "bank bad news")]
    with pytest.raises(ConfigError, match=r"^time datetime\.datetime\(2024, 5.* must be seconds"):
        list(watch(OpinionMonitor(POLICY), judge, texts))


def test_an_empty_stream_has_no_end_to_judge() -> None:
    assert list(watch(OpinionMonitor(POLICY), judge, [])) == []
