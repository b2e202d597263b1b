"""tritonserver's HTTP face of a FakeTransport, on loopback."""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import re
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any
from urllib.parse import unquote

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from mooring import (
    MooringError,
    Overloaded,
)
from mooring._operations import (
    GetConfig,
    GetIndex,
    GetMetadata,
    GetModelReady,
    GetServerMetadata,
    GetServerReady,
    GetStatistics,
    LoadModel,
    Operation,
    Tensor,
    UnloadModel,
)
from wire_messages import (
    Served,
    code_of,
    config_json,
    make_request,
    metadata_json,
    read_tensor,
    statistics_json,
    write_tensor,
)


class HttpHandler(http.server.BaseHTTPRequestHandler):
    """tritonserver's HTTP face."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    served: Served

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress}
        self._answer(unpack.get(self.headers.get("Content-Encoding", ""), bytes)(body))

    @property
    def _sent_headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items()}

    def _ask(self, operation: Operation[Any]) -> Any:
        return self.served.ask(operation, self._sent_headers)

    def _answer(self, body: bytes) -> None:
        if self.path.endswith("/generate_stream"):
            self._stream(body)
            return
        headers: dict[str, str] = {}
        try:
            status, headers, answer = self._dispatch(body)
        except MooringError as error:
            status, answer = code_of(error)[1], json.dumps({"error": str(error)}).encode()
            if self.path.endswith(("/load", "/unload")):
                status = 400
            if isinstance(error, Overloaded) and error.retry_after_s is not None:
                headers = {"Retry-After": f"{error.retry_after_s:.0f}"}
        pack = {"gzip": gzip.compress, "deflate": zlib.compress}
        encoding = self.headers.get("Accept-Encoding", "")
        if encoding in pack and status == 200:
            headers, answer = {**headers, "Content-Encoding": encoding}, pack[encoding](answer)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def _dispatch(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.path == "/v2":
            return 200, {}, json.dumps(asdict(self._ask(GetServerMetadata()))).encode()
        if self.path == "/v2/health/ready":
            return (200 if self._ask(GetServerReady()) else 400), {}, b""
        if self.path == "/v2/models/stats":
            return 200, {}, json.dumps(statistics_json(self._ask(GetStatistics()))).encode()
        if self.path == "/v2/repository/index":
            return 200, {}, json.dumps(list(map(asdict, self._ask(GetIndex())))).encode()
        if switch := re.fullmatch(r"/v2/repository/models/([^/]+)/(load|unload)", self.path):
            self._switch(unquote(switch[1]), switch[2], json.loads(body)["parameters"])
            return 200, {}, b""
        match = re.fullmatch(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/\w+)?", self.path)
        if match is None:
            return 404, {}, b'{"error":"Not Found"}'
        model, version, action = unquote(match[1]), match[2] or "", match[3]
        if action == "/ready":
            return (200 if self._ask(GetModelReady(model=model, version=version)) else 400), {}, b""
        if action == "/infer":
            return self._infer(model, version, body)
        said: Any
        if action == "/config":
            said = config_json(self._ask(GetConfig(model=model, version=version)))
        elif action == "/stats":
            said = statistics_json(self._ask(GetStatistics(model=model, version=version)))
        else:
            said = metadata_json(self._ask(GetMetadata(model=model, version=version)))
        return 200, {}, json.dumps(said).encode()

    def _switch(self, model: str, verb: str, parameters: dict[str, Any]) -> None:
        if verb == "unload":
            self._ask(UnloadModel(model=model, unload_dependents=parameters["unload_dependents"]))
            return
        files = {
            key.removeprefix("file:"): base64.b64decode(value)
            for key, value in parameters.items()
            if key != "config"
        }
        self._ask(LoadModel(model=model, config=parameters.get("config"), files=files))

    def _infer(self, model: str, version: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        length = int(self.headers.get("Inference-Header-Content-Length", len(body)))
        request, raw, offset = json.loads(body[:length]), body[length:], 0
        tensors = []
        for t in request["inputs"]:
            size = t["parameters"]["binary_data_size"]
            array = read_tensor(t["datatype"], t["shape"], raw[offset : offset + size])
            tensors.append(Tensor(t["name"], t["datatype"], array))
            offset += size
        asked = make_request(
            model,
            version,
            tensors,
            request.get("parameters", {}),
            outputs=tuple(output["name"] for output in request.get("outputs", ())) or None,
            request_id=request.get("id", ""),
            request_compression=self.headers.get("Content-Encoding"),
            response_compression=self.headers.get("Accept-Encoding"),
        )
        answer = self._ask(asked)
        known = self.served.model(model).outputs
        outputs, blobs = [], []
        for name, array in answer.outputs.items():
            datatype = known[name][0] if name in known else "FP32"
            blobs.append(write_tensor(datatype, array))
            size = {"binary_data_size": len(blobs[-1])}
            outputs.append({"name": name, "datatype": datatype, "shape": array.shape, "parameters": size})
        said = {"model_name": model, "model_version": answer.model_version, "outputs": outputs}
        head = json.dumps(said).encode()
        return 200, {"Inference-Header-Content-Length": str(len(head))}, head + b"".join(blobs)

    def _stream(self, body: bytes) -> None:
        match = re.fullmatch(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/generate_stream", self.path)
        assert match is not None
        model, version = unquote(match[1]), match[2] or ""
        begun = False
        try:
            for answer in self._responses(model, version, json.loads(body)):
                said = {"model_name": model, "model_version": answer.model_version}
                for name, array in answer.outputs.items():
                    values = [v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]
                    said[name] = values[0] if len(values) == 1 else values
                if not begun:
                    self._begin_events(200)
                    begun = True
                self._event(said)
        except MooringError as error:
            if not begun:
                # So says tritonserver, whatever the reason.
                self._begin_events(400)
                begun = True
            self._event({"error": str(error)})
        if not begun:
            self._begin_events(200)
        self.wfile.write(b"0\r\n\r\n")

    def _responses(self, model: str, version: str, said: dict[str, Any]) -> Iterator[Any]:
        request_id = said.pop("id", "")
        tensors = []
        known = self.served.model(model).inputs if model in self.served.fake.models_by_name else {}
        for name, (datatype, shape) in known.items():
            if name in said:
                value = said.pop(name)
                values = value if isinstance(value, list) else [value]
                if datatype == "BYTES":
                    array = np.array([text.encode() for text in values], np.object_)
                else:
                    array = np.array(values, triton_to_np_dtype(datatype))
                tensors.append(Tensor(name, datatype, array.reshape([1] * (len(shape) - 1) + [-1])))
        request = make_request(model, version, tensors, said, request_id=request_id)
        return self.served.stream(request, self._sent_headers)

    def _begin_events(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _event(self, said: Any) -> None:
        event = f"data: {json.dumps(said)}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))


class HttpServer(http.server.ThreadingHTTPServer):
    """Serves each connection in a thread of its own; that a client goes away is no matter."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections end in the midst of things."""


def start_http(served: Served, context: ssl.SSLContext | None = None) -> tuple[int, Callable[[], Any]]:
    """Start an HTTP server; returns its port and what ends it."""
    server = HttpServer(("127.0.0.1", 0), type("BoundHandler", (HttpHandler,), {"served": served}))
    if context is not None:
        # The handshake is left to the connection's own thread.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def stop() -> None:
        server.shutdown()
        thread.join()
        server.server_close()

    return server.server_port, stop
