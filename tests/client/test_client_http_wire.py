"""HTTP on bad days: a server of raw bytes on loopback."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from mooring import (
    Client,
    ConnectError,
    DeadlineExceeded,
    DecodeError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    MooringError,
    Overloaded,
    ServerError,
    TransportError,
)
from mooring._transport import InferRequest, Tensor
from mooring._transports._http import HttpTransport
from mooring._url import Endpoint, parse_url

Script = Callable[[int, bytes], Iterable[bytes]]


class RawServer:
    """Answers the n-th request, over all connections, with the bytes that ``script(n, request)`` gives.

    A connection is closed after an empty chunk, or when the script ends early by raising StopIteration.
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._numbers = itertools.count()
        self.connections = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
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
        with connection, contextlib.suppress(OSError):
            connection.settimeout(0.02)
            while not self._stop.is_set():
                request = self._receive(connection)
                if request is None:
                    return
                for chunk in self._script(next(self._numbers), request):
                    if not chunk or self._stop.is_set():
                        return
                    connection.sendall(chunk)

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


@pytest.fixture
def serve() -> Iterator[Callable[[Script], RawServer]]:
    with contextlib.ExitStack() as stack:

        def start(script: Script) -> RawServer:
            server = RawServer(script)
            stack.callback(server.close)
            return server

        yield start


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    with contextlib.ExitStack() as stack:
        yield lambda url, **options: stack.enter_context(Client(url, **{"timeout_s": 10, **options}))


def response(body: bytes = b"", status: int = 200, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Word", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def always(*chunks: bytes) -> Script:
    return lambda number, request: chunks


REQUEST = InferRequest(
    model="m",
    version="",
    inputs=(Tensor("x", "FP32", np.float32([[1]])),),
    outputs=None,
    request_id="",
)


def test_nothing_listening_is_a_connect_error(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ConnectError, match=rf"^{url}: can't connect; is the server running\?") as caught:
        connect(url).server_ready()
    assert [type(attempt) for attempt in caught.value.attempts] == [ConnectionRefusedError]
    assert caught.value.__cause__ is caught.value.attempts[0]


@pytest.mark.parametrize(
    ("failure", "kind", "said"),
    [
        (socket.gaierror(-2, "Name or service not known"), ConnectError, "Name or service not known"),
        (UnicodeError("label too long"), ConnectError, "label too long"),
        (OSError(101, "Network is unreachable"), ConnectError, "Network is unreachable"),
    ],
)
def test_names_and_routes_that_do_not_exist_are_connect_errors(
    connect: Any, monkeypatch: pytest.MonkeyPatch, failure: Exception, kind: type[MooringError], said: str
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise failure

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(kind, match=rf"^http://triton\.example:8000: can't connect.*{said}"):
        connect("http://triton.example:8000").server_ready()


def test_every_address_of_a_name_is_tried(serve: Any, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(always(response()))
    port = int(server.url.rpartition(":")[2])
    addresses = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")
    ]
    # create_connection looks its numeric address up as well.
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **options: (
            addresses if host == "triton" else [a for a in addresses if host in a[4]]
        ),
    )
    assert connect(f"http://triton:{port}").server_ready()


@pytest.mark.parametrize(
    "chunks",
    [
        [b"\x00\xff garbage \r\n\r\n"],
        [b"SSH-2.0-OpenSSH_9.2\r\n"],
        [b"HTTP/1.1 two\r\n\r\n"],
        [b"x" * 70_000],
    ],
    ids=["binary", "ssh", "status", "endless-line"],
)
def test_bytes_that_are_no_http_are_a_decode_error(serve: Any, connect: Any, chunks: list[bytes]) -> None:
    server = serve(always(*chunks, b""))
    with pytest.raises(DecodeError, match=r"does not speak HTTP; is it the gRPC port\? Then write grpc://"):
        connect(server.url).server_ready()


@pytest.mark.parametrize(
    "chunks",
    [[b""], [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b""]],
    ids=["no-answer", "half-a-body"],
)
def test_a_connection_that_ends_early_is_a_transport_error(
    serve: Any, connect: Any, chunks: list[bytes]
) -> None:
    server = serve(always(*chunks))
    with pytest.raises(TransportError, match="connection lost before an answer came") as caught:
        connect(server.url).models()
    assert type(caught.value) is TransportError
    assert len(caught.value.attempts) == 1


def test_a_length_that_no_memory_holds_is_a_decode_error(serve: Any, connect: Any) -> None:
    server = serve(always(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n"))
    with pytest.raises(DecodeError, match="OverflowError"):
        connect(server.url).models()


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: ", response(b"x" * 10**6)[:80]])
def test_the_deadline_holds_against_silence_and_against_a_trickle(
    serve: Any, connect: Any, start: bytes
) -> None:
    def trickle(number: int, request: bytes) -> Iterator[bytes]:
        if not start:
            server.wait(60)
        yield start
        while True:  # for ever: without a deadline on the whole, this test never ends
            server.wait(0.02)
            yield b"x"

    server = serve(trickle)
    client = connect(server.url, timeout_s=0.2)
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.2 s") as caught:
        client.models()
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.1 s"):
        client.models(timeout_s=0.1)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidInput),
        (401, ServerError),
        (404, ModelNotFound),
        (413, InvalidInput),
        (429, Overloaded),
        (500, ServerError),
        (502, Overloaded),
        (503, Overloaded),
        (504, Overloaded),
        (204, ServerError),
    ],
)
@pytest.mark.parametrize("body", [b'{"error":"some words"}', b"<html>some words</html>"])
def test_statuses_have_their_errors_whoever_wrote_the_body(
    serve: Any, connect: Any, status: int, kind: type[ServerError], body: bytes
) -> None:
    if status == 204:
        body = b""
    client = connect(serve(always(response(body, status))).url)
    with pytest.raises(ServerError, match=rf"^model 'm': .* \[{status}\]$") as caught:
        client.metadata("m")
    assert type(caught.value) is kind
    assert caught.value.code == str(status)
    assert "some words" in str(caught.value) or status == 204


