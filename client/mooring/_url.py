"""Where Triton servers are: the URLs that a client takes, checked and taken apart."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from mooring._errors import ConfigError

_EXAMPLE = "write grpc://host:8001 or http://host:8000"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One server address; ``str()`` gives the URL back."""

    #: ``grpc``, ``grpcs``, ``http`` or ``https``.
    scheme: str
    #: Name or address, IPv6 without brackets.
    host: str
    port: int
    #: Path before ``/v2`` where a reverse proxy adds one, without a trailing slash; HTTP only.
    base_path: str = ""
    #: One of the IP addresses of ``host``, to which connections go; ``None`` leaves the choice to the system.
    connect_to: str | None = None

    @property
    def protocol(self) -> str:
        """``grpc`` or ``http``, with or without TLS."""
        return self.scheme.removesuffix("s")

    @property
    def is_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.scheme.endswith("s")

    @property
    def connect_address(self) -> str:
        """``address:port`` of ``connect_to``, or of ``host`` without one; IPv6 in brackets."""
        host = self.connect_to or self.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def address(self) -> str:
        """``host:port``, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        url = f"{self.scheme}://{self.address}{self.base_path}"
        return url if self.connect_to is None else f"{url} ({self.connect_to})"


def is_address(host: str) -> bool:
    """Whether a host is an IP address, IPv6 with or without a zone, and no name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def parse_urls(urls: str | Sequence[str]) -> tuple[Endpoint, ...]:
    """Take one or several server URLs apart.

    Raises:
        ConfigError: one can't be right, they name no server or one twice, or they differ in protocol.
    """
    if isinstance(urls, str | bytes | bytearray):
        return (parse_url(urls),)
    if not isinstance(urls, Sequence) or not urls:
        raise ConfigError(f"the server must be a URL or a list of URLs, got {urls!r}: {_EXAMPLE}")
    endpoints = tuple(parse_url(url) for url in urls)
    if len(set(endpoints)) < len(endpoints):
        raise ConfigError(f"the list of servers names one twice: {[str(endpoint) for endpoint in endpoints]}")
    schemes = sorted({endpoint.scheme for endpoint in endpoints})
    if len(schemes) > 1:
        raise ConfigError(f"the servers of one client must share a protocol, got {' and '.join(schemes)}")
    return endpoints


def parse_url(url: str) -> Endpoint:
    """Take a server URL apart.

    Args:
        url: ``grpc://host:port`` or ``http://host:port``, the latter with an optional base path;
            ``grpcs://`` and ``https://`` with TLS.

    Returns:
        The endpoint.

    Raises:
        ConfigError: not such a URL; the message says what to write. It never repeats credentials.
    """
    if not isinstance(url, str):
        raise ConfigError(f"the server URL must be a str, got {type(url).__name__}: {_EXAMPLE}")
    if "@" in url:
        host = url.rpartition("@")[2]
        raise ConfigError(
            f"the URL of {host!r} holds a user name or password; URLs end up in logs, "
            f"so Mooring takes none there: {_EXAMPLE}"
        )
    if not url.isprintable() or " " in url:
        raise ConfigError(f"server URL {url!r} holds white space or control characters: {_EXAMPLE}")
    if "://" not in url:
        raise ConfigError(f"server URL {url!r} does not say the protocol: write grpc://{url} or http://{url}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ConfigError(f"server URL {url!r} can't be read ({exc}): {_EXAMPLE}") from exc
    if parts.scheme not in ("grpc", "grpcs", "http", "https"):
        raise ConfigError(f"server URL {url!r} has the unknown scheme {parts.scheme!r}: {_EXAMPLE}")
    if not parts.hostname or not port:
        missing = "port" if parts.hostname else "host"
        raise ConfigError(f"server URL {url!r} has no {missing}: {_EXAMPLE}")
    if parts.query or parts.fragment:
        raise ConfigError(f"server URL {url!r} holds a query or fragment: {_EXAMPLE}")
    base_path = parts.path.rstrip("/")
    if not base_path.isascii():
        raise ConfigError(f"server URL {url!r}: write the path percent-encoded, {quote(base_path)}")
    if base_path and parts.scheme.startswith("grpc"):
        raise ConfigError(f"server URL {url!r}: gRPC has no base path, write {parts.scheme}://{parts.netloc}")
    return Endpoint(scheme=parts.scheme, host=parts.hostname, port=port, base_path=base_path)
