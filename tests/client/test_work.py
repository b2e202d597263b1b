"""Maps, races, look-ups and background work, for coroutines and for threads."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing
from typing import Any

import pytest

from awaited import as_async
from mooring import ConfigError
from mooring._async_work import WINDOW, AsyncWork, resolved, run_apart
from mooring._cancellation import Cancellation, RequestCancelledError, cancelled_by, current_cancellation
from mooring._deadline import Deadline
from mooring._sync_work import WINDOW as SYNC_WINDOW
from mooring._sync_work import SyncWork
from mooring._sync_work import resolved as sync_resolved
from mooring._sync_work import run_apart as sync_run_apart
from mooring._sync_work import sleep as sync_sleep
from processes import wait_until

#: Bounds what takes a moment unless it hangs, in seconds.
LIMIT_S = 10.0


class Oops(Exception):
    """What a test's own work raises."""


class Result:
    """A result whose life can be followed."""

    def __init__(self, value: int) -> None:
        self.value = value


def threads_called(prefix: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(prefix)]


def wait_cancelled(
    cancelled: list[Any] | None = None, what: Any = None, hanging: threading.Semaphore | None = None
) -> None:
    """As a request that hangs: until this thread's requests are cancelled."""
    cancellation = current_cancellation()
    assert cancellation is not None
    ended = threading.Event()
    cancellation.attach(ended.set)
    if hanging is not None:
        hanging.release()
    try:
        assert ended.wait(LIMIT_S), "nobody cancelled it"
    finally:
        cancellation.detach()
    if cancelled is not None:
        cancelled.append(what)
    raise RequestCancelledError("the request was cancelled")


@pytest.fixture
def sync_work() -> Iterator[SyncWork]:
    work = SyncWork()
    yield work
    work.close()
    wait_until(lambda: not threads_called("mooring-"))


def run_async(scenario: Callable[[], Any]) -> Any:
    """Run a coroutine function, and see to it that it leaves no task."""

    async def run() -> Any:
        result = await asyncio.wait_for(scenario(), LIMIT_S)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left
        return result

    return asyncio.run(run())


# --- map of coroutines


async def same(item: Any) -> Any:
    return item


def map_async(work: Any, items: Any, *, concurrency: int, ordered: bool) -> list[Any]:
    async def scenario() -> list[Any]:
        results = AsyncWork().map(work, items(), concurrency=concurrency, ordered=ordered)
        return [result async for result in results]

    return run_async(scenario)


@pytest.mark.parametrize("source", [range, lambda n: as_async(range(n))], ids=["iterable", "async"])
@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_async_map_keeps_the_order(source: Any, concurrency: int) -> None:
    async def square(n: int) -> int:
        await asyncio.sleep(0.001 * (n % 5))
        return n * n

    results = map_async(square, lambda: source(40), concurrency=concurrency, ordered=True)
    assert results == [n * n for n in range(40)]


@pytest.mark.parametrize("source", [range, lambda n: as_async(range(n))], ids=["iterable", "async"])
def test_async_map_without_order_gives_what_is_ready(source: Any) -> None:
    async def scenario() -> list[int]:
        second_done = asyncio.Event()

        async def work(n: int) -> int:
            await (second_done.wait() if n == 0 else asyncio.sleep(0))
            return n

        results = []
        async for result in AsyncWork().map(work, source(6), concurrency=2, ordered=False):
            results.append(result)
            if result == 1:
                second_done.set()
        return results

    results = run_async(scenario)
    assert sorted(results) == list(range(6))
    assert results[0] == 1


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("source", [range, lambda n: as_async(range(n))], ids=["iterable", "async"])
def test_async_map_never_exceeds_its_concurrency_and_uses_it(source: Any, ordered: bool) -> None:
    running = most = 0

    async def work(n: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (n % 3))
        running -= 1

    map_async(work, lambda: source(60), concurrency=4, ordered=ordered)
    assert (running, most) == (0, 4)


