"""HTTP for coroutines, over aiohttp, as tritonclient's own asyncio client."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError
from yarl import URL

from mooring._errors import ConfigError, TransportError
from mooring._operations import Infer, InferAnswer, Operation
from mooring._policies import TlsConfig
from mooring._transport import Headers
from mooring._url import Endpoint
from mooring._wires._http_codec import (
    METHODS,
    HttpAnswer,
    HttpRequest,
    http_error,
    read_answer,
)
from mooring._wires._http_events import EventReader, stream_refusal, write_stream
from mooring._wires._tls import closed_in_handshake, refuses_certificate, tls_context

T = TypeVar("T")

# The last two: a length in the answer that no memory can hold.
_FOREIGN = (aiohttp.ClientError, OSError, ValueError, OverflowError, MemoryError)
# Of a connection that was made.
_LOST = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError)

#: Connections to one server; further requests wait here for one, within their deadline. tritonserver (24.10)
#: stops answering new ones at about 1000.
_MAX_CONNECTIONS = 256
#: As in the pool for threads; 8 kB are aiohttp's own limit.
_MAX_HEADER_BYTES = 65_536
#: From here on a body is not joined; aiohttp warns of bytes of such a size.
_LARGE_BYTES = 1 << 20


class _Buffers(aiohttp.Payload):
    """A large body, written one buffer after the other."""

    _autoclose = True

    def __init__(self, buffers: list[bytes | memoryview]) -> None:
        super().__init__(buffers)
        self._size = sum(map(len, buffers))

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._value).decode(encoding, errors)

    async def write(self, writer: Any) -> None:
        for buffer in self._value:
            await writer.write(buffer)


class AsyncHttpTransport:
    """A pool of HTTP connections, for the event loop in which it was made."""

    def __init__(self, endpoint: Endpoint, tls: TlsConfig) -> None:
        self._endpoint = endpoint
        self._closed = False
        scheme = "https" if endpoint.is_tls else "http"
        self._root = f"{scheme}://{endpoint.connect_address}{endpoint.base_path}/v2"
        self._host = {} if endpoint.connect_to is None else {"Host": endpoint.address}
        connector = aiohttp.TCPConnector(
            limit=_MAX_CONNECTIONS, ssl=tls_context(tls) if endpoint.is_tls else True, keepalive_timeout=60
        )
        # What a session adds for browsers and proxies is left out: the URL says where the server is.
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )
        self._server_hostname = endpoint.host if endpoint.is_tls and endpoint.connect_to else None
        self._forgotten = weakref.finalize(
            self, _let_go, self._session, connector, asyncio.get_running_loop()
        )

    async def asend(self, operation: Operation[T], *, timeout_s: float, headers: Headers = ()) -> T:
        method = METHODS[type(operation)]
        request = method.write(operation)
        self._check_open()
        try:
            async with self._begin(request, headers, timeout_s) as response:
                answer = HttpAnswer(response.status, _lower(response.headers), await response.read())
        except asyncio.CancelledError as exc:
            self._check_cancelled(exc)
            raise
        except (TimeoutError, *_FOREIGN) as exc:
            raise self._error(exc, timeout_s) from exc
        said: T = read_answer(method, operation, answer, self._endpoint)
        return said

    async def astream(
        self, request: Infer, *, timeout_s: float, headers: Headers = ()
    ) -> AsyncGenerator[InferAnswer, None]:
        written = write_stream(request)
        events = EventReader(request)
        self._check_open()
        try:
            async with self._begin(written, headers, timeout_s) as response:
                if response.status != 200:
                    answer = HttpAnswer(response.status, _lower(response.headers), await response.read())
                    raise stream_refusal(request, answer, self._endpoint)
                async for chunk in response.content.iter_any():
                    for said in events.feed(chunk):
                        yield said
                events.finish()
        except asyncio.CancelledError as exc:
            self._check_cancelled(exc)
            raise
        except (TimeoutError, *_FOREIGN) as exc:
            raise self._error(exc, timeout_s) from exc

    async def aclose(self) -> None:
        self._closed = True
        self._forgotten.detach()
        await self._session.close()

    def _begin(self, request: HttpRequest, headers: Headers, timeout_s: float) -> Any:
        verb, path, own_headers, body = request
        own_headers.update(self._host)
        own_headers.update(headers)
        return self._session.request(
            verb,
            # The path is percent-encoded already.
            URL(self._root + path, encoded=True),
            data=_Buffers(body) if sum(map(len, body)) > _LARGE_BYTES else b"".join(body) or None,
            headers=own_headers,
            # aiohttp rounds the end of a timeout up to a whole second otherwise, from 5 s on.
            timeout=aiohttp.ClientTimeout(total=timeout_s, ceil_threshold=math.inf),
            allow_redirects=False,
            server_hostname=self._server_hostname,
        )

    def abandon(self) -> None:
        """An event loop does not outlive a fork, and neither does what belongs to it."""

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError(f"{self._endpoint}: the client was closed while a call began")

    def _check_cancelled(self, exc: asyncio.CancelledError) -> None:
        """A pool that is closed cancels who waits for a connection; only their tasks know that nobody did."""
        task = asyncio.current_task()
        if self._closed and task is not None and not task.cancelling():
            raise self._was_closed() from exc

    def _was_closed(self) -> TransportError:
        return TransportError(f"{self._endpoint}: the client was closed while the request was under way")

    def _error(self, exc: Exception, timeout_s: float) -> Exception:
        """aiohttp's own errors as those of the sockets behind them."""
        if self._closed and not isinstance(exc, TimeoutError):
            return self._was_closed()
        plain: Exception = exc
        if isinstance(exc, aiohttp.ClientConnectorCertificateError):
            plain = exc.certificate_error
        elif isinstance(exc, aiohttp.ClientConnectorError):
            plain = exc.os_error
            if self._endpoint.is_tls and isinstance(plain, ConnectionResetError | ConnectionAbortedError):
                plain = closed_in_handshake(plain)
        elif isinstance(exc.__cause__, ContentEncodingError):
            plain = exc.__cause__
        elif isinstance(exc, _LOST) and not isinstance(exc, TimeoutError):
            # Whatever TLS or the network say from here on: the request may have arrived.
            plain = ConnectionResetError(str(exc))
            if isinstance(exc.__cause__, Exception) and refuses_certificate(exc.__cause__):
                plain = exc.__cause__
        return http_error(plain, endpoint=self._endpoint, timeout_s=timeout_s)


def _let_go(
    session: aiohttp.ClientSession, connector: aiohttp.TCPConnector, loop: asyncio.AbstractEventLoop
) -> None:
    """Close what nobody closed: aiohttp would write of it to standard error when the program ends."""
    session.detach()
    if loop.is_closed():
        # The sockets went with the loop, so there is nothing to wait for.
        for _ in connector.close().__await__():
            pass
    elif loop.is_running():
        loop.call_soon_threadsafe(lambda: asyncio.ensure_future(connector.close()))


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
