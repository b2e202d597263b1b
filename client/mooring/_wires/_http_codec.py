"""Operations as Triton's HTTP requests, and HTTP's and sockets' errors as Mooring's.

The body of an inference request is a JSON header and then the inputs' bytes, one after the other
(https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html).
"""

from __future__ import annotations

import base64
import email.utils
import json
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from mooring._errors import (
    AccessDenied,
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
    Compression,
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
    RegisterCudaMemory,
    RegisterSystemMemory,
    UnloadModel,
    UnregisterCudaMemory,
    UnregisterSystemMemory,
)
from mooring._tensor_bytes import unpack, view
from mooring._transport import server_error
from mooring._url import Endpoint

_KIND_OF_STATUS: dict[int, type[ServerError]] = {
    400: InvalidInput,
    401: AccessDenied,
    403: AccessDenied,
    404: ModelNotFound,
    413: InvalidInput,
    429: Overloaded,
    502: Overloaded,
    503: Overloaded,
    504: Overloaded,
}
_HEADER_LENGTH = "inference-header-content-length"
_BINARY = {"binary_data": True}
# json.dumps makes an encoder of its own for every call with options.
_encode = json.JSONEncoder(separators=(",", ":")).encode


class HttpRequest(NamedTuple):
    """What is sent for an operation."""

    verb: str
    #: After ``/v2``.
    path: str
    headers: dict[str, str]
    body: list[bytes | memoryview]


class HttpAnswer(NamedTuple):
    """A complete response."""

    status: int
    #: Names in lower case.
    headers: Mapping[str, str]
    #: Without its content encoding, where that is gzip or deflate.
    body: bytes


class Method(NamedTuple):
    """How one operation travels."""

    write: Callable[[Any], HttpRequest]
    #: Reads the answer of a request that was not refused.
    read: Callable[[Any, HttpAnswer], Any]


def http_error(exc: Exception, *, endpoint: Endpoint, timeout_s: float) -> MooringError:
    """Map what sockets raise to Mooring's tree; what is left over is no HTTP."""
    if isinstance(exc, TimeoutError):
        return DeadlineExceeded(f"{endpoint}: no answer within {timeout_s:.3g} s")
    if isinstance(exc, ssl.SSLError):
        return ConnectError(f"{endpoint}: no TLS connection; is it the right port and certificate? ({exc})")
    if isinstance(exc, ConnectionRefusedError | socket.gaierror | UnicodeError):
        return ConnectError(f"{endpoint}: can't connect; is the server running? ({exc})")
    if isinstance(exc, ConnectionError):
        return TransportError(f"{endpoint}: connection lost before an answer came ({exc})")
    if isinstance(exc, OSError):
        # What is left are routes and addresses: unreachable network or host, no local port.
        return ConnectError(f"{endpoint}: can't connect ({exc})")
    said = f"{type(exc).__name__}: {exc}"
    return DecodeError(f"{endpoint} does not speak HTTP; is it the gRPC port? Then write grpc:// ({said})")


def read_answer(method: Method, operation: Operation[Any], answer: HttpAnswer, endpoint: Endpoint) -> Any:
    """Read a response into the operation's answer.

    Raises:
        ServerError: the server said no.
        DecodeError: the body is not what it should be.
    """
    if answer.status != 200:
        if answer.status == 400 and isinstance(operation, GetServerReady | GetModelReady):
            return False  # how tritonserver says "not ready"
        raise refusal(operation, answer, endpoint)
    try:
        return method.read(operation, answer)
    except (ValueError, OverflowError, RecursionError) as exc:
        start = answer.body[:200]
        raise DecodeError(
            f"{endpoint}: the answer to {type(operation).__name__} is no JSON: {start!r}"
        ) from exc


