"""OpenTelemetry: what each call's span and metrics say, and what is never in them."""

from __future__ import annotations

import asyncio
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode, TraceFlags
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mooring import AsyncClient, Client, ConnectError, HedgePolicy, InvalidInput, RetryPolicy, ServerError
from mooring._operations import Infer, Operation
from mooring._telemetry import Telemetry
from mooring._transport import Headers
from mooring.testing import FakeModel, FakeTransport

SECRET = "xyzzy-payload"
X = np.ones((2, 3), np.float32)


@dataclass
class Watch:
    """Providers of the SDK that keep everything in memory."""

    spans: InMemorySpanExporter
    metrics: InMemoryMetricReader
    tracer_provider: TracerProvider
    telemetry: Telemetry

    def by_name(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.spans.get_finished_spans()}

    def points(self, name: str) -> list[Any]:
        data = self.metrics.get_metrics_data()
        found = data.resource_metrics[0].scope_metrics[0].metrics  # type: ignore[union-attr]
        return [point for metric in found if metric.name == name for point in metric.data.data_points]

    def install(self, client: Client | AsyncClient) -> None:
        client._caller._telemetry = self.telemetry


@pytest.fixture
def watch() -> Iterator[Watch]:
    spans, metrics = InMemorySpanExporter(), InMemoryMetricReader()
    tracer_provider, meter_provider = TracerProvider(), MeterProvider([metrics])
    tracer_provider.add_span_processor(SimpleSpanProcessor(spans))
    yield Watch(spans, metrics, tracer_provider, Telemetry(tracer_provider, meter_provider))
    tracer_provider.shutdown()
    meter_provider.shutdown()


def traceparent(span: ReadableSpan) -> str:
    """As in https://www.w3.org/TR/trace-context/."""
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