@pytest.mark.parametrize("items", [(), iter(())])
def test_async_map_of_nothing_is_nothing(items: Any) -> None:
    assert map_async(same, lambda: items, concurrency=2, ordered=True) == []
    assert map_async(same, lambda: as_async(items), concurrency=2, ordered=False) == []


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", ["iterable", "async"])
def test_async_map_takes_no_more_than_its_window(kind: str, ordered: bool) -> None:
    taken = 0

    def count() -> Iterator[int]:
        nonlocal taken
        for n in range(1000):
            taken += 1
            yield n

    async def scenario() -> None:
        async def work(n: int) -> int:
            return n

        items = count() if kind == "iterable" else as_async(count())
        results = AsyncWork().map(work, items, concurrency=2, ordered=ordered)
        async with aclosing(results):
            assert taken == 0, "nothing is taken before a result is asked for"
            for given in range(1, 20):
                await anext(results)
                for _ in range(50):
                    await asyncio.sleep(0)
                # The result in the caller's hand is not the map's any more; an async source is one ahead.
                assert taken <= given + WINDOW * 2 + (kind == "async")

    run_async(scenario)


@pytest.mark.parametrize("ordered", [True, False])
def test_async_map_forgets_results_that_were_taken(ordered: bool) -> None:
    living: weakref.WeakSet[Result] = weakref.WeakSet()

    async def scenario() -> int:
        async def work(n: int) -> Result:
            result = Result(n)
            living.add(result)
            return result

        most = 0
        async for _ in AsyncWork().map(work, range(500), concurrency=2, ordered=ordered):
            gc.collect(0)
            most = max(most, len(living))
        return most

    assert run_async(scenario) <= WINDOW * 2 + 2


@pytest.mark.parametrize("ordered", [True, False])
def test_async_map_closed_early_cancels_what_runs(ordered: bool) -> None:
    cancelled: list[int] = []

    async def scenario() -> None:
        async def work(n: int) -> int:
            if n == 0:
                return n
            try:
                await asyncio.sleep(LIMIT_S)
            except asyncio.CancelledError:
                cancelled.append(n)
                raise
            return n

        results = AsyncWork().map(work, range(100), concurrency=3, ordered=ordered)
        assert await anext(results) == 0
        await asyncio.sleep(0)
        await results.aclose()
        assert len(asyncio.all_tasks()) == 2, "this one and the one that bounds it"

    run_async(scenario)
    assert cancelled == [1, 2, 3]


@pytest.mark.parametrize("ordered", [True, False])
def test_async_map_that_is_cancelled_cancels_what_runs(ordered: bool) -> None:
    running = 0

    async def scenario() -> None:
        async def work(n: int) -> None:
            nonlocal running
            running += 1
            try:
                await asyncio.sleep(LIMIT_S)
            finally:
                running -= 1

        async def consume() -> None:
            async for _ in AsyncWork().map(work, as_async(range(9)), concurrency=3, ordered=ordered):
                pass

        consumer = asyncio.ensure_future(consume())
        while running < 3:
            await asyncio.sleep(0)
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert running == 0

    run_async(scenario)


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("while_fetching", [False, True])
def test_async_map_closed_early_closes_an_async_generator(numbered: bool, while_fetching: bool) -> None:
    closed: list[bool] = []

    async def scenario() -> None:
        async def source() -> AsyncIterator[int]:
            try:
                yield 0
                await asyncio.sleep(LIMIT_S if while_fetching else 0)
                while True:
                    yield 1
            finally:
                await asyncio.sleep(0)
                closed.append(True)

        items = AsyncWork.number(source()) if numbered else source()
        results = AsyncWork().map(same, items, concurrency=1, ordered=True)
        await anext(results)
        for _ in range(20):
            await asyncio.sleep(0)
        await results.aclose()
        assert closed == [True]

    run_async(scenario)


def test_async_map_takes_an_async_iterator_that_cannot_be_closed() -> None:
    class Three:
        def __init__(self) -> None:
            self.n = 0

        def __aiter__(self) -> Three:
            return self

        async def __anext__(self) -> int:
            self.n += 1
            if self.n > 3:
                raise StopAsyncIteration
            return self.n

    assert map_async(same, Three, concurrency=2, ordered=True) == [1, 2, 3]
    assert map_async(same, lambda: AsyncWork.number(Three()), concurrency=2, ordered=True) == [
        (0, 1),
        (1, 2),
        (2, 3),
    ]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", ["iterable", "async"])
