"""Operations as Triton's gRPC messages, and gRPC's errors as Mooring's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2 as pb

from mooring._errors import (
    AccessDenied,
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
from mooring._models import (
    read_config,
    read_index,
    read_metadata,
    read_server_metadata,
    read_statistics,
)
from mooring._operations import (
    GetConfig,
    GetIndex,
    GetMetadata,
    GetModelReady,
    GetServerMetadata,
    GetServerReady,
    GetStatistics,
    Infer,
    InferAnswer,
    LoadModel,
    MemorySlice,
    Operation,
    Parameter,
    RegisterCudaMemory,
    RegisterSystemMemory,
    UnloadModel,
    UnregisterCudaMemory,
    UnregisterSystemMemory,
)
from mooring._policies import TlsConfig
from mooring._tensor_bytes import pack, unpack
from mooring._transport import server_error, stream_error
from mooring._url import Endpoint, is_address
from mooring._wires._tls import tls_context

COMPRESSIONS = {None: None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}

#: https://grpc.github.io/grpc/core/group__grpc__arg__keys.html
_CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
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
    # What is safe to send again is the client's to decide.
    ("grpc.enable_retries", 0),
]

_KIND_OF_STATUS: dict[str, type[ServerError]] = {
    "INVALID_ARGUMENT": InvalidInput,
    "OUT_OF_RANGE": InvalidInput,
    "NOT_FOUND": ModelNotFound,
    "UNAVAILABLE": Overloaded,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAUTHENTICATED": AccessDenied,
    "PERMISSION_DENIED": AccessDenied,
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
    "handshake",
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


class Method(NamedTuple):
    """How one operation travels."""

    #: Name of the RPC in Triton's service.
    rpc: str
    #: The operation as a request message.
    write: Callable[[Any], Any]
    #: The operation and the response message as an answer.
    read: Callable[[Any, Any], Any]


def channel_target(endpoint: Endpoint) -> str:
    """Where a channel connects: the address, where the endpoint knows one, else the name."""
    if endpoint.connect_to is not None:
        return endpoint.connect_address
    # Without it a host that is called as one of gRPC's name systems (dns, unix, ipv4 ...) is taken for it.
    return endpoint.address if is_address(endpoint.host) else f"dns:///{endpoint.address}"


def channel_options(endpoint: Endpoint) -> list[tuple[str, int | str]]:
    """Options of a channel; one to an address still asks for, and checks, the name."""
    if endpoint.connect_to is None:
        return _CHANNEL_OPTIONS
    options = [*_CHANNEL_OPTIONS, ("grpc.default_authority", endpoint.address)]
    if endpoint.is_tls:
        options.append(("grpc.ssl_target_name_override", endpoint.host))
    return options


def channel_credentials(tls: TlsConfig) -> grpc.ChannelCredentials:
    """Certificates as gRPC takes them.

    Raises:
        ConfigError: a file holds no certificate or key.
    """
    # gRPC would only say later that it can't connect.
    tls_context(tls)

    def read(path: str | Path | None) -> bytes | None:
        return None if path is None else Path(path).read_bytes()

    return grpc.ssl_channel_credentials(
        root_certificates=read(tls.ca_file),
        private_key=read(tls.key_file),
        certificate_chain=read(tls.cert_file),
    )


def grpc_error(
    exc: Exception, *, endpoint: Endpoint, operation: Operation[Any], timeout_s: float
) -> MooringError:
    """Map what gRPC raises to Mooring's tree."""
    if isinstance(exc, grpc.FutureCancelledError):
        return TransportError(f"{endpoint}: the call was cancelled")
    if not isinstance(exc, grpc.RpcError):
        # grpc raises a bare ValueError (grpc.aio a UsageError) for a call on a channel that was just closed.
        return ConfigError(f"{endpoint}: the client was closed while a call began ({exc})")
    status, said = exc.code().name, exc.details() or ""
    lowered = said.lower()
    if status == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(f"{endpoint}: no answer within {timeout_s:.3g} s")
    if status == "CANCELLED":
        return TransportError(f"{endpoint}: the call was cancelled ({said})")
    # Garbage on a connection that worked before is UNKNOWN.
    if status in ("UNAVAILABLE", "UNKNOWN") and "failed parsing http" in lowered:
        return DecodeError(
            f"{endpoint} does not speak gRPC; is it the HTTP port? Then write http:// ({said})"
        )
    if status == "UNKNOWN" and lowered.startswith("stream removed"):
        return TransportError(f"{endpoint}: connection lost before an answer came ({said})")
    # Envoy tells so of its own connections: whoever it spoke to may have been reached by a try before.
    if status == "UNAVAILABLE" and "reset before headers" not in lowered:
        if any(words in lowered for words in _NO_CONNECTION_WORDS):
            hint = ""
            if any(words in lowered for words in _LOST_CONNECTION_WORDS):
                # So says an HTTP server, tritonserver's too, that is spoken to in HTTP/2.
                http = "https" if endpoint.is_tls else "http"
                hint = f" It closed the connection at once: if that is its HTTP port, write {http}://"
            return ConnectError(f"{endpoint}: can't connect; is the server running?{hint} ({said})")
        if any(words in lowered for words in _LOST_CONNECTION_WORDS):
            return TransportError(f"{endpoint}: connection lost before an answer came ({said})")
    if status == "INTERNAL" and "deserializing" in lowered:
        return DecodeError(f"{endpoint}: the answer is not Triton's ({said})")
    kind = _KIND_OF_STATUS.get(status, ServerError)
    if status == "RESOURCE_EXHAUSTED" and "larger than max" in lowered:
        kind = InvalidInput
    return server_error(kind, said, operation=operation, code=status)


