"""HTTP: tritonclient's message format over :class:`HttpPool`."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from mooring._errors import (
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
from mooring._transports._http_pool import HttpAnswer, HttpPool
from mooring._url import Endpoint

_KIND_OF_STATUS: dict[int, type[ServerError]] = {
    400: InvalidInput,
    404: ModelNotFound,
    413: InvalidInput,
    429: Overloaded,
    502: Overloaded,
    503: Overloaded,
    504: Overloaded,
}

_THE_SERVER = Asked()
_HEADER_LENGTH = "Inference-Header-Content-Length"


def _http_error(exc: Exception, *, endpoint: Endpoint, timeout_s: float) -> MooringError:
    """Map what sockets and ``http.client`` raise to Mooring's tree."""
    if isinstance(exc, TimeoutError):
        return DeadlineExceeded(f"{endpoint}: no answer within {timeout_s:.3g} s", attempts=[exc])
    if isinstance(exc, ConnectionRefusedError | socket.gaierror | UnicodeError):
        return ConnectError(f"{endpoint}: can't connect; is the server running? ({exc})", attempts=[exc])
    if isinstance(exc, http.client.IncompleteRead | ConnectionError):
        return TransportError(f"{endpoint}: connection lost before an answer came ({exc})", attempts=[exc])
    if isinstance(exc, OSError):
        # What is left are routes and addresses: unreachable network or host, no local port.
        return ConnectError(f"{endpoint}: can't connect ({exc})", attempts=[exc])
    said = f"{type(exc).__name__}: {exc}"
    return DecodeError(f"{endpoint} does not speak HTTP; is it the gRPC port? Then write grpc:// ({said})")


class HttpTransport:
    """A pool of HTTP connections; threads share it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._pool = HttpPool(endpoint.host, endpoint.port)

    def server_ready(self, *, timeout_s: float) -> bool:
        return self._is_ready("health/ready", timeout_s=timeout_s)

    def model_ready(self, model: str, version: str, *, timeout_s: float) -> bool:
        asked = Asked(model, version)
        return self._is_ready(f"{_model_path(asked)}/ready", asked=asked, timeout_s=timeout_s)

    def metadata(self, model: str, version: str, *, timeout_s: float) -> ModelMetadata:
        asked = Asked(model, version)
        raw = self._json("GET", _model_path(asked), asked=asked, timeout_s=timeout_s)
        return read_metadata(raw, model=model)

    def config(self, model: str, version: str, *, timeout_s: float) -> ModelConfig:
        asked = Asked(model, version)
        raw = self._json("GET", f"{_model_path(asked)}/config", asked=asked, timeout_s=timeout_s)
        return read_config(raw, model=model)

    def models(self, *, timeout_s: float) -> list[ModelStatus]:
        return read_index(self._json("POST", "repository/index", timeout_s=timeout_s))

    def infer(self, request: InferRequest, *, timeout_s: float) -> dict[str, np.ndarray]:
        try:
            body, json_length = _write_request(request)
        except InferenceServerException as exc:
            raise InvalidInput(
                f"model {request.model!r}: tritonclient can't write the request: {exc}", model=request.model
            ) from exc
        headers = {"Content-Type": "application/octet-stream"}
        if json_length is not None:
            headers[_HEADER_LENGTH] = str(json_length)
        asked = Asked(request.model, request.version)
        path = f"{_model_path(asked)}/infer"
        answer = self._exchange("POST", path, body=body, headers=headers, timeout_s=timeout_s)
        _raise_if_refused(answer, asked)
        try:
            length = answer.headers.get(_HEADER_LENGTH.lower())
            result = triton_http.InferenceServerClient.parse_response_body(
                answer.body, header_length=None if length is None else int(length)
            )
            names = [output["name"] for output in result.get_response()["outputs"]]
            return {name: result.as_numpy(name) for name in names}
        except Exception as exc:
            # Whatever tritonclient's decoder stumbles over, the bytes are what is wrong.
            raise DecodeError(f"model {request.model!r}: the answer's tensors can't be read: {exc}") from exc

    def close(self) -> None:
        self._pool.close()

    def _is_ready(self, path: str, *, timeout_s: float, asked: Asked = _THE_SERVER) -> bool:
        answer = self._exchange("GET", path, timeout_s=timeout_s)
        if answer.status == 400:  # how tritonserver says "not ready"
            return False
        _raise_if_refused(answer, asked)
        return True

    def _json(self, method: str, path: str, *, timeout_s: float, asked: Asked = _THE_SERVER) -> Any:
        answer = self._exchange(method, path, timeout_s=timeout_s)
        _raise_if_refused(answer, asked)
        try:
            return json.loads(answer.body)
        except ValueError as exc:
            start = answer.body[:200]
            raise DecodeError(f"{self._endpoint}: the answer to /v2/{path} is no JSON: {start!r}") from exc

    def _exchange(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> HttpAnswer:
        path = f"{self._endpoint.base_path}/v2/{path}"
        try:
            return self._pool.exchange(method, path, body=body, headers=headers, timeout_s=timeout_s)
        except (OSError, http.client.HTTPException, UnicodeError, OverflowError, MemoryError) as exc:
            # The last two: a length in the answer that no memory can hold.
            raise _http_error(exc, endpoint=self._endpoint, timeout_s=timeout_s) from exc


def _write_request(request: InferRequest) -> tuple[bytes, int | None]:
    """The body, and how many bytes of it are the JSON in front; ``None`` where that is all."""
    inputs = []
    for tensor in request.inputs:
        written = triton_http.InferInput(tensor.name, list(tensor.array.shape), tensor.datatype)
        written.set_data_from_numpy(tensor.array, binary_data=True)
        inputs.append(written)
    outputs = None
    if request.outputs is not None:
        outputs = [triton_http.InferRequestedOutput(name, binary_data=True) for name in request.outputs]
    body, json_length = triton_http.InferenceServerClient.generate_request_body(
        inputs, outputs=outputs, request_id=request.request_id
    )
    return body, json_length


def _model_path(asked: Asked) -> str:
    path = f"models/{quote(str(asked.model), safe='')}"
    return f"{path}/versions/{asked.version}" if asked.version else path


def _raise_if_refused(answer: HttpAnswer, asked: Asked) -> None:
    if answer.status == 200:
        return
    try:
        said = json.loads(answer.body)["error"]
    except (ValueError, KeyError, TypeError):
        # Not Triton's words but, say, a proxy's HTML.
        said = answer.body[:200].decode("utf-8", errors="replace").strip()
    kind = _KIND_OF_STATUS.get(answer.status, ServerError)
    raise server_error(kind, str(said), asked=asked, code=str(answer.status))