def test_async_map_passes_the_sources_error_on(kind: str, ordered: bool) -> None:
    def source() -> Iterator[int]:
        yield 1
        raise Oops("no more items")

    with pytest.raises(Oops, match="no more items"):
        map_async(
            same,
            lambda: source() if kind == "iterable" else as_async(source()),
            concurrency=2,
            ordered=ordered,
        )


@pytest.mark.parametrize("ordered", [True, False])
def test_async_map_passes_the_works_error_on_and_ends(ordered: bool) -> None:
    async def work(n: int) -> int:
        if n == 3:
            raise Oops("item 3")
        await asyncio.sleep(0 if n < 3 else LIMIT_S)
        return n

    with pytest.raises(Oops, match="item 3"):
        map_async(work, lambda: range(100), concurrency=4, ordered=ordered)


def test_items_are_numbered() -> None:
    async def scenario() -> list[Any]:
        return [pair async for pair in AsyncWork.number(as_async(range(3)))]

    assert run_async(scenario) == [(0, 0), (1, 1), (2, 2)]
    assert list(AsyncWork.number(range(3))) == [(0, 0), (1, 1), (2, 2)]
    assert list(SyncWork.number("ab")) == [(0, "a"), (1, "b")]


# --- map of threads


@pytest.mark.parametrize("concurrency", [1, 3, 20])
def test_sync_map_keeps_the_order(sync_work: SyncWork, concurrency: int) -> None:
    def square(n: int) -> int:
        time.sleep(0.001 * (n % 5))
        return n * n

    results = sync_work.map(square, range(40), concurrency=concurrency, ordered=True)
    assert list(results) == [n * n for n in range(40)]


def test_sync_map_without_order_gives_what_is_ready(sync_work: SyncWork) -> None:
    second_done = threading.Event()

    def work(n: int) -> int:
        if n == 0:
            assert second_done.wait(LIMIT_S)
        return n

    results = []
    for result in sync_work.map(work, range(6), concurrency=2, ordered=False):
        results.append(result)
        if result == 1:
            second_done.set()
    assert sorted(results) == list(range(6))
    assert results[0] == 1


