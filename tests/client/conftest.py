"""One set of fake models behind three transports: in memory, over gRPC and over HTTP.

The wire servers speak just enough of the KServe v2 protocol to carry a FakeTransport's answers.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc
import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

from mooring import (
    Client,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    MooringError,
    Overloaded,
)
from mooring._transport import InferRequest, Tensor
from mooring.testing import FakeModel, FakeTransport

NER_OUTPUTS = {
    "label": ("BYTES", [-1, -1]),
    "score": ("FP32", [-1, -1]),
    "start": ("INT32", [-1, -1]),
    "end": ("INT32", [-1, -1]),
    "entity": ("BYTES", [-1, -1]),
}


def answer_ner(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every capitalised word is an entity; rows are padded to the longest."""
    rows = []
    for raw in inputs["text"][:, 0]:
        text = raw.decode("utf-8")
        rows.append([(m.start(), m.end(), m[0].encode("utf-8")) for m in re.finditer(r"[A-ZÄÖÜ]\w*", text)])
    width = max(map(len, rows))
    padded = [row + [(-1, -1, b"")] * (width - len(row)) for row in rows]
    start = np.array([[found[0] for found in row] for row in padded], np.int32).reshape(len(rows), width)
    end = np.array([[found[1] for found in row] for row in padded], np.int32).reshape(len(rows), width)
    entity = np.array([[found[2] for found in row] for row in padded], np.object_).reshape(len(rows), width)
    label = np.where(start >= 0, np.array(b"NAME", np.object_), np.array(b"", np.object_))
    score = np.where(start >= 0, np.float32(0.75), np.float32(0))
    return {"label": label, "score": score, "start": start, "end": end, "entity": entity}


