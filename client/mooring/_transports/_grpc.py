"""gRPC through ``tritonclient.grpc``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from mooring._errors import (
    ConfigError,
    ConnectError,
    DeadlineExceeded,
    DecodeError,
    InvalidInput,
    ModelNotFound,
    MooringError,
    Overloaded,
    ServerError,
    TransportError,
)
from mooring._models import ModelConfig, ModelMetadata, ModelStatus, read_config, read_index, read_metadata
from mooring._transport import Asked, InferRequest, server_error
from mooring._url import Endpoint

T = TypeVar("T")

_THE_SERVER = Asked()

#: https://grpc.github.io/grpc/core/group__grpc__arg__keys.html
_CHANNEL_OPTIONS: list[tuple[str, int]] = [
    # Tensors are large: no limit of gRPC's own (its default is 4 MiB).
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's default pause after a failed connect grows to two minutes: far too long for a server
    # that was only restarted.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Without this, all clients of a process share one TCP connection, and its back-off, per address.
    ("grpc.use_local_subchannel_pool", 1),
    # As over HTTP: the URL says where the server is, http_proxy does not.
    ("grpc.enable_http_proxy", 0),
]

_KIND_OF_STATUS: dict[str, type[ServerError]] = {
    "INVALID_ARGUMENT": InvalidInput,
    "OUT_OF_RANGE": InvalidInput,
    "NOT_FOUND": ModelNotFound,
    "UNAVAILABLE": Overloaded,
    "RESOURCE_EXHAUSTED": Overloaded,
}

# gRPC reports its own connection trouble as UNAVAILABLE, like a server that refuses because of load,
# and nothing but the words tells them apart (since grpcio 1.70 or so not even debug_error_string).
_NO_CONNECTION_WORDS = (
    "failed to connect",
    "connection refused",
    "errors resolving",
    "dns resolution failed",
    "name resolution",
    "tcp handshaker",
    "empty address list",
)
_LOST_CONNECTION_WORDS = (
    "socket closed",
    "stream removed",
    "connection reset",
    "broken pipe",
    "goaway",
    "cancelling all calls",  # a gRPC server that stops at once
    "recvmsg",
    "sendmsg",
    "keepalive",
    "transport closed",
    "end of tcp stream",
    "connection timed out",
    "connection aborted",
)


def _grpc_error(exc: Exception, *, endpoint: Endpoint, asked: Asked, timeout_s: float) -> MooringError:
    """Map what tritonclient and gRPC raise to Mooring's tree."""
    if not isinstance(exc, InferenceServerException):
        # grpc raises a bare ValueError for a call on a channel that another thread just closed.
        return ConfigError(f"{endpoint}: the client was closed while a call began ({exc})")
    status = str(exc.status() or "").removeprefix("StatusCode.")
    said = exc.message() or ""
    lowered = said.lower()
    if not status:
        return InvalidInput(
            f"model {asked.model!r}: tritonclient can't write the request: {said}", model=asked.model
        )
    if status == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(f"{endpoint}: no answer within {timeout_s:.3g} s", attempts=[exc])
    if status == "CANCELLED":
        return TransportError(f"{endpoint}: the call was cancelled ({said})", attempts=[exc])
    if status == "UNAVAILABLE":
        if "failed parsing http" in lowered:
            return DecodeError(
                f"{endpoint} does not speak gRPC; is it the HTTP port? Then write http:// ({said})"
            )
        if any(words in lowered for words in _NO_CONNECTION_WORDS):
            return ConnectError(f"{endpoint}: can't connect; is the server running? ({said})", attempts=[exc])
        if any(words in lowered for words in _LOST_CONNECTION_WORDS):
            return TransportError(
                f"{endpoint}: connection lost before an answer came ({said})", attempts=[exc]
            )
    if status == "INTERNAL" and "deserializing" in lowered:
        return DecodeError(f"{endpoint}: the answer is not Triton's ({said})")
    kind = _KIND_OF_STATUS.get(status, ServerError)
    if status == "RESOURCE_EXHAUSTED" and "larger than max" in lowered:
        kind = InvalidInput
    return server_error(kind, said, asked=asked, code=status)


class GrpcTransport:
    """One gRPC channel; threads share it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._client = triton_grpc.InferenceServerClient(endpoint.address, channel_args=_CHANNEL_OPTIONS)

    def server_ready(self, *, timeout_s: float) -> bool:
        return bool(self._call(self._client.is_server_ready, timeout_s=timeout_s))

    def model_ready(self, model: str, version: str, *, timeout_s: float) -> bool:
        asked = Asked(model, version)
        return bool(self._call(self._client.is_model_ready, *asked, asked=asked, timeout_s=timeout_s))

    def metadata(self, model: str, version: str, *, timeout_s: float) -> ModelMetadata:
        asked = Asked(model, version)
        method = self._client.get_model_metadata
        raw = self._call(method, *asked, as_json=True, asked=asked, timeout_s=timeout_s)
        return read_metadata(raw, model=model)

    def config(self, model: str, version: str, *, timeout_s: float) -> ModelConfig:
        asked = Asked(model, version)
        method = self._client.get_model_config
        raw = self._call(method, *asked, as_json=True, asked=asked, timeout_s=timeout_s)
        return read_config(raw.get("config"), model=model)

    def models(self, *, timeout_s: float) -> list[ModelStatus]:
        raw = self._call(self._client.get_model_repository_index, as_json=True, timeout_s=timeout_s)
        return read_index(raw.get("models", []))

    def infer(self, request: InferRequest, *, timeout_s: float) -> dict[str, np.ndarray]:
        asked = Asked(request.model, request.version)
        result = self._call(self._send, request, asked=asked, timeout_s=timeout_s)
        try:
            return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
        except Exception as exc:
            # Whatever tritonclient's decoder stumbles over, the bytes are what is wrong.
            raise DecodeError(f"model {request.model!r}: the answer's tensors can't be read: {exc}") from exc

    def close(self) -> None:
        self._client.close()

    def _send(self, request: InferRequest, *, client_timeout: float) -> Any:
        inputs = []
        for tensor in request.inputs:
            written = triton_grpc.InferInput(tensor.name, list(tensor.array.shape), tensor.datatype)
            written.set_data_from_numpy(tensor.array)
            inputs.append(written)
        outputs = None
        if request.outputs is not None:
            outputs = [triton_grpc.InferRequestedOutput(name) for name in request.outputs]
        return self._client.infer(
            request.model,
            inputs,
            model_version=request.version,
            outputs=outputs,
            request_id=request.request_id,
            client_timeout=client_timeout,
        )

    def _call(
        self,
        method: Callable[..., T],
        *args: Any,
        timeout_s: float,
        asked: Asked = _THE_SERVER,
        **kwargs: Any,
    ) -> T:
        try:
            return method(*args, client_timeout=timeout_s, **kwargs)
        except (InferenceServerException, ValueError) as exc:
            raise _grpc_error(exc, endpoint=self._endpoint, asked=asked, timeout_s=timeout_s) from exc
