"""Keep-alive HTTP/1.1 connections over which a call's deadline holds to the byte.

Why not tritonclient's own wire: the sockets of its geventhttpclient belong to the thread that made
them (another thread gets ``greenlet.error: Cannot switch to a different thread``, with a lock too),
and a client per thread leaves that thread's gevent hub and two file descriptors behind when the
thread ends. Its timeouts, like those of every pool on plain socket timeouts, begin anew with each
byte received. ``http.client`` has none of this, and it works under gevent's patches as well.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: Idle connections kept per endpoint; beyond it a connection is closed when its request ends.
_MAX_IDLE = 64


@dataclass(frozen=True)
class HttpAnswer:
    """A complete HTTP response."""

    status: int
    #: Names in lower case.
    headers: Mapping[str, str]
    body: bytes


class HttpPool:
    """Connections to one address; a thread has one for itself while its request runs."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._closed = False

    def exchange(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> HttpAnswer:
        """Send one request and read the whole response; nothing is sent twice.

        Raises:
            OSError: no connection, lost connection, or ``TimeoutError`` once ``timeout_s`` is over
                (a name look-up can take longer: the system's resolver takes no deadline).
            http.client.HTTPException: what came is no HTTP response, or only a part of one.
        """
        ends_at_s = time.monotonic() + timeout_s
        connection = self._take_idle() or self._connect(ends_at_s)
        try:
            connection.sock.ends_at_s = ends_at_s
            connection.http.request(method, path, body=body, headers=headers or {})
            response = connection.http.getresponse()
            answer = HttpAnswer(
                status=response.status,
                headers={name.lower(): value for name, value in response.getheaders()},
                body=response.read(),
            )
        except BaseException:
            connection.close()
            raise
        if response.will_close or not self._put_idle(connection):
            connection.close()
        return answer

    def close(self) -> None:
        """Close the idle connections; those in use are closed when their request ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take_idle(self) -> _Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.sock.is_quiet():
                return connection
            connection.close()

    def _put_idle(self, connection: _Connection) -> bool:
        with self._lock:
            if self._closed or len(self._idle) >= _MAX_IDLE:
                return False
            self._idle.append(connection)
            return True

    def _connect(self, ends_at_s: float) -> _Connection:
        failure: OSError | None = None
        for _, _, _, _, address in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM):
            try:
                # Address by address: given the name, create_connection would grant each the whole time.
                sock = socket.create_connection((str(address[0]), self._port), timeout=_left_s(ends_at_s))
            except OSError as exc:
                failure = exc
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return _Connection(http.client.HTTPConnection(self._host, self._port), _DeadlineSocket(sock))
        raise failure or OSError(f"{self._host} has no address")


def _left_s(ends_at_s: float) -> float:
    left_s = ends_at_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s


class _DeadlineSocket:
    """What ``http.client`` needs of a socket, each operation given only the time that is left."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.ends_at_s = 0.0

    def arm(self) -> None:
        self._sock.settimeout(_left_s(self.ends_at_s))

    def sendall(self, data: bytes) -> None:
        self.arm()
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        raw = self._sock.makefile(mode, buffering=0)  # type: ignore[call-overload]  # mode is always "rb"
        return io.BufferedReader(_DeadlineReader(self, raw))

    def is_quiet(self) -> bool:
        """Whether the idle connection is still open with nothing to read."""
        self._sock.settimeout(0)
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        self._sock.close()


class _Connection:
    """An HTTP connection and the socket that it was given."""

    def __init__(self, http_connection: http.client.HTTPConnection, sock: _DeadlineSocket) -> None:
        self.http = http_connection
        self.sock = sock
        # HTTPConnection connects by itself only where it has no socket yet. It asks of one what
        # _DeadlineSocket has: sendall, makefile and close.
        http_connection.sock = sock

    def close(self) -> None:
        self.http.close()
        self.sock.close()


class _DeadlineReader(io.RawIOBase):
    def __init__(self, sock: _DeadlineSocket, raw: io.RawIOBase) -> None:
        self._deadline_sock = sock
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        self._deadline_sock.arm()
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()
