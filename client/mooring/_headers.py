"""Headers that go with every request: fixed ones, or asked for anew each time; their values are secrets."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias, TypeVar

from mooring._errors import ConfigError
from mooring._transport import Headers

V = TypeVar("V")

#: A value, or what gives the current one for each request.
Source: TypeAlias = Callable[[], V] | V
#: As :data:`Source`; the callable may be a coroutine function too.
AsyncSource: TypeAlias = Callable[[], V] | V | Callable[[], Awaitable[V]]

# A token of RFC 9110; gRPC wants it in lower case.
_NAME = re.compile(r"[0-9a-z!#$%&'*+\-.^_`|~]+")
# Visible ASCII and blanks: what both protocols carry.
_VALUE = re.compile(r"[\x20-\x7e]*")
_OWN = frozenset(
    """accept-encoding connection content-encoding content-length content-type host
    inference-header-content-length te transfer-encoding""".split()
)


def check_headers(headers: Mapping[str, str]) -> Headers:
    """Headers in lower case, ready for both protocols.

    Raises:
        ConfigError: a name or value can't be one, or the client sets it itself. The message holds no value.
    """
    if not isinstance(headers, Mapping):
        raise ConfigError(f"headers must map names to values, got {type(headers).__name__}")
    checked = []
    for name, value in headers.items():
        lowered = name.lower() if isinstance(name, str) else ""
        # Values of gRPC's "-bin" headers are no text.
        reserved = lowered in _OWN or lowered.startswith("grpc-") or lowered.endswith("-bin")
        if reserved or not _NAME.fullmatch(lowered):
            raise ConfigError(f"header {name!r} can't be set: no header name, or one that the client sets")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ConfigError(
                f"header {name!r} has a value that is not printable ASCII text (value not shown)"
            )
        checked.append((lowered, value))
    return tuple(checked)


def bearer(token: str) -> Headers:
    """The header of a bearer token.

    Raises:
        ConfigError: not a token. The message does not hold it.
    """
    if not isinstance(token, str) or not token or not _VALUE.fullmatch(token) or " " in token:
        raise ConfigError("token must be a str of printable ASCII without blanks (value not shown)")
    return (("authorization", f"Bearer {token}"),)


def join_headers(headers: Headers, stronger: Headers) -> Headers:
    """All of both; a name that both have keeps the value of ``stronger``."""
    return tuple((dict(headers) | dict(stronger)).items())
