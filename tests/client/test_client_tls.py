"""Encrypted connections: which certificates are trusted, shown and refused."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mooring import ConfigError, ConnectError, RetryPolicy, TlsConfig, TransportError
from mooring._operations import Infer, Tensor
from mooring._retry import may_repeat
from mooring._url import parse_url
from mooring._wires._grpc_codec import channel_options, channel_target
from mooring._wires._tls import refuses_certificate
from raw_server import PastTls, always
from wire_grpc import start_grpc
from wire_http import start_http
from wire_messages import Served

REQUEST = Infer(model="m", inputs=(Tensor("x", "FP32", np.float32([[1]])),))
SAID = {
    "grpcs": "can't connect; is the server running",
    "https": r"no TLS connection; is it the right port and certificate\?",
}


@pytest.fixture(params=["grpcs", "https"])
def scheme(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_channel_goes_to_the_address_and_asks_for_the_name() -> None:
    assert channel_target(parse_url("grpc://127.0.0.1:8001")) == "127.0.0.1:8001"
    assert channel_target(parse_url("grpc://[fe80::1%25eth0]:8001")) == "[fe80::1%25eth0]:8001"
    # Without a scheme of gRPC's own these would be taken for one.
    for name in ("dns", "unix", "ipv4", "localhost"):
        assert channel_target(parse_url(f"grpc://{name}:8001")) == f"dns:///{name}:8001"
    named = parse_url("grpcs://triton.example:8001")
    plain = dict(channel_options(named))
    assert not {"grpc.default_authority", "grpc.ssl_target_name_override"} & plain.keys()
    resolved = replace(named, connect_to="10.0.0.7")
    assert channel_target(resolved) == "10.0.0.7:8001"
    options = dict(channel_options(resolved))
    assert options["grpc.default_authority"] == "triton.example:8001"
    assert options["grpc.ssl_target_name_override"] == "triton.example"
    assert channel_target(replace(named, connect_to="fd00::7")) == "[fd00::7]:8001"


def test_an_unknown_authority_is_a_connect_error(
    connect: Any, certificates: Any, wire_servers: Any, scheme: str
) -> None:
    tls = TlsConfig(ca_file=certificates.folder / "other-ca.pem")
    with pytest.raises(ConnectError, match=SAID[scheme]):
        connect(wire_servers.url(scheme), tls=tls).server_ready()


def test_a_certificate_of_another_name_is_a_connect_error(
    connect: Any, fake: Any, certificates: Any, scheme: str
) -> None:
    served = Served()
    served.fake = fake
    other = certificates.signed("triton.example")
    port, stop = (
        start_grpc(served, other.for_grpc()) if scheme == "grpcs" else start_http(served, other.for_http())
    )
    try:
        with pytest.raises(ConnectError, match=SAID[scheme]):
            connect(f"{scheme}://127.0.0.1:{port}", tls=TlsConfig(ca_file=other.ca_file)).server_ready()
    finally:
        stop()


def test_the_name_is_checked_where_it_stands_for_several_addresses(
    connect: Any, fake: Any, certificates: Any, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections go to addresses, which the certificate does not name."""
    served = Served()
    served.fake = fake
    named = certificates.signed("triton.test")
    port, stop = (
        start_grpc(served, named.for_grpc()) if scheme == "grpcs" else start_http(served, named.for_http())
    )
    found = socket.getaddrinfo
    # Nothing listens at the second one.
    addresses = ["127.0.0.1", "127.0.0.2"]

    def look_up(host: Any, *args: Any, **options: Any) -> Any:
        if host not in ("triton.test", "wrong.test"):
            return found(host, *args, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    options = {"tls": TlsConfig(ca_file=named.ca_file), "retry": RetryPolicy()}
    try:
        client = connect(f"{scheme}://triton.test:{port}", **options)
        assert client.ready("ner")
        assert {endpoint.url for endpoint in client.counters().endpoints} == {
            f"{scheme}://triton.test:{port} ({address})" for address in addresses
        }
        assert len(fake.headers) == 1
        with pytest.raises(ConnectError) as caught:
            connect(f"{scheme}://wrong.test:{port}", **options).ready("ner")
        assert len(caught.value.attempts) == 3
        assert len(fake.headers) == 1
    finally:
        stop()


def test_a_server_without_tls_is_a_connect_error(
    connect: Any, certificates: Any, wire_servers: Any, scheme: str
) -> None:
    url = wire_servers.url(scheme.removesuffix("s")).replace("://", "s://")
    with pytest.raises(ConnectError, match=SAID[scheme]):
        connect(url, tls=TlsConfig(ca_file=certificates.ca_file)).server_ready()


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
def test_a_server_that_closes_in_the_handshake_is_a_connect_error(
    side: Any, certificates: Any, reset: bool
) -> None:
    """Nothing was sent, so the request may go to another server, as after a refused connection."""

    def work() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock:
                    sock.recv(10_000)
                    if reset:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=work)
        thread.start()
        transport = side.transport(
            f"https://127.0.0.1:{listener.getsockname()[1]}", TlsConfig(ca_file=certificates.ca_file)
        )
        try:
            with pytest.raises(ConnectError, match=SAID["https"] + r" \(.*\w") as caught:
                transport.send(REQUEST, timeout_s=10)
            assert may_repeat(caught.value, REQUEST, other_endpoint=False)
        finally:
            # It wakes the thread that waits in accept.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    "said",
    [
        PastTls(b"\x17\x03\x03\x00\x20" + bytes(32)),
        PastTls(b"\x15\x03\x03\x00\x02\x02\x50"),
        PastTls(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"),
    ],
    ids=["broken record", "alert", "no TLS"],
)
def test_what_breaks_after_the_request_was_sent_is_a_lost_connection(
    serve_raw: Any, side: Any, certificates: Any, said: bytes
) -> None:
    server = serve_raw(always(said, b""), certificates.for_http())
    transport = side.transport(server.url, TlsConfig(ca_file=certificates.ca_file))
    with pytest.raises(TransportError, match="connection lost before an answer came") as caught:
        transport.send(REQUEST, timeout_s=10)
    assert type(caught.value) is TransportError
    assert not may_repeat(caught.value, REQUEST, other_endpoint=True)


