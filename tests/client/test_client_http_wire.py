"""HTTP on bad days: a server of raw bytes on loopback."""

from __future__ import annotations

import asyncio
import json
import re
import select
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from mooring import (
    AccessDenied,
    ConfigError,
    ConnectError,
    DeadlineExceeded,
    DecodeError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    MooringError,
    Overloaded,
    ServerError,
    TlsConfig,
    TransportError,
)
from mooring._operations import GetServerReady, Infer, Tensor
from mooring._url import Endpoint, parse_url
from mooring._wires._http import HttpTransport
from mooring._wires._http_codec import http_error
from raw_server import always, response

REQUEST = Infer(model="m", inputs=(Tensor("x", "FP32", np.float32([[1]])),))


def test_nothing_listening_is_a_connect_error(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ConnectError, match=rf"^{url}: can't connect; is the server running\?") as caught:
        connect(url).server_ready()
    assert caught.value.attempts == (caught.value,)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    "failure",
    [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long"), OSError(11, "no")],
    ids=["unknown", "impossible", "other"],
)
def test_names_that_can_not_be_resolved_are_connect_errors(
    connect: Any, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise failure

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    said = rf"^http://triton\.example:8000: the name can't be resolved \({re.escape(str(failure))}\)$"
    with pytest.raises(ConnectError, match=said) as caught:
        connect("http://triton.example:8000").server_ready()
    assert caught.value.__cause__ is failure


FAILURES = [
    (TimeoutError("timed out"), DeadlineExceeded, r"no answer within 0\.5 s$"),
    (ssl.SSLCertVerificationError("unknown CA"), ConnectError, "no TLS connection; .*unknown CA"),
    (ConnectionRefusedError("refused"), ConnectError, r"is the server running\? \(refused\)"),
    (socket.gaierror(-2, "no name"), ConnectError, r"is the server running\? .*no name"),
    (UnicodeError("label too long"), ConnectError, r"is the server running\? \(label too long\)"),
    (OSError(101, "Network is unreachable"), ConnectError, "can't connect .*Network is unreachable"),
    (ConnectionResetError("reset"), TransportError, r"connection lost before an answer came \(reset\)"),
    (BrokenPipeError("pipe"), TransportError, "connection lost before an answer came"),
    (ValueError("odd"), DecodeError, r"is it the gRPC port\? Then write grpc:// \(ValueError: odd\)"),
    (MemoryError(), DecodeError, "does not speak HTTP"),
]


@pytest.mark.parametrize(("failure", "kind", "said"), FAILURES, ids=range(len(FAILURES)))
def test_what_sockets_raise_has_its_error(failure: Exception, kind: type[MooringError], said: str) -> None:
    error = http_error(failure, endpoint=parse_url("http://h:8000"), timeout_s=0.5)
    assert type(error) is kind
    assert re.search(f"^http://h:8000.*{said}", str(error))


def test_every_address_of_a_name_is_tried(serve_raw: Any, side: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve_raw(always(response()))
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
    client = side.client(f"http://triton:{port}")
    assert all(client.server_ready() for _ in range(4))
    assert client.counters().retries > 0


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
def test_bytes_that_are_no_http_are_a_decode_error(serve_raw: Any, connect: Any, chunks: list[bytes]) -> None:
    server = serve_raw(always(*chunks, b""))
    with pytest.raises(DecodeError, match=r"does not speak HTTP; is it the gRPC port\? Then write grpc://"):
        connect(server.url).server_ready()


@pytest.mark.parametrize(
    "chunks",
    [[b""], [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b""]],
    ids=["no-answer", "half-a-body"],
)
def test_a_connection_that_ends_early_is_a_transport_error(
    serve_raw: Any, connect: Any, chunks: list[bytes]
) -> None:
    server = serve_raw(always(*chunks))
    with pytest.raises(TransportError, match="connection lost before an answer came") as caught:
        connect(server.url).models()
    assert type(caught.value) is TransportError
    assert caught.value.attempts == (caught.value,)
    assert isinstance(caught.value.__cause__, Exception)


def test_a_length_that_no_memory_holds_is_a_decode_error(serve_raw: Any, connect: Any) -> None:
    server = serve_raw(always(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n"))
    with pytest.raises(DecodeError, match="does not speak HTTP"):
        connect(server.url).models()


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: ", response(b"x" * 10**6)[:80]])
def test_the_deadline_holds_against_silence_and_against_a_trickle(
    serve_raw: Any, connect: Any, start: bytes
) -> None:
    def trickle(number: int, request: bytes) -> Iterator[bytes]:
        if not start:
            server.wait(60)
        yield start
        while True:  # for ever: without a deadline on the whole, this test never ends
            server.wait(0.02)
            yield b"x"

    server = serve_raw(trickle)
    client = connect(server.url, timeout_s=0.2)
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.[012]\d* s") as caught:
        client.models()
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.(1|0\d+) s"):
        client.models(timeout_s=0.1)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidInput),
        (401, AccessDenied),
        (403, AccessDenied),
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
@pytest.mark.parametrize(
    "body",
    [b'{"error":"some words"}', b"<html>some words</html>", b'["some words",' + b"[" * 100_000],
    ids=["triton", "html", "nested"],
)
def test_statuses_have_their_errors_whoever_wrote_the_body(
    serve_raw: Any, connect: Any, status: int, kind: type[ServerError], body: bytes
) -> None:
    if status == 204:
        body = b""
    client = connect(serve_raw(always(response(body, status))).url)
    with pytest.raises(ServerError, match=rf"^model 'm': .* \[{status}\]$") as caught:
        client.metadata("m")
    assert type(caught.value) is kind
    assert caught.value.code == str(status)
    assert "some words" in str(caught.value) or status == 204


def test_an_unknown_path_is_no_unknown_model(serve_raw: Any, connect: Any) -> None:
    client = connect(serve_raw(always(response(b"nothing here", 404))).url)
    with pytest.raises(ServerError, match=r"^the server: nothing here \[404\]$") as caught:
        client.models()
    assert type(caught.value) is ServerError


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b'{"error":"Not Found"}'), (405, b"Method Not Allowed"), (405, b"")],
    ids=["triton", "other", "silent"],
)
def test_a_server_that_has_no_such_path_names_the_url(
    serve_raw: Any, connect: Any, status: int, body: bytes
) -> None:
    url = f"{serve_raw(always(response(body, status))).url}/v2"
    client = connect(url)
    said = rf"; is {re.escape(url)} the URL of a Triton server\? \[{status}\]$"
    for call in (client.models, lambda: client.metadata("m")):
        with pytest.raises(ServerError, match=said) as caught:
            call()
        assert type(caught.value) is ServerError


