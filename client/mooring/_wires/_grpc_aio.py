"""gRPC for coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import grpc
import grpc.aio
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from mooring._errors import DecodeError, TransportError
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


class AsyncGrpcTransport:
    """One gRPC channel, for the event loop in which it was made."""

    def __init__(self, endpoint: Endpoint, tls: TlsConfig) -> None:
        self._endpoint = endpoint
        self._closed = False
        target, options = channel_target(endpoint), channel_options(endpoint)
        if endpoint.is_tls:
            self._channel = grpc.aio.secure_channel(target, channel_credentials(tls), options=options)
        else:
            self._channel = grpc.aio.insecure_channel(target, options=options)
        stub = GRPCInferenceServiceStub(self._channel)
        self._calls = {
            kind: (getattr(stub, method.rpc), method.write, method.read) for kind, method in METHODS.items()
        }
        self._stream_call = stub.ModelStreamInfer

    async def asend(self, operation: Operation[T], *, timeout_s: float, headers: Headers = ()) -> T:
        call, write, read = self._calls[type(operation)]
        message = write(operation)
        compression = None
        if type(operation) is Infer and operation.request_compression is not None:
            compression = COMPRESSIONS[operation.request_compression]
        try:
            said = await call(message, timeout=timeout_s, metadata=headers, compression=compression)
        except (grpc.RpcError, grpc.aio.UsageError, grpc.aio.InternalError) as exc:
            raise self._error(exc, operation, timeout_s) from exc
        except asyncio.CancelledError as exc:
            self._check_cancelled(exc)
            raise
        self._check(said)
        answer: T = read(operation, said)
        return answer

    async def astream(
        self, request: Infer, *, timeout_s: float, headers: Headers = ()
    ) -> AsyncGenerator[InferAnswer, None]:
        try:
            responses = self._stream_call(
                iter([write_stream(request)]),
                timeout=timeout_s,
                metadata=headers,
                compression=COMPRESSIONS[request.request_compression],
            )
        except grpc.aio.UsageError as exc:
            raise self._error(exc, request, timeout_s) from exc
        try:
            async for message in responses:
                self._check(message)
                answer, final = read_stream(request, message)
                if answer is not None:
                    yield answer
                if final:
                    return
            raise stream_cut(self._endpoint)
        except grpc.RpcError as exc:
            raise self._error(exc, request, timeout_s) from exc
        except asyncio.CancelledError as exc:
            self._check_cancelled(exc)
            raise
        finally:
            responses.cancel()

    async def aclose(self) -> None:
        self._closed = True
        await self._channel.close()

    def abandon(self) -> None:
        """An event loop does not outlive a fork, and neither does what belongs to it."""

    def _check(self, message: object) -> None:
        # grpc.aio gives None for bytes that it can't read, where grpc raises.
        if message is None:
            raise DecodeError(f"{self._endpoint}: the answer is not Triton's (it is no message of its kind)")

    def _check_cancelled(self, exc: asyncio.CancelledError) -> None:
        """A channel that is closed cancels its calls; only their tasks know that nobody cancelled them."""
        task = asyncio.current_task()
        if self._closed and task is not None and not task.cancelling():
            raise TransportError(
                f"{self._endpoint}: the client was closed while the request was under way"
            ) from exc

    def _error(self, exc: Exception, operation: Operation[Any], timeout_s: float) -> Exception:
        return grpc_error(exc, endpoint=self._endpoint, operation=operation, timeout_s=timeout_s)
