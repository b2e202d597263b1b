"""One HTTP/1.1 connection: a socket that never blocks, and the parser of what comes over it.

An operation is tried, and only if the kernel is not ready is it waited for with ``poll``, which takes
what is left of the deadline: fewer system calls than a socket's own timeouts make.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from mooring._wires._tls import refuses_certificate

if TYPE_CHECKING:
    from mooring._cancellation import Cancellation

T = TypeVar("T")
R = TypeVar("R")

#: Bytes of a response in a row that may be something else than its body.
_MAX_HEADER_BYTES = 65_536
#: More, and malloc maps fresh pages for each receive, which costs more than the calls it saves.
_RECEIVE_BYTES = 65_536
#: Buffers that one sendmsg takes.
_IOV_MAX = os.sysconf("SC_IOV_MAX")
_SWITCHING_PROTOCOLS = 101
#: The first status that says no.
_MULTIPLE_CHOICES = 300


class HttpGarbage(HttpParserError):  # type: ignore[misc]  # mypy does not follow httptools
    """What came is no HTTP response, or one in an encoding that can't be undone."""


class HttpConnection:
    """A socket and the parser of what comes over it, which calls the ``on_`` methods."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        #: Pieces of the body, cleared by whoever takes them.
        self.chunks: list[bytes] = []
        self.on_body = self.chunks.append
        self._parser = HttpResponseParser(self)

    def begin(self, ends_at_s: float, abort: Abort | None) -> None:
        """Make ready for a request."""
        self._ends_at_s = ends_at_s
        self._abort = abort
        self._half_sent = False
        self._header_bytes = 0
        self.headers: dict[str, str] = {}
        #: 0 until the headers are complete.
        self.status = 0
        self.complete = False
        #: Set with ``complete``.
        self.reusable = False
        if abort is not None:
            abort.watch(self.sock)

    def end(self) -> None:
        """Let go of what belongs to the request."""
        self.chunks.clear()
        if self._abort is not None:
            self._abort.end()
            self._abort = None

    def close(self) -> None:
        self.end()
        self.sock.close()

    def shut_down(self) -> None:
        """End the request under way; may be called from any thread until :meth:`close`."""
        _shut_down(self.sock)

    def is_quiet(self) -> bool:
        """Whether the idle connection is still open with nothing to read."""
        try:
            # Not peeking: this takes the session tickets that TLS sends after its handshake.
            self.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def send(self, buffers: list[bytes | memoryview], size: int) -> None:
        try:
            if self._tls:
                rest = memoryview(b"".join(buffers))
                while rest and not self._half_sent:
                    rest = rest[self._send_some([rest]) :]
                return
            sent = self._send_some(buffers[:_IOV_MAX])
            if sent < size:
                self._send_rest(deque(buffers), sent)
        except TimeoutError:
            raise
        except OSError as exc:
            if refuses_certificate(exc):
                raise
            # A server may refuse a request before it has read all of it, and its answer says why.
            # Where there is none, receive() raises.
            self._half_sent = True

    def _send_rest(self, buffers: deque[bytes | memoryview], sent: int) -> None:
        while not self._half_sent:
            while buffers and sent >= len(buffers[0]):
                sent -= len(buffers.popleft())
            if not buffers:
                return
            buffers[0] = memoryview(buffers[0])[sent:]
            sent = self._send_some(list(islice(buffers, _IOV_MAX)))

    def _send_some(self, buffers: list[bytes | memoryview]) -> int:
        """Bytes that the kernel took, over TLS of the first buffer; 0 where nothing more needs to be sent."""
        while True:
            try:
                return self.sock.send(buffers[0]) if self._tls else self.sock.sendmsg(buffers)
            except (BlockingIOError, ssl.SSLWantWriteError):
                events = select.POLLIN | select.POLLOUT
            except ssl.SSLWantReadError:
                events = select.POLLIN
            if _wait(self.sock, events, self._ends_at_s) & ~select.POLLOUT and self._is_refused():
                self._half_sent, self.reusable = True, False
                return 0

    def _is_refused(self) -> bool:
        """Whether the server has said no already, or all that it wants to; takes what has come."""
        try:
            data = self.sock.recv(_RECEIVE_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False  # such as the session tickets of TLS
        self._take(data)
        return self.complete or self.status >= _MULTIPLE_CHOICES

    def receive(self) -> None:
        """Wait for the next bytes of the response and parse them."""
        try:
            if self._tls:
                # Its bytes may have left the kernel already: they are tried for before they are waited for.
                seconds_left(self._ends_at_s)
            else:
                _wait(self.sock, select.POLLIN, self._ends_at_s)
            data = when_ready(self.sock, self.sock.recv, _RECEIVE_BYTES, select.POLLIN, self._ends_at_s)
        except (TimeoutError, ConnectionError):
            raise
        except OSError as exc:
            if refuses_certificate(exc):
                raise
            # Whatever TLS or the network say from here on: the request may have arrived.
            raise ConnectionResetError(str(exc)) from exc
        self._take(data)

    def _take(self, data: bytes) -> None:
        if not data:
            self._take_end()
            return
        taken = len(self.chunks)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as exc:
            if not self.complete:
                raise HttpGarbage(f"no HTTP response: {exc}") from exc
            self.reusable = False  # it goes on after the response's end
        if not self.complete:
            self._header_bytes = 0 if len(self.chunks) > taken else self._header_bytes + len(data)
            if self._header_bytes > _MAX_HEADER_BYTES:
                raise HttpGarbage(f"no HTTP response: headers of more than {_MAX_HEADER_BYTES} bytes")

    def on_message_begin(self) -> None:
        if self.complete:
            raise HttpGarbage("nothing was asked")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:
            return  # a trailer
        key = name.decode("latin-1").lower()
        said = value.decode("latin-1")
        self.headers[key] = f"{self.headers[key]}, {said}" if key in self.headers else said

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 or status == _SWITCHING_PROTOCOLS:
            self.status = status
        else:
            self.headers = {}

    def on_message_complete(self) -> None:
        if self.status:  # else an interim response, before the one that counts
            self.complete = True
            self.reusable = self._parser.should_keep_alive() and not self._half_sent

    def _take_end(self) -> None:
        if not self.status:
            raise ConnectionError("the server closed the connection without an answer")
        encoding = self.headers.get("transfer-encoding", "").lower()
        if "content-length" in self.headers or encoding.endswith("chunked"):
            raise ConnectionError("the server closed the connection in the middle of its answer")
        self.complete = True


class Abort:
    """Shuts down the socket of a request; may be called from any thread until :meth:`end` returns."""

    def __init__(self, cancellation: Cancellation) -> None:
        self._sock: socket.socket | None = None
        self._called = False
        self._cancellation = cancellation
        cancellation.attach(self)

    def __call__(self) -> None:
        self._called = True
        if self._sock is not None:
            _shut_down(self._sock)

    def watch(self, sock: socket.socket) -> None:
        """Name the socket that the request uses from now on.

        Raises:
            ConnectionAbortedError: called already.
        """
        self._sock = sock
        # In this order, and __call__ in the other: whichever thread is first, the other one notices.
        if self._called:
            raise ConnectionAbortedError("the request was cancelled")

    def end(self) -> None:
        self._cancellation.detach()


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # not connected, or closed
        # Not SSLSocket's, which would have the reading thread take ciphertext for the answer.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def seconds_left(ends_at_s: float) -> float:
    left_s = ends_at_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s


def _wait(sock: socket.socket, events: int, ends_at_s: float) -> int:
    """Wait for one of these events; returns those that came."""
    # One that is kept with the connection would, under gevent, belong to the thread that made it.
    poll = select.poll()
    poll.register(sock, events)
    ready = poll.poll(seconds_left(ends_at_s) * 1000)
    if not ready:
        raise TimeoutError("timed out")
    return ready[0][1]


def when_ready(
    sock: socket.socket, operation: Callable[[T], R], argument: T, blocked_on: int, ends_at_s: float
) -> R:
    """Call ``operation`` until it need not wait any more."""
    while True:
        try:
            return operation(argument)
        except ssl.SSLWantReadError:
            events = select.POLLIN
        except ssl.SSLWantWriteError:
            events = select.POLLOUT
        except BlockingIOError:
            events = blocked_on
        _wait(sock, events, ends_at_s)