def answer_intent(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``long`` is the more probable, the longer the text."""
    long = np.array([min(len(raw.decode("utf-8")), 100) / 100 for raw in inputs["text"][:, 0]], np.float32)
    label = np.where(
        long[:, None] > 0.5,
        np.array([b"long", b"short"], np.object_),
        np.array([b"short", b"long"], np.object_),
    )
    score = np.sort(np.stack([long, 1 - long], axis=1), axis=1)[:, ::-1]
    return {"label": label, "score": np.ascontiguousarray(score)}


def refuse(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    raise InvalidInput("text 0 is too long")


def overload(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    raise Overloaded("Exceeds maximum queue size")


def make_models() -> dict[str, FakeModel]:
    text = {"text": ("BYTES", [-1, 1])}
    return {
        "ner": FakeModel(
            inputs=text,
            outputs=NER_OUTPUTS,
            max_batch_size=4,
            parameters={"task": "token-classification"},
            answer=answer_ner,
        ),
        "intent": FakeModel(
            inputs=text,
            outputs={"label": ("BYTES", [-1, 2]), "score": ("FP32", [-1, 2])},
            max_batch_size=4,
            parameters={"task": "text-classification"},
            answer=answer_intent,
        ),
        "double": FakeModel(
            inputs={"x": ("FP32", [-1, -1]), "bias": ("FP32", [-1, 1])},
            outputs={"y": ("FP32", [-1, -1]), "rows": ("INT64", [-1, 1])},
            max_batch_size=3,
            optional_inputs=["bias"],
            answer=lambda inputs: {
                "y": 2 * inputs["x"] + inputs.get("bias", np.float32(0)),
                "rows": np.arange(len(inputs["x"]), dtype=np.int64)[:, None],
            },
        ),
        "echo": FakeModel(
            inputs={"t": ("BYTES", [-1])}, outputs={"t": ("BYTES", [-1])}, answer=lambda inputs: dict(inputs)
        ),
        "refusing": FakeModel(
            inputs=text,
            outputs=NER_OUTPUTS,
            max_batch_size=4,
            parameters={"task": "token-classification"},
            answer=refuse,
        ),
        "overloaded": FakeModel(inputs={"x": ("FP32", [-1])}, outputs={"x": ("FP32", [-1])}, answer=overload),
        "unloaded": FakeModel(inputs={}, outputs={}, answer=dict, ready=False),
    }


def _code(error: MooringError) -> tuple[grpc.StatusCode, int]:
    """What tritonserver answers for each kind of refusal, over gRPC and over HTTP."""
    if isinstance(error, InvalidInput):
        return grpc.StatusCode.INVALID_ARGUMENT, 400
    if isinstance(error, ModelNotFound | ModelNotReady):
        return grpc.StatusCode.NOT_FOUND, 404
    if isinstance(error, Overloaded):
        return grpc.StatusCode.UNAVAILABLE, 503
    return grpc.StatusCode.INTERNAL, 500


def _read(datatype: str, shape: list[int], raw: bytes) -> np.ndarray:
    if datatype == "BYTES":
        return deserialize_bytes_tensor(raw).reshape(shape)
    return np.frombuffer(raw, triton_to_np_dtype(datatype)).reshape(shape)


def _write(datatype: str, array: np.ndarray) -> bytes:
    if datatype != "BYTES":
        return array.tobytes()
    return serialize_byte_tensor(array).item() if array.size else b""


class GrpcServicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """tritonserver's gRPC face of a FakeTransport."""

    def __init__(self, fake: FakeTransport) -> None:
        self.fake = fake

    def _guard(self, context: Any, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except MooringError as error:
            return context.abort(_code(error)[0], str(error))

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        return service_pb2.ServerReadyResponse(ready=self.fake.server_ready(timeout_s=1))

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(
            ready=self.fake.model_ready(request.name, request.version, timeout_s=1)
        )

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        said = self._guard(context, lambda: self.fake.metadata(request.name, request.version, timeout_s=1))
        tensor = service_pb2.ModelMetadataResponse.TensorMetadata
        return service_pb2.ModelMetadataResponse(
            name=said.name,
            versions=said.versions,
            platform=said.platform,
            inputs=[tensor(name=t.name, datatype=t.datatype, shape=t.shape) for t in said.inputs],
            outputs=[tensor(name=t.name, datatype=t.datatype, shape=t.shape) for t in said.outputs],
        )

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        said = self._guard(context, lambda: self.fake.config(request.name, request.version, timeout_s=1))
        config = model_config_pb2.ModelConfig(name=said.name, max_batch_size=said.max_batch_size)
        for name in said.optional_inputs:
            config.input.add(name=name, optional=True)
        for key, value in said.parameters.items():
            config.parameters[key].string_value = value
        return service_pb2.ModelConfigResponse(config=config)

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = service_pb2.RepositoryIndexResponse()
        for model in self.fake.models(timeout_s=1):
            answer.models.add(name=model.name, version=model.version, state=model.state, reason=model.reason)
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        tensors = [
            Tensor(t.name, t.datatype, _read(t.datatype, list(t.shape), raw))
            for t, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        ]
        asked = InferRequest(
            model=request.model_name,
            version=request.model_version,
            inputs=tuple(tensors),
            outputs=tuple(output.name for output in request.outputs) or None,
            request_id=request.id,
        )
        arrays = self._guard(context, lambda: self.fake.infer(asked, timeout_s=1))
        outputs = self.fake.models_by_name[asked.model].outputs
        answer = service_pb2.ModelInferResponse(model_name=asked.model)
        for name, array in arrays.items():
            answer.outputs.add(name=name, datatype=outputs[name][0], shape=array.shape)
            answer.raw_output_contents.append(_write(outputs[name][0], array))
        return answer


class HttpHandler(http.server.BaseHTTPRequestHandler):
    """tritonserver's HTTP face of a FakeTransport."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeTransport

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        try:
            status, headers, answer = self._dispatch(body)
        except MooringError as error:
            status, headers, answer = _code(error)[1], {}, json.dumps({"error": str(error)}).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def _dispatch(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.path == "/v2/health/ready":
            return (200 if self.fake.server_ready(timeout_s=1) else 400), {}, b""
        if self.path == "/v2/repository/index":
            return 200, {}, json.dumps([vars(model) for model in self.fake.models(timeout_s=1)]).encode()
        match = re.fullmatch(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/\w+)?", self.path)
        if match is None:
            return 404, {}, b'{"error":"Not Found"}'
        model, version, action = unquote(match[1]), match[2] or "", match[3]
        if action == "/ready":
            return (200 if self.fake.model_ready(model, version, timeout_s=1) else 400), {}, b""
        if action == "/config":
            config = self.fake.config(model, version, timeout_s=1)
            said: Any = {
                "name": config.name,
                "max_batch_size": config.max_batch_size,
                "input": [{"name": name, "optional": True} for name in config.optional_inputs],
                "parameters": {key: {"string_value": value} for key, value in config.parameters.items()},
            }
            return 200, {}, json.dumps(said).encode()
        if action is None:
            metadata = self.fake.metadata(model, version, timeout_s=1)
            said = {
                "name": metadata.name,
                "versions": metadata.versions,
                "platform": metadata.platform,
                "inputs": [vars(spec) for spec in metadata.inputs],
                "outputs": [vars(spec) for spec in metadata.outputs],
            }
            return 200, {}, json.dumps(said).encode()
        return self._infer(model, version, body)

    def _infer(self, model: str, version: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        length = int(self.headers.get("Inference-Header-Content-Length", len(body)))
        request, raw, offset = json.loads(body[:length]), body[length:], 0
        tensors = []
        for t in request["inputs"]:
            size = t["parameters"]["binary_data_size"]
            array = _read(t["datatype"], t["shape"], raw[offset : offset + size])
            tensors.append(Tensor(t["name"], t["datatype"], array))
            offset += size
        asked = InferRequest(
            model=model,
            version=version,
            inputs=tuple(tensors),
            outputs=tuple(output["name"] for output in request.get("outputs", ())) or None,
            request_id=request.get("id", ""),
        )
        arrays = self.fake.infer(asked, timeout_s=1)
        outputs, blobs = [], []
        for name, array in arrays.items():
            datatype = self.fake.models_by_name[model].outputs[name][0]
            blobs.append(_write(datatype, array))
            outputs.append(
                {
                    "name": name,
                    "datatype": datatype,
                    "shape": array.shape,
                    "parameters": {"binary_data_size": len(blobs[-1])},
                }
            )
        head = json.dumps({"model_name": model, "outputs": outputs}).encode()
        return 200, {"Inference-Header-Content-Length": str(len(head))}, head + b"".join(blobs)


@dataclass(frozen=True)
class Wired:
    """A client and the fake that answers it, at the other end of the wire or in memory."""

    client: Client
    fake: FakeTransport
    protocol: str


@pytest.fixture
def fake() -> FakeTransport:
    return FakeTransport(make_models())


@pytest.fixture
def grpc_url(fake: FakeTransport) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(GrpcServicer(fake), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(grace=None).wait()


@pytest.fixture
def http_url(fake: FakeTransport) -> Iterator[str]:
    handler = type("BoundHandler", (HttpHandler,), {"fake": fake})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(params=["fake", "grpc", "http"])
def wired(request: pytest.FixtureRequest, fake: FakeTransport) -> Iterator[Wired]:
    """The same fake models behind each transport."""
    if request.param == "fake":
        client = Client("grpc://fake:8001", transport=fake)
    else:
        client = Client(request.getfixturevalue(f"{request.param}_url"), timeout_s=20)
    with client:
        yield Wired(client, fake, request.param)