def stream_cut(endpoint: Endpoint) -> TransportError:
    """The error of a stream that ended well, but for the response that says it is the last."""
    return TransportError(f"{endpoint}: the stream ended before the model's last response")


def write_infer(request: Infer) -> Any:
    """An inference request as its message; notes the size of its inputs."""
    message = pb.ModelInferRequest(
        model_name=request.model, model_version=request.version, id=request.request_id
    )
    sent_bytes = 0
    for tensor in request.inputs:
        written = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        if tensor.memory is not None:
            _write_memory(written.parameters, tensor.memory)
            continue
        raw = pack(tensor.array, tensor.datatype)
        sent_bytes += len(raw)
        message.raw_input_contents.append(raw)
    for name in request.outputs or ():
        output = message.outputs.add(name=name)
        if name in request.output_memory:
            _write_memory(output.parameters, request.output_memory[name])
    if request.parameters:
        _write_parameters(message.parameters, request.parameters)
    if request.timeout_s:
        message.parameters["timeout"].int64_param = int(request.timeout_s * 1e6)
    if request.priority:
        message.parameters["priority"].uint64_param = request.priority
    if request.sequence is not None:
        step = request.sequence
        _write_parameters(
            message.parameters,
            {"sequence_id": step.id, "sequence_start": step.start, "sequence_end": step.end},
        )
    request.sent_bytes = sent_bytes
    return message


def write_stream(request: Infer) -> Any:
    """As :func:`write_infer`, asking for a last response that says it is the last."""
    message = write_infer(request)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    return message


def read_infer(request: Infer, message: Any) -> InferAnswer:
    """Read a response.

    Raises:
        DecodeError: its tensors can't be read.
    """
    raws = message.raw_output_contents
    outputs, in_memory = {}, {}
    received_bytes = 0
    try:
        for i, output in enumerate(message.outputs):
            name = output.name
            if name in request.output_memory:
                in_memory[name] = output.datatype, tuple(output.shape)
                continue
            raw = raws[i]
            received_bytes += len(raw)
            outputs[name] = unpack(raw, output.datatype, tuple(output.shape))
    except (ValueError, IndexError, TypeError) as exc:
        raise DecodeError(f"model {request.model!r}: the answer's tensors can't be read: {exc}") from exc
    return InferAnswer(
        outputs=outputs,
        in_memory=in_memory,
        model_version=message.model_version,
        received_bytes=received_bytes,
    )


