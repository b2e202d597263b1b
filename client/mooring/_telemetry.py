"""OpenTelemetry spans and metrics, where ``opentelemetry-api`` is installed and the program has set it up.

Each call is a span of kind CLIENT, named after the client's method and the model, such as ``infer ner``:

===============================  ==========================================================================
attribute                        value
===============================  ==========================================================================
``mooring.operation``            the client's method: ``infer``, ``stream``, ``metadata`` …
``mooring.model``                the model's name
``mooring.model_version``        the version that answered, or else the one that was asked for
``mooring.batch_size``           items in the request, where the model has a batch axis
``mooring.sent_bytes``           size of the inputs on the wire
``mooring.received_bytes``       size of the outputs on the wire
``mooring.attempts``             requests that were sent, hedges included
``mooring.endpoints``            the URL of each, in order
``server.address``               of the server that answered, or else of the last that was asked
``server.port``                  the same server's
``network.peer.address``         the address that was chosen, where a host name stands for several
``url.scheme``                   ``grpc``, ``grpcs``, ``http`` or ``https``
``rpc.system.name``              ``grpc``, over gRPC
``rpc.method``                   the method's full name, over gRPC
``rpc.response.status_code``     the protocol's own code, where the server said no
``error.type``                   class of the error that ended the call
===============================  ==========================================================================

A try that is followed by another one is an event ``retry``. The metrics are ``mooring.client.call.duration``
(seconds), ``mooring.client.attempts``, ``mooring.client.retries``, ``mooring.client.sent`` and
``mooring.client.received`` (bytes). Neither ever holds a payload, a header's value, or a server's own words,
which may repeat what was sent.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mooring._errors import MooringError, ServerError
from mooring._log import describe_error
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
    Operation,
    RegisterCudaMemory,
    RegisterSystemMemory,
    UnloadModel,
    UnregisterCudaMemory,
    UnregisterSystemMemory,
)
from mooring._transport import Headers
from mooring._url import Endpoint

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, Tracer, TracerProvider

#: The client's name and gRPC's name for each operation.
_NAMES: dict[type[Operation[Any]], tuple[str, str]] = {
    Infer: ("infer", "ModelInfer"),
    GetServerReady: ("server_ready", "ServerReady"),
    GetServerMetadata: ("server_metadata", "ServerMetadata"),
    GetModelReady: ("ready", "ModelReady"),
    GetMetadata: ("metadata", "ModelMetadata"),
    GetConfig: ("config", "ModelConfig"),
    GetStatistics: ("statistics", "ModelStatistics"),
    GetIndex: ("models", "RepositoryIndex"),
    LoadModel: ("load", "RepositoryModelLoad"),
    UnloadModel: ("unload", "RepositoryModelUnload"),
    RegisterSystemMemory: ("register_system_memory", "SystemSharedMemoryRegister"),
    RegisterCudaMemory: ("register_cuda_memory", "CudaSharedMemoryRegister"),
    UnregisterSystemMemory: ("unregister_system_memory", "SystemSharedMemoryUnregister"),
    UnregisterCudaMemory: ("unregister_cuda_memory", "CudaSharedMemoryUnregister"),
}
_STREAM_NAMES = ("stream", "ModelStreamInfer")
_GRPC_SERVICE = "inference.GRPCInferenceService"
# The SDK's own boundaries are meant for milliseconds.
_DURATION_BOUNDARIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
#: Asking OpenTelemetry whether it was set up costs more than it should at each call.
_ASK_AGAIN_S = 0.01


class Telemetry:
    """Makes a span and the metrics of each call.

    Args:
        tracer_provider: makes the spans; ``None`` takes the program's, which it may set at any time.
        meter_provider: the same for metrics.

    Raises:
        ImportError: ``opentelemetry-api`` is not installed.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        from opentelemetry import metrics, propagate, trace

        self.trace = trace
        self.inject = propagate.inject
        self._find_tracer_provider = trace.get_tracer_provider
        self._find_meter_provider = metrics.get_meter_provider
        self._tracer: Tracer | None = None
        self.instruments: Instruments | None = None
        self._ask_at_s = 0.0
        if tracer_provider is not None or meter_provider is not None:
            self._ask_at_s = float("inf")
            self._use(tracer_provider, meter_provider)

    @staticmethod
    def find() -> Telemetry | None:
        """What OpenTelemetry offers; ``None`` where it is not installed."""
        try:
            return Telemetry()
        except ImportError:
            return None

    def begin(self, operation: Operation[Any], *, streams: bool = False) -> CallSpan | None:
        """Begin a call; ``None`` where nobody listens."""
        if self._tracer is None or self.instruments is None:
            now_s = time.monotonic()
            if now_s >= self._ask_at_s:
                self._ask_at_s = now_s + _ASK_AGAIN_S
                self._use(self._find_tracer_provider(), self._find_meter_provider())
            if self._tracer is None and self.instruments is None:
                return None
        name, rpc = _STREAM_NAMES if streams else _NAMES[type(operation)]
        attributes: dict[str, Any] = {"mooring.operation": name}
        if operation.model:
            attributes["mooring.model"] = operation.model
        span = None
        if self._tracer is not None:
            span = self._tracer.start_span(
                f"{name} {operation.model}" if operation.model else name,
                kind=self.trace.SpanKind.CLIENT,
                attributes=attributes,
            )
        return CallSpan(self, span, attributes, rpc)

    def _use(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        if self._tracer is None and tracer_provider is not None and _is_set(tracer_provider):
            self._tracer = tracer_provider.get_tracer("mooring", _version())
        if self.instruments is None and meter_provider is not None and _is_set(meter_provider):
            self.instruments = Instruments(meter_provider)


class Instruments:
    """The metrics of all calls of a client."""

    def __init__(self, meter_provider: MeterProvider) -> None:
        meter = meter_provider.get_meter("mooring", _version())
        self.duration = meter.create_histogram(
            "mooring.client.call.duration",
            unit="s",
            description="Time of a call, its retries and pauses included",
            explicit_bucket_boundaries_advisory=_DURATION_BOUNDARIES_S,
        )
        self.attempts = meter.create_counter(
            "mooring.client.attempts", unit="{request}", description="Requests that were sent to a server"
        )
        self.retries = meter.create_counter(
            "mooring.client.retries", unit="{request}", description="Requests that repeated a failed one"
        )
        self.sent = meter.create_counter(
            "mooring.client.sent", unit="By", description="Size of inputs on the wire"
        )
        self.received = meter.create_counter(
            "mooring.client.received", unit="By", description="Size of outputs on the wire"
        )


class CallSpan:
    """One call, as OpenTelemetry sees it."""

    def __init__(self, telemetry: Telemetry, span: Span | None, attributes: dict[str, Any], rpc: str) -> None:
        self._telemetry = telemetry
        self._span = span
        self._attributes = attributes
        self._rpc = rpc
        self._began_s = time.perf_counter()
        self._attempts: list[Endpoint] = []
        self._answered: Endpoint | None = None
        self._retries = 0

    def attempt(self, endpoint: Endpoint) -> None:
        """A request is about to be sent."""
        self._attempts.append(endpoint)

    def answered(self, endpoint: Endpoint) -> None:
        """This server's answer is the call's."""
        self._answered = endpoint

    def retry(self, error: MooringError) -> None:
        """A try failed and another follows."""
        self._retries += 1
        if self._span is not None:
            said = {"error.type": type(error).__name__, "mooring.error": describe_error(error)}
            self._span.add_event("retry", said)

    def context_headers(self) -> Headers:
        """W3C trace context for the server, or whatever the program's propagator writes."""
        carrier: dict[str, str] = {}
        telemetry = self._telemetry
        context = None if self._span is None else telemetry.trace.set_span_in_context(self._span)
        telemetry.inject(carrier, context=context)
        return tuple((name.lower(), value) for name, value in carrier.items())

    def end(self, operation: Operation[Any], answer: Any, error: BaseException | None) -> None:
        """The call has ended."""
        seconds = time.perf_counter() - self._began_s
        # A hedge that lost may still add to it.
        attempts = tuple(self._attempts)
        server = self._answered or (attempts[-1] if attempts else None)
        if server is not None:
            self._attributes |= {"server.address": server.host, "server.port": server.port}
        if error is not None:
            self._attributes["error.type"] = type(error).__name__
        sent_bytes = operation.sent_bytes if isinstance(operation, Infer) else 0
        received_bytes = answer.received_bytes if isinstance(answer, InferAnswer) else 0
        instruments = self._telemetry.instruments
        if instruments is not None:
            instruments.duration.record(seconds, self._attributes)
            instruments.attempts.add(len(attempts), self._attributes)
            instruments.retries.add(self._retries, self._attributes)
            instruments.sent.add(sent_bytes, self._attributes)
            instruments.received.add(received_bytes, self._attributes)
        if self._span is None:
            return
        if self._span.is_recording():
            details = {"mooring.attempts": len(attempts), "mooring.endpoints": tuple(map(str, attempts))}
            details |= {} if server is None else self._about_server(server)
            if isinstance(operation, Infer):
                details |= {"mooring.sent_bytes": sent_bytes, "mooring.received_bytes": received_bytes}
            self._span.set_attributes(self._attributes | details | _about_call(operation, answer, error))
            if error is not None:
                self._span.set_status(self._telemetry.trace.StatusCode.ERROR, describe_error(error))
        self._span.end()

    def _about_server(self, server: Endpoint) -> dict[str, Any]:
        said: dict[str, Any] = {"url.scheme": server.scheme}
        if server.connect_to is not None:
            said["network.peer.address"] = server.connect_to
        if server.protocol == "grpc":
            said |= {"rpc.system.name": "grpc", "rpc.method": f"{_GRPC_SERVICE}/{self._rpc}"}
        return said


def _about_call(operation: Operation[Any], answer: Any, error: BaseException | None) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if isinstance(operation, Infer) and operation.batch_size:
        said["mooring.batch_size"] = operation.batch_size
    version = (isinstance(answer, InferAnswer) and answer.model_version) or operation.version
    if version:
        said["mooring.model_version"] = version
    if isinstance(error, ServerError) and error.code:
        said["rpc.response.status_code"] = error.code
    return said


def _is_set(provider: Any) -> bool:
    """Whether it does something: those of the API package alone stand for one to come, or for none."""
    kind = type(provider).__module__
    return not kind.startswith(("opentelemetry.trace", "opentelemetry.metrics"))


def _version() -> str:
    """The client's, looked up only where it is wanted: it costs a read of the installed metadata."""
    import importlib.metadata

    return importlib.metadata.version("mooring")
