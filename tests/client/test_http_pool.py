"""The HTTP pool against servers of raw bytes on loopback, plain and over TLS."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import re
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import httptools
import numpy as np
import pytest
import trustme

from mooring._cancellation import Cancellation
from mooring._errors import TransportError
from mooring._wires import _http_pool
from mooring._wires._http_pool import HttpAnswer, HttpGarbage, HttpPool

Script = Callable[["Peer"], None]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
#: Where a deadline or a cancellation has no effect, a test takes as long as this.
FOREVER_S = 60.0


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket, server: Server, number: int) -> None:
        self.sock = sock
        self.server = server
        self.number = number

    def request(self) -> bytes:
        """One request, read to its end; ``OSError`` where the client has closed the connection."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._receive()
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"\r\nContent-Length: (\d+)", head)
        parts, missing = [body], int(length[1]) - len(body) if length else 0
        while missing:
            parts.append(self._receive())
            missing -= len(parts[-1])
        self.server.requests.append(head + b"\r\n\r\n" + b"".join(parts))
        return self.server.requests[-1]

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def wait(self, seconds: float = FOREVER_S) -> None:
        """Pause, but not after the test has ended."""
        if self.server.stop.wait(seconds):
            raise OSError("the test has ended")

    def _receive(self) -> bytes:
        data = self.sock.recv(65_536)
        if not data:
            raise OSError("closed by the client")
        return data