def refusal(operation: Operation[Any], answer: HttpAnswer, endpoint: Endpoint) -> ServerError:
    """The error that a response with another status than 200 stands for."""
    try:
        said = json.loads(answer.body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        # Not Triton's words but, say, a proxy's HTML.
        said = answer.body[:200].decode("utf-8", errors="replace").strip()
    kind = _KIND_OF_STATUS.get(answer.status, ServerError)
    if (answer.status == 404 and said == "Not Found") or answer.status == 405:
        # tritonserver's words for a path that it does not know, and a server's of another kind.
        kind, said = ServerError, f"{said or 'no message'}; is {endpoint} the URL of a Triton server?"
    error = server_error(kind, str(said), operation=operation, code=str(answer.status))
    if isinstance(error, Overloaded):
        error.retry_after_s = _retry_after_s(answer.headers.get("retry-after"))
    return error


def _retry_after_s(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def write_infer(request: Infer) -> HttpRequest:
    """An inference request; notes the size of its inputs."""
    inputs: list[dict[str, Any]] = []
    body: list[bytes | memoryview] = [b""]
    sent_bytes = 0
    for tensor in request.inputs:
        written: dict[str, Any] = {
            "name": tensor.name,
            "shape": tensor.array.shape,
            "datatype": tensor.datatype,
        }
        if tensor.memory is not None:
            written["parameters"] = _memory(tensor.memory)
        else:
            raw = view(tensor.array, tensor.datatype)
            written["parameters"] = {"binary_data_size": len(raw)}
            sent_bytes += len(raw)
            body.append(raw)
        inputs.append(written)
    head: dict[str, Any] = {"inputs": inputs}
    if request.request_id:
        head["id"] = request.request_id
    parameters: dict[str, Any] = dict(request.parameters)
    if request.outputs is None:
        parameters["binary_data_output"] = True
    else:
        head["outputs"] = [
            {
                "name": name,
                "parameters": _memory(request.output_memory[name])
                if name in request.output_memory
                else _BINARY,
            }
            for name in request.outputs
        ]
    if request.timeout_s:
        parameters["timeout"] = int(request.timeout_s * 1e6)
    if request.priority:
        parameters["priority"] = request.priority
    if request.sequence is not None:
        step = request.sequence
        parameters |= {"sequence_id": step.id, "sequence_start": step.start, "sequence_end": step.end}
    if parameters:
        head["parameters"] = parameters
    body[0] = _encode(head).encode()
    request.sent_bytes = sent_bytes
    headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(body[0]))}
    if request.request_compression is not None:
        headers["Content-Encoding"] = request.request_compression
        body = [_compress(body, request.request_compression)]
    if request.response_compression is not None:
        headers["Accept-Encoding"] = request.response_compression
    return HttpRequest("POST", f"{model_path(request)}/infer", headers, body)


def _compress(body: list[bytes | memoryview], compression: Compression) -> bytes:
    # 16 more window bits is how zlib spells gzip.
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS + (16 if compression == "gzip" else 0))
    return b"".join([*map(packer.compress, body), packer.flush()])


def read_infer(request: Infer, answer: HttpAnswer) -> InferAnswer:
    """Read an inference response.

    Raises:
        DecodeError: its tensors can't be read.
    """
    body = answer.body
    try:
        length = int(answer.headers.get(_HEADER_LENGTH, len(body)))
        head = json.loads(body[:length])
        outputs, in_memory = {}, {}
        raws, begin = memoryview(body), length
        for output in head["outputs"]:
            name, parameters = output["name"], output.get("parameters", {})
            if name in request.output_memory:
                in_memory[name] = output["datatype"], tuple(output["shape"])
                continue
            end = begin + int(parameters["binary_data_size"])
            outputs[name] = unpack(raws[begin:end], output["datatype"], tuple(output["shape"]))
            begin = end
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as exc:
        reason = f"{type(exc).__name__}: {exc}"
        raise DecodeError(f"model {request.model!r}: the answer's tensors can't be read: {reason}") from exc
    return InferAnswer(
        outputs=outputs,
        in_memory=in_memory,
        model_version=str(head.get("model_version", "")),
        received_bytes=len(body) - length,
    )


