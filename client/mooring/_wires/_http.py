"""HTTP for threads."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import httptools

from mooring._cancellation import RequestCancelledError, current_cancellation
from mooring._errors import ConfigError, TransportError
from mooring._operations import Infer, InferAnswer, Operation
from mooring._policies import TlsConfig
from mooring._transport import Headers
from mooring._url import Endpoint
from mooring._wires._http_codec import (
    METHODS,
    HttpAnswer,
    http_error,
    read_answer,
)
from mooring._wires._http_events import EventReader, stream_refusal, write_stream
from mooring._wires._http_pool import HttpPool
from mooring._wires._tls import tls_context

T = TypeVar("T")

# The last two: a length in the answer that no memory can hold.
_FOREIGN = (OSError, httptools.HttpParserError, UnicodeError, OverflowError, MemoryError)


class HttpTransport:
    """A pool of HTTP connections; threads share it."""

    def __init__(self, endpoint: Endpoint, tls: TlsConfig) -> None:
        self._endpoint = endpoint
        self._root = f"{endpoint.base_path}/v2"
        context = tls_context(tls) if endpoint.is_tls else None
        try:
            self._pool = HttpPool(endpoint.host, endpoint.port, connect_to=endpoint.connect_to, tls=context)
        except UnicodeError as exc:
            raise ConfigError(f"{endpoint}: the host can't be a domain name ({exc})") from exc

    def send(self, operation: Operation[T], *, timeout_s: float, headers: Headers = ()) -> T:
        method = METHODS[type(operation)]
        verb, path, own_headers, body = method.write(operation)
        if headers:
            own_headers.update(headers)
        self._check_open()
        cancellation = current_cancellation()
        try:
            answer = self._pool.exchange(
                verb,
                self._root + path,
                headers=own_headers,
                body=body,
                timeout_s=timeout_s,
                cancellation=cancellation,
            )
        except _FOREIGN as exc:
            if cancellation is not None and cancellation.is_cancelled:
                raise RequestCancelledError(f"{self._endpoint}: the request was cancelled") from exc
            raise self._error(exc, timeout_s) from exc
        said: T = read_answer(method, operation, answer, self._endpoint)
        return said

    def stream(
        self, request: Infer, *, timeout_s: float, headers: Headers = ()
    ) -> Generator[InferAnswer, None, None]:
        verb, path, own_headers, body = write_stream(request)
        own_headers.update(headers)
        events = EventReader(request)
        self._check_open()
        try:
            status, said_headers, chunks = self._pool.stream(
                verb, self._root + path, headers=own_headers, body=body, timeout_s=timeout_s
            )
            try:
                if status != 200:
                    answer = HttpAnswer(status, said_headers, b"".join(chunks))
                    raise stream_refusal(request, answer, self._endpoint)
                for chunk in chunks:
                    yield from events.feed(chunk)
                events.finish()
            finally:
                chunks.close()
        except _FOREIGN as exc:
            raise self._error(exc, timeout_s) from exc

    def close(self) -> None:
        self._pool.close()

    def abandon(self) -> None:
        """Forget every connection in a forked child, where they still belong to the parent."""
        self._pool.abandon()

    def _check_open(self) -> None:
        if self._pool.closed:
            raise ConfigError(f"{self._endpoint}: the client was closed while a call began")

    def _error(self, exc: Exception, timeout_s: float) -> Exception:
        if self._pool.closed and not isinstance(exc, TimeoutError):
            return TransportError(f"{self._endpoint}: the client was closed while the request was under way")
        return http_error(exc, endpoint=self._endpoint, timeout_s=timeout_s)