def test_triton_words_tell_not_ready_from_overload(serve_raw: Any, connect: Any) -> None:
    words = b'{"error":"Request for unknown model: \'m\' version 1 is not at ready state"}'
    client = connect(serve_raw(always(response(words, 503))).url)
    with pytest.raises(ModelNotReady, match="is not at ready state"):
        client.metadata("m")


@pytest.mark.parametrize("status", [500, 503])
def test_readiness_that_nobody_can_tell_is_an_error(serve_raw: Any, connect: Any, status: int) -> None:
    client = connect(serve_raw(always(response(b"proxy", status))).url)
    for ask in (client.server_ready, lambda: client.ready("m")):
        with pytest.raises(ServerError, match="proxy"):
            ask()


@pytest.mark.parametrize(
    "body",
    [
        b"garbage",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"null",
        b'"text"',
        b'{"name": 5}',
        b'{"name": "m", "inputs": [{}], "input": [{"optional": true}]}',
        b'{"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": "?"}], "max_batch_size": "?"}',
        b'{"name": "m", "versions": [1], "parameters": {"task": "x"}}',
    ],
)
def test_descriptions_that_make_no_sense_are_decode_errors(serve_raw: Any, connect: Any, body: bytes) -> None:
    client = connect(serve_raw(always(response(body))).url)
    for ask in (client.metadata, client.config):
        with pytest.raises(DecodeError, match=r"no JSON|no model (metadata|config)"):
            ask("m")


@pytest.mark.parametrize("body", [b"garbage", b"{}{}", b"5", b"[5]", b'[{"name": null}]', b'["name"]'])
def test_an_index_that_makes_no_sense_is_a_decode_error(serve_raw: Any, connect: Any, body: bytes) -> None:
    client = connect(serve_raw(always(response(body))).url)
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
    "endless size": (output().replace(b": 4}", b": 1e400}") + b"1234", None),
    "nested": (b'{"outputs":' + b"[" * 100_000, None),
    "bytes cut": (output(datatype="BYTES", parameters={"binary_data_size": 2}) + b"\x01\x00", None),
}


