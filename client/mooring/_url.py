"""Where a Triton server is: the URL that a client takes, checked and taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from mooring._errors import ConfigError

_EXAMPLE = "write grpc://host:8001 or http://host:8000"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One server address; ``str()`` gives the URL back."""

    #: ``grpc`` or ``http``.
    scheme: str
    #: Name or address, IPv6 without brackets.
    host: str
    port: int
    #: Path before ``/v2`` where a reverse proxy adds one, without a trailing slash; HTTP only.
    base_path: str = ""

    @property
    def address(self) -> str:
        """``host:port``, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}{self.base_path}"


def parse_url(url: str) -> Endpoint:
    """Take a server URL apart.

    Args:
        url: ``grpc://host:port`` or ``http://host:port``, the latter with an optional base path.

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
    if parts.scheme in ("grpcs", "https"):
        raise ConfigError(
            f"server URL {url!r}: TLS is not supported; end it in a proxy beside this program, and {_EXAMPLE}"
        )
    if parts.scheme not in ("grpc", "http"):
        raise ConfigError(f"server URL {url!r} has the unknown scheme {parts.scheme!r}: {_EXAMPLE}")
    if not parts.hostname or not port:
        missing = "port" if parts.hostname else "host"
        raise ConfigError(f"server URL {url!r} has no {missing}: {_EXAMPLE}")
    if parts.query or parts.fragment:
        raise ConfigError(f"server URL {url!r} holds a query or fragment: {_EXAMPLE}")
    base_path = parts.path.rstrip("/")
    if not base_path.isascii():
        raise ConfigError(f"server URL {url!r}: write the path percent-encoded, {quote(base_path)}")
    if base_path and parts.scheme == "grpc":
        raise ConfigError(f"server URL {url!r}: gRPC has no base path, write grpc://{parts.netloc}")
    return Endpoint(scheme=parts.scheme, host=parts.hostname, port=port, base_path=base_path)
