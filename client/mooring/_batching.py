"""How many items a map puts into one request: measured while it runs."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")

#: Requests of one size in a row, and how many of them pass before the others are timed: those are under way
#: together with requests of another size.
_TURN = 24
_SKIPPED = 8
#: A larger size must bring this many times the items per second; less is not worth its larger requests.
_WORTHWHILE = 1.1
#: Two rates over so many items that they differ by more than this are taken at once for what they seem.
_CERTAINTY = 1.5
#: Timed items of each of two sizes after which they are judged, however close they are.
_ENOUGH_ITEMS = 512


class BatchSize:
    """Tries 1, 2, 4 … items a request as long as more items come back per second, then stays with the best.

    Whether batching pays is the model's matter: it saves requests, but the texts of one are padded to
    the longest. So it is measured on the items themselves, thread-safe. Items are of any length and machines
    have moods, so the best size so far and the next larger one take turns until the difference is clear.

    Args:
        limit: the model's ``max_batch_size``.
        fixed: a size that the caller chose; nothing is tried then.
    """

    def __init__(self, limit: int, fixed: int | None = None) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._size = min(fixed or 1, limit)
        self._settled = fixed is not None or limit == 1
        self._best = _Rate(self._size)
        self._larger = _Rate(min(2 * self._size, limit))
        self._count = 0
        self._began_s = 0.0

    @property
    def current(self) -> int:
        """Items that the next request should hold."""
        return self._size

    def note(self, items: int) -> None:
        """A request with so many items was answered."""
        if self._settled:
            return
        with self._lock:
            if self._settled or items != self._size:
                return
            self._count += 1
            if self._count == _SKIPPED:
                self._began_s = time.perf_counter()
            elif self._count == _TURN:
                self._count = 0
                self._end_turn((_TURN - _SKIPPED) * items, time.perf_counter() - self._began_s)

    def _end_turn(self, items: int, seconds: float) -> None:
        best, larger = self._best, self._larger
        if self._size == best.size:
            best.add(items, seconds)
            self._size = larger.size
            return
        larger.add(items, seconds)
        gain = math.log(larger.per_s / best.per_s / _WORTHWHILE)
        if min(best.items, larger.items) < _ENOUGH_ITEMS and abs(gain) < _doubt(best.items, larger.items):
            self._size = best.size
        elif gain > 0 and larger.size < self._limit:
            self._best, self._larger = larger, _Rate(min(2 * larger.size, self._limit))
            self._size = self._larger.size
        else:
            self._settled, self._size = True, larger.size if gain > 0 else best.size


def batches(items: Iterable[T], size: BatchSize) -> Generator[list[tuple[int, T]], None, None]:
    """Numbered items in lists of the size that counts when each is full."""
    batch: list[tuple[int, T]] = []
    for pair in enumerate(items):
        batch.append(pair)
        if len(batch) >= size.current:
            yield batch
            batch = []
    if batch:
        yield batch


class _Rate:
    """Items of one size and the time that they took."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.items = 0
        self._seconds = 0.0

    def add(self, items: int, seconds: float) -> None:
        self.items += items
        self._seconds += seconds

    @property
    def per_s(self) -> float:
        # A clock that stood still says nothing, but must not divide by 0.
        return self.items / max(self._seconds, 1e-9)


def _doubt(items: int, others: int) -> float:
    """How far apart the logarithms of two rates over so many items may lie by chance.

    The time of an item is taken to vary as much as it lasts (texts of two to seventy words do), so that the
    mean over ``n`` of them varies by ``1 / sqrt(n)`` of it.
    """
    return _CERTAINTY * math.sqrt(1 / items + 1 / others)
