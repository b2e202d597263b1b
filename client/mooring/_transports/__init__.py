"""One module per protocol; each is imported when a client first uses it."""

from __future__ import annotations

from mooring._transport import Transport
from mooring._url import Endpoint


def open_transport(endpoint: Endpoint) -> Transport:
    """Make the transport of the endpoint's protocol; connects with the first request."""
    # tritonclient.grpc brings grpc and protobuf, tritonclient.http brings gevent: a few tenths of
    # a second that `import mooring`, or a user of the other protocol, should not pay.
    if endpoint.scheme == "grpc":
        from mooring._transports._grpc import GrpcTransport

        return GrpcTransport(endpoint)
    from mooring._transports._http import HttpTransport

    return HttpTransport(endpoint)