def read_stream(request: Infer, message: Any) -> tuple[InferAnswer | None, bool]:
    """Read one response of a stream: the answer, if it has one, and whether it is the last.

    Raises:
        ServerError: the model said no.
        DecodeError: its tensors can't be read.
    """
    if message.error_message:
        raise stream_error(message.error_message, request)
    response = message.infer_response
    final = response.parameters["triton_final_response"].bool_param
    if final and not response.outputs:
        return None, True
    return read_infer(request, response), final


def _write_parameters(target: Any, parameters: Mapping[str, Parameter]) -> None:
    for key, value in parameters.items():
        if isinstance(value, bool):
            target[key].bool_param = value
        elif isinstance(value, str):
            target[key].string_param = value
        elif isinstance(value, int):
            target[key].int64_param = value
        else:
            target[key].double_param = value


def _write_memory(target: Any, memory: MemorySlice) -> None:
    target["shared_memory_region"].string_param = memory.region
    target["shared_memory_byte_size"].int64_param = memory.byte_size
    if memory.offset:
        target["shared_memory_offset"].int64_param = memory.offset


def _write_load(operation: LoadModel) -> Any:
    message = pb.RepositoryModelLoadRequest(model_name=operation.model)
    if operation.config is not None:
        message.parameters["config"].string_param = operation.config
    for path, content in operation.files.items():
        message.parameters[f"file:{path}"].bytes_param = content
    return message


def _write_unload(operation: UnloadModel) -> Any:
    message = pb.RepositoryModelUnloadRequest(model_name=operation.model)
    message.parameters["unload_dependents"].bool_param = operation.unload_dependents
    return message


def _as_dict(message: Any) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True)


def _nothing(operation: Operation[None], message: Any) -> None:
    return None


METHODS: dict[type[Operation[Any]], Method] = {
    GetServerReady: Method("ServerReady", lambda _: pb.ServerReadyRequest(), lambda _, said: said.ready),
    GetServerMetadata: Method(
        "ServerMetadata",
        lambda _: pb.ServerMetadataRequest(),
        lambda _, said: read_server_metadata(_as_dict(said)),
    ),
    GetModelReady: Method(
        "ModelReady",
        lambda op: pb.ModelReadyRequest(name=op.model, version=op.version),
        lambda _, said: said.ready,
    ),
    GetMetadata: Method(
        "ModelMetadata",
        lambda op: pb.ModelMetadataRequest(name=op.model, version=op.version),
        lambda op, said: read_metadata(_as_dict(said), model=op.model),
    ),
    GetConfig: Method(
        "ModelConfig",
        lambda op: pb.ModelConfigRequest(name=op.model, version=op.version),
        lambda op, said: read_config(_as_dict(said).get("config"), model=op.model),
    ),
    GetStatistics: Method(
        "ModelStatistics",
        lambda op: pb.ModelStatisticsRequest(name=op.model, version=op.version),
        lambda _, said: read_statistics(_as_dict(said)),
    ),
    GetIndex: Method(
        "RepositoryIndex",
        lambda _: pb.RepositoryIndexRequest(),
        lambda _, said: read_index(_as_dict(said).get("models", [])),
    ),
    LoadModel: Method("RepositoryModelLoad", _write_load, _nothing),
    UnloadModel: Method("RepositoryModelUnload", _write_unload, _nothing),
    RegisterSystemMemory: Method(
        "SystemSharedMemoryRegister",
        lambda op: pb.SystemSharedMemoryRegisterRequest(name=op.name, key=op.key, byte_size=op.byte_size),
        _nothing,
    ),
    RegisterCudaMemory: Method(
        "CudaSharedMemoryRegister",
        lambda op: pb.CudaSharedMemoryRegisterRequest(
            name=op.name, raw_handle=op.raw_handle, device_id=op.device_id, byte_size=op.byte_size
        ),
        _nothing,
    ),
    UnregisterSystemMemory: Method(
        "SystemSharedMemoryUnregister",
        lambda op: pb.SystemSharedMemoryUnregisterRequest(name=op.name),
        _nothing,
    ),
    UnregisterCudaMemory: Method(
        "CudaSharedMemoryUnregister",
        lambda op: pb.CudaSharedMemoryUnregisterRequest(name=op.name),
        _nothing,
    ),
    Infer: Method("ModelInfer", write_infer, read_infer),
}
