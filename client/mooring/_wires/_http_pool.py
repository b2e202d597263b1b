"""Keep-alive HTTP/1.1 connections over which a request's deadline holds to the byte.

Why not tritonclient's own wire: the sockets of its geventhttpclient belong to the thread that made
them (another thread gets ``greenlet.error: Cannot switch to a different thread``, with a lock too),
and its timeouts, like those of every pool on plain socket timeouts, begin anew with each byte
received. Why not ``http.client``: it reads headers with ``email``, a fifth of a small request's time.
"""

from __future__ import annotations

import os
import re
import select
import socket
import ssl
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mooring._look_up import look_up
from mooring._url import is_address
from mooring._wires._http_codec import HttpAnswer
from mooring._wires._http_connection import Abort, HttpConnection, HttpGarbage, seconds_left, when_ready
from mooring._wires._tls import closed_in_handshake

if TYPE_CHECKING:
    from mooring._cancellation import Cancellation

__all__ = ["HttpAnswer", "HttpBody", "HttpGarbage", "HttpPool"]

#: Idle connections kept per endpoint; beyond it a connection is closed when its request ends.
_MAX_IDLE = 64
_SET_BY_POOL = frozenset(("content-length", "host", "transfer-encoding"))
#: Characters of a header's name, RFC 9110, 5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_DEFLATED = frozenset(("deflate", "gzip", "x-gzip"))
#: What tells zlib to see from the first bytes which of the two it is.
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


