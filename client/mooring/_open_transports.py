"""The transport of an endpoint's protocol; each is imported when a client first uses it.

gRPC with protobuf, and aiohttp, cost some tenths of a second that ``import mooring``, or a user of the other
protocol, should not pay.
"""

from __future__ import annotations

from mooring._policies import TlsConfig
from mooring._transport import AsyncTransport, Transport
from mooring._url import Endpoint


def open_transport(endpoint: Endpoint, tls: TlsConfig) -> Transport:
    """Make a transport for threads; connects with the first request."""
    if endpoint.protocol == "grpc":
        from mooring._wires._grpc import GrpcTransport

        return GrpcTransport(endpoint, tls)
    from mooring._wires._http import HttpTransport

    return HttpTransport(endpoint, tls)


def open_async_transport(endpoint: Endpoint, tls: TlsConfig) -> AsyncTransport:
    """Make a transport for the running event loop; connects with the first request."""
    if endpoint.protocol == "grpc":
        from mooring._wires._grpc_aio import AsyncGrpcTransport

        return AsyncGrpcTransport(endpoint, tls)
    from mooring._wires._http_aio import AsyncHttpTransport

    return AsyncHttpTransport(endpoint, tls)