def test_an_unknown_path_is_no_unknown_model(serve: Any, connect: Any) -> None:
    client = connect(serve(always(response(b"nothing here", 404))).url)
    with pytest.raises(ServerError, match=r"^the server: nothing here \[404\]$") as caught:
        client.models()
    assert type(caught.value) is ServerError


def test_triton_words_tell_not_ready_from_overload(serve: Any, connect: Any) -> None:
    words = b'{"error":"Request for unknown model: \'m\' version 1 is not at ready state"}'
    client = connect(serve(always(response(words, 503))).url)
    with pytest.raises(ModelNotReady, match="is not at ready state"):
        client.metadata("m")


@pytest.mark.parametrize("status", [500, 503])
def test_readiness_that_nobody_can_tell_is_an_error(serve: Any, connect: Any, status: int) -> None:
    client = connect(serve(always(response(b"proxy", status))).url)
    for ask in (client.server_ready, lambda: client.ready("m")):
        with pytest.raises(ServerError, match="proxy"):
            ask()


@pytest.mark.parametrize(
    "body",
    [
        b"garbage",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"text"',
        b'{"name": 5}',
        b'{"name": "m", "inputs": [{}], "input": [{"optional": true}]}',
        b'{"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": "?"}], "max_batch_size": "?"}',
        b'{"name": "m", "versions": [1], "parameters": {"task": "x"}}',
    ],
)
def test_descriptions_that_make_no_sense_are_decode_errors(serve: Any, connect: Any, body: bytes) -> None:
    client = connect(serve(always(response(body))).url)
    for ask in (client.metadata, client.config):
        with pytest.raises(DecodeError, match=r"no JSON|no model (metadata|config)"):
            ask("m")


@pytest.mark.parametrize("body", [b"garbage", b"{}{}", b"5", b"[5]", b'[{"name": null}]', b'["name"]'])
def test_an_index_that_makes_no_sense_is_a_decode_error(serve: Any, connect: Any, body: bytes) -> None:
    client = connect(serve(always(response(body))).url)
    with pytest.raises(DecodeError, match=r"no JSON|no repository index"):
        client.models()


def output(**changes: Any) -> bytes:
    said = {
        "name": "y",
        "datatype": "FP32",
        "shape": [1, 1],
        "parameters": {"binary_data_size": 4},
        **changes,
    }
    return json.dumps({"outputs": [said]}).encode()