def count_up(inputs: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for number in range(int(inputs["n"][0])):
        yield {"i": np.array([number], np.int32)}


def refuse(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    raise InvalidInput(f"the text was {inputs['t'][0]!r}", model="refuse", code="INVALID_ARGUMENT")


def make_fake() -> FakeTransport:
    return FakeTransport(
        {
            "double": FakeModel(
                inputs={"x": ("FP32", [-1, -1])},
                outputs={"y": ("FP32", [-1, -1])},
                max_batch_size=4,
                answer=lambda inputs: {"y": 2 * inputs["x"]},
            ),
            "whole": FakeModel(
                inputs={"x": ("FP32", [-1, -1])}, outputs={"x": ("FP32", [-1, -1])}, answer=dict
            ),
            "count": FakeModel(
                inputs={"n": ("INT32", [1])}, outputs={"i": ("INT32", [1])}, decoupled=True, answer=count_up
            ),
            "refuse": FakeModel(inputs={"t": ("BYTES", [1])}, outputs={"t": ("BYTES", [1])}, answer=refuse),
        }
    )


class Flaky(FakeTransport):
    """Refuses so many inference requests before it answers."""

    def __init__(self, refusals: int) -> None:
        super().__init__(make_fake().models_by_name)
        self.refusals = refusals

    def send(self, operation: Operation[Any], *, timeout_s: float, headers: Headers = ()) -> Any:
        if isinstance(operation, Infer) and self.refusals > 0:
            self.refusals -= 1
            raise ConnectError("nobody is there")
        return super().send(operation, timeout_s=timeout_s, headers=headers)


Infers = Callable[..., None]


@pytest.fixture(params=["threads", "coroutines"])
def infer(request: pytest.FixtureRequest, watch: Watch) -> Infers:
    """Make a watched client over a transport, infer once, close it."""

    def in_thread(transport: FakeTransport, model: str, inputs: Any, url: Any = "grpc://fake:8001") -> None:
        with Client(url, transport=transport) as client:
            watch.install(client)
            client.infer(model, inputs)

    def in_loop(transport: FakeTransport, model: str, inputs: Any, url: Any = "grpc://fake:8001") -> None:
        async def main() -> None:
            async with AsyncClient(url, transport=transport) as client:
                watch.install(client)
                await client.infer(model, inputs)

        asyncio.run(main())

    return in_thread if request.param == "threads" else in_loop


def test_each_call_is_a_span(infer: Infers, watch: Watch) -> None:
    infer(make_fake(), "double", {"x": X})
    spans = watch.by_name()
    assert list(spans) == ["metadata double", "config double", "infer double"]
    span = spans["infer double"]
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {}) == {
        "mooring.operation": "infer",
        "mooring.model": "double",
        "mooring.model_version": "1",
        "mooring.batch_size": 2,
        "mooring.sent_bytes": 0,  # a fake has no wire
        "mooring.received_bytes": 0,
        "mooring.attempts": 1,
        "mooring.endpoints": ("grpc://fake:8001",),
        "server.address": "fake",
        "server.port": 8001,
        "url.scheme": "grpc",
        "rpc.system.name": "grpc",
        "rpc.method": "inference.GRPCInferenceService/ModelInfer",
    }
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "mooring"


def test_a_model_without_a_batch_axis_has_no_batch_size(infer: Infers, watch: Watch) -> None:
    infer(make_fake(), "whole", {"x": X}, "https://fake:8000")
    attributes = watch.by_name()["infer whole"].attributes or {}
    assert "mooring.batch_size" not in attributes
    assert attributes["url.scheme"] == "https"
    assert "rpc.system.name" not in attributes


def test_the_server_gets_the_trace_context_of_the_call(infer: Infers, watch: Watch) -> None:
    fake = make_fake()
    tracer = watch.tracer_provider.get_tracer("program")
    with tracer.start_as_current_span("outer") as outer:
        infer(fake, "double", {"x": X})
    span = watch.by_name()["infer double"]
    assert span.parent is not None
    assert span.parent.span_id == outer.get_span_context().span_id
    assert fake.headers[-1]["traceparent"] == traceparent(span)
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_trace_that_is_not_sampled_is_passed_on_as_such(watch: Watch) -> None:
    fake = make_fake()
    with Client("grpc://fake:8001", transport=fake) as client:
        client._caller._telemetry = Telemetry(TracerProvider(sampler=ALWAYS_OFF))
        client.infer("double", {"x": X})
    flags = int(fake.headers[-1]["traceparent"].rpartition("-")[2], 16)
    assert flags & TraceFlags.SAMPLED == 0


def test_a_header_of_the_caller_is_not_doubled(watch: Watch) -> None:
    sent: list[Headers] = []

    class Recording(FakeTransport):
        def send(self, operation: Operation[Any], *, timeout_s: float, headers: Headers = ()) -> Any:
            sent.append(headers)
            return super().send(operation, timeout_s=timeout_s, headers=headers)

    own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    transport = Recording(make_fake().models_by_name)
    with Client("grpc://fake:8001", transport=transport) as client:
        watch.install(client)
        client.infer("double", {"x": X}, headers={"Traceparent": own})
    assert [pair for pair in sent[-1] if pair[0] == "traceparent"] == [("traceparent", own)]


def test_every_try_is_told(infer: Infers, watch: Watch) -> None:
    urls = ["grpc://one:8001", "grpc://two:8001"]
    infer(Flaky(1), "double", {"x": X}, urls)
    span = watch.by_name()["infer double"]
    attributes = span.attributes or {}
    assert attributes["mooring.attempts"] == 2
    tried = attributes["mooring.endpoints"]
    assert sorted(tried) == urls  # type: ignore[arg-type]
    assert f"grpc://{attributes['server.address']}:8001" == tried[-1]  # type: ignore[index]
    assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
        ("retry", {"error.type": "ConnectError", "mooring.error": "ConnectError: nobody is there"})
    ]
    assert span.status.status_code is StatusCode.UNSET