@pytest.mark.parametrize(("body", "length"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_tensors_that_make_no_sense_are_decode_errors(
    serve_raw: Any, side: Any, body: bytes, length: str | None
) -> None:
    head = (
        len(body.partition(b"]}")[0]) + 2
        if length is None and body.startswith(b'{"outputs": [{"n')
        else length
    )
    headers = [] if head is None else [f"Inference-Header-Content-Length: {head}"]
    transport = side.transport(serve_raw(always(response(body, 200, *headers))).url)
    with pytest.raises(DecodeError, match=r"^model 'm': the answer's tensors can't be read: "):
        transport.send(REQUEST, timeout_s=10)


def test_one_connection_serves_many_requests(serve_raw: Any, connect: Any) -> None:
    server = serve_raw(always(response()))
    client = connect(server.url)
    assert all(client.server_ready() for _ in range(5))
    assert server.connections == 1


@pytest.mark.parametrize("polite", [True, False], ids=["announced", "silent"])
def test_a_connection_that_the_server_closed_is_replaced(
    serve_raw: Any, side: Any, connect: Any, polite: bool
) -> None:
    answer = response(b"", 200, "Connection: close") if polite else response()
    closed = threading.Event()

    def once(number: int, request: bytes) -> Iterator[bytes]:
        yield answer
        closed.set()
        yield b""

    server = serve_raw(once)
    client = connect(server.url)
    for count in range(1, 4):
        assert client.server_ready()
        assert closed.wait(10)
        closed.clear()
        if not polite:
            _wait_for_end_of_stream(side, client)
        assert server.connections == count


def _wait_for_end_of_stream(side: Any, client: Any) -> None:
    """The server's FIN is on its way; wait until it has come."""
    [server] = client._caller.servers._list
    if not side.is_async:
        [connection] = server._line.transport._pool._idle
        assert select.select([connection.sock], [], [], 10)[0]
        return

    async def wait() -> None:
        [idle] = server._line.transport._session.connector._conns.values()
        async with asyncio.timeout(10):
            while any(protocol.is_connected() for protocol, _ in idle):
                await asyncio.sleep(0.005)

    side.run(wait())


def test_a_failed_request_costs_its_connection(serve_raw: Any, connect: Any) -> None:
    def script(number: int, request: bytes) -> Iterator[bytes]:
        if number == 0:
            server.wait(1.0)  # the late answer must not be taken for that of the next request
            yield response(b"late", 500)
        yield response()

    server = serve_raw(script)
    client = connect(server.url)
    with pytest.raises(DeadlineExceeded):
        client.server_ready(timeout_s=0.3)
    assert client.server_ready()
    assert server.connections == 2


@pytest.mark.parametrize("streams", [False, True], ids=["send", "stream"])
def test_closing_ends_a_thread_s_request_and_leaves_no_socket(serve_raw: Any, streams: bool) -> None:
    arrived = threading.Event()

    def script(number: int, request: bytes) -> Iterator[bytes]:
        arrived.set()
        server.wait(60)
        yield response()

    server = serve_raw(script)
    transport = HttpTransport(parse_url(server.url), TlsConfig())
    said: list[Any] = []

    def work() -> None:
        try:
            said.extend(
                transport.stream(REQUEST, timeout_s=60)
                if streams
                else [transport.send(GetServerReady(), timeout_s=60)]
            )
        except MooringError as error:
            said.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert arrived.wait(10)
    transport.close()
    thread.join()
    [error] = said
    assert type(error) is TransportError
    assert str(error) == f"{server.url}: the client was closed while the request was under way"
    assert transport._pool._idle == []


def test_a_call_on_a_transport_that_was_just_closed_says_so(serve_raw: Any, side: Any) -> None:
    transport = side.transport(serve_raw(always(response())).url)
    assert transport.send(GetServerReady(), timeout_s=10)
    transport.close()
    with pytest.raises(ConfigError, match="the client was closed while a call began"):
        transport.send(GetServerReady(), timeout_s=1)
    with pytest.raises(ConfigError, match="the client was closed while a call began"):
        next(transport.stream(REQUEST, timeout_s=1))


def test_base_path_of_a_reverse_proxy_is_kept(serve_raw: Any, connect: Any) -> None:
    paths: list[bytes] = []

    def script(number: int, request: bytes) -> Iterable[bytes]:
        paths.append(request.split(b" ")[1])
        return [response()]

    connect(serve_raw(script).url + "/models/eu/").server_ready()
    assert paths == [b"/models/eu/v2/health/ready"]


def test_ipv6_addresses_are_bracketed_in_the_host_header() -> None:
    assert Endpoint(scheme="http", host="::1", port=8000).address == "[::1]:8000"


def test_environment_proxies_are_no_matter(wired: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert wired.open().ready("ner")


def test_a_redirect_is_not_followed(serve_raw: Any, connect: Any) -> None:
    server = serve_raw(always(response(b"elsewhere", 307, "Location: http://127.0.0.1:1/")))
    with pytest.raises(ServerError, match=r"elsewhere \[307\]"):
        connect(server.url).server_ready()


def test_a_body_that_does_not_decompress_is_a_decode_error(serve_raw: Any, connect: Any) -> None:
    server = serve_raw(always(response(b"not compressed", 200, "Content-Encoding: gzip")))
    with pytest.raises(DecodeError, match="does not speak HTTP"):
        connect(server.url).models()


def test_long_headers_of_a_proxy_are_taken(serve_raw: Any, connect: Any) -> None:
    server = serve_raw(always(response(b"", 200, f"X-Trace: {'x' * 30_000}")))
    assert connect(server.url).server_ready()


def test_a_large_body_of_several_tensors_arrives_as_it_is(serve_raw: Any, side: Any) -> None:
    bodies: list[bytes] = []

    def script(number: int, request: bytes) -> Iterable[bytes]:
        bodies.append(request.partition(b"\r\n\r\n")[2])
        return [response(b'{"outputs": []}')]

    arrays = [np.arange(size, dtype=np.float32)[None] for size in (700_000, 3)]
    inputs = tuple(Tensor(name, "FP32", array) for name, array in zip("xy", arrays, strict=True))
    transport = side.transport(serve_raw(script).url)
    transport.send(Infer(model="m", inputs=inputs), timeout_s=20)
    assert bodies[0].endswith(b"".join(array.tobytes() for array in arrays))
    assert len(bodies) == 1
