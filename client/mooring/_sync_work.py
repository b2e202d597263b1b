"""Waiting, background work and races for threads; :mod:`mooring._async_work` has the same for coroutines."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from mooring._batching import BatchSize, batches
from mooring._cancellation import Cancellation, RequestCancelledError, cancelled_by, current_cancellation
from mooring._deadline import Deadline
from mooring._errors import ConfigError
from mooring._log import LOG
from mooring._look_up import look_up

T = TypeVar("T")
R = TypeVar("R")

#: Items that a map holds, finished ones included, as a multiple of those under way.
WINDOW = 4
# Threads are made as they are needed; the bound only keeps a storm of hedges from exhausting the system.
# Nobody waits for one of them: that would be beyond the call's deadline.
_MAX_RACERS = 512
_CLOSE_WAIT_S = 1.0


def sleep(seconds: float) -> None:
    """Pause; ends with the requests of this thread.

    Raises:
        RequestCancelledError: they were cancelled.
    """
    cancellation = current_cancellation()
    if cancellation is None:
        time.sleep(seconds)
    else:
        cancellation.sleep(seconds)


def resolved(source: Callable[[], T], deadline: Deadline) -> T:
    """What a callable gives; the thread that it runs in can't be called off.

    Raises:
        DeadlineExceeded: no time is left for it.
    """
    deadline.left_s()
    return source()


def run_apart(work: Callable[[], T]) -> T:
    """The result of work; a thread that waits for it holds nobody up."""
    return work()


class _Moving:
    """Lets one thread of a forked child begin anew, with a lock that no thread of the parent's holds."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self.lock = threading.Lock()


_MOVING = _Moving()


class _Race(Generic[T]):
    """The attempts of one race, and what ends each."""

    def __init__(
        self, submit: Callable[[Callable[[], T]], Future[T] | None], outer: Cancellation | None
    ) -> None:
        self._submit = submit
        self._outer = outer
        self.runs: list[tuple[Future[T], Cancellation]] = []
        self.ended: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()

    def start(self, attempt: Callable[[], T]) -> bool:
        """Begin another one; returns whether a thread took it."""
        cancellation = Cancellation()

        def run() -> T:
            if cancellation.is_cancelled:
                raise RequestCancelledError("the request was cancelled before it was sent")
            with cancelled_by(cancellation):
                return attempt()

        future = self._submit(run)
        if future is None:
            # The pool may keep it for a later thread all the same.
            cancellation.cancel()
            return False
        self.runs.append((future, cancellation))
        future.add_done_callback(self.ended.put)
        if self._outer is not None and self._outer.is_cancelled:
            # That came before this attempt was in the list.
            cancellation.cancel()
        return True

    def cancel(self) -> None:
        """End all of them."""
        for _, cancellation in list(self.runs):
            cancellation.cancel()