class HttpPool:
    """Connections to one address; a thread has one for itself while its request runs.

    Args:
        host: name or address of the server, IPv6 without brackets; TLS verifies it.
        port: its TCP port.
        connect_to: address to connect to, in place of looking ``host`` up.
        tls: speak TLS, with this context.

    Raises:
        UnicodeError: ``host`` can't be a domain name.
    """

    def __init__(
        self, host: str, port: int, *, connect_to: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._host = host
        self._port = port
        self._connect_to = connect_to or (host if is_address(host) else None)
        self._tls = tls
        name = f"[{host}]" if ":" in host else host if host.isascii() else host.encode("idna").decode()
        at_port = "" if port == (80 if tls is None else 443) else f":{port}"
        self._host_line = f" HTTP/1.1\r\nHost: {name}{at_port}\r\n"
        self._lock = threading.Lock()
        self._idle: list[HttpConnection] = []
        self._busy: set[HttpConnection] = set()
        #: Whether :meth:`close` was called.
        self.closed = False

    def exchange(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: Sequence[bytes | memoryview] = (),
        timeout_s: float,
        cancellation: Cancellation | None = None,
    ) -> HttpAnswer:
        """Send one request and read the whole response; nothing is sent twice.

        Args:
            method: any but HEAD and CONNECT, the responses to which end in other ways.
            path: percent-encoded, from the root.
            headers: sent as they are, in addition to Host and Content-Length.
            body: contiguous buffers, sent one after the other without being joined (but for TLS).
            timeout_s: for everything from connecting to the last byte.
            cancellation: may end the request from another thread.

        Raises:
            ValueError: a method, path or header that can't be sent, such as one with a line break.
            OSError: no connection (``ssl.SSLError`` among it), ``ConnectionError`` where it was lost,
                ended before the response did or was closed by :meth:`close`, or ``TimeoutError`` once
                ``timeout_s`` is over.
            HttpGarbage: what came is no HTTP response.
        """
        connection = self._send(method, path, headers, body, timeout_s, cancellation)
        try:
            while not connection.complete:
                connection.receive()
        except BaseException:
            self._drop(connection)
            raise
        chunks = connection.chunks
        content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        answer = HttpAnswer(connection.status, connection.headers, content)
        self._put_back(connection)
        inflater = _inflater(answer.headers)
        if inflater is not None and content:
            answer = answer._replace(body=inflater.feed(content))
            inflater.finish()
        return answer

    def stream(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: Sequence[bytes | memoryview] = (),
        timeout_s: float,
    ) -> tuple[int, Mapping[str, str], HttpBody]:
        """Send one request and read the response's head; its body comes piece by piece.

        ``timeout_s`` holds until the body's end. Arguments and errors are those of :meth:`exchange`; what
        goes wrong within the body is raised while it is read.

        Returns:
            The status, the headers with their names in lower case, and the body, which must be read
            to its end or closed.
        """
        connection = self._send(method, path, headers, body, timeout_s, None)
        try:
            while not connection.status:
                connection.receive()
        except BaseException:
            self._drop(connection)
            raise
        return connection.status, connection.headers, HttpBody(connection, self._put_back, self._drop)

    def close(self) -> None:
        """Close the idle connections, and end the requests under way, whose threads close the others."""
        with self._lock:
            self.closed = True
            idle, self._idle = self._idle, []
            for connection in self._busy:
                connection.shut_down()
        for connection in idle:
            connection.close()

    def abandon(self) -> None:
        """In a forked child: leave the idle connections to the parent, without a byte sent over them."""
        # Another thread of the parent may have held the lock when the process forked.
        self._lock = threading.Lock()
        inherited = [*self._idle, *self._busy]
        self._idle, self._busy = [], set()
        for connection in inherited:
            os.close(connection.sock.detach())

    def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Sequence[bytes | memoryview],
        timeout_s: float,
        cancellation: Cancellation | None,
    ) -> HttpConnection:
        ends_at_s = time.monotonic() + timeout_s
        buffers, size = self._write(method, path, headers, body)
        abort = None if cancellation is None else Abort(cancellation)
        try:
            connection = self._take_idle() or self._open(ends_at_s, abort)
        except BaseException:
            if abort is not None:
                abort.end()
            raise
        try:
            connection.begin(ends_at_s, abort)
            connection.send(buffers, size)
        except BaseException:
            self._drop(connection)
            raise
        return connection

    def _write(
        self, method: str, path: str, headers: Mapping[str, str], body: Sequence[bytes | memoryview]
    ) -> tuple[list[bytes | memoryview], int]:
        """The request's buffers, and the number of their bytes."""
        head = f"{method} {path}{self._host_line}"
        lines = 3
        for name, value in headers.items():
            _check_name(name)
            head += f"{name}: {value}\r\n"
            lines += 1
        buffers: list[bytes | memoryview] = [b""]
        size = 0
        for part in body:
            if type(part) is bytes:
                size += len(part)
            elif memoryview(part).nbytes:  # those without bytes can't be cast
                part = memoryview(part).cast("B")
                size += len(part)
            else:
                continue
            buffers.append(part)
        if size or method != "GET":
            head += f"Content-Length: {size}\r\n"
            lines += 1
        head += "\r\n"
        # A line break more than was written here would begin a header or a request of its own.
        if head.count("\r") != lines or head.count("\n") != lines or " " in method or " " in path:
            raise ValueError(f"{method!r} {path!r} with {dict(headers)!r} can't be written as one request")
        buffers[0] = encoded = head.encode("latin-1")
        return buffers, size + len(encoded)

    def _take_idle(self) -> HttpConnection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
                self._busy.add(connection)
            if connection.is_quiet():
                return connection
            self._drop(connection)

    def _put_back(self, connection: HttpConnection) -> None:
        connection.end()
        with self._lock:
            self._busy.discard(connection)
            if connection.reusable and not self.closed and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _drop(self, connection: HttpConnection) -> None:
        # First of all, lest close() reach for a descriptor that is another socket's by then.
        with self._lock:
            self._busy.discard(connection)
        connection.close()

    def _open(self, ends_at_s: float, abort: Abort | None) -> HttpConnection:
        connection = self._connect(ends_at_s, abort)
        with self._lock:
            if not self.closed:
                self._busy.add(connection)
                return connection
        connection.sock.close()
        raise ConnectionAbortedError("closed meanwhile")

    def _connect(self, ends_at_s: float, abort: Abort | None) -> HttpConnection:
        targets = self._targets(ends_at_s)
        failure: OSError | None = None
        for number, (family, address) in enumerate(targets):
            # An address that swallows packets leaves time for those after it.
            share_s = seconds_left(ends_at_s) / (len(targets) - number)
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                if abort is not None:
                    abort.watch(sock)
                sock.settimeout(share_s)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as exc:
                sock.close()
                failure = exc
            except BaseException:
                sock.close()
                raise
            else:
                return self._secure(sock, ends_at_s, abort)
        raise failure or OSError(f"{self._host} has no address")

    def _secure(self, sock: socket.socket, ends_at_s: float, abort: Abort | None) -> HttpConnection:
        sock.setblocking(False)
        if self._tls is None:
            return HttpConnection(sock)
        try:
            # From here on the descriptor is the new socket's.
            sock = self._tls.wrap_socket(sock, server_hostname=self._host, do_handshake_on_connect=False)
            if abort is not None:
                abort.watch(sock)
            when_ready(sock, sock.do_handshake, False, select.POLLIN, ends_at_s)
        except ConnectionError as exc:
            sock.close()
            raise closed_in_handshake(exc) from exc
        except BaseException:
            sock.close()
            raise
        return HttpConnection(sock)

    def _targets(self, ends_at_s: float) -> list[tuple[int, Any]]:
        if self._connect_to is not None:
            family = socket.AF_INET6 if ":" in self._connect_to else socket.AF_INET
            return [(family, (self._connect_to, self._port))]
        found = look_up(self._host, self._port, timeout_s=seconds_left(ends_at_s))
        return [(family, address) for family, _, _, _, address in found]


