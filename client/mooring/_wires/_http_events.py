"""Decoupled models over HTTP: Triton's ``generate_stream``, which carries tensors as plain JSON.

JSON has no shapes: an input has at most one axis beside the batch, the batch is 1, and outputs take the
shape that the model's metadata gives.
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_generate.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from mooring._errors import DecodeError, InvalidInput, ServerError, TransportError
from mooring._models import TensorSpec
from mooring._operations import Infer, InferAnswer, Tensor
from mooring._tensor_bytes import dtype_of
from mooring._transport import stream_error
from mooring._url import Endpoint
from mooring._wires._http_codec import HttpAnswer, HttpRequest, model_path, refusal


def write_stream(request: Infer) -> HttpRequest:
    """A streaming request.

    Raises:
        InvalidInput: JSON can't carry it; gRPC can.
    """
    said: dict[str, Any] = {}
    for tensor in request.inputs:
        said[tensor.name] = _plain(request, tensor)
    if request.sequence is not None or request.priority or request.output_memory:
        raise _refused(request, "sequences, priorities and shared memory")
    said |= request.parameters
    if request.request_id:
        said["id"] = request.request_id
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    body = json.dumps(said, ensure_ascii=False).encode()
    return HttpRequest("POST", f"{model_path(request)}/generate_stream", headers, [body])


def _plain(request: Infer, tensor: Tensor) -> Any:
    shape = tensor.array.shape
    if tensor.memory is not None or tensor.datatype in ("BF16", "FP16"):
        raise _refused(request, f"input {tensor.name!r} ({tensor.datatype})")
    if len(shape) > 2 or (len(shape) == 2 and shape[0] != 1):
        raise _refused(request, f"input {tensor.name!r} of shape {list(shape)}")
    values = tensor.array.ravel().tolist()
    if tensor.datatype == "BYTES":
        try:
            values = [value.decode("utf-8") for value in values]
        except UnicodeDecodeError as exc:
            raise _refused(request, f"input {tensor.name!r} with bytes that are no UTF-8") from exc
    return values[0] if len(values) == 1 else values


def _refused(request: Infer, what: str) -> InvalidInput:
    message = f"model {request.model!r}: {what} can't be streamed over HTTP; use grpc:// or grpcs://"
    return InvalidInput(message, model=request.model)


def stream_refusal(request: Infer, answer: HttpAnswer, endpoint: Endpoint) -> ServerError:
    """The error that a response with another status than 200 stands for."""
    # What the model says no to comes as an event, with status 400 whatever its reason.
    said = answer.body.strip()
    if said.startswith(b"data:"):
        for error in _errors_in(said):
            return stream_error(error, request)
    return refusal(request, answer, endpoint)


def _errors_in(events: bytes) -> Iterator[str]:
    for line in events.splitlines():
        try:
            yield str(json.loads(line.removeprefix(b"data:"))["error"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue


class EventReader:
    """Cuts a body of server-sent events into answers.

    Args:
        request: what is answered.
    """

    def __init__(self, request: Infer) -> None:
        self._request = request
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[InferAnswer]:
        """Take the next bytes, give the answers that they complete.

        Raises:
            ServerError: an event says no.
            DecodeError: an event is no answer of the model.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield self._read(line[5:].strip())

    def finish(self) -> None:
        """Take the body's end.

        Raises:
            TransportError: it came within an event.
        """
        if self._rest.strip():
            model, rest = self._request.model, self._rest[:200]
            raise TransportError(f"model {model!r}: the stream ended within an event: {rest!r}")

    def _read(self, data: bytes) -> InferAnswer:
        try:
            said = json.loads(data)
            if "error" in said:
                raise stream_error(str(said["error"]), self._request)
            wanted = self._request.outputs
            outputs = {
                spec.name: _tensor(said[spec.name], spec)
                for spec in self._request.output_specs
                if spec.name in said and (wanted is None or spec.name in wanted)
            }
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
            model = self._request.model
            raise DecodeError(f"model {model!r}: the event can't be read: {data[:200]!r} ({exc})") from exc
        return InferAnswer(
            outputs=outputs, model_version=str(said.get("model_version", "")), received_bytes=len(data)
        )


def _tensor(value: Any, spec: TensorSpec) -> np.ndarray:
    values = value if isinstance(value, list) else [value]
    if spec.datatype == "BYTES":
        array = np.empty(len(values), np.object_)
        array[:] = [text.encode("utf-8") for text in values]
    else:
        dtype = dtype_of(spec.datatype)
        if dtype.kind in "iu" and any(isinstance(number, float) for number in values):
            # NumPy would cut it down; the model has another signature by now.
            raise ValueError(
                f"output {spec.name!r} is {spec.datatype}, and not all of {values[:5]} are whole"
            )
        array = np.array(values, dtype)
    shape = list(spec.shape)
    if shape.count(-1) > 1 and shape[0] == -1:
        shape[0] = 1
    return array.reshape(shape)