def _memory(memory: MemorySlice) -> dict[str, Any]:
    return {
        "shared_memory_region": memory.region,
        "shared_memory_byte_size": memory.byte_size,
        "shared_memory_offset": memory.offset,
    }


def model_path(operation: Operation[Any]) -> str:
    """Path of a model, or of one version of it, after ``/v2``."""
    path = f"/models/{quote(operation.model, safe='')}"
    return f"{path}/versions/{operation.version}" if operation.version else path


def _get(path: str) -> HttpRequest:
    return HttpRequest("GET", path, {}, [])


def _post(path: str, said: Mapping[str, Any] | None = None) -> HttpRequest:
    if said is None:
        return HttpRequest("POST", path, {}, [])
    return HttpRequest("POST", path, {"Content-Type": "application/json"}, [json.dumps(said).encode()])


def _write_statistics(operation: GetStatistics) -> HttpRequest:
    return _get(f"{model_path(operation)}/stats" if operation.model else "/models/stats")


def _write_load(operation: LoadModel) -> HttpRequest:
    parameters: dict[str, str] = {}
    if operation.config is not None:
        parameters["config"] = operation.config
    for path, content in operation.files.items():
        parameters[f"file:{path}"] = base64.b64encode(content).decode()
    return _post(f"/repository/models/{quote(operation.model, safe='')}/load", {"parameters": parameters})


def _write_unload(operation: UnloadModel) -> HttpRequest:
    parameters = {"unload_dependents": operation.unload_dependents}
    return _post(f"/repository/models/{quote(operation.model, safe='')}/unload", {"parameters": parameters})


def _memory_path(kind: str, name: str, verb: str) -> str:
    return f"/{kind}sharedmemory/region/{quote(name, safe='')}/{verb}"


def _write_cuda(operation: RegisterCudaMemory) -> HttpRequest:
    said = {
        "raw_handle": {"b64": base64.b64encode(operation.raw_handle).decode()},
        "device_id": operation.device_id,
        "byte_size": operation.byte_size,
    }
    return _post(_memory_path("cuda", operation.name, "register"), said)


def _yes(operation: Operation[bool], answer: HttpAnswer) -> bool:
    return True


def _nothing(operation: Operation[None], answer: HttpAnswer) -> None:
    return None


METHODS: dict[type[Operation[Any]], Method] = {
    GetServerReady: Method(lambda _: _get("/health/ready"), _yes),
    GetServerMetadata: Method(
        lambda _: _get(""), lambda _, said: read_server_metadata(json.loads(said.body))
    ),
    GetModelReady: Method(lambda op: _get(f"{model_path(op)}/ready"), _yes),
    GetMetadata: Method(
        lambda op: _get(model_path(op)),
        lambda op, said: read_metadata(json.loads(said.body), model=op.model),
    ),
    GetConfig: Method(
        lambda op: _get(f"{model_path(op)}/config"),
        lambda op, said: read_config(json.loads(said.body), model=op.model),
    ),
    GetStatistics: Method(_write_statistics, lambda _, said: read_statistics(json.loads(said.body))),
    GetIndex: Method(lambda _: _post("/repository/index"), lambda _, said: read_index(json.loads(said.body))),
    LoadModel: Method(_write_load, _nothing),
    UnloadModel: Method(_write_unload, _nothing),
    RegisterSystemMemory: Method(
        lambda op: _post(
            _memory_path("system", op.name, "register"), {"key": op.key, "byte_size": op.byte_size}
        ),
        _nothing,
    ),
    RegisterCudaMemory: Method(_write_cuda, _nothing),
    UnregisterSystemMemory: Method(lambda op: _post(_memory_path("system", op.name, "unregister")), _nothing),
    UnregisterCudaMemory: Method(lambda op: _post(_memory_path("cuda", op.name, "unregister")), _nothing),
    Infer: Method(write_infer, read_infer),
}
