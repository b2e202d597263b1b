"""The trace of a call goes on in the server: tritonserver's own spans are part of it."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mooring import Client
from mooring._telemetry import Telemetry
from mooring_serve import TritonServer
from python_models import write_python_model

pytestmark = pytest.mark.integration


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes OTLP over HTTP; tritonserver writes it as JSON."""

    bodies: list[bytes]

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def collected() -> Iterator[tuple[str, list[bytes]]]:
    """URL of a collector, and what it got."""
    bodies: list[bytes] = []
    handler = type("BoundCollector", (Collector,), {"bodies": bodies})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
        server.shutdown()
        thread.join()


def triton_spans(bodies: list[bytes]) -> list[dict[str, Any]]:
    return [
        span
        for body in list(bodies)
        for resource in json.loads(body)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def wait_for_spans(
    bodies: list[bytes], calls: list[ReadableSpan], names: set[str]
) -> tuple[ReadableSpan, dict[str, dict[str, Any]]]:
    """A call whose trace Triton's spans have joined, and those spans by name.

    Triton's exporter may send a span twice, and those of a call apart.
    """
    ends_at_s = time.monotonic() + 60
    while True:
        spans = triton_spans(bodies)
        for call in calls:
            assert call.context is not None
            trace_id = f"{call.context.trace_id:032x}"
            joined = {span["name"]: span for span in spans if span["traceId"] == trace_id}
            if names <= joined.keys():
                return call, joined
        assert time.monotonic() < ends_at_s, f"no trace of {names} sent within a minute: {bodies}"
        time.sleep(0.05)


def infer_traced(url: str, spans: InMemorySpanExporter) -> ReadableSpan:
    """Infer once; returns the client's span of it."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with Client(url, timeout_s=30) as client:
        client._caller._telemetry = Telemetry(provider)
        client.infer("echo", {"x": np.ones((1, 8), np.float32)})
    provider.shutdown()
    (span,) = [span for span in spans.get_finished_spans() if span.name == "infer echo"]
    return span


def test_tritons_spans_join_the_clients_trace(
    tmp_path: Path, make_server: Callable[..., TritonServer], collected: tuple[str, list[bytes]]
) -> None:
    url, bodies = collected
    settings = ("mode=opentelemetry", f"opentelemetry,url={url}", "rate=1", "level=TIMESTAMPS")
    # Triton sends what it has gathered every few seconds; here it shall be at once.
    settings += ("opentelemetry,bsp_schedule_delay=100",)
    server = make_server(
        write_python_model(tmp_path / "repository"),
        extra_args=[word for setting in settings for word in ("--trace-config", setting)],
    )
    # Triton 2.51 does not take the context of every gRPC call: on one connection, 74 of 500 began a trace of
    # their own. Of ten calls one must join.
    calls = {
        protocol: [infer_traced(address, InMemorySpanExporter()) for _ in range(times)]
        for protocol, address, times in (("http", server.http_url, 1), ("grpc", server.grpc_url, 10))
    }
    for protocol, tried in calls.items():
        call, joined = wait_for_spans(bodies, tried, {"InferRequest", "echo", "compute"})
        request = joined["InferRequest"]
        assert call.context is not None
        assert request["parentSpanId"] == f"{call.context.span_id:016x}", protocol
        assert any(f"{protocol.upper()}_" in event["name"] for event in request["events"])