@pytest.mark.parametrize("encrypted", [False, True], ids=["http", "https"])
def test_a_server_that_closes_while_a_body_is_sent_is_a_lost_connection(
    side: Any, certificates: Any, encrypted: bool
) -> None:
    def work() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                if encrypted:
                    sock = certificates.for_http().wrap_socket(sock, server_side=True)
                with sock:
                    sock.recv(1000)

    x = np.zeros((1, 5_000_000), np.float32)
    request = Infer(model="m", inputs=(Tensor("x", "FP32", x),))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=work)
        thread.start()
        url = f"http{'s' if encrypted else ''}://127.0.0.1:{listener.getsockname()[1]}"
        transport = side.transport(url, TlsConfig(ca_file=certificates.ca_file) if encrypted else None)
        try:
            for _ in range(2):
                with pytest.raises(TransportError, match="connection lost before an answer came") as caught:
                    transport.send(request, timeout_s=20)
                assert type(caught.value) is TransportError
        finally:
            # It wakes the thread that waits in accept.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_mutual_tls(connect: Any, fake: Any, certificates: Any, scheme: str) -> None:
    served = Served()
    served.fake = fake
    if scheme == "grpcs":
        port, stop = start_grpc(served, certificates.for_grpc(mutual=True))
    else:
        port, stop = start_http(served, certificates.for_http(mutual=True))
    url, folder = f"{scheme}://127.0.0.1:{port}", certificates.folder
    try:
        tls = TlsConfig(
            ca_file=certificates.ca_file, cert_file=folder / "client.pem", key_file=folder / "client.key"
        )
        assert connect(url, tls=tls).ready("ner")
        with pytest.raises(TransportError):
            connect(url, tls=TlsConfig(ca_file=certificates.ca_file)).ready("ner")
    finally:
        stop()


@pytest.mark.parametrize(
    ("reason", "refused"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", True),
        ("SSLV3_ALERT_BAD_CERTIFICATE", True),
        ("TLSV1_ALERT_UNKNOWN_CA", True),
        ("TLSV1_ALERT_INTERNAL_ERROR", False),
        ("CERTIFICATE_VERIFY_FAILED", False),
        ("WRONG_VERSION_NUMBER", False),
        (None, False),
    ],
)
def test_a_server_refuses_a_certificate_with_an_alert(reason: str | None, refused: bool) -> None:
    failure = ssl.SSLError(1, "no")
    failure.reason = reason  # type: ignore[assignment]  # it is None where OpenSSL gives none
    assert refuses_certificate(failure) is refused
    assert not refuses_certificate(OSError(1, "no"))


def test_a_certificate_that_is_gone_is_a_config_error(side: Any, tmp_path: Path, scheme: str) -> None:
    gone = tmp_path / "gone.pem"
    gone.write_text("")
    tls = TlsConfig(ca_file=gone)
    gone.unlink()
    with pytest.raises(ConfigError, match=r"gone\.pem.*No such file"):
        side.client(f"{scheme}://127.0.0.1:1", tls=tls).server_ready()


def test_a_file_that_is_no_certificate_is_an_error(connect: Any, tmp_path: Path, scheme: str) -> None:
    odd = tmp_path / "odd.pem"
    odd.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"TlsConfig.*odd\.pem"):
        connect(f"{scheme}://127.0.0.1:1", tls=TlsConfig(ca_file=odd)).server_ready()