class SyncWork:
    """A client's work beside its callers."""

    def __init__(self) -> None:
        self._begin()
        self._pid = os.getpid()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._background: dict[threading.Thread, Cancellation] = {}
        self._racers: ThreadPoolExecutor | None = None
        self._racing = 0

    def check_place(self, begin_anew: Callable[[], None]) -> None:
        """In a child process that was forked begin anew, once; its threads wait until that is done."""
        if os.getpid() == self._pid:
            return
        with _MOVING.lock:
            if os.getpid() != self._pid:
                # Threads and held locks stayed with the parent.
                self._begin()
                begin_anew()
                self._pid = os.getpid()

    def spawn(self, work: Callable[[], None]) -> bool:
        """Begin work that nobody waits for; its request is ended when the client is closed.

        Returns:
            Whether it was begun: the system may have no thread left.
        """
        cancellation = Cancellation()

        def run() -> None:
            try:
                with cancelled_by(cancellation):
                    work()
            finally:
                with self._lock:
                    self._background.pop(thread, None)

        thread = threading.Thread(target=run, name="mooring-background", daemon=True)
        try:
            # Started within the lock, lest close() finds one that was not.
            with self._lock:
                thread.start()
                self._background[thread] = cancellation
        except RuntimeError as exc:
            LOG.warning("work in the background was left: %s", exc)
            return False
        return True

    def event(self) -> threading.Event:
        """Something that others can wait for."""
        return threading.Event()

    def wait(self, event: threading.Event, *, timeout_s: float) -> None:
        """Wait until the event is set, or the time is over."""
        event.wait(timeout_s)

    def close(self) -> None:
        """End the work that was begun."""
        with self._lock:
            background = dict(self._background)
            racers, self._racers = self._racers, None
        for cancellation in background.values():
            cancellation.cancel()
        for thread in background:
            if thread is not threading.current_thread():
                thread.join(_CLOSE_WAIT_S)
        if racers is not None:
            racers.shutdown(wait=False)

    def look_up(self, host: str, port: int, *, timeout_s: float) -> list[str]:
        """The IP addresses of a host name.

        Raises:
            OSError: there are none, or ``TimeoutError``.
            UnicodeError: that can't be a host name.
        """
        found = look_up(host, port, timeout_s=timeout_s)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    def race(
        self,
        first: Callable[[], T],
        second: Callable[[], T],
        *,
        after_s: float,
        may_start: Callable[[], bool],
    ) -> tuple[T, bool]:
        """Run ``first``, and ``second`` too if the first takes over ``after_s`` and ``may_start`` agrees.

        Where no thread is left for it, the first runs in the caller's, and alone.

        Returns:
            The first result, and whether it is the second's; the other is cancelled.

        Raises:
            Exception: the first's, once neither has a result.
        """
        outer = current_cancellation()
        race: _Race[T] = _Race(self._submit_racer, outer)
        if outer is not None:
            outer.attach(race.cancel)
        try:
            if not race.start(first):
                return first(), False
            try:
                future = race.ended.get(timeout=after_s)
            except queue.Empty:
                if self._racing < _MAX_RACERS and may_start():
                    race.start(second)
                future = race.ended.get()
            for _ in race.runs[1:]:
                if future.exception() is None:
                    break
                future = race.ended.get()
            if future.exception() is None:
                return future.result(), future is not race.runs[0][0]
            return race.runs[0][0].result(), False
        finally:
            race.cancel()
            if outer is not None:
                outer.detach()

    def _submit_racer(self, run: Callable[[], T]) -> Future[T] | None:
        """Let a thread run it at once; ``None`` where there is none for it."""
        with self._lock:
            if self._racing >= _MAX_RACERS:
                return None
            if self._racers is None:
                self._racers = ThreadPoolExecutor(_MAX_RACERS, thread_name_prefix="mooring-racer")
            pool = self._racers
            self._racing += 1
        try:
            future = pool.submit(run)
        except RuntimeError as exc:
            self._end_racer()
            if pool is not self._racers:
                raise ConfigError("the client was closed while a call began") from exc
            return None  # the system has no thread left
        future.add_done_callback(self._end_racer)
        return future

    def _end_racer(self, _: object = None) -> None:
        with self._lock:
            self._racing -= 1

    def map(
        self, work: Callable[[T], R], items: Iterable[T], *, concurrency: int, ordered: bool
    ) -> Generator[R, None, None]:
        """Do the work for each item, at most ``concurrency`` at a time, in threads of its own.

        The next item is taken, in the caller's thread, when there is room for it, so neither items nor
        results pile up: at most ``WINDOW * concurrency`` of both are held.
        """
        source = iter(items)
        finished: queue.SimpleQueue[Future[R]] = queue.SimpleQueue()
        cancellations = [Cancellation() for _ in range(concurrency)]
        idle: queue.SimpleQueue[Cancellation] = queue.SimpleQueue()
        for cancellation in cancellations:
            idle.put(cancellation)
        started: deque[Future[R]] = deque()
        unclaimed: deque[Future[R]] = deque()
        running = 0
        exhausted = False

        def run(item: T) -> R:
            cancellation = idle.get()
            try:
                with cancelled_by(cancellation):
                    return work(item)
            finally:
                idle.put(cancellation)

        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="mooring-map")
        try:
            while True:
                while not finished.empty():
                    unclaimed.append(finished.get())
                    running -= 1
                while not exhausted and running < concurrency and len(started) < WINDOW * concurrency:
                    try:
                        item = next(source)
                    except StopIteration:
                        exhausted = True
                        break
                    future = pool.submit(run, item)
                    started.append(future)
                    running += 1
                    future.add_done_callback(finished.put)
                if ordered and started and started[0].done():
                    unclaimed.clear()
                    yield started.popleft().result()
                elif not ordered and unclaimed:
                    future = unclaimed.popleft()
                    started.remove(future)
                    yield future.result()
                elif exhausted and not started:
                    return
                else:
                    unclaimed.append(finished.get())
                    running -= 1
        finally:
            for cancellation in cancellations:
                cancellation.cancel()
            pool.shutdown(wait=True, cancel_futures=True)

    @staticmethod
    def number(items: Iterable[T]) -> Generator[tuple[int, T], None, None]:
        """The items with their places, from 0."""
        yield from enumerate(items)

    @staticmethod
    def batches(items: Iterable[T], size: BatchSize) -> Generator[list[tuple[int, T]], None, None]:
        """As :func:`mooring._batching.batches`."""
        return batches(items, size)
