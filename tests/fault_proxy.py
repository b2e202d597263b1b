"""A TCP proxy on loopback that injects faults between a client and its server."""

from __future__ import annotations

import heapq
import ipaddress
import selectors
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from errno import EINPROGRESS
from fcntl import ioctl
from itertools import count
from termios import TIOCOUTQ
from typing import Any, Self

from fault_kinds import (
    BlackHole,
    CloseAfter,
    Delay,
    Fault,
    Garbage,
    HttpStatus,
    Link,
    Pass,
    Refuse,
    ResetAfter,
    Rule,
    Trickle,
)

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_CHUNK_BYTES = 256 * 1024
_TICK_S = 0.001
# Bounds steps that take microseconds, so that a broken proxy fails tests and does not hang them.
_TIMEOUT_S = 10.0


def _counter(name: str, doc: str) -> Any:
    return property(lambda proxy: proxy._count(name), doc=doc)


class FaultProxy:
    """Listens on ``host:port`` and carries connections to ``target``, as far as ``fault`` lets it.

    One thread does all the work. Whatever sets or reads the proxy waits for it: once ``freeze()`` has
    returned no byte moves, and what a client has received is in the counters.

    Args:
        target: Host and port of the server; ``None`` resets what would have to go there.
        host: Any address of 127.0.0.0/8.
        port: 0 takes a free one.

    Raises:
        ValueError: ``host`` is outside 127.0.0.0/8.
        OSError: The port is taken.
    """

    connections = _counter("connections", "Connections accepted.")
    bytes_to_server = _counter("bytes_to_server", "Bytes that went on to the target.")
    bytes_to_client = _counter("bytes_to_client", "Bytes sent to clients, also the proxy's own answers.")
    requests_seen = _counter("requests_seen", "HTTP/1.1 requests read; other protocols: connections used.")

    def __init__(self, target: tuple[str, int] | None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        if ipaddress.ip_address(host) not in ipaddress.ip_network("127.0.0.0/8"):
            raise ValueError(f"host {host!r} is outside 127.0.0.0/8")
        self.host = host
        self._target = target
        # Bound, not listening: nobody else gets the port while connections are refused.
        self._reservation = _bind(host, port)
        self.port: int = self._reservation.getsockname()[1]
        try:
            self._listener: socket.socket | None = _bind(host, self.port, listen=True)
        except OSError:
            self._reservation.close()
            raise
        self._selector = selectors.DefaultSelector()
        self._watched: dict[socket.socket, int] = {}
        self._wake_in, self._wake_out = socket.socketpair()
        for sock in (self._wake_in, self._listener):
            self._watch(sock, _READ, None)
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._links: set[Link] = set()
        self._timers: list[tuple[float, int, Link]] = []
        self._timer_ids = count()
        self._counts: Counter[str] = Counter()
        self._frozen = self._closing = False
        self._rule = Rule(Pass())
        self._thread = threading.Thread(target=self._run, name=f"fault-proxy-{self.port}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"

    @property
    def fault(self) -> Fault:
        """The fault of new connections."""
        return self._rule.fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._call(lambda: self._set_fault(fault))

    @property
    def open_connections(self) -> int:
        """Connections that neither the two sides nor a fault have ended."""
        return 0 if not self._thread.is_alive() else self._call(lambda: len(self._links))

    def retarget(self, target: tuple[str, int] | None) -> None:
        """Carry new connections elsewhere; it also ends what ``freeze`` means for new ones."""
        self._call(lambda: self._set_target(target))

    def freeze(self) -> None:
        """Keep connections open and move no byte; new ones too, until ``retarget`` or ``thaw``."""
        self._call(lambda: self._set_frozen(True))

    def thaw(self) -> None:
        """Go on where ``freeze`` stopped; no byte is lost."""
        self._call(lambda: self._set_frozen(False))

    def reset_all(self) -> None:
        """RST every open connection, on both sides."""
        self._call(self._reset_links)

    def close(self) -> None:
        """End the connections and the thread."""
        if self._thread.is_alive():
            self._call(self._stop)
            self._thread.join(_TIMEOUT_S)
        if self._thread.is_alive():
            raise RuntimeError(f"the fault proxy on {self.address} does not end")
        self._wake_out.close()

    def _call(self, action: Callable[[], Any]) -> Any:
        if not self._thread.is_alive():
            raise RuntimeError(f"the fault proxy on {self.address} is closed")
        done: Future[Any] = Future()
        self._calls.append((action, done))
        self._wake_out.send(b"x")
        return done.result(_TIMEOUT_S)

    def _count(self, name: str) -> int:
        return self._call(lambda: self._counts[name]) if self._thread.is_alive() else self._counts[name]

    # From here on: what the proxy's thread runs.

    def _run(self) -> None:
        try:
            while not self._closing:
                wait_s = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
                for key, events in self._selector.select(wait_s):
                    if key.fileobj is self._wake_in:
                        self._answer_calls()
                    elif key.data is None:
                        self._accept()
                    else:
                        self._serve(key.data, key.fileobj, events)
                while self._timers and self._timers[0][0] <= time.monotonic():
                    self._pump(heapq.heappop(self._timers)[2])
        finally:
            for link in list(self._links):
                self._close(link)
            for sock in filter(None, (self._listener, self._reservation, self._wake_in)):
                sock.close()
            self._selector.close()

    def _answer_calls(self) -> None:
        self._wake_in.recv(4096)
        while self._calls:
            action, done = self._calls.popleft()
            try:
                done.set_result(action())
            except Exception as exc:  # noqa: BLE001 - raised again in the thread that called
                done.set_exception(exc)

    def _stop(self) -> None:
        self._closing = True

    def _set_fault(self, fault: Fault) -> None:
        refuse = isinstance(fault, Refuse)
        if refuse and self._listener is not None:
            self._watch(self._listener, 0, None)
            self._listener.close()
            self._listener = None
        elif not refuse and self._listener is None:
            self._listener = _bind(self.host, self.port, listen=True)
            self._watch(self._listener, _READ, None)
        self._rule = Rule(fault)
        for link in list(self._links) if fault.apply_to_open else ():
            link.rule, link.answered_bytes, link.not_before, link.pumped_at = self._rule, 0, 0.0, 0.0
            self._reset(link) if refuse else self._pump(link)

    def _set_target(self, target: tuple[str, int] | None) -> None:
        self._target, self._frozen = target, False

    def _set_frozen(self, frozen: bool) -> None:
        self._frozen = frozen
        for link in list(self._links):
            link.frozen = frozen
            self._pump(link)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            while self._listener is not None:
                link = Link(_prepare(self._listener.accept()[0]), self._rule, self._frozen)
                self._links.add(link)
                self._counts["connections"] += 1
                self._pump(link)

    def _serve(self, link: Link, sock: Any, events: int) -> None:
        if sock.fileno() < 0:  # closed by what came before it in the same batch
            return
        try:
            if sock is not link.client and link.connecting:
                link.connecting = False
                if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(error, "connecting to the target")
            elif events & _READ:
                take = self._take_from_client if sock is link.client else self._take_from_server
                take(link, sock.recv(_CHUNK_BYTES))
        except BlockingIOError:
            pass
        except OSError:
            self._reset(link)
        self._pump(link)

    def _take_from_client(self, link: Link, data: bytes) -> None:
        link.client_ended = not data
        if link.ending or not data:
            return
        fault = link.rule.fault
        if isinstance(fault, Garbage):
            self._counts["requests_seen"] += 1
            link.to_client += fault.data
            link.ending = True
            return
        for piece, starts, ends in link.requests.split(data):
            if starts:
                self._counts["requests_seen"] += 1
                link.own_answer = None if link.requests.opaque else link.rule.take_answer()
            if link.own_answer is None:
                link.to_server += piece
            elif ends:
                link.to_client += link.own_answer

    def _take_from_server(self, link: Link, data: bytes) -> None:
        link.server_ended = not data
        link.to_client += data
        if link.awaits_answer and isinstance(link.rule.fault, Delay):
            link.not_before = time.monotonic() + link.rule.fault.seconds
        link.awaits_answer = False

    def _pump(self, link: Link) -> None:
        """Move what may move now, then watch for what the link lacks."""
        if link.closed:
            return
        moves = not link.frozen and not isinstance(link.rule.fault, BlackHole)
        try:
            if moves:
                self._move(link)
        except OSError:
            self._reset(link)
        if link.closed:
            return
        moves = moves and not link.resetting
        reads_client = moves and not link.client_ended and len(link.to_server) < _CHUNK_BYTES
        self._watch(link.client, reads_client * _READ | (moves and link.client_full) * _WRITE, link)
        if link.server is not None:
            reads = moves and not link.server_ended and not link.connecting and not link.to_client
            writes = moves and (link.connecting or bool(link.to_server))
            self._watch(link.server, reads * _READ | writes * _WRITE, link)

    def _move(self, link: Link) -> None:
        fault = link.rule.fault
        if not link.resetting:
            needs_none = link.ending or link.client_ended or isinstance(fault, Garbage | HttpStatus)
            if link.server is None and (link.to_server or not needs_none):
                self._connect(link)
            if link.server is not None and link.to_server and not link.connecting:
                sent = _send(link.server, link.to_server, len(link.to_server))
                self._counts["bytes_to_server"] += sent
                link.awaits_answer |= sent > 0
            self._send_to_client(link)
            if isinstance(fault, ResetAfter | CloseAfter) and not link.ending:
                answer_began = link.answered_bytes or link.to_client
                if answer_began and link.answered_bytes >= fault.bytes_to_client:
                    link.to_client.clear()
                    link.ending, link.resetting = True, isinstance(fault, ResetAfter)
        if not link.resetting:
            self._pass_end_on(link)
        elif struct.unpack("i", ioctl(link.client, TIOCOUTQ, bytes(4)))[0]:  # bytes under way, see tcp(7)
            self._pump_at(time.monotonic() + _TICK_S, link)  # a reset now would drop them
        else:
            self._reset(link)

    def _connect(self, link: Link) -> None:
        if self._target is None:
            raise ConnectionRefusedError("the proxy has no target")
        link.server, link.connecting = _prepare(socket.socket()), True
        error = link.server.connect_ex(self._target)
        if error not in (0, EINPROGRESS):
            raise OSError(error, f"connecting to {self._target}")

    def _send_to_client(self, link: Link) -> None:
        fault, now, wanted = link.rule.fault, time.monotonic(), len(link.to_client)
        if wanted and now < link.not_before:
            wanted = 0
            self._pump_at(link.not_before, link)
        elif isinstance(fault, ResetAfter | CloseAfter) and not link.ending:
            wanted = min(wanted, fault.bytes_to_client - link.answered_bytes)
        elif isinstance(fault, Trickle):
            wanted = min(wanted, max(1, int(fault.bytes_per_s * _TICK_S)))
        sent = _send(link.client, link.to_client, wanted) if wanted else 0
        link.client_full = sent < wanted
        link.answered_bytes += sent
        self._counts["bytes_to_client"] += sent
        if sent and isinstance(fault, Trickle):
            link.not_before = now + sent / fault.bytes_per_s
            self._pump_at(link.not_before, link)

    def _pass_end_on(self, link: Link) -> None:
        if link.to_client:
            return
        if link.ending and link.server is not None:
            self._watch(link.server, 0, link)
            link.server.close()
            link.server = None
        if link.client_ended and (link.server is None or link.server_ended):
            self._close(link)
        elif link.ending or link.server_ended:
            link.send_fin(link.client)
        elif link.client_ended and link.server is not None and not (link.connecting or link.to_server):
            link.send_fin(link.server)

    def _pump_at(self, when: float, link: Link) -> None:
        if when > link.pumped_at:
            link.pumped_at = when
            heapq.heappush(self._timers, (when, next(self._timer_ids), link))

    def _watch(self, sock: socket.socket, events: int, link: Link | None) -> None:
        before = self._watched.pop(sock, 0)
        if events:
            self._watched[sock] = events
        if before and not events:
            self._selector.unregister(sock)
        elif before != events:
            (self._selector.modify if before else self._selector.register)(sock, events, link)

    def _reset_links(self) -> None:
        for link in list(self._links):
            self._reset(link)

    def _reset(self, link: Link) -> None:
        self._close(link, reset=True)

    def _close(self, link: Link, *, reset: bool = False) -> None:
        link.closed = True
        self._links.discard(link)
        for sock in filter(None, (link.client, link.server)):
            self._watch(sock, 0, link)
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


def _bind(host: str, port: int, *, listen: bool = False) -> socket.socket:
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        if listen:
            sock.setblocking(False)
            sock.listen(1024)
    except OSError:
        sock.close()
        raise
    return sock


def _prepare(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _send(sock: socket.socket, pending: bytearray, wanted: int) -> int:
    """Send what the socket takes of the first ``wanted`` bytes, and drop it from ``pending``."""
    try:
        sent = sock.send(pending[:wanted])
    except BlockingIOError:
        return 0
    del pending[:sent]
    return sent