class Server:
    """Runs ``script`` over each connection, in a thread of its own, and then closes it."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self.stop = threading.Event()
        self.requests: list[bytes] = []
        self.connections = 0
        #: Released whenever a connection has ended.
        self.ended = threading.Semaphore(0)
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def close(self) -> None:
        self.stop.set()
        # shutdown wakes the threads that wait in accept and recv.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for sock in self._open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._open.append(sock)
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(sock, self.connections))
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                self._open.append(sock)
            with sock:
                if isinstance(sock, ssl.SSLSocket):
                    sock.do_handshake()
                self._script(Peer(sock, self, number))
        sock.close()
        self.ended.release()


def always(*pieces: bytes) -> Script:
    """Send the pieces in answer to each request."""

    def script(peer: Peer) -> None:
        while True:
            peer.request()
            for piece in pieces:
                peer.send(piece)

    return script


def once(*pieces: bytes) -> Script:
    """Send the pieces in answer to the first request, then close."""

    def script(peer: Peer) -> None:
        peer.request()
        for piece in pieces:
            peer.send(piece)

    return script


def answer(body: bytes, *headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    with contextlib.ExitStack() as stack:

        def start(script: Script, tls: ssl.SSLContext | None = None) -> Server:
            server = Server(script, tls)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def connect() -> Iterator[Callable[..., HttpPool]]:
    with contextlib.ExitStack() as stack:

        def make(server: Server, host: str = "127.0.0.1", **options: Any) -> HttpPool:
            pool = HttpPool(host, server.port, **options)
            stack.callback(pool.close)
            return pool

        yield make


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("triton.example", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(params=["plain", "tls"])
def wire(
    request: pytest.FixtureRequest, serve: Any, connect: Any
) -> Callable[[Script], tuple[Server, HttpPool]]:
    """Starts a server and a pool for it, the same over TCP and over TLS."""
    server_context = client_context = None
    if request.param == "tls":
        server_context = request.getfixturevalue("server_tls")
        client_context = request.getfixturevalue("client_tls")

    def start(script: Script) -> tuple[Server, HttpPool]:
        server = serve(script, server_context)
        return server, connect(server, tls=client_context)

    return start


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that lets nobody finish connecting: its queue of connections to accept is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def get(pool: HttpPool, timeout_s: float = 20, **options: Any) -> HttpAnswer:
    return pool.exchange("GET", "/v2", headers={}, timeout_s=timeout_s, **options)


@contextlib.contextmanager
def promptly() -> Iterator[None]:
    began_s = time.monotonic()
    yield
    assert time.monotonic() - began_s < 15


def test_a_request_is_written_as_it_was_given(serve: Any, connect: Any) -> None:
    server = serve(always(OK))
    pool = connect(server)
    pool.exchange("GET", "/v2/a%20b?c=d", headers={"X-One": "1", "x-two": "zwei ä"}, timeout_s=20)
    pool.exchange("POST", "/", headers={}, timeout_s=20)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    body = [b"ab", memoryview(b""), memoryview(array), memoryview(array[:0]), b"", memoryview(b"c")]
    pool.exchange("POST", "/", headers={}, body=body, timeout_s=20)
    host = f"Host: 127.0.0.1:{server.port}\r\n".encode()
    assert server.requests == [
        b"GET /v2/a%20b?c=d HTTP/1.1\r\n" + host + b"X-One: 1\r\nx-two: zwei \xe4\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 27\r\n\r\nab" + array.tobytes() + b"c",
    ]
    assert server.connections == 1


@pytest.mark.parametrize(
    ("host", "sent"),
    [("triton.example", "triton.example"), ("bücher.example", "xn--bcher-kva.example"), ("::1", "[::1]")],
)
def test_host_names_the_server_wherever_it_is_connected_to(
    serve: Any, connect: Any, monkeypatch: pytest.MonkeyPatch, host: str, sent: str
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: pytest.fail("looked up"))
    server = serve(always(OK))
    get(connect(server, host, connect_to="127.0.0.1"))
    assert f"\r\nHost: {sent}:{server.port}\r\n".encode() in server.requests[0]


@pytest.mark.parametrize(("port", "tls", "sent"), [(80, False, "t"), (443, True, "t"), (443, False, "t:443")])
def test_host_has_no_port_where_it_is_the_schemes_own(
    serve: Any, monkeypatch: pytest.MonkeyPatch, client_tls: ssl.SSLContext, port: int, tls: bool, sent: str
) -> None:
    pool = HttpPool("t", port, connect_to="127.0.0.1", tls=client_tls if tls else None)
    buffers, _ = pool._write("GET", "/", {}, ())  # nobody listens at these ports here
    assert buffers == [f"GET / HTTP/1.1\r\nHost: {sent}\r\n\r\n".encode()]


def test_every_address_of_a_name_is_tried(
    serve: Any, connect: Any, monkeypatch: pytest.MonkeyPatch, deaf_port: int
) -> None:
    server = serve(always(OK))
    addresses = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
        for address, port in (
            ("127.0.0.2", server.port),
            ("127.0.0.1", deaf_port),
            ("127.0.0.1", server.port),
        )
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: addresses)
    assert get(connect(server, "triton"), timeout_s=1).status == 200
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: addresses[:1])
    with pytest.raises(ConnectionRefusedError):
        get(connect(server, "triton"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: [])
    with pytest.raises(OSError, match="triton has no address"):
        get(connect(server, "triton"))


@pytest.mark.parametrize(
    ("headers", "method", "path"),
    [
        ({"X": "1\r\nEvil: 1"}, "GET", "/"),
        ({"X": "1\nEvil: 1"}, "GET", "/"),
        ({"X": "1\rEvil: 1"}, "GET", "/"),
        ({"X\r\nEvil": "1"}, "GET", "/"),
        ({"X: 1\r\nEvil": "1"}, "GET", "/"),
        ({" Folded": "1"}, "GET", "/"),
        ({"X:": "1"}, "GET", "/"),
        ({"": "1"}, "GET", "/"),
        ({"X": "1€"}, "GET", "/"),
        ({"Content-Length": "1"}, "GET", "/"),
        ({"transfer-encoding": "chunked"}, "GET", "/"),
        ({"HOST": "other"}, "GET", "/"),
        ({}, "GET", "/ HTTP/1.1\r\nEvil: 1\r\nX:"),
        ({}, "GET", "/a b"),
        ({}, "GET /x", "/"),
        ({}, "GET", "/€"),
    ],
)
def test_what_would_be_another_request_is_refused(
    serve: Any, connect: Any, headers: dict[str, str], method: str, path: str
) -> None:
    server = serve(always(OK))
    pool = connect(server)
    with pytest.raises(ValueError, match="can't"):
        pool.exchange(method, path, headers=headers, timeout_s=20)
    with pytest.raises(ValueError, match="can't"):
        pool.stream(method, path, headers=headers, timeout_s=20)
    assert server.connections == 0


def test_a_body_that_is_not_contiguous_is_refused_before_anything_is_sent(serve: Any, connect: Any) -> None:
    server = serve(always(OK))
    pool = connect(server)
    with pytest.raises(TypeError, match="C-contiguous"):
        get(pool, body=[memoryview(np.zeros((4, 4))[:, 1])])
    assert server.connections == 0


def test_a_body_larger_than_the_socket_takes_arrives_whole(wire: Any) -> None:
    def script(peer: Peer) -> None:
        while True:
            body = peer.request().partition(b"\r\n\r\n")[2]
            peer.send(answer(hashlib.sha256(body).hexdigest().encode()))

    server, pool = wire(script)
    blocks = np.random.default_rng(0).integers(0, 256, (3, 7_000_000), dtype=np.uint8)
    large = [b"start", *(memoryview(block) for block in blocks), b"end"]
    # More buffers than one sendmsg takes.
    many = [bytes([number % 251]) * (number % 7) for number in range(5000)]
    for body in (large, many):
        said = pool.exchange("POST", "/", headers={}, body=body, timeout_s=60)
        assert said.body.decode() == hashlib.sha256(b"".join(body)).hexdigest()
    assert server.connections == 1


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

RESPONSES = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, b"abc", True),
    "empty": (b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n", 400, b"", True),
    "chunked": (CHUNKED + b"2;x=y\r\nab\r\n1\r\nc\r\n0\r\nTrailer: 1\r\n\r\n", 200, b"abc", True),
    "no-content": (b"HTTP/1.1 204 None\r\n\r\n", 204, b"", True),
    "not-modified": (b"HTTP/1.1 304 Same\r\nContent-Length: 9\r\n\r\n", 304, b"", True),
    "interim": (
        b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\nHTTP/1.1 103 Hints\r\n\r\n" + OK,
        200,
        b"ok",
        True,
    ),
    "close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc", 200, b"abc", False),
    "until-the-end": (b"HTTP/1.1 200 OK\r\n\r\nabc", 200, b"abc", False),
    "1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, b"abc", False),
    "1.0-until-the-end": (b"HTTP/1.0 200 OK\r\n\r\nabc", 200, b"abc", False),
    "1.0-keep-alive": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc",
        200,
        b"abc",
        True,
    ),
    "surplus": (OK + b"HTTP/1.1 500 Evil\r\nContent-Length: 1\r\n\r\n!", 200, b"ok", False),
    "surplus-garbage": (OK + b"\r\n\r\n!", 200, b"ok", False),
    "switching": (
        b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n\x81\x00",
        101,
        b"",
        False,
    ),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["exchange", "stream"])
@pytest.mark.parametrize("pieces", ["whole", "bytes"])
@pytest.mark.parametrize(("raw", "status", "body", "kept"), RESPONSES.values(), ids=RESPONSES)
def test_every_way_to_end_a_response_is_understood(
    serve: Any, connect: Any, raw: bytes, status: int, body: bytes, kept: bool, pieces: str, streamed: bool
) -> None:
    def script(peer: Peer) -> None:
        while True:
            peer.request()
            for piece in [raw] if pieces == "whole" else [raw[i : i + 1] for i in range(len(raw))]:
                peer.send(piece)
            if not kept:
                return

    server = serve(script)
    pool = connect(server)
    # Surplus that comes late may be taken for the start of the next answer: one that is garbage.
    rounds = 1 if pieces == "bytes" and raw.startswith(OK) and raw != OK else 3
    for _ in range(rounds):
        if streamed:
            got_status, headers, chunks = pool.stream("GET", "/", headers={}, timeout_s=20)
            assert (got_status, b"".join(chunks)) == (status, body)
        else:
            got_status, headers, got_body = get(pool)
            assert (got_status, got_body) == (status, body)
        assert "x" not in headers
        assert "trailer" not in headers
    assert server.connections == (1 if kept else rounds)


def test_headers_have_lower_case_names_and_repeated_ones_are_joined(serve: Any, connect: Any) -> None:
    pool = connect(serve(always(answer(b"", "X-Word: A", "x-word: b", "Empty:", "Latin: \u00e4"))))
    assert get(pool).headers == {
        "content-length": "0",
        "x-word": "A, b",
        "empty": "",
        "latin": "\u00c3\u00a4",
    }


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\xff garbage \r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 two\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        CHUNKED + b"not a number\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 400_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 100_000,
        b"HTTP/1.1 103 Hints\r\n\r\n" * 40_000,
        CHUNKED + b"1\r\na\r\n0\r\nX: " + b"x" * 400_000,
    ],
    ids=(
        "binary ssh status length huge-length two-lengths chunk endless-line endless-headers interim trailer"
    ).split(),
)
def test_what_is_no_http_is_garbage(serve: Any, connect: Any, raw: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(raw)
        peer.wait()

    pool = connect(serve(script))
    with promptly(), pytest.raises(HttpGarbage) as caught:
        get(pool, timeout_s=FOREVER_S)
    assert isinstance(caught.value, httptools.HttpParserError)


def test_small_pieces_of_a_body_do_not_count_as_headers(serve: Any, connect: Any) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.send(CHUNKED)
        for _ in range(40):
            peer.send(b"1;" + b"x" * 4000 + b"\r\n")
            peer.send(b"a\r\n")
        peer.send(b"0\r\n\r\n")

    assert get(connect(serve(script))).body == b"a" * 40


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "without an answer"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "in the middle of its answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999999\r\n\r\nabc", "in the middle of its answer"),
        (CHUNKED + b"9\r\nabc", "in the middle of its answer"),
        (CHUNKED + b"3\r\nabc\r\n", "in the middle of its answer"),
    ],
    ids=[
        "nothing",
        "half-a-head",
        "interim",
        "half-a-body",
        "absurd-length",
        "half-a-chunk",
        "no-last-chunk",
    ],
)
def test_a_response_cut_short_is_a_lost_connection(wire: Any, raw: bytes, said: str) -> None:
    server, pool = wire(once(raw))
    with pytest.raises(ConnectionError, match=said):
        get(pool)
    with pytest.raises(ConnectionError, match=said):
        b"".join(pool.stream("GET", "/", headers={}, timeout_s=20)[2])
    assert len(server.requests) == server.connections == 2  # nothing was sent twice


def test_nothing_listening_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        get(HttpPool("127.0.0.1", port))


@pytest.mark.parametrize("then", ["closes", "listens no more"])
def test_a_refusal_that_comes_before_all_was_sent_is_the_answer(wire: Any, then: str) -> None:
    def script(peer: Peer) -> None:
        peer.sock.recv(1000)
        peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
        if then == "listens no more":
            peer.wait()

    server, pool = wire(script)
    for _ in range(2):
        said = pool.exchange("POST", "/", headers={}, body=[bytes(50_000_000)], timeout_s=20)
        assert (said.status, said.body) == (413, b"large")
    assert server.connections == 2


@pytest.mark.parametrize(
    "start",
    [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n"],
    ids=["interim", "half-a-head", "lines"],
)
def test_an_answer_that_only_begins_before_all_was_sent_waits_for_the_rest(wire: Any, start: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.sock.recv(1)
        peer.send(start)
        peer.wait(0.1)  # the client is most likely blocked by now; the test holds if not
        body = peer.request().partition(b"\r\n\r\n")[2]
        rest = f"\r\nContent-Length: {len(str(len(body)))}\r\n\r\n{len(body)}".encode()
        peer.send((b"HTTP/1.1 200 OK" + rest) if b"100" in start else b"Y: 1" + rest)
        peer.request()

    _, pool = wire(script)
    said = pool.exchange("POST", "/", headers={}, body=[bytes(20_000_000)], timeout_s=60)
    assert (said.status, said.body) == (200, b"20000000")


def test_a_server_that_closes_while_a_body_is_sent_is_a_lost_connection(wire: Any) -> None:
    server, pool = wire(lambda peer: peer.sock.recv(1000))
    with pytest.raises(ConnectionError):
        pool.exchange("POST", "/", headers={}, body=[bytes(20_000_000)], timeout_s=20)
    assert server.connections == 1


@pytest.mark.parametrize(
    ("piece", "pause_s"),
    [(b"", FOREVER_S), (b"x", 0.02), (b"x" * 10_000, 0)],
    ids=["silence", "trickle", "flood"],
)
@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n", CHUNKED + b"fffffffff\r\n"],
    ids=["nothing", "head", "body", "chunk"],
)
def test_the_deadline_holds_whatever_the_server_sends(
    wire: Any, start: bytes, piece: bytes, pause_s: float
) -> None:
    if not start:
        piece = b"HTTP/1.1 103 Hints\r\n\r\n" if piece else b""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(start)
        while True:  # for ever: without a deadline on the whole, this test never ends
            peer.send(piece)
            peer.wait(pause_s)

    _, pool = wire(script)
    # What is endless and no body meets the other limit first.
    expected = (TimeoutError, HttpGarbage) if len(piece) > 1 and b"\r\n\r\n" not in start else TimeoutError
    with promptly(), pytest.raises(expected):
        get(pool, timeout_s=0.3)
    with promptly(), pytest.raises(expected):
        for _ in pool.stream("GET", "/", headers={}, timeout_s=0.3)[2]:
            pass


def test_the_deadline_of_a_stream_runs_while_its_reader_works(wire: Any) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            peer.send(bytes(16_384))

    _, pool = wire(script)
    _, _, body = pool.stream("GET", "/", headers={}, timeout_s=0.3)
    with promptly(), pytest.raises(TimeoutError):
        # While it sleeps more comes: it never waits for the server.
        deque((time.sleep(0.02) for _ in body), maxlen=0)


def test_the_deadline_holds_while_sending(wire: Any) -> None:
    def script(peer: Peer) -> None:
        while True:  # reads too slowly
            peer.sock.recv(10)
            peer.wait(0.02)

    _, pool = wire(script)
    with promptly(), pytest.raises(TimeoutError):
        pool.exchange("POST", "/", headers={}, body=[bytes(50_000_000)], timeout_s=0.3)


def test_the_deadline_holds_while_connecting(deaf_port: int) -> None:
    with promptly(), pytest.raises(TimeoutError):
        get(HttpPool("127.0.0.1", deaf_port), timeout_s=0.3)


def test_the_deadline_holds_in_the_handshake(serve: Any, connect: Any, client_tls: ssl.SSLContext) -> None:
    def script(peer: Peer) -> None:
        peer.send(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc")  # a long record of the handshake begins
        while True:
            peer.send(b"\x03")
            peer.wait(0.02)

    server = serve(script)
    pool = connect(server, tls=client_tls)
    with promptly(), pytest.raises(TimeoutError):
        get(pool, timeout_s=0.3)


def test_no_time_is_no_request(serve: Any, connect: Any) -> None:
    server = serve(always(OK))
    with pytest.raises(TimeoutError):
        get(connect(server), timeout_s=0)
    assert server.requests == []


def test_a_connection_that_the_server_closed_while_idle_is_not_used(wire: Any) -> None:
    server, pool = wire(once(OK))
    for number in range(1, 4):
        assert get(pool).body == b"ok"
        assert server.ended.acquire(timeout=10)
        assert server.connections == number


def test_a_connection_over_which_something_came_unasked_is_not_used(wire: Any) -> None:
    sent = threading.Semaphore(0)
    ask = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK)
        ask.wait(10)
        peer.send(b"HTTP/1.1 500 Evil\r\nContent-Length: 0\r\n\r\n")
        sent.release()
        peer.request()

    server, pool = wire(script)
    for number in range(1, 4):
        ask.clear()
        assert get(pool).status == 200
        ask.set()
        assert sent.acquire(timeout=10)
        assert server.connections == number


def test_the_connection_used_last_is_used_next(serve: Any, connect: Any) -> None:
    def script(peer: Peer) -> None:
        while True:
            peer.request()
            peer.send(answer(str(peer.number).encode()))

    pool = connect(serve(script))
    bodies = [pool.stream("GET", "/", headers={}, timeout_s=20)[2] for _ in range(3)]
    # Short bodies come with their head, and then the connection is free before the body is read.
    first = {b"".join(body) for body in bodies}
    assert {get(pool).body for _ in range(3)} == first == {b"1"}


def test_not_more_than_so_many_connections_are_kept(
    serve: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http_pool, "_MAX_IDLE", 2)
    together = threading.Barrier(5)

    def script(peer: Peer) -> None:
        while True:
            peer.request()
            together.wait(10)
            peer.send(OK)

    server = serve(script)
    pool = connect(server)
    threads = [threading.Thread(target=get, args=(pool,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.connections == 5
    for _ in range(3):
        assert server.ended.acquire(timeout=10)
    assert not server.ended.acquire(blocking=False)


def test_threads_share_a_pool(wire: Any) -> None:
    def script(peer: Peer) -> None:
        while True:
            peer.send(answer(peer.request().partition(b"\r\n\r\n")[2]))

    server, pool = wire(script)
    wrong = []

    def work(name: int) -> None:
        for number in range(40):
            body = f"{name} {number}".encode() * (1 + number * 50)
            if pool.exchange("POST", "/", headers={}, body=[body], timeout_s=60).body != body:
                wrong.append((name, number))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(server.requests) == 320
    assert server.connections <= 8


class Counted(Cancellation):
    """Knows whether it is attached, and lets a test wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.attached = 0

    def attach(self, abort: Callable[[], None]) -> None:
        super().attach(abort)
        self.attached += 1

    def detach(self) -> None:
        super().detach()
        self.attached -= 1


