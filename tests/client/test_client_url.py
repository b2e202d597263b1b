"""Server URLs: what is taken, and what is said of the others."""

from __future__ import annotations

from typing import Any

import pytest

from mooring import AsyncClient, Client, ConfigError
from mooring._url import Endpoint, parse_url, parse_urls


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("grpc://127.0.0.1:8001", Endpoint(scheme="grpc", host="127.0.0.1", port=8001)),
        ("http://triton:8000", Endpoint(scheme="http", host="triton", port=8000)),
        ("grpc://[::1]:8001", Endpoint(scheme="grpc", host="::1", port=8001)),
        ("grpcs://triton:443", Endpoint(scheme="grpcs", host="triton", port=443)),
        (
            "https://triton:8000/models/eu",
            Endpoint(scheme="https", host="triton", port=8000, base_path="/models/eu"),
        ),
        (
            "http://triton:8000/models/eu",
            Endpoint(scheme="http", host="triton", port=8000, base_path="/models/eu"),
        ),
    ],
)
def test_urls_are_taken_apart_and_put_together_again(url: str, endpoint: Endpoint) -> None:
    assert parse_url(url) == endpoint
    assert str(endpoint) == url


@pytest.mark.parametrize(
    ("url", "plain"), [("GRPC://Triton:1/", "grpc://triton:1"), ("http://h:1/", "http://h:1")]
)
def test_urls_that_mean_the_same_are_written_alike(url: str, plain: str) -> None:
    assert str(parse_url(url)) == plain


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "localhost:8001",
            r"'localhost:8001' does not say the protocol: write grpc://localhost:8001 or http://",
        ),
        ("localhost", "does not say the protocol"),
        ("", "does not say the protocol"),
        ("triton://h:1", "unknown scheme 'triton': write grpc://host:8001 or http://host:8000"),
        ("://h:1", "unknown scheme ''"),
        ("grpc://h", "has no port"),
        ("grpc://h:0", "has no port"),
        ("grpc://:8001", "has no host"),
        ("grpc://h:99999", r"can't be read \(Port out of range"),
        ("grpc://h:x", "can't be read"),
        ("grpc://[::1:8001", "can't be read"),
        ("grpc://h:1/base", "gRPC has no base path, write grpc://h:1"),
        ("grpcs://h:1/base", "gRPC has no base path, write grpcs://h:1"),
        ("http://h:1/ü", "write the path percent-encoded, /%C3%BC"),
        ("http://h:1?x=1", "query or fragment"),
        ("http://h:1/#x", "query or fragment"),
        ("grpc://h :1", "white space or control characters"),
        ("http://h:1\r\nX: y", "white space or control characters"),
        (8001, "must be a URL or a list of URLs, got 8001"),
        (None, "must be a URL or a list of URLs, got None"),
        ([], r"must be a URL or a list of URLs, got \[\]"),
        (b"grpc://h:1", "must be a str, got bytes"),
        (["grpc://h:1", 8001], "must be a str, got int"),
        (["grpc://h:1", "h:2"], "'h:2' does not say the protocol"),
        (["grpc://h:1", "grpc://h:1/"], r"names one twice: \['grpc://h:1', 'grpc://h:1'\]"),
        (["grpc://h:1", "http://h:2"], "must share a protocol, got grpc and http"),
        (["grpc://h:1", "grpcs://h:2"], "must share a protocol, got grpc and grpcs"),
    ],
)
def test_other_urls_are_refused_with_the_way_out(url: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Client(url)
    with pytest.raises(ConfigError, match=said):
        AsyncClient(url)


@pytest.mark.parametrize(
    "url", ["grpc://me:s3cret@h:1", "me:s3cret@h:1", "ftp://s3cret@h:1", "http://me:s3cret@@h:1"]
)
def test_credentials_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="the URL of 'h:1' holds a user name or password") as caught:
        Client(url)
    assert "s3cret" not in str(caught.value)


def test_a_list_of_urls_keeps_its_order() -> None:
    urls = ["http://b:8000", "http://a:8000/eu", "http://[::1]:8000"]
    assert [str(endpoint) for endpoint in parse_urls(urls)] == urls
    assert parse_urls(tuple(urls)) == parse_urls(urls)
    assert Client(urls).urls == tuple(urls)
    assert parse_urls("http://b:8000") == parse_urls(["http://b:8000"])


@pytest.mark.parametrize(
    ("scheme", "protocol", "is_tls"),
    [("grpc", "grpc", False), ("grpcs", "grpc", True), ("http", "http", False), ("https", "http", True)],
)
def test_a_scheme_is_a_protocol_with_or_without_tls(scheme: str, protocol: str, is_tls: bool) -> None:
    endpoint = parse_url(f"{scheme}://h:1")
    assert (endpoint.protocol, endpoint.is_tls) == (protocol, is_tls)


@pytest.mark.parametrize(
    ("host", "connect_to", "address", "connect_address", "url"),
    [
        ("h", None, "h:1", "h:1", "http://h:1"),
        ("::1", None, "[::1]:1", "[::1]:1", "http://[::1]:1"),
        ("h", "10.0.0.7", "h:1", "10.0.0.7:1", "http://h:1 (10.0.0.7)"),
        ("h", "fd00::7", "h:1", "[fd00::7]:1", "http://h:1 (fd00::7)"),
    ],
)
def test_connections_go_to_the_address_that_is_known(
    host: str, connect_to: Any, address: str, connect_address: str, url: str
) -> None:
    endpoint = Endpoint(scheme="http", host=host, port=1, connect_to=connect_to)
    assert (endpoint.address, endpoint.connect_address, str(endpoint)) == (address, connect_address, url)