@pytest.mark.parametrize("ordered", [True, False])
def test_sync_map_never_exceeds_its_concurrency_and_uses_it(sync_work: SyncWork, ordered: bool) -> None:
    lock = threading.Lock()
    met = threading.Barrier(4)
    running = most = 0

    def work(n: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if n < 4:
            met.wait(LIMIT_S)
        time.sleep(0.001 * (n % 3))
        with lock:
            running -= 1

    list(sync_work.map(work, range(60), concurrency=4, ordered=ordered))
    assert (running, most) == (0, 4)


@pytest.mark.parametrize("ordered", [True, False])
def test_sync_map_of_nothing_is_nothing(sync_work: SyncWork, ordered: bool) -> None:
    assert list(sync_work.map(str, [], concurrency=2, ordered=ordered)) == []


@pytest.mark.parametrize("ordered", [True, False])
def test_sync_map_takes_no_more_than_its_window_in_the_callers_thread(
    sync_work: SyncWork, ordered: bool
) -> None:
    taken = 0
    takers = set()

    def count() -> Iterator[int]:
        nonlocal taken
        for n in range(1000):
            taken += 1
            takers.add(threading.current_thread())
            yield n

    with closing(sync_work.map(str, count(), concurrency=2, ordered=ordered)) as results:
        assert taken == 0, "nothing is taken before a result is asked for"
        for given in range(1, 20):
            next(results)
            time.sleep(0.001)
            assert taken <= given + SYNC_WINDOW * 2
    assert takers == {threading.current_thread()}


@pytest.mark.parametrize("ordered", [True, False])
def test_sync_map_forgets_results_that_were_taken(sync_work: SyncWork, ordered: bool) -> None:
    living: weakref.WeakSet[Result] = weakref.WeakSet()
    lock = threading.Lock()

    def work(n: int) -> Result:
        result = Result(n)
        with lock:
            living.add(result)
        return result

    most = 0
    for _ in sync_work.map(work, range(500), concurrency=2, ordered=ordered):
        gc.collect(0)
        with lock:
            most = max(most, len(living))
    # Each of two threads may still hold its last one.
    assert most <= SYNC_WINDOW * 2 + 4


@pytest.mark.parametrize("ordered", [True, False])
def test_sync_map_closed_early_cancels_what_runs_and_ends_its_threads(
    sync_work: SyncWork, ordered: bool
) -> None:
    cancelled: list[int] = []
    hanging = threading.Semaphore(0)

    def work(n: int) -> int:
        if n == 0:
            return n
        hanging.release()
        wait_cancelled(cancelled, n)
        raise AssertionError

    results = sync_work.map(work, range(100), concurrency=3, ordered=ordered)
    assert next(results) == 0
    for _ in range(2):
        assert hanging.acquire(timeout=LIMIT_S)
    results.close()
    assert set(cancelled) <= {1, 2, 3}
    assert {1, 2} <= set(cancelled)
    assert threads_called("mooring-map") == []


@pytest.mark.parametrize("ordered", [True, False])
def test_sync_map_passes_the_sources_error_on(sync_work: SyncWork, ordered: bool) -> None:
    def source() -> Iterator[int]:
        yield 1
        raise Oops("no more items")

    with pytest.raises(Oops, match="no more items"):
        list(sync_work.map(str, source(), concurrency=2, ordered=ordered))
    assert threads_called("mooring-map") == []


@pytest.mark.parametrize("ordered", [True, False])
def test_sync_map_passes_the_works_error_on_and_ends(sync_work: SyncWork, ordered: bool) -> None:
    def work(n: int) -> int:
        if n == 3:
            raise Oops("item 3")
        if n > 3:
            wait_cancelled()
        return n

    with pytest.raises(Oops, match="item 3"):
        list(sync_work.map(work, range(100), concurrency=4, ordered=ordered))
    assert threads_called("mooring-map") == []


# --- races


async def async_race(
    first: Any, second: Any, *, after_s: float = 0.0, may_start: Callable[[], bool] = lambda: True
) -> Any:
    return await AsyncWork().race(first, second, after_s=after_s, may_start=may_start)


def answer(value: Any, *, after_s: float = 0.0, cancelled: list[Any] | None = None) -> Any:
    """A coroutine function that gives a value, or raises it, after a while."""

    async def run() -> Any:
        try:
            await asyncio.sleep(after_s)
        except asyncio.CancelledError:
            if cancelled is not None:
                cancelled.append(value)
            raise
        if isinstance(value, Exception):
            raise value
        return value

    return run


def sync_answer(value: Any, *, after_s: float = 0.0, cancelled: list[Any] | None = None) -> Any:
    """The same for threads."""

    def run() -> Any:
        if after_s >= LIMIT_S:
            wait_cancelled(cancelled, value)
        time.sleep(after_s)
        if isinstance(value, Exception):
            raise value
        return value

    return run


FIRST, SECOND = Oops("first"), Oops("second")
#: first: value and delay in seconds; second: the same; what comes of it; who is cancelled.
RACES = {
    "only the first": (("a", 0.0), ("b", 0.0), 5.0, ("a", False), []),
    "the second is faster": (("a", LIMIT_S), ("b", 0.0), 0.01, ("b", True), ["a"]),
    "the first after all": (("a", 0.5), ("b", LIMIT_S), 0.01, ("a", False), ["b"]),
    "the first fails at once": ((FIRST, 0.0), ("b", 0.0), 5.0, FIRST, []),
    "the first fails while the second runs": ((FIRST, 0.5), ("b", 1.0), 0.01, ("b", True), []),
    "the second fails while the first runs": (("a", 0.2), (SECOND, 0.0), 0.01, ("a", False), []),
    "the first fails, then the second": ((FIRST, 0.1), (SECOND, 0.2), 0.01, FIRST, []),
    "the second fails, then the first": ((FIRST, 0.2), (SECOND, 0.0), 0.01, FIRST, []),
}


@pytest.mark.parametrize("case", RACES)
def test_async_races(case: str) -> None:
    (one, one_s), (two, two_s), after_s, outcome, losers = RACES[case]
    cancelled: list[Any] = []

    async def scenario() -> Any:
        return await async_race(
            answer(one, after_s=one_s, cancelled=cancelled),
            answer(two, after_s=two_s, cancelled=cancelled),
            after_s=after_s,
        )

    if isinstance(outcome, Exception):
        with pytest.raises(Oops) as caught:
            run_async(scenario)
        assert caught.value is outcome
    else:
        assert run_async(scenario) == outcome
    assert cancelled == losers


@pytest.mark.parametrize("case", RACES)
def test_sync_races(sync_work: SyncWork, case: str) -> None:
    (one, one_s), (two, two_s), after_s, outcome, losers = RACES[case]
    cancelled: list[Any] = []

    def race() -> Any:
        return sync_work.race(
            sync_answer(one, after_s=one_s, cancelled=cancelled),
            sync_answer(two, after_s=two_s, cancelled=cancelled),
            after_s=after_s,
            may_start=lambda: True,
        )

    if isinstance(outcome, Exception):
        with pytest.raises(Oops) as caught:
            race()
        assert caught.value is outcome
    else:
        assert race() == outcome
    wait_until(lambda: cancelled == losers)


@pytest.mark.parametrize("because", ["all are busy", "the system has none"])
def test_a_race_without_a_thread_left_is_run_by_its_caller(
    sync_work: SyncWork, monkeypatch: pytest.MonkeyPatch, because: str
) -> None:
    if because == "all are busy":
        monkeypatch.setattr("mooring._sync_work._MAX_RACERS", 0)
    else:

        def fail(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", fail)
    ran: list[threading.Thread] = []

    def first() -> str:
        ran.append(threading.current_thread())
        return "a"

    race = sync_work.race(first, sync_answer("b"), after_s=0.0, may_start=lambda: True)
    assert race == ("a", False)
    assert ran == [threading.current_thread()]
    assert sync_work._racing == 0


def test_a_second_without_a_thread_left_is_not_asked_for(
    sync_work: SyncWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mooring._sync_work._MAX_RACERS", 1)
    asked: list[bool] = []
    for _ in range(3):
        race = sync_work.race(
            sync_answer("a", after_s=0.05),
            sync_answer("b"),
            after_s=0.0,
            may_start=lambda: asked.append(True) or True,
        )
        assert race == ("a", False)
    assert asked == []


def test_a_second_that_may_not_start_does_not(sync_work: SyncWork) -> None:
    started: list[str] = []

    def second() -> str:
        started.append("second")
        return "b"

    async def async_second() -> str:
        return second()

    def scenario() -> Any:
        return async_race(answer("a", after_s=0.1), async_second, after_s=0.01, may_start=lambda: False)

    assert run_async(scenario) == ("a", False)
    first = sync_answer("a", after_s=0.1)
    assert sync_work.race(first, second, after_s=0.01, may_start=lambda: False) == ("a", False)
    assert started == []


def test_a_cancelled_async_race_cancels_both() -> None:
    cancelled: list[str] = []

    async def scenario() -> None:
        started: list[str] = []

        def hang(name: str) -> Any:
            async def run() -> None:
                started.append(name)
                await answer(name, after_s=LIMIT_S, cancelled=cancelled)()

            return run

        race = asyncio.ensure_future(async_race(hang("a"), hang("b")))
        while len(started) < 2:
            await asyncio.sleep(0.001)
        race.cancel()
        with pytest.raises(asyncio.CancelledError):
            await race

    run_async(scenario)
    assert sorted(cancelled) == ["a", "b"]


def race_within(
    sync_work: SyncWork,
    outer: Cancellation,
    may_start: Callable[[], bool] = lambda: True,
    hanging: threading.Semaphore | None = None,
) -> list[str]:
    """Race two that hang, from a thread that may be cancelled; returns who saw the end of it."""
    cancelled: list[str] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            with cancelled_by(outer):
                sync_work.race(
                    lambda: wait_cancelled(cancelled, "a", hanging),
                    lambda: wait_cancelled(cancelled, "b", hanging),
                    after_s=0.02,
                    may_start=may_start,
                )
        except RequestCancelledError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert len(raised) == 1
    return sorted(cancelled)


def test_a_cancelled_sync_race_cancels_both(sync_work: SyncWork) -> None:
    outer, hanging = Cancellation(), threading.Semaphore(0)

    def cancel_both() -> None:
        for _ in range(2):
            hanging.acquire(timeout=LIMIT_S)
        outer.cancel()

    canceller = threading.Thread(target=cancel_both)
    canceller.start()
    assert race_within(sync_work, outer, hanging=hanging) == ["a", "b"]
    canceller.join()


def test_a_sync_race_cancelled_while_its_second_starts_cancels_that_too(sync_work: SyncWork) -> None:
    outer = Cancellation()
    began_s = time.monotonic()

    def may_start() -> bool:
        outer.cancel()
        return True

    # The second is refused before its request begins, or cancelled right after.
    assert race_within(sync_work, outer, may_start) in (["a"], ["a", "b"])
    assert time.monotonic() - began_s < LIMIT_S / 2


def test_a_sync_race_of_a_cancelled_thread_does_not_begin(sync_work: SyncWork) -> None:
    outer = Cancellation()
    outer.cancel()
    assert race_within(sync_work, outer) == []


# --- background work


def test_async_work_in_the_background_ends_with_its_owner() -> None:
    ended: list[str] = []

    async def scenario() -> None:
        work = AsyncWork()
        work.spawn(answer("quick"))
        work.spawn(answer("hangs", after_s=LIMIT_S, cancelled=ended))
        await asyncio.sleep(0.01)
        await work.close()
        await work.close()

    run_async(scenario)
    assert ended == ["hangs"]


def test_async_work_may_close_its_owner() -> None:
    async def scenario() -> None:
        work = AsyncWork()
        done = asyncio.Event()

        async def close() -> None:
            await work.close()
            done.set()

        work.spawn(close)
        await done.wait()
        await asyncio.sleep(0)

    run_async(scenario)


def test_sync_work_in_the_background_ends_with_its_owner() -> None:
    ended: list[str] = []
    begun = threading.Event()

    def hang() -> None:
        begun.set()
        try:
            wait_cancelled(ended, "hangs")
        except RequestCancelledError:
            ended.append("cancelled")

    work = SyncWork()
    work.spawn(lambda: None)
    work.spawn(hang)
    assert begun.wait(LIMIT_S)
    assert {thread.daemon for thread in threads_called("mooring-background")} == {True}
    work.close()
    work.close()
    assert ended == ["hangs", "cancelled"]
    wait_until(lambda: threads_called("mooring-background") == [])


def test_sync_work_that_can_not_begin_leaves_nothing(
    sync_work: SyncWork, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert not sync_work.spawn(lambda: None)
    assert "work in the background was left: can't start new thread" in caplog.text
    sync_work.close()
    done = threading.Event()
    assert sync_work.spawn(done.set)
    assert done.wait(10)


def test_async_work_is_ended_from_another_loop() -> None:
    work, begun, cancelled = AsyncWork(), threading.Event(), threading.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def use() -> None:
        work.check_place(lambda: None)
        work.spawn(wait)
        await asyncio.to_thread(cancelled.wait, 20)

    thread = threading.Thread(target=lambda: asyncio.run(use()))
    thread.start()
    assert begun.wait(10)
    asyncio.run(work.close())
    assert cancelled.wait(10)
    thread.join()
    # Its loop is closed by now.
    asyncio.run(work.close())


def test_sync_work_may_close_its_owner() -> None:
    work = SyncWork()
    done = threading.Event()

    def close() -> None:
        work.close()
        done.set()

    work.spawn(close)
    assert done.wait(LIMIT_S)
    wait_until(lambda: threads_called("mooring-background") == [])


# --- look-ups


@pytest.fixture(params=["async", "sync"])
def look_up(request: pytest.FixtureRequest) -> Callable[..., list[str]]:
    """The look-up of either kind, called from a plain thread."""

    def ask(host: str, timeout_s: float = LIMIT_S) -> list[str]:
        if request.param == "sync":
            return SyncWork().look_up(host, 8001, timeout_s=timeout_s)
        return list(run_async(lambda: AsyncWork().look_up(host, 8001, timeout_s=timeout_s)))

    return ask


def found(*addresses: str) -> Any:
    """As ``getaddrinfo`` answers, each address twice as with two kinds of sockets."""
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    return [(socket.AF_INET, kind, 0, "", (address, 8001)) for address in addresses for kind in kinds]


def test_a_look_up_gives_each_address_once(look_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def getaddrinfo(host: str, port: int, *args: Any, **options: Any) -> Any:
        asked.append((host, port))
        return found("10.0.0.2", "10.0.0.1")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert look_up("triton") == ["10.0.0.2", "10.0.0.1"]
    assert asked == [("triton", 8001)]


@pytest.mark.parametrize(
    "error",
    [socket.gaierror(-2, "Name or service not known"), UnicodeError("label empty or too long")],
    ids=["unknown", "no name"],
)
def test_a_failed_look_up_says_why(look_up: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def getaddrinfo(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(type(error), match=str(error.args[-1])):
        look_up("triton")


def test_a_name_that_cannot_be_one_is_refused_by_the_system(look_up: Any) -> None:
    with pytest.raises(UnicodeError):
        look_up("a" * 64 + ".example")


def test_a_look_up_that_hangs_ends_with_its_time(look_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # asyncio waits for its threads when the loop ends, so this one must not hang for long.
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: time.sleep(0.3) or [])
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        look_up("triton", 0.05)
    assert time.monotonic() - began_s < LIMIT_S
    wait_until(lambda: threads_called("mooring-look-up") == [])


# --- places


def test_async_work_stays_in_its_loop() -> None:
    work = AsyncWork()

    async def check() -> None:
        work.check_place(lambda: None)
        work.check_place(lambda: None)

    asyncio.run(check())
    with pytest.raises(ConfigError, match="belongs to the event loop of its first call; make one in each"):
        asyncio.run(check())


def test_sync_work_is_at_home_in_every_thread() -> None:
    work = SyncWork()
    moved: list[int] = []
    threads = [threading.Thread(target=lambda: work.check_place(lambda: moved.append(1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert moved == []


def test_sync_work_notices_a_fork_once_and_starts_afresh() -> None:
    work = SyncWork()
    begun = threading.Event()
    release = threading.Event()

    def hold_lock() -> None:
        with work._lock:
            begun.set()
            release.wait(LIMIT_S)

    holder = threading.Thread(target=hold_lock)
    holder.start()
    assert begun.wait(LIMIT_S)
    child = os.fork()
    if child == 0:
        # The lock is held by a thread that the child does not have.
        moved: list[int] = []
        seen: list[int] = []

        waiting = threading.Barrier(4)

        def move() -> None:
            # The others have begun, too, and wait for this one.
            time.sleep(0.05)
            moved.append(1)

        def begin() -> None:
            waiting.wait(LIMIT_S)
            work.check_place(move)
            # Only when it is done.
            seen.append(len(moved))

        callers = [threading.Thread(target=begin) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(LIMIT_S)
        results = list(work.map(str, range(3), concurrency=2, ordered=True))
        raced = work.race(lambda: "a", lambda: "b", after_s=LIMIT_S, may_start=lambda: True)
        right = (moved, seen) == ([1], [1] * 4) and results == ["0", "1", "2"] and raced == ("a", False)
        os._exit(0 if right else 1)
    release.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    work.check_place(lambda: pytest.fail("moved"))
    work.close()


# --- small things


def test_a_pause_of_a_thread_ends_with_its_requests() -> None:
    cancellation = Cancellation()
    timer = threading.Timer(0.05, cancellation.cancel)
    timer.start()
    began_s = time.monotonic()
    with cancelled_by(cancellation):
        for _ in range(2):
            with pytest.raises(RequestCancelledError):
                sync_sleep(LIMIT_S)
    assert time.monotonic() - began_s < LIMIT_S / 2
    timer.join()
    with cancelled_by(Cancellation()):
        sync_sleep(0.01)


def test_values_and_awaitables_are_resolved() -> None:
    deadline = Deadline(LIMIT_S)
    assert run_async(lambda: resolved(lambda: 7, deadline)) == 7
    assert run_async(lambda: resolved(answer(8), deadline)) == 8
    assert sync_resolved(lambda: 9, deadline) == 9


def test_work_apart_does_not_hold_the_loop_up() -> None:
    async def scenario() -> Any:
        release = threading.Event()
        apart = asyncio.ensure_future(run_apart(lambda: release.wait(LIMIT_S)))
        await asyncio.sleep(0.01)
        release.set()
        return await apart

    assert run_async(scenario) is True
    assert sync_run_apart(lambda: 7) == 7