@pytest.mark.parametrize("at", ["send", "head", "body"])
def test_another_thread_may_cancel(wire: Any, at: str) -> None:
    cancellation = Counted()

    def script(peer: Peer) -> None:
        if peer.number > 1:
            always(OK)(peer)
        if at == "send":
            peer.sock.recv(10)
        else:
            peer.request()
        if at == "body":
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        peer.wait(0.1)  # the client is most likely blocked by now; the test holds if not
        cancellation.cancel()
        peer.wait()

    server, pool = wire(script)
    body = [bytes(50_000_000)] if at == "send" else []
    with promptly(), pytest.raises(ConnectionError):
        pool.exchange("POST", "/", headers={}, body=body, timeout_s=FOREVER_S, cancellation=cancellation)
    assert cancellation.attached == 0
    assert get(pool).status == 200
    assert server.connections == 2


def test_another_thread_may_cancel_while_connecting(deaf_port: int) -> None:
    cancellation = Counted()
    timer = threading.Timer(0.1, cancellation.cancel)
    timer.start()
    with promptly(), pytest.raises(ConnectionError):
        get(HttpPool("127.0.0.1", deaf_port), timeout_s=FOREVER_S, cancellation=cancellation)
    timer.join()
    assert cancellation.attached == 0


def test_cancelling_the_connection_to_one_address_spares_the_next(
    serve: Any, connect: Any, monkeypatch: pytest.MonkeyPatch, deaf_port: int
) -> None:
    server = serve(always(OK))
    addresses = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in (deaf_port, server.port)
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: addresses)
    cancellation = Counted()
    timer = threading.Timer(0.1, cancellation.cancel)
    timer.start()
    with promptly(), pytest.raises(ConnectionAbortedError, match="the request was cancelled"):
        get(connect(server, "triton"), timeout_s=FOREVER_S, cancellation=cancellation)
    timer.join()
    assert server.connections == 0
    assert cancellation.attached == 0


