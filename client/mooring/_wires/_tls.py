"""Certificates as Python's sockets take them."""

from __future__ import annotations

import ssl

from mooring._errors import ConfigError
from mooring._policies import TlsConfig


def tls_context(tls: TlsConfig) -> ssl.SSLContext:
    """Make a context that trusts and shows what the config says.

    Raises:
        ConfigError: a file holds no certificate or key.
    """
    try:
        context = ssl.create_default_context(cafile=None if tls.ca_file is None else str(tls.ca_file))
        if tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"{tls} can't be used: {exc}") from exc
    return context


def refuses_certificate(exc: BaseException | None) -> bool:
    """Whether the server refused the client's certificate, or the lack of one.

    With TLS 1.3 that comes with the first read, after the handshake as the client sees it (RFC 8446, 4.4.2),
    but still before the server reads a request.
    """
    reason = exc.reason or "" if isinstance(exc, ssl.SSLError) else ""
    return "_ALERT_" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason)


def closed_in_handshake(exc: ConnectionError) -> ssl.SSLError:
    """A connection that was closed before TLS stood, as OpenSSL says where it sees that: nothing was sent."""
    said = str(exc) or type(exc).__name__
    return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, f"the server closed the connection in the handshake: {said}")