def test_a_failed_call_names_its_error(infer: Infers, watch: Watch) -> None:
    with pytest.raises(ConnectError):
        infer(Flaky(9), "double", {"x": X})
    span = watch.by_name()["infer double"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "ConnectError: nobody is there"
    assert (span.attributes or {})["error.type"] == "ConnectError"
    assert (span.attributes or {})["mooring.attempts"] == 3
    assert "mooring.model_version" not in (span.attributes or {})


def test_payloads_and_the_servers_words_stay_out(infer: Infers, watch: Watch) -> None:
    with pytest.raises(InvalidInput, match=SECRET):
        infer(make_fake(), "refuse", {"t": np.array([SECRET], np.object_)})
    span = watch.by_name()["infer refuse"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "InvalidInput [INVALID_ARGUMENT]"
    assert (span.attributes or {})["rpc.response.status_code"] == "INVALID_ARGUMENT"
    told = [span.to_json() for span in watch.spans.get_finished_spans()]
    data = watch.metrics.get_metrics_data()
    assert data is not None
    assert SECRET not in "".join([*told, data.to_json()])


def test_header_values_stay_out(watch: Watch) -> None:
    fake = make_fake()
    client = Client("grpc://fake:8001", transport=fake, token="tok-123456", headers={"x-key": "key-123456"})
    with client:
        watch.install(client)
        client.infer("double", {"x": X}, headers={"x-more": "more-123456"})
    assert "Bearer tok-123456" in fake.headers[-1].values()
    assert "123456" not in "".join(span.to_json() for span in watch.spans.get_finished_spans())


def test_the_span_of_a_stream_ends_with_it(watch: Watch) -> None:
    with Client("grpc://fake:8001", transport=make_fake()) as client:
        watch.install(client)
        answers = client.stream("count", {"n": np.array([3], np.int32)})
        next(answers)
        assert "stream count" not in watch.by_name()
        assert len(list(answers)) == 2
        counters = client.counters()
    span = watch.by_name()["stream count"]
    assert (span.attributes or {})["rpc.method"] == "inference.GRPCInferenceService/ModelStreamInfer"
    assert (span.attributes or {})["mooring.model_version"] == "1"
    assert (span.attributes or {})["mooring.attempts"] == 1
    assert span.status.status_code is StatusCode.UNSET
    assert counters.calls == 3


def test_a_stream_that_is_left_is_no_error(watch: Watch) -> None:
    async def main() -> None:
        async with AsyncClient("grpc://fake:8001", transport=make_fake()) as client:
            watch.install(client)
            answers = client.stream("count", {"n": np.array([3], np.int32)})
            await anext(answers)
            await answers.aclose()

    asyncio.run(main())
    span = watch.by_name()["stream count"]
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in (span.attributes or {})


def test_a_cancelled_call_says_so(watch: Watch) -> None:
    class Stuck(FakeTransport):
        async def asend(self, operation: Operation[Any], *, timeout_s: float, headers: Headers = ()) -> Any:
            if isinstance(operation, Infer):
                await asyncio.Event().wait()
            return await super().asend(operation, timeout_s=timeout_s, headers=headers)

    async def main() -> None:
        async with AsyncClient("grpc://fake:8001", transport=Stuck(make_fake().models_by_name)) as client:
            watch.install(client)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.infer("double", {"x": X})

    asyncio.run(main())
    span = watch.by_name()["infer double"]
    assert (span.attributes or {})["error.type"] == "CancelledError"


def test_a_hedge_is_an_attempt_and_its_server_the_one_that_answered(watch: Watch) -> None:
    class Slow(FakeTransport):
        """The first inference request once ``armed`` never ends."""

        armed = False

        async def asend(self, operation: Operation[Any], *, timeout_s: float, headers: Headers = ()) -> Any:
            if isinstance(operation, Infer) and self.armed:
                self.armed = False
                await asyncio.Event().wait()
            return await super().asend(operation, timeout_s=timeout_s, headers=headers)

    transport = Slow(make_fake().models_by_name)

    async def main() -> None:
        client = AsyncClient(
            ["grpc://one:8001", "grpc://two:8001"], transport=transport, hedge=HedgePolicy(min_samples=1)
        )
        async with client:
            await client.infer("double", {"x": X})
            watch.install(client)
            transport.armed = True
            await client.infer("double", {"x": X})

    asyncio.run(main())
    attributes = watch.by_name()["infer double"].attributes or {}
    assert attributes["mooring.attempts"] == 2
    tried = attributes["mooring.endpoints"]
    assert len(set(tried)) == 2  # type: ignore[arg-type]
    assert f"grpc://{attributes['server.address']}:8001" == tried[1]  # type: ignore[index]


def test_metrics_count_calls_attempts_and_retries(infer: Infers, watch: Watch) -> None:
    infer(Flaky(2), "double", {"x": X})
    attributes = {
        "mooring.operation": "infer",
        "mooring.model": "double",
        "server.address": "fake",
        "server.port": 8001,
    }
    (point,) = [
        point
        for point in watch.points("mooring.client.call.duration")
        if point.attributes["mooring.operation"] == "infer"
    ]
    assert (point.count, dict(point.attributes)) == (1, attributes)
    assert max(point.explicit_bounds) == 60  # seconds
    assert {
        name: [p.value for p in watch.points(f"mooring.client.{name}") if dict(p.attributes) == attributes]
        for name in ("attempts", "retries")
    } == {"attempts": [3], "retries": [2]}


def test_metrics_work_without_spans() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    fake = make_fake()
    with Client("grpc://fake:8001", transport=fake, retry=RetryPolicy(max_retries=0)) as client:
        client._caller._telemetry = Telemetry(meter_provider=provider)
        client.infer("double", {"x": X})
        fake.error = ServerError("no", code="INTERNAL")
        with pytest.raises(ServerError):
            client.infer("double", {"x": X})
    data = reader.get_metrics_data()
    assert data is not None
    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    (duration,) = [metric for metric in metrics if metric.name == "mooring.client.call.duration"]
    ended = [
        (point.attributes or {}).get("error.type")
        for point in duration.data.data_points
        if (point.attributes or {})["mooring.operation"] == "infer"
    ]
    assert sorted(ended, key=str) == [None, "ServerError"]
    assert "traceparent" not in fake.headers[0]
    provider.shutdown()


class EchoHandler(http.server.BaseHTTPRequestHandler):
    """Just enough of tritonserver for a model that returns its input."""

    protocol_version = "HTTP/1.1"
    arrived: list[dict[str, str]]

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        spec = {"datatype": "FP32", "shape": [-1, 3]}
        said: dict[str, Any] = {"name": "echo", "max_batch_size": 4}
        if not self.path.endswith("/config"):
            said = {"name": "echo", "versions": ["7"], "inputs": [{"name": "x", **spec}]}
            said["outputs"] = [{"name": "y", **spec}]
        self._send(json.dumps(said).encode(), {})

    def do_POST(self) -> None:
        self.arrived.append({name.lower(): value for name, value in self.headers.items()})
        body = self.rfile.read(int(self.headers["Content-Length"]))
        data = body[int(self.headers["Inference-Header-Content-Length"]) :]
        output = {"name": "y", "datatype": "FP32", "shape": [2, 3]}
        said = {"model_name": "echo", "model_version": "7", "outputs": [output]}
        output["parameters"] = {"binary_data_size": len(data)}  # type: ignore[assignment]
        head = json.dumps(said).encode()
        self._send(head + data, {"Inference-Header-Content-Length": str(len(head))})

    def _send(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class EchoServicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The same over gRPC."""

    def __init__(self, arrived: list[dict[str, str]]) -> None:
        self.arrived = arrived

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC's name
        answer = service_pb2.ModelMetadataResponse(name="echo", versions=["7"])
        answer.inputs.add(name="x", datatype="FP32", shape=[-1, 3])
        answer.outputs.add(name="y", datatype="FP32", shape=[-1, 3])
        return answer

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC's name
        return service_pb2.ModelConfigResponse(config={"name": "echo", "max_batch_size": 4})

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC's name
        self.arrived.append(dict(context.invocation_metadata()))
        answer = service_pb2.ModelInferResponse(model_name="echo", model_version="7")
        answer.outputs.add(name="y", datatype="FP32", shape=[2, 3])
        answer.raw_output_contents.extend(request.raw_input_contents)
        return answer


@pytest.fixture(params=["http", "grpc"])
def wire(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """URL of a server on the real wire, and the headers of the inference requests that reach it."""
    arrived: list[dict[str, str]] = []
    if request.param == "grpc":
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(EchoServicer(arrived), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"grpc://127.0.0.1:{port}", arrived
        server.stop(grace=None).wait()
        return
    handler = type("BoundHandler", (EchoHandler,), {"arrived": arrived})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        http_server.daemon_threads = True
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}", arrived
        http_server.shutdown()
        thread.join()


def test_context_and_bytes_over_the_wire(wire: tuple[str, list[dict[str, str]]], watch: Watch) -> None:
    url, arrived = wire
    with Client(url, timeout_s=20) as client:
        watch.install(client)
        client.infer("echo", {"x": X})
        counters = client.counters()
    span = watch.by_name()["infer echo"]
    assert arrived[0]["traceparent"] == traceparent(span)
    attributes = span.attributes or {}
    assert attributes["mooring.sent_bytes"] == counters.sent_bytes == X.nbytes
    assert attributes["mooring.received_bytes"] == counters.received_bytes == X.nbytes
    assert attributes["mooring.model_version"] == "7"
    assert attributes["server.address"] == "127.0.0.1"
    assert attributes["server.port"] == int(url.rpartition(":")[2])
    for name in ("sent", "received"):
        assert X.nbytes in [point.value for point in watch.points(f"mooring.client.{name}")]


# The program's providers can be set once in a process, so these have one each.
PROVIDERS_SET_LATER = """
import sys, time
import numpy as np
from mooring import Client
from mooring.testing import FakeModel, FakeTransport
assert not [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]
tensor = ("FP32", [-1])
fake = FakeTransport({"echo": FakeModel(inputs={"x": tensor}, outputs={"x": tensor}, answer=dict)})
with Client("grpc://fake:8001", transport=fake) as client:
    client.infer("echo", {"x": np.ones(3, np.float32)})
    assert not any("traceparent" in headers for headers in fake.headers), fake.headers
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    trace.set_tracer_provider(TracerProvider())
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(spans))
    metrics.set_meter_provider(MeterProvider([reader]))
    time.sleep(0.05)  # it is looked for 100 times a second at most
    client.infer("echo", {"x": np.ones(3, np.float32)})
    assert "traceparent" in fake.headers[-1]
print(*(span.name for span in spans.get_finished_spans()), reader.get_metrics_data() is not None)
"""
NOT_INSTALLED = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not there
import numpy as np
from mooring import Client
from mooring.testing import FakeModel, FakeTransport
tensor = ("FP32", [-1])
fake = FakeTransport({"echo": FakeModel(inputs={"x": tensor}, outputs={"x": tensor}, answer=dict)})
with Client("grpc://fake:8001", transport=fake) as client:
    client.infer("echo", {"x": np.ones(3, np.float32)})
    print(client.counters().calls, client._caller._telemetry)
"""


def run_program(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_providers_may_be_set_after_the_client_was_made() -> None:
    assert run_program(PROVIDERS_SET_LATER) == "infer echo True"


def test_counters_work_where_opentelemetry_is_not_installed() -> None:
    assert run_program(NOT_INSTALLED) == "3 None"