def test_another_thread_may_cancel_the_handshake(
    serve: Any, connect: Any, client_tls: ssl.SSLContext
) -> None:
    cancellation = Counted()

    def script(peer: Peer) -> None:
        peer.sock.recv(10)
        peer.wait(0.1)
        cancellation.cancel()
        peer.wait()

    pool = connect(serve(script), tls=client_tls)
    with promptly(), pytest.raises((ssl.SSLError, ConnectionError)):
        get(pool, timeout_s=FOREVER_S, cancellation=cancellation)
    assert cancellation.attached == 0


def test_a_cancelled_request_is_not_sent_and_one_that_ended_can_not_be_cancelled(wire: Any) -> None:
    server, pool = wire(always(OK))
    cancellation = Counted()
    get(pool, cancellation=cancellation)
    assert cancellation.attached == 0
    cancellation.cancel()
    with pytest.raises(TransportError, match="cancelled before it was sent"):
        get(pool, cancellation=cancellation)
    assert get(pool).status == 200
    assert len(server.requests) == 2
    assert server.connections == 1


TEXT = b"what compresses well " * 500


@pytest.mark.parametrize(
    ("encoding", "encoded", "decoded"),
    [
        ("gzip", gzip.compress(TEXT), TEXT),
        ("GZIP", gzip.compress(TEXT) + gzip.compress(b"more"), TEXT + b"more"),
        ("deflate", zlib.compress(TEXT), TEXT),
        ("gzip", b"", b""),
        ("identity", TEXT, TEXT),
        ("br", b"\x01\x02", b"\x01\x02"),
    ],
    ids=["gzip", "two-members", "deflate", "no-body", "identity", "unknown"],
)
def test_compressed_bodies_are_decompressed(
    serve: Any, connect: Any, encoding: str, encoded: bytes, decoded: bytes
) -> None:
    raw = answer(encoded, f"Content-Encoding: {encoding}")
    pool = connect(serve(always(*(raw[i : i + 7] for i in range(0, len(raw), 7)))))
    assert get(pool).body == decoded
    assert b"".join(pool.stream("GET", "/", headers={}, timeout_s=20)[2]) == decoded