BAD_ANSWERS = {
    "no json": (b"garbage", None),
    "no outputs": (b"{}", None),
    "outputs no list": (b'{"outputs": 5}', None),
    "no name": (b'{"outputs": [{}]}', None),
    "length no number": (output(), "four"),
    "length beyond": (output(), "9999"),
    "short data": (output(shape=[2, 2], parameters={"binary_data_size": 16}) + b"1234", None),
    "shape": (output(shape=[3]) + b"1234", None),
    "bytes": (output(datatype="BYTES") + b"\xff\xff\xff\xff", None),
    "bytes cut": (output(datatype="BYTES", parameters={"binary_data_size": 2}) + b"\x01\x00", None),
}


@pytest.mark.parametrize(("body", "length"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_tensors_that_make_no_sense_are_decode_errors(serve: Any, body: bytes, length: str | None) -> None:
    head = (
        len(body.partition(b"]}")[0]) + 2
        if length is None and body.startswith(b'{"outputs": [{"n')
        else length
    )
    headers = [] if head is None else [f"Inference-Header-Content-Length: {head}"]
    transport = HttpTransport(parse_url(serve(always(response(body, 200, *headers))).url))
    with pytest.raises(DecodeError, match=r"^model 'm': the answer's tensors can't be read: "):
        transport.infer(REQUEST, timeout_s=10)
    transport.close()


def test_one_connection_serves_many_requests(serve: Any, connect: Any) -> None:
    server = serve(always(response()))
    client = connect(server.url)
    assert all(client.server_ready() for _ in range(5))
    assert server.connections == 1


@pytest.mark.parametrize("polite", [True, False], ids=["announced", "silent"])
def test_a_connection_that_the_server_closed_is_replaced(serve: Any, connect: Any, polite: bool) -> None:
    answer = response(b"", 200, "Connection: close") if polite else response()
    closed = threading.Event()

    def once(number: int, request: bytes) -> Iterator[bytes]:
        yield answer
        closed.set()
        yield b""

    server = serve(once)
    client = connect(server.url)
    for count in range(1, 4):
        assert client.server_ready()
        assert closed.wait(10)
        closed.clear()
        if not polite:
            _wait_for_end_of_stream(client)
        assert server.connections == count


def _wait_for_end_of_stream(client: Client) -> None:
    """The server's FIN is on its way; wait until it has come."""
    [connection] = client._transport._pool._idle  # type: ignore[attr-defined]
    sock: socket.socket = connection.sock._sock
    sock.settimeout(10)
    assert sock.recv(1, socket.MSG_PEEK) == b""


def test_a_failed_request_costs_its_connection(serve: Any, connect: Any) -> None:
    def script(number: int, request: bytes) -> Iterator[bytes]:
        if number == 0:
            server.wait(0.3)  # the late answer must not be taken for that of the next request
            yield response(b"late", 500)
        yield response()

    server = serve(script)
    client = connect(server.url)
    with pytest.raises(DeadlineExceeded):
        client.server_ready(timeout_s=0.05)
    assert client.server_ready()
    assert server.connections == 2


def test_closing_waits_for_no_request_and_leaves_no_socket(serve: Any) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def script(number: int, request: bytes) -> Iterator[bytes]:
        arrived.set()
        go_on.wait(10)
        yield response()

    transport = HttpTransport(parse_url(serve(script).url))
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(transport.server_ready(timeout_s=10)))
    thread.start()
    assert arrived.wait(10)
    transport.close()
    go_on.set()
    thread.join()
    assert answers == [True]
    assert transport._pool._idle == []


def test_base_path_of_a_reverse_proxy_is_kept(serve: Any, connect: Any) -> None:
    paths: list[bytes] = []

    def script(number: int, request: bytes) -> Iterable[bytes]:
        paths.append(request.split(b" ")[1])
        return [response()]

    connect(serve(script).url + "/models/eu/").server_ready()
    assert paths == [b"/models/eu/v2/health/ready"]


def test_ipv6_addresses_are_bracketed_in_the_host_header() -> None:
    assert Endpoint(scheme="http", host="::1", port=8000).address == "[::1]:8000"


def test_what_tritonclient_can_not_write_is_invalid_input() -> None:
    """Such as bfloat16 with a tritonclient that is too old for it."""
    tensor = Tensor("x", "INT64", np.float32([[1]]))
    request = InferRequest(model="m", version="", inputs=(tensor,), outputs=None, request_id="")
    transport = HttpTransport(parse_url("http://127.0.0.1:1"))
    with pytest.raises(InvalidInput, match=r"^model 'm': tritonclient can't write the request: .* FP32 "):
        transport.infer(request, timeout_s=1)
    transport.close()
