"""gRPC for threads."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any, TypeVar

import grpc
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from mooring._cancellation import Cancellation, RequestCancelledError, current_cancellation
from mooring._operations import Infer, InferAnswer, Operation
from mooring._policies import TlsConfig
from mooring._transport import Headers
from mooring._url import Endpoint
from mooring._wires._grpc_codec import (
    COMPRESSIONS,
    METHODS,
    channel_credentials,
    channel_options,
    channel_target,
    grpc_error,
    read_stream,
    stream_cut,
    write_stream,
)

T = TypeVar("T")

_abandoned: list[grpc.Channel] = []


def _prepare_for_gevent() -> None:
    """Let gRPC wait through gevent where the program has patched the standard library for it.

    Without this a call blocks every greenlet of the process, and it must happen before the first channel
    (https://grpc.github.io/grpc/python/grpc_gevent.html).
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("socket"):
        return
    from grpc.experimental.gevent import init_gevent

    init_gevent()


_prepare_for_gevent()


class GrpcTransport:
    """One gRPC channel; threads share it."""

    def __init__(self, endpoint: Endpoint, tls: TlsConfig) -> None:
        self._endpoint = endpoint
        target, options = channel_target(endpoint), channel_options(endpoint)
        if endpoint.is_tls:
            self._channel = grpc.secure_channel(target, channel_credentials(tls), options=options)
        else:
            self._channel = grpc.insecure_channel(target, options=options)
        stub = GRPCInferenceServiceStub(self._channel)
        self._calls = {
            kind: (getattr(stub, method.rpc), method.write, method.read) for kind, method in METHODS.items()
        }
        self._stream_call = stub.ModelStreamInfer

    def send(self, operation: Operation[T], *, timeout_s: float, headers: Headers = ()) -> T:
        call, write, read = self._calls[type(operation)]
        message = write(operation)
        compression = None
        if type(operation) is Infer and operation.request_compression is not None:
            compression = COMPRESSIONS[operation.request_compression]
        cancellation = current_cancellation()
        try:
            if cancellation is None:
                said = call(message, timeout=timeout_s, metadata=headers, compression=compression)
            else:
                future = call.future(message, timeout=timeout_s, metadata=headers, compression=compression)
                said = _result(future, cancellation)
        except (grpc.RpcError, grpc.FutureCancelledError, ValueError) as exc:
            if cancellation is not None and cancellation.is_cancelled:
                raise RequestCancelledError(f"{self._endpoint}: the request was cancelled") from exc
            raise self._error(exc, operation, timeout_s) from exc
        answer: T = read(operation, said)
        return answer

    def stream(
        self, request: Infer, *, timeout_s: float, headers: Headers = ()
    ) -> Generator[InferAnswer, None, None]:
        try:
            responses = self._stream_call(
                iter([write_stream(request)]),
                timeout=timeout_s,
                metadata=headers,
                compression=COMPRESSIONS[request.request_compression],
            )
        except ValueError as exc:
            raise self._error(exc, request, timeout_s) from exc
        try:
            for message in responses:
                answer, final = read_stream(request, message)
                if answer is not None:
                    yield answer
                if final:
                    return
            raise stream_cut(self._endpoint)
        except grpc.RpcError as exc:
            raise self._error(exc, request, timeout_s) from exc
        finally:
            responses.cancel()

    def close(self) -> None:
        self._channel.close()

    def abandon(self) -> None:
        # Closing, or collecting, a channel whose threads stayed with the parent may never return.
        _abandoned.append(self._channel)

    def _error(self, exc: Exception, operation: Operation[Any], timeout_s: float) -> Exception:
        return grpc_error(exc, endpoint=self._endpoint, operation=operation, timeout_s=timeout_s)


def _result(future: Any, cancellation: Cancellation) -> Any:
    try:
        cancellation.attach(future.cancel)
    except BaseException:
        future.cancel()
        raise
    try:
        return future.result()
    finally:
        cancellation.detach()