@pytest.mark.parametrize("encoded", [gzip.compress(TEXT)[:-9], b"not compressed"], ids=["cut", "plain"])
def test_a_body_that_does_not_decompress_is_garbage(serve: Any, connect: Any, encoded: bytes) -> None:
    pool = connect(serve(always(answer(encoded, "Content-Encoding: gzip"))))
    with pytest.raises(HttpGarbage, match="can't be decompressed"):
        get(pool)
    with pytest.raises(HttpGarbage, match="can't be decompressed"):
        b"".join(pool.stream("GET", "/", headers={}, timeout_s=20)[2])


def test_a_stream_yields_what_has_arrived(wire: Any) -> None:
    seen = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        while True:
            peer.request()
            peer.send(CHUNKED)
            for word in (b"one", b"two", b"three"):
                peer.send(b"%x\r\n%s\r\n" % (len(word), word))
                assert seen.acquire(timeout=10)
            peer.send(b"0\r\n\r\n")

    server, pool = wire(script)
    for _ in range(2):
        status, headers, body = pool.stream("POST", "/", headers={}, body=[b"x"], timeout_s=20)
        assert (status, headers) == (200, {"transfer-encoding": "chunked"})
        words = []
        for word in body:
            words.append(word)
            seen.release()
        assert words == [b"one", b"two", b"three"]
        assert list(body) == []
    assert server.connections == 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_stream_that_is_closed_closes_its_connection(wire: Any, begun: bool) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        peer.request()

    server, pool = wire(script)
    _, _, body = pool.stream("GET", "/", headers={}, timeout_s=20)
    if begun:
        assert next(body) == b"abc"
    body.close()
    body.close()
    assert list(body) == []
    assert server.ended.acquire(timeout=10)


