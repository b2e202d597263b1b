"""The fault proxy itself: each fault against a small server in the test."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fault_kinds import (
    BlackHole,
    CloseAfter,
    Delay,
    Fault,
    Garbage,
    HttpStatus,
    Pass,
    Refuse,
    ResetAfter,
    Trickle,
)
from fault_proxy import FaultProxy
from processes import wait_until

Address = tuple[str, int]

#: Only keeps a failing test from hanging.
LIMIT_S = 20.0
#: How long a test waits to see that nothing comes; nothing can make it fail by being slow.
QUIET_S = 0.1


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(65536):
                self.request.sendall(data)
        except ConnectionError:
            pass


class _EchoServer(socketserver.ThreadingTCPServer):
    request_queue_size = 512
    daemon_threads = False


class _HttpEcho(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = False


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    """Ends servers after the proxies and clients that hold connections to them."""
    with ExitStack() as running:
        yield running


def serve(servers: ExitStack, server: socketserver.TCPServer) -> Address:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    servers.enter_context(server)
    servers.callback(thread.join)
    servers.callback(server.shutdown)
    thread.start()
    return "127.0.0.1", server.server_address[1]


@pytest.fixture
def echo(servers: ExitStack) -> Address:
    return serve(servers, _EchoServer(("127.0.0.1", 0), _Echo))


@pytest.fixture
def http_echo(servers: ExitStack) -> Address:
    return serve(servers, _HttpServer(("127.0.0.1", 0), _HttpEcho))


@pytest.fixture
def proxy(echo: Address) -> Iterator[FaultProxy]:
    with FaultProxy(echo) as proxy:
        yield proxy


@pytest.fixture
def http_proxy(http_echo: Address) -> Iterator[FaultProxy]:
    with FaultProxy(http_echo) as proxy:
        yield proxy


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=LIMIT_S)


def read(client: socket.socket, size: int) -> bytes:
    """``size`` bytes, or what came before the end."""
    data = b""
    while len(data) < size and (piece := client.recv(size - len(data))):
        data += piece
    return data


def ask(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return read(client, len(data))


def assert_silent(client: socket.socket) -> None:
    client.settimeout(QUIET_S)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(LIMIT_S)


def post(client: HTTPConnection, body: bytes) -> tuple[int, bytes]:
    client.request("POST", "/", body)
    answer = client.getresponse()
    return answer.status, answer.read()


@pytest.fixture
def http_client(http_proxy: FaultProxy) -> Iterator[HTTPConnection]:
    client = HTTPConnection(http_proxy.host, http_proxy.port, timeout=LIMIT_S)
    yield client
    client.close()


def test_bytes_pass_and_are_counted(proxy: FaultProxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        assert ask(one, b"hello") == b"hello"
        assert ask(one, b"again") == b"again"
        assert ask(other, b"x") == b"x"
        assert (proxy.connections, proxy.open_connections, proxy.requests_seen) == (2, 2, 2)
        assert (proxy.bytes_to_server, proxy.bytes_to_client) == (11, 11)
    wait_until(lambda: proxy.open_connections == 0)
    assert proxy.fault == Pass()
    assert proxy.address == f"127.0.0.1:{proxy.port}"


def test_the_end_of_a_clients_bytes_reaches_the_server(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert read(client, 100) == b"last words"


def test_much_data_passes_to_a_slow_reader(proxy: FaultProxy) -> None:
    data = bytes(range(256)) * 80_000
    with connect(proxy) as client, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(client.sendall, data)
        wait_until(lambda: proxy.bytes_to_server > 1_000_000)
        assert read(client, len(data)) == data
        sending.result(LIMIT_S)
    assert proxy.bytes_to_client == len(data)


def test_300_connections_at_once(proxy: FaultProxy) -> None:
    with ExitStack() as open_clients:
        clients = [open_clients.enter_context(connect(proxy)) for _ in range(300)]
        for _ in range(3):
            for number, client in enumerate(clients):
                client.sendall(b"%03d" % number)
            assert [read(client, 3) for client in clients] == [b"%03d" % number for number in range(300)]
        assert proxy.open_connections == 300


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.7", "127.8.9.10"])
def test_it_listens_on_any_loopback_address(echo: Address, host: str) -> None:
    with FaultProxy(echo, host=host) as proxy, connect(proxy) as client:
        assert client.getpeername() == (host, proxy.port)
        assert ask(client, b"hello") == b"hello"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::1"])
def test_it_listens_nowhere_else(host: str) -> None:
    with pytest.raises(ValueError, match=f"{host!r} is outside 127.0.0.0/8"):
        FaultProxy(None, host=host)


def test_two_addresses_share_a_port_and_one_address_does_not(echo: Address) -> None:
    with FaultProxy(echo, host="127.0.0.2") as proxy:
        with FaultProxy(echo, host="127.0.0.3", port=proxy.port) as other:
            assert other.port == proxy.port
        with pytest.raises(OSError, match="in use"):
            FaultProxy(echo, host="127.0.0.2", port=proxy.port)


def test_a_given_port_can_be_taken_again_at_once(echo: Address) -> None:
    port = 0
    for _ in range(3):
        with FaultProxy(echo, port=port) as proxy, connect(proxy) as client:
            assert ask(client, b"hello") == b"hello"
            port = port or proxy.port
            assert proxy.port == port


def test_refuse_and_come_back_on_the_same_port(proxy: FaultProxy) -> None:
    with connect(proxy) as early:
        assert ask(early, b"1") == b"1"
        for _ in range(3):
            proxy.fault = Refuse()
            with pytest.raises(ConnectionRefusedError):
                connect(proxy)
            assert ask(early, b"2") == b"2"
            proxy.fault = Pass()
            with connect(proxy) as client:
                assert ask(client, b"3") == b"3"
    assert proxy.connections == 4


def test_refuse_can_reset_open_connections(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert ask(client, b"1") == b"1"
        proxy.fault = Refuse(apply_to_open=True)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_black_hole_accepts_and_never_answers(proxy: FaultProxy) -> None:
    proxy.fault = BlackHole()
    with connect(proxy) as client:
        client.sendall(b"hello")
        assert_silent(client)
        assert (proxy.connections, proxy.requests_seen, proxy.bytes_to_server) == (1, 0, 0)
        proxy.fault = Pass(apply_to_open=True)
        assert read(client, 5) == b"hello"


def test_a_fault_leaves_open_connections_unless_it_applies_to_them(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert ask(client, b"1") == b"1"
        proxy.fault = BlackHole()
        assert ask(client, b"2") == b"2"
        proxy.fault = BlackHole(apply_to_open=True)
        client.sendall(b"3")
        assert_silent(client)


@pytest.mark.parametrize("size", [1, 7, 500_000])
def test_reset_after_some_bytes_of_the_answer(proxy: FaultProxy, size: int) -> None:
    proxy.fault = ResetAfter(size)
    with connect(proxy) as client:
        client.sendall(b"x" * (size + 3))
        assert read(client, size) == b"x" * size
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert proxy.bytes_to_client == size
    assert proxy.open_connections == 0


def test_reset_in_place_of_the_answer(proxy: FaultProxy) -> None:
    proxy.fault = ResetAfter(0)
    with connect(proxy) as client:
        client.sendall(b"hello")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert (proxy.bytes_to_server, proxy.bytes_to_client) == (5, 0)


def test_reset_on_an_open_connection_counts_from_when_it_was_set(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert ask(client, b"hello") == b"hello"
        proxy.fault = ResetAfter(2, apply_to_open=True)
        client.sendall(b"abc")
        assert read(client, 2) == b"ab"
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@pytest.mark.parametrize("size", [0, 1, 7, 500_000])
def test_close_after_some_bytes_of_the_answer(proxy: FaultProxy, size: int) -> None:
    proxy.fault = CloseAfter(size)
    with connect(proxy) as client:
        client.sendall(b"x" * (size + 3))
        assert read(client, size + 3) == b"x" * size
        client.sendall(b"more")  # after a clean end the client may go on
        assert client.recv(1) == b""
    wait_until(lambda: proxy.open_connections == 0)


def test_close_in_the_middle_of_a_body(http_proxy: FaultProxy, http_client: HTTPConnection) -> None:
    http_proxy.fault = CloseAfter(300)
    http_client.request("POST", "/", b"x" * 1000)
    answer = http_client.getresponse()
    assert answer.status == 200
    assert 0 < len(answer.read1(1000)) < 300


def test_trickle_answers_byte_by_byte(proxy: FaultProxy) -> None:
    proxy.fault = Trickle(bytes_per_s=200)
    started = time.monotonic()
    with connect(proxy) as client:
        client.sendall(b"0123456789")
        assert client.recv(10) == b"0"
        assert read(client, 9) == b"123456789"
    assert time.monotonic() - started >= 9 / 200 * 0.9


def test_trickle_ends_when_the_fault_does(proxy: FaultProxy) -> None:
    proxy.fault = Trickle(bytes_per_s=0.001)
    with connect(proxy) as client:
        client.sendall(b"01234")
        assert read(client, 1) == b"0"
        assert_silent(client)
        proxy.fault = Pass(apply_to_open=True)
        assert read(client, 4) == b"1234"


def test_trickle_keeps_up_a_high_rate(proxy: FaultProxy) -> None:
    proxy.fault = Trickle(bytes_per_s=1e7)
    with connect(proxy) as client:
        assert ask(client, b"x" * 300_000) == b"x" * 300_000


def test_garbage_answers_and_closes(proxy: FaultProxy) -> None:
    proxy.fault = Garbage(b"\x00\xffnot HTTP")
    with connect(proxy) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert read(client, 100) == b"\x00\xffnot HTTP"
    assert proxy.bytes_to_server == 0
    assert proxy.requests_seen == 1


def test_garbage_on_an_open_connection(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert ask(client, b"hello") == b"hello"
        proxy.fault = Garbage(b"???", apply_to_open=True)
        client.sendall(b"x" * 1_000_000)
        assert read(client, 100) == b"???"


def test_http_status_answers_so_many_times(http_proxy: FaultProxy, http_client: HTTPConnection) -> None:
    http_proxy.fault = HttpStatus(503, {"Retry-After": "1"}, b"overloaded", times=2)
    for _ in range(2):
        http_client.request("POST", "/", b"x" * 1_000_000)
        answer = http_client.getresponse()
        assert (answer.status, answer.reason) == (503, "Service Unavailable")
        assert answer.headers["Retry-After"] == "1"
        assert answer.read() == b"overloaded"
    assert http_proxy.bytes_to_server == 0
    assert post(http_client, b"through") == (200, b"through")
    assert (http_proxy.connections, http_proxy.requests_seen) == (1, 3)


def test_http_status_counts_over_all_connections(http_proxy: FaultProxy) -> None:
    http_proxy.fault = HttpStatus(429, times=3)
    with ThreadPoolExecutor(8) as pool:

        def try_once(_: int) -> int:
            client = HTTPConnection(http_proxy.host, http_proxy.port, timeout=LIMIT_S)
            try:
                return post(client, b"x")[0]
            finally:
                client.close()

        assert sorted(pool.map(try_once, range(8))) == [200] * 5 + [429] * 3


def test_http_status_without_end_on_an_open_connection(
    http_proxy: FaultProxy, http_client: HTTPConnection
) -> None:
    assert post(http_client, b"through") == (200, b"through")
    http_proxy.fault = HttpStatus(500, apply_to_open=True)
    assert [post(http_client, b"no")[0] for _ in range(5)] == [500] * 5
    http_proxy.fault = Pass(apply_to_open=True)
    assert post(http_client, b"again") == (200, b"again")
    assert (http_proxy.connections, http_proxy.requests_seen) == (1, 7)


def test_http_status_reads_requests_in_any_pieces(http_proxy: FaultProxy) -> None:
    http_proxy.fault = HttpStatus(503, body=b"no", times=2)
    one = b"POST / HTTP/1.1\r\nHost: x\r\nCONTENT-LENGTH: 8\r\n\r\n\r\n\r\nGET "
    no = HttpStatus(503, body=b"no").answer()
    with connect(http_proxy) as client:
        client.sendall(one[:10])
        for byte in one[10:]:
            client.sendall(bytes([byte]))
        assert read(client, len(no)) == no
        client.sendall(one + one[:20])
        assert read(client, len(no)) == no
        client.sendall(one[20:])
        assert b"200 OK" in client.recv(1000)
    assert http_proxy.requests_seen == 3


def test_http_status_lets_another_protocol_pass(proxy: FaultProxy) -> None:
    proxy.fault = HttpStatus(503)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    with connect(proxy) as client:
        assert ask(client, preface) == preface
        assert ask(client, b"GET / HTTP/1.1\r\n\r\n") == b"GET / HTTP/1.1\r\n\r\n"
    assert proxy.requests_seen == 1


def test_delay_holds_back_each_answer(http_proxy: FaultProxy, http_client: HTTPConnection) -> None:
    http_proxy.fault = Delay(0.1)
    for body in (b"one", b"two"):
        started = time.monotonic()
        assert post(http_client, body) == (200, body)
        assert time.monotonic() - started >= 0.1


def test_delay_ends_when_the_fault_does(proxy: FaultProxy) -> None:
    proxy.fault = Delay(3600)
    with connect(proxy) as client:
        client.sendall(b"hello")
        assert_silent(client)
        proxy.fault = Delay(0.01, apply_to_open=True)
        assert read(client, 5) == b"hello"


def test_freeze_moves_nothing_and_thaw_loses_nothing(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert ask(client, b"1") == b"1"
        proxy.freeze()
        client.sendall(b"2")
        assert_silent(client)
        assert (proxy.bytes_to_server, proxy.bytes_to_client, proxy.open_connections) == (1, 1, 1)
        proxy.thaw()
        assert read(client, 1) == b"2"


def test_freeze_keeps_a_large_answer_half_sent(proxy: FaultProxy) -> None:
    size = 20_000_000
    with connect(proxy) as client, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(client.sendall, b"x" * size)
        wait_until(lambda: proxy.bytes_to_client > 100_000)
        proxy.freeze()
        moved = proxy.bytes_to_server, proxy.bytes_to_client
        assert len(read(client, moved[1])) == moved[1]
        assert_silent(client)
        assert (proxy.bytes_to_server, proxy.bytes_to_client) == moved
        proxy.thaw()
        assert len(read(client, size - moved[1])) == size - moved[1]
        sending.result(LIMIT_S)


def test_a_replaced_server_is_reached_by_new_connections_only(proxy: FaultProxy, servers: ExitStack) -> None:
    class Shout(_Echo):
        def handle(self) -> None:
            self.request.sendall(self.request.recv(100).upper())

    with connect(proxy) as old:
        assert ask(old, b"one") == b"one"
        proxy.freeze()
        with connect(proxy) as unlucky:
            unlucky.sendall(b"two")
            assert_silent(unlucky)
            proxy.retarget(serve(servers, _EchoServer(("127.0.0.1", 0), Shout)))
            with connect(proxy) as new:
                assert ask(new, b"three") == b"THREE"
            old.sendall(b"four")
            assert_silent(old)
            assert_silent(unlucky)
            proxy.thaw()
            assert read(old, 4) == b"four"


@pytest.mark.parametrize("fault", [Pass(), BlackHole(), Trickle(0.001), Delay(3600)])
def test_reset_all_resets_open_connections(proxy: FaultProxy, fault: Fault) -> None:
    proxy.fault = fault
    with connect(proxy) as one, connect(proxy) as other:
        wait_until(lambda: proxy.open_connections == 2)
        proxy.reset_all()
        assert proxy.open_connections == 0
        for client in (one, other):
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        proxy.fault = Pass()
        with connect(proxy) as client:
            assert ask(client, b"hello") == b"hello"


def test_reset_all_while_frozen(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert ask(client, b"1") == b"1"
        proxy.freeze()
        proxy.reset_all()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_no_target_or_a_dead_one_resets_the_client() -> None:
    with socket.socket() as unused, FaultProxy(None) as proxy:
        unused.bind(("127.0.0.1", 0))
        for target in (None, unused.getsockname()):
            proxy.retarget(target)
            with pytest.raises(ConnectionResetError), connect(proxy) as client:
                client.recv(1)


def test_reset_all_reaches_the_server(servers: ExitStack) -> None:
    listener = servers.enter_context(socket.create_server(("127.0.0.1", 0)))
    with FaultProxy(listener.getsockname()) as proxy, connect(proxy), listener.accept()[0] as accepted:
        proxy.reset_all()
        with pytest.raises(ConnectionResetError):
            accepted.recv(1)


def test_a_servers_reset_reaches_the_client(servers: ExitStack) -> None:
    listener = servers.enter_context(socket.create_server(("127.0.0.1", 0)))
    with FaultProxy(listener.getsockname()) as proxy, connect(proxy) as client:
        accepted, _ = listener.accept()
        with accepted:
            client.sendall(b"unread")  # the kernel resets a connection that is closed with bytes unread
            wait_until(lambda: proxy.bytes_to_server == 6)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@pytest.mark.parametrize(
    "fault",
    [
        Pass(),
        Refuse(),
        BlackHole(),
        ResetAfter(9),
        CloseAfter(2),
        Trickle(0.001),
        Delay(3600),
        HttpStatus(503),
    ],
)
def test_nothing_is_left_after_the_exit(echo: Address, fault: Fault) -> None:
    before = set(threading.enumerate())
    with FaultProxy(echo) as proxy:
        assert len(set(threading.enumerate()) - before) == 1
        with connect(proxy) as client:
            proxy.fault = fault
            client.sendall(b"hello")
            if not isinstance(fault, Refuse):
                connect(proxy).close()
            proxy.close()
            ours = {thread for thread in threading.enumerate() if "fault-proxy" in thread.name}
            assert not ours
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    with pytest.raises(RuntimeError, match=f"127.0.0.1:{proxy.port} is closed"):
        proxy.fault = Pass()
    assert proxy.connections >= 1
    assert proxy.open_connections == 0
