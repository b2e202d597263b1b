"""Server URLs: what is taken, and what is said of the others."""

from __future__ import annotations

from typing import Any

import pytest

from mooring import Client, ConfigError
from mooring._url import Endpoint, parse_url


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("grpc://127.0.0.1:8001", Endpoint(scheme="grpc", host="127.0.0.1", port=8001)),
        ("http://triton:8000", Endpoint(scheme="http", host="triton", port=8000)),
        ("grpc://[::1]:8001", Endpoint(scheme="grpc", host="::1", port=8001)),
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
        ("grpcs://h:1", "TLS is not supported"),
        ("https://h:1", "TLS is not supported"),
        ("grpc://h", "has no port"),
        ("grpc://h:0", "has no port"),
        ("grpc://:8001", "has no host"),
        ("grpc://h:99999", r"can't be read \(Port out of range"),
        ("grpc://h:x", "can't be read"),
        ("grpc://[::1:8001", "can't be read"),
        ("grpc://h:1/base", "gRPC has no base path, write grpc://h:1"),
        ("http://h:1/ü", "write the path percent-encoded, /%C3%BC"),
        ("http://h:1?x=1", "query or fragment"),
        ("http://h:1/#x", "query or fragment"),
        ("grpc://h :1", "white space or control characters"),
        ("http://h:1\r\nX: y", "white space or control characters"),
        (8001, "must be a str, got int"),
        (None, "must be a str, got NoneType"),
    ],
)
def test_other_urls_are_refused_with_the_way_out(url: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Client(url)


@pytest.mark.parametrize(
    "url", ["grpc://me:s3cret@h:1", "me:s3cret@h:1", "ftp://s3cret@h:1", "http://me:s3cret@@h:1"]
)
def test_credentials_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="the URL of 'h:1' holds a user name or password") as caught:
        Client(url)
    assert "s3cret" not in str(caught.value)
