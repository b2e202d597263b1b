"""What stands at the other end of a connection: a server that answers with given bytes, and a relay."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any

Script = Callable[[int, bytes], Iterable[bytes]]


class PastTls(bytes):
    """A chunk that goes to the socket as it is, also where a connection is encrypted."""


class RawServer:
    """Answers the n-th request, over all connections, with the bytes that ``script(n, request)`` gives.

    A connection is closed after an empty chunk, or when the script ends early by raising StopIteration.
    """

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._numbers = itertools.count()
        self.connections = 0
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def wait(self, seconds: float) -> None:
        """For scripts: pause, but not after the test has ended."""
        self._stop.wait(seconds)

    def close(self) -> None:
        self._stop.set()
        # shutdown wakes the thread that waits in accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(connection,))
                thread.start()
                self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError))
            stack.enter_context(connection)
            if self._tls is not None:
                connection = stack.enter_context(self._tls.wrap_socket(connection, server_side=True))
            connection.settimeout(0.02)
            while not self._stop.is_set():
                request = self._receive(connection)
                if request is None:
                    return
                for chunk in self._script(next(self._numbers), request):
                    if not chunk or self._stop.is_set():
                        return
                    send = socket.socket.sendall if isinstance(chunk, PastTls) else type(connection).sendall
                    send(connection, chunk)

    def _receive(self, connection: socket.socket) -> bytes | None:
        request = b""
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                data = connection.recv(65536)
                if not data:
                    return None
                request += data
                head, _, body = request.partition(b"\r\n\r\n")
                length = [
                    line[15:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
                ]
                if b"\r\n\r\n" in request and len(body) >= int(length[0] if length else 0):
                    return request
        return None


class Relay:
    """Leads to another server, and counts what is sent there."""

    def __init__(self, url: str) -> None:
        scheme, _, port = url.rpartition(":")
        self.received_bytes = 0
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.url = f"{scheme}:{self._listener.getsockname()[1]}"
        self._run(self._accept, int(port))

    def close(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _run(self, work: Callable[..., None], *args: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=args))
        self._threads[-1].start()

    def _accept(self, port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", port))
                self._sockets += [near, far]
                self._run(self._copy, near, far, True)
                self._run(self._copy, far, near, False)

    def _copy(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.received_bytes += len(data) if counted else 0
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def response(body: bytes = b"", status: int = 200, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Word", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def always(*chunks: bytes) -> Script:
    return lambda number, request: chunks