def test_tls_verifies_the_name_and_not_the_address(
    serve: Any, connect: Any, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    server = serve(always(OK), server_tls)
    pool = connect(server, "triton.example", connect_to="127.0.0.1", tls=client_tls)
    assert [get(pool).body for _ in range(3)] == [b"ok"] * 3
    assert server.connections == 1
    with pytest.raises(ssl.SSLCertVerificationError, match=r"other\.example"):
        get(connect(server, "other.example", connect_to="127.0.0.1", tls=client_tls))


def test_tls_trusts_the_given_authorities_only(serve: Any, connect: Any, server_tls: ssl.SSLContext) -> None:
    stranger = ssl.create_default_context()
    trustme.CA().configure_trust(stranger)
    server = serve(always(OK), server_tls)
    with pytest.raises(ssl.SSLCertVerificationError):
        get(connect(server, tls=stranger))
    assert server.requests == []


def test_tls_where_the_server_has_none_is_an_ssl_error(
    serve: Any, connect: Any, client_tls: ssl.SSLContext
) -> None:
    def script(peer: Peer) -> None:
        peer.sock.recv(100)
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with pytest.raises(ssl.SSLError):
        get(connect(serve(script), tls=client_tls))


@pytest.mark.parametrize("at", ["head", "body", "stream"])
def test_closing_ends_the_request_under_way(wire: Any, at: str) -> None:
    asked = threading.Event()

    def script(peer: Peer) -> None:
        while b"/slow" not in peer.request():
            peer.send(OK)
        if at != "head":
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        asked.set()
        peer.request()

    server, pool = wire(script)
    ended: list[Exception] = []

    def work() -> None:
        try:
            if at == "stream":
                list(pool.stream("GET", "/slow", headers={}, timeout_s=FOREVER_S)[2])
            else:
                pool.exchange("GET", "/slow", headers={}, timeout_s=FOREVER_S)
        except OSError as exc:
            ended.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    assert asked.wait(10)
    get(pool)
    pool.close()
    pool.close()
    thread.join()
    assert [isinstance(exc, ConnectionError) for exc in ended] == [True]
    # The other one was idle.
    assert all(server.ended.acquire(timeout=10) for _ in range(2))
    assert pool._busy == set()
    with pytest.raises(ConnectionAbortedError, match="closed meanwhile"):
        get(pool)


def run_python(code: str, *args: object) -> str:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_forked_child_leaves_the_connections_to_its_parent(
    serve: Any, authority: trustme.CA, server_tls: ssl.SSLContext, tmp_path: Any, tls: bool
) -> None:
    def script(peer: Peer) -> None:
        while True:
            peer.request()
            peer.send(answer(str(peer.number).encode()))

    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = serve(script, server_tls if tls else None)
    code = """
        import os, ssl, sys
        from mooring._wires._http_pool import HttpPool

        port, tls, ca_file = int(sys.argv[1]), sys.argv[2] == "True", sys.argv[3]
        tls = ssl.create_default_context(cafile=ca_file) if tls else None
        pool = HttpPool("127.0.0.1", port, tls=tls)
        ask = lambda: pool.exchange("GET", "/", headers={}, timeout_s=20).body.decode()
        assert ask() == "1"
        pool._lock.acquire()  # as another thread of the parent might
        child = os.fork()
        if child == 0:
            pool.abandon()
            same = {ask(), ask()}
            pool.close()
            os._exit(0 if same == {"2"} else 1)
        pool._lock.release()
        assert os.waitpid(child, 0)[1] == 0
        assert ask() == "1"
        pool.close()
        print("done")
    """
    assert run_python(code, server.port, tls, tmp_path / "ca.pem") == "done\n"
    assert server.connections == 2


def test_greenlets_wait_together(serve: Any) -> None:
    together = threading.Barrier(8)

    def script(peer: Peer) -> None:
        while True:
            body = peer.request().partition(b"\r\n\r\n")[2]
            if not body:
                peer.wait()
            together.wait(20)  # none is answered before all have asked
            peer.send(answer(body))

    code = """
        from gevent import monkey
        monkey.patch_all()
        import sys, threading
        from mooring._cancellation import Cancellation
        from mooring._wires._http_pool import HttpPool

        pool = HttpPool("127.0.0.1", int(sys.argv[1]))
        done = []

        def ask(body):
            for _ in range(3):
                answer = pool.exchange(
                    "POST", "/", headers={}, body=[body], timeout_s=60, cancellation=Cancellation()
                )
                assert answer.body == body
            done.append(1)

        threads = [threading.Thread(target=ask, args=(bytes([n]) * 300_000,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        try:
            pool.exchange("POST", "/", headers={}, timeout_s=0.2)
        except TimeoutError:
            print(len(done))
        pool.close()
    """
    assert run_python(code, serve(script).port) == "8\n"


def test_a_name_that_nobody_answers_for_ends_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: release.wait(FOREVER_S) and [])
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        HttpPool("triton", 8000).exchange("GET", "/", headers={}, timeout_s=0.1)
    release.set()
    assert time.monotonic() - began_s < FOREVER_S