class HttpBody(Iterator[bytes]):
    """The body of a response as it arrives; raises what :meth:`HttpPool.exchange` does.

    Its end gives the connection back to the pool; :meth:`close` before it closes the connection.
    """

    def __init__(
        self,
        connection: HttpConnection,
        put_back: Callable[[HttpConnection], None],
        drop: Callable[[HttpConnection], None],
    ) -> None:
        self._connection: HttpConnection | None = connection
        self._put_back = put_back
        self._drop = drop
        self._inflater = _inflater(connection.headers)
        self._pieces: deque[bytes] = deque()
        self._collect(connection)

    def __next__(self) -> bytes:
        try:
            while True:
                while self._pieces:
                    piece = self._pieces.popleft()
                    if self._inflater is not None:
                        piece = self._inflater.feed(piece)
                    if piece:
                        return piece
                if self._connection is None:
                    break
                self._connection.receive()
                self._collect(self._connection)
            if self._inflater is not None:
                self._inflater.finish()
        except BaseException:
            self.close()
            raise
        raise StopIteration

    def close(self) -> None:
        """End the request where its body has not ended by itself; may be called again."""
        self._pieces.clear()
        self._inflater = None
        connection, self._connection = self._connection, None
        if connection is not None:
            self._drop(connection)

    def _collect(self, connection: HttpConnection) -> None:
        self._pieces.extend(connection.chunks)
        connection.chunks.clear()
        if connection.complete:
            self._connection = None
            self._put_back(connection)


class _Inflater:
    """Undoes gzip and deflate."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        self._begun = True
        try:
            content = self._stream.decompress(data)
            while self._stream.unused_data:  # gzip may have several members
                data = self._stream.unused_data
                self._stream = zlib.decompressobj(_GZIP_OR_ZLIB)
                content += self._stream.decompress(data)
        except zlib.error as exc:
            raise HttpGarbage(f"the body can't be decompressed: {exc}") from exc
        return content

    def finish(self) -> None:
        if self._begun and not self._stream.eof:
            raise HttpGarbage("the body can't be decompressed: it ends too early")


def _inflater(headers: Mapping[str, str]) -> _Inflater | None:
    return _Inflater() if headers.get("content-encoding", "").lower() in _DEFLATED else None


@lru_cache(maxsize=256)
def _check_name(name: str) -> None:
    if not _TOKEN.fullmatch(name) or name.lower() in _SET_BY_POOL:
        raise ValueError(f"{name!r} can't be set as a header")
