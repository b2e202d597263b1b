"""What the fault proxy can do to a connection, and what it keeps of each connection."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

_HTTP1_REQUEST = re.compile(rb"(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) ")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Fault:
    """What happens to a connection; one keeps the fault that was set when it was accepted."""

    #: Whether connections that are open when the fault is set get it too.
    apply_to_open: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Pass(Fault):
    """Carry every byte."""


@dataclass(frozen=True)
class Refuse(Fault):
    """Refuse to connect; the port stays reserved, and the next fault opens it again."""


@dataclass(frozen=True)
class BlackHole(Fault):
    """Accept, read nothing, forward nothing, never answer."""


@dataclass(frozen=True)
class ResetAfter(Fault):
    """Forward so many bytes of the answer, then RST; 0: RST in place of the answer's first byte."""

    bytes_to_client: int


@dataclass(frozen=True)
class CloseAfter(Fault):
    """Forward so many bytes of the answer, then FIN; 0: FIN in place of the answer's first byte."""

    bytes_to_client: int


@dataclass(frozen=True)
class Trickle(Fault):
    """Answer byte by byte; above 1000 bytes/s a few at once."""

    bytes_per_s: float


@dataclass(frozen=True)
class Garbage(Fault):
    """Answer the first bytes that come with ``data``, then FIN."""

    data: bytes


@dataclass(frozen=True)
class HttpStatus(Fault):
    """Answer HTTP/1.1 requests (framed by content-length) and keep the connection; the rest passes."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    #: How many requests, over all connections; later ones go to the target. ``None``: all.
    times: int | None = None

    def answer(self) -> bytes:
        headers = {"content-length": str(len(self.body)), **self.headers}
        head = f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return head.encode("latin-1") + b"\r\n" + self.body


@dataclass(frozen=True)
class Delay(Fault):
    """Hold back the first byte of each answer, that is of what the server sends after the client sent.

    In HTTP/2 the exchange of settings counts too, so a connection's first call waits twice.
    """

    seconds: float


class Rule:
    """A fault as it was set once, with what is left of its ``times``."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._left = fault.times if isinstance(fault, HttpStatus) else 0

    def take_answer(self) -> bytes | None:
        """The proxy's own answer to the next request; ``None``: the target's."""
        if not isinstance(self.fault, HttpStatus) or self._left == 0:
            return None
        if self._left is not None:
            self._left -= 1
        return self.fault.answer()


class Link:
    """A client's connection and, once it is needed, the one to the server."""

    def __init__(self, client: socket.socket, rule: Rule, frozen: bool) -> None:
        self.client, self.rule, self.frozen = client, rule, frozen
        self.server: socket.socket | None = None
        self.to_server, self.to_client = bytearray(), bytearray()
        self.requests = Requests()
        self.own_answer: bytes | None = None
        self.answered_bytes = 0
        self.not_before = self.pumped_at = 0.0
        self.connecting = self.client_full = self.awaits_answer = False
        self.client_ended = self.server_ended = self.closed = False
        #: Nothing follows what is in ``to_client`` but FIN or, when resetting, RST.
        self.ending = self.resetting = False
        self._fin_sent: set[socket.socket] = set()

    def send_fin(self, sock: socket.socket) -> None:
        if sock not in self._fin_sent:  # a second one fails when the peer's has come by then
            self._fin_sent.add(sock)
            sock.shutdown(socket.SHUT_WR)


class Requests:
    """Finds in a client's bytes where HTTP/1.1 requests begin and end."""

    def __init__(self) -> None:
        #: Whether it is another protocol, with all bytes one request; known from the first bytes.
        self.opaque: bool | None = None
        self._head = bytearray()
        self._body_left = 0

    def split(self, data: bytes) -> Iterator[tuple[bytes, bool, bool]]:
        """Pieces of the data, and whether each is the start and the end of a request."""
        first = self.opaque is None
        if first:
            self.opaque = _HTTP1_REQUEST.match(data) is None
        if self.opaque:
            yield data, first, False
            return
        while data:
            starts = not (self._head or self._body_left)
            taken = min(len(data), self._body_left) or len(data)
            if self._body_left:
                self._body_left -= taken
            else:
                known = len(self._head)
                self._head += data
                end = self._head.find(b"\r\n\r\n") + 4
                if end >= 4:
                    taken = end - known
                    length = _CONTENT_LENGTH.search(self._head[:end])
                    self._body_left = int(length[1]) if length else 0
                    self._head.clear()
            yield data[:taken], starts, not (self._head or self._body_left)
            data = data[taken:]
