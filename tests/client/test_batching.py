"""The size of a map's requests, on a clock that the test writes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring import _batching
from mooring._async_work import AsyncWork
from mooring._batching import BatchSize
from mooring._sync_work import SyncWork


class Clock:
    """Stands in for the ``time`` module; goes on only when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_batching, "time", clock)
    return clock


def run(size: BatchSize, clock: Clock, seconds_of: Callable[[int], float], *, requests: int) -> list[int]:
    """Answer so many requests one after the other; returns the sizes in the order of their first request."""
    seen: list[int] = []
    for _ in range(requests):
        items = size.current
        if items not in seen:
            seen.append(items)
        clock.now_s += seconds_of(items)
        size.note(items)
    return seen


def test_it_begins_with_single_items(clock: Clock) -> None:
    assert BatchSize(64).current == 1


def test_it_grows_as_long_as_that_pays(clock: Clock) -> None:
    size = BatchSize(32)
    # Overhead of 1 s a request: each doubling pays.
    seen = run(size, clock, lambda items: 1 + 0.001 * items, requests=2000)
    assert seen == [1, 2, 4, 8, 16, 32]
    assert size.current == 32


def test_it_stays_with_one_where_batches_bring_nothing(clock: Clock) -> None:
    size = BatchSize(32)
    seen = run(size, clock, lambda items: float(items), requests=4000)
    assert seen == [1, 2]
    assert size.current == 1


def test_it_settles_soon_where_batches_are_clearly_worse(clock: Clock) -> None:
    size = BatchSize(32)
    run(size, clock, lambda items: 10.0 * items if items > 1 else 1.0, requests=100)
    assert size.current == 1
    run(size, clock, lambda items: 0.0001, requests=1000)
    assert size.current == 1, "what is settled is not asked again"


def test_it_stops_at_the_size_from_which_on_nothing_is_gained(clock: Clock) -> None:
    size = BatchSize(64)
    # Requests of up to 8 items take as long as one; beyond that each item costs its share.
    seen = run(size, clock, lambda items: max(1.0, items / 8), requests=4000)
    assert seen == [1, 2, 4, 8, 16]
    assert size.current == 8


@pytest.mark.parametrize(("gain", "settled"), [(1.05, 1), (1.25, 2)])
def test_a_small_gain_is_not_worth_larger_requests(clock: Clock, gain: float, settled: int) -> None:
    size = BatchSize(2)
    run(size, clock, lambda items: 1.0 if items == 1 else 2 / gain, requests=4000)
    assert size.current == settled


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (6, [1, 2, 4, 6])])
def test_it_never_exceeds_the_limit(clock: Clock, limit: int, sizes: list[int]) -> None:
    size = BatchSize(limit)
    assert run(size, clock, lambda items: 1.0, requests=1000) == sizes
    assert size.current == limit


@pytest.mark.parametrize(("limit", "fixed", "expected"), [(8, 3, 3), (8, 8, 8), (4, 100, 4), (1, 5, 1)])
def test_a_chosen_size_stays_within_the_limit(clock: Clock, limit: int, fixed: int, expected: int) -> None:
    size = BatchSize(limit, fixed)
    assert run(size, clock, lambda items: 1 / items, requests=500) == [expected]


def test_requests_of_another_size_do_not_move_it(clock: Clock) -> None:
    size = BatchSize(32)
    for _ in range(1000):
        clock.now_s += 1.0
        size.note(7)
    assert size.current == 1
    # Partial batches between full ones are not counted either.
    for _ in range(24):
        assert size.current == 1
        clock.now_s += 1.0
        size.note(3)
        size.note(1)
    assert size.current == 2


def test_a_clock_that_stands_still_divides_by_nothing(clock: Clock) -> None:
    size = BatchSize(8)
    run(size, clock, lambda items: 0.0, requests=2000)
    assert 1 <= size.current <= 8


def test_threads_may_note_at_once() -> None:
    size = BatchSize(16)

    def work() -> None:
        for _ in range(2000):
            size.note(size.current)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert size._settled
    assert 1 <= size.current <= 16


