"""Giving up a request that another thread waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mooring._errors import TransportError


class RequestCancelledError(TransportError):
    """The caller gave its own request up; says nothing of the server, and no user ever sees it."""


class Cancellation:
    """Ends the requests of one thread from another one; a transport attaches what ends its request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._abort: Callable[[], None] | None = None
        self._cancelled = False

    @property
    def is_cancelled(self) -> bool:
        """Whether the thread's requests are to end."""
        return self._cancelled

    def cancel(self) -> None:
        """End the request under way and refuse further ones; may be called again."""
        with self._lock:
            self._cancelled = True
            if self._abort is not None:
                self._abort()

    def attach(self, abort: Callable[[], None]) -> None:
        """Take what ends the request that begins now; it may be called from any thread.

        Raises:
            RequestCancelledError: cancelled already.
        """
        with self._lock:
            if self._cancelled:
                raise RequestCancelledError("the request was cancelled before it was sent")
            self._abort = abort

    def detach(self) -> None:
        """The request has ended."""
        with self._lock:
            self._abort = None

    def sleep(self, seconds: float) -> None:
        """Pause between requests.

        Raises:
            RequestCancelledError: cancelled before or meanwhile.
        """
        ended = threading.Event()
        self.attach(ended.set)
        try:
            cancelled = ended.wait(seconds)
        finally:
            self.detach()
        if cancelled:
            raise RequestCancelledError("the request was cancelled in a pause")


_of_thread = threading.local()


def current_cancellation() -> Cancellation | None:
    """What may end the requests of this thread; ``None`` in threads that nobody cancels."""
    return getattr(_of_thread, "cancellation", None)


@contextmanager
def cancelled_by(cancellation: Cancellation) -> Iterator[None]:
    """Within the block, requests of this thread can be ended through ``cancellation``."""
    _of_thread.cancellation = cancellation
    try:
        yield
    finally:
        _of_thread.cancellation = None