@given(limit=st.integers(1, 100), seconds=st.lists(st.floats(1e-6, 10), min_size=1, max_size=50))
def test_whatever_the_times_it_keeps_to_the_limit_and_settles(limit: int, seconds: list[float]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_batching, "time", clock)
        size = BatchSize(limit)
        for request in range(3000):
            assert 1 <= size.current <= limit
            clock.now_s += seconds[request % len(seconds)]
            size.note(size.current)
        settled = size.current
        for _ in range(100):
            clock.now_s += 1.0
            size.note(size.current)
    # 512 items of each size end every doubt, the first pair's after 1536 requests, all within 2400.
    assert size.current == settled


# --- lists of that size


@pytest.mark.parametrize(("fixed", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (50, [7])])
def test_items_are_numbered_and_put_together(fixed: int, sizes: list[int]) -> None:
    async def letters() -> AsyncGenerator[str, None]:
        for letter in "abcdefg":
            yield letter

    async def collect() -> list[list[tuple[int, str]]]:
        return [batch async for batch in AsyncWork.batches(letters(), BatchSize(64, fixed))]

    batches = list(SyncWork.batches("abcdefg", BatchSize(64, fixed)))
    assert [len(batch) for batch in batches] == sizes
    assert [pair for batch in batches for pair in batch] == list(enumerate("abcdefg"))
    assert list(AsyncWork.batches("abcdefg", BatchSize(64, fixed))) == batches
    assert asyncio.run(collect()) == batches


def test_an_item_is_not_held_back_for_one_that_has_not_come() -> None:
    async def ask_one_by_one() -> list[list[int]]:
        answered = asyncio.Event()
        found: list[list[int]] = []

        async def lines() -> AsyncGenerator[str, None]:
            for line in "abc":
                answered.clear()
                yield line
                # Like a program that writes a line and waits for its answer.
                await answered.wait()
            yield "d"
            yield "e"

        async for batch in AsyncWork.batches(lines(), BatchSize(64, 8)):
            found.append([index for index, _ in batch])
            answered.set()
        return found

    # What comes at once still goes together.
    assert asyncio.run(asyncio.wait_for(ask_one_by_one(), 30.0)) == [[0], [1], [2], [3, 4]]


def test_a_source_that_fails_while_an_item_is_waited_for_is_heard() -> None:
    async def failing() -> AsyncGenerator[int, None]:
        yield 0
        await asyncio.sleep(0.05)
        raise OSError("the pipe is gone")

    async def collect() -> list[list[tuple[int, int]]]:
        batches = AsyncWork.batches(failing(), BatchSize(64, 8))
        found = [await anext(batches)]
        with pytest.raises(OSError, match="the pipe is gone"):
            await anext(batches)
        return found

    assert asyncio.run(asyncio.wait_for(collect(), 30.0)) == [[(0, 0)]]


def test_leaving_early_while_an_item_is_waited_for_closes_the_source() -> None:
    closed: list[bool] = []

    async def endless() -> AsyncGenerator[int, None]:
        try:
            yield 0
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async def take_one() -> None:
        async with aclosing(AsyncWork.batches(endless(), BatchSize(64, 8))) as found:
            assert await anext(found) == [(0, 0)]

    asyncio.run(asyncio.wait_for(take_one(), 30.0))
    assert closed == [True]


def test_the_size_counts_that_is_there_when_a_list_is_full() -> None:
    size = BatchSize(64, 2)
    batches = SyncWork.batches(range(9), size)
    assert [index for index, _ in next(batches)] == [0, 1]
    size._size = 4
    assert [index for index, _ in next(batches)] == [2, 3, 4, 5]


def test_leaving_early_closes_the_source_and_reads_no_further() -> None:
    read: list[int] = []
    closed: list[bool] = []

    def source() -> Iterator[int]:
        for n in range(100):
            read.append(n)
            yield n

    async def async_source() -> AsyncIterator[int]:
        try:
            for n in range(100):
                read.append(n)
                yield n
        finally:
            closed.append(True)

    async def leave() -> None:
        batches = AsyncWork.batches(async_source(), BatchSize(64, 3))
        await anext(batches)
        await batches.aclose()
        assert closed == [True]

    asyncio.run(leave())
    batches = SyncWork.batches(source(), BatchSize(64, 3))
    next(batches)
    batches.close()
    assert read == [0, 1, 2] * 2
