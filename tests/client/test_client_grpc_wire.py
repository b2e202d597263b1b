"""gRPC on bad days."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from mooring import (
    AccessDenied,
    CircuitPolicy,
    ConfigError,
    ConnectError,
    DeadlineExceeded,
    DecodeError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    MooringError,
    Overloaded,
    ServerError,
    TransportError,
)
from mooring._operations import GetMetadata, GetServerReady, Infer, LoadModel, Tensor
from mooring._url import parse_url
from mooring._wires._grpc_codec import grpc_error
from raw_server import Relay

SERVICE = "inference.GRPCInferenceService"
ENDPOINT = parse_url("grpc://127.0.0.1:8001")
REQUEST = Infer(model="m", inputs=(Tensor("x", "FP32", np.float32([[1]])),))

Method = Callable[[bytes, grpc.ServicerContext], bytes]


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Start a gRPC server whose methods take and give raw bytes; returns its URL."""
    with contextlib.ExitStack() as stack:

        def start(at_port: int = 0, *, stream: Any = None, **methods: Method) -> str:
            server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
            handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
            if stream is not None:
                handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(stream)
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
            port = server.add_insecure_port(f"127.0.0.1:{at_port}")
            server.start()
            stack.callback(lambda: server.stop(grace=None).wait())
            start.server = server  # type: ignore[attr-defined]
            return f"grpc://127.0.0.1:{port}"

        yield start


class Refusal(grpc.RpcError):
    """What a call raises."""

    def __init__(self, status: str, said: str | None) -> None:
        super().__init__()
        self._status, self._said = status, said

    def code(self) -> grpc.StatusCode:
        return getattr(grpc.StatusCode, self._status)

    def details(self) -> str | None:
        return self._said


STATUSES: list[tuple[str, str, type[MooringError], str]] = [
    (
        "INVALID_ARGUMENT",
        "in ensemble 'm', text 0 is empty",
        InvalidInput,
        r"^model 'm': in ensemble 'm', text 0",
    ),
    (
        "INVALID_ARGUMENT",
        "[request id: <id_unknown>] bad",
        InvalidInput,
        r"^model 'm': bad \[INVALID_ARGUMENT\]$",
    ),
    ("INVALID_ARGUMENT", "[request id: a7] bad", InvalidInput, r"^model 'm': \[request id: a7\] bad"),
    ("NOT_FOUND", "Request for unknown model: 'm' is not found", ModelNotFound, "is not found"),
    ("NOT_FOUND", "Request for unknown model: 'm' has no available versions", ModelNotReady, "no available"),
    (
        "UNAVAILABLE",
        "Request for unknown model: 'm' version 1 is not at ready state",
        ModelNotReady,
        "ready state",
    ),
    ("UNAVAILABLE", "Server not ready", ModelNotReady, "Server not ready"),
    ("UNAVAILABLE", "Exceeds maximum queue size", Overloaded, "Exceeds maximum queue size"),
    ("UNAVAILABLE", "the words of some model", Overloaded, "the words of some model"),
    (
        "UNAVAILABLE",
        "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: "
        "remote connection failure, transport failure reason: delayed connect error: Connection refused",
        Overloaded,
        "Connection refused",
    ),
    ("RESOURCE_EXHAUSTED", "rate limit", Overloaded, "rate limit"),
    ("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 4)", InvalidInput, "larger than max"),
    ("INTERNAL", "oops", ServerError, r"oops \[INTERNAL\]"),
    ("INTERNAL", "Exception deserializing response!", DecodeError, "the answer is not Triton's"),
    ("UNIMPLEMENTED", "", ServerError, r"^model 'm': no message \[UNIMPLEMENTED\]$"),
    ("UNAUTHENTICATED", "who are you", AccessDenied, r"^model 'm': who are you \[UNAUTHENTICATED\]$"),
    ("PERMISSION_DENIED", "not you", AccessDenied, "not you"),
    ("OUT_OF_RANGE", "too far", InvalidInput, "too far"),
    ("UNKNOWN", "odd", ServerError, "odd"),
    ("UNAVAILABLE", "Socket closed", TransportError, "connection lost before an answer came"),
    ("UNAVAILABLE", "GOAWAY received", TransportError, "connection lost before an answer came"),
    ("UNAVAILABLE", "DNS resolution failed for nowhere:1", ConnectError, "is the server running"),
    ("UNAVAILABLE", "Request timeout expired", Overloaded, "Request timeout expired"),
    (
        "DEADLINE_EXCEEDED",
        "Deadline Exceeded",
        DeadlineExceeded,
        r"^grpc://127.0.0.1:8001: no answer within 0\.5 s$",
    ),
    ("CANCELLED", "Channel closed!", TransportError, "the call was cancelled"),
    (
        "UNAVAILABLE",
        "failed to connect to all addresses; last error: Socket closed",
        ConnectError,
        r"can't connect; is the server running\? It closed .* at once: if that is its HTTP port, write http://",
    ),
    (
        "UNAVAILABLE",
        "failed to connect to all addresses; last error: Connection refused",
        ConnectError,
        r"can't connect; is the server running\? \(failed",
    ),
    ("UNAVAILABLE", "errors resolving nowhere:1: [lookup]", ConnectError, "is the server running"),
    ("UNAVAILABLE", "failed to connect: Failed parsing HTTP/2", DecodeError, "is it the HTTP port"),
    (
        "UNAVAILABLE",
        "Stream removed (Socket closed)",
        TransportError,
        "connection lost before an answer came",
    ),
    (
        "UNAVAILABLE",
        "recvmsg:Connection reset by peer",
        TransportError,
        "connection lost before an answer came",
    ),
]


@pytest.mark.parametrize(("status", "message", "kind", "said"), STATUSES, ids=range(len(STATUSES)))
def test_statuses_have_their_errors(status: str, message: str, kind: type[MooringError], said: str) -> None:
    foreign = Refusal(status, message)
    error = grpc_error(foreign, endpoint=ENDPOINT, operation=GetMetadata(model="m"), timeout_s=0.5)
    assert type(error) is kind
    with pytest.raises(kind, match=said):
        raise error
    if isinstance(error, ServerError):
        assert (error.model, error.version, error.code) == ("m", None, status)


def test_a_model_that_can_not_be_loaded_is_no_invalid_input() -> None:
    for status, said in (
        ("INVALID_ARGUMENT", "load failed for model 'm': bad config"),
        ("UNAVAILABLE", "explicit model load / unload is not allowed if polling is enabled"),
    ):
        foreign = Refusal(status, said)
        error = grpc_error(foreign, endpoint=ENDPOINT, operation=LoadModel(model="m"), timeout_s=1)
        assert type(error) is ServerError
        assert said in str(error)
    assert "start tritonserver with --model-control-mode=explicit" in str(error)


def test_a_refusal_without_words_is_an_error_too() -> None:
    error = grpc_error(
        Refusal("UNAVAILABLE", None), endpoint=ENDPOINT, operation=GetServerReady(), timeout_s=1
    )
    assert str(error) == "the server: no message [UNAVAILABLE]"


def test_a_status_of_the_wire_keeps_the_foreign_error_as_its_cause(serve: Any, connect: Any) -> None:
    def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
        raise AssertionError

    with pytest.raises(AccessDenied, match=r"^the server: not you \[PERMISSION_DENIED\]$") as caught:
        connect(serve(ServerReady=refuse)).server_ready()
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert caught.value.attempts == (caught.value,)


def test_nothing_listening_is_a_connect_error(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"grpc://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ConnectError, match=rf"^{url}: can't connect; is the server running\?") as caught:
        connect(url).server_ready()
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_a_server_that_is_not_triton_says_so(serve: Any, connect: Any) -> None:
    with pytest.raises(ServerError, match="UNIMPLEMENTED"):
        connect(serve(Other=lambda request, context: b"")).server_ready()


def test_bytes_that_are_no_grpc_are_a_decode_error(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(ConnectionError):
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(
            DecodeError, match=r"does not speak gRPC; is it the HTTP port\? Then write http://"
        ):
            connect(f"grpc://127.0.0.1:{listener.getsockname()[1]}").server_ready()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_silence_ends_with_the_deadline(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # connections wait, unaccepted
        client = connect(f"grpc://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.3)
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.[0-3]\d* s"):
            client.server_ready()
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.(1|0\d+) s"):
            client.server_ready(timeout_s=0.1)


def test_a_server_that_dies_with_the_request_is_a_transport_error(serve: Any, connect: Any) -> None:
    arrived = threading.Event()

    def hang(request: bytes, context: grpc.ServicerContext) -> bytes:
        arrived.set()
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait(10)
        return b""

    client = connect(serve(ServerReady=hang))

    def stop() -> None:
        if arrived.wait(10):
            serve.server.stop(grace=None).wait()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(TransportError) as caught:
        client.server_ready()
    thread.join()
    assert type(caught.value) is TransportError, repr(caught.value)
    with pytest.raises(ConnectError):
        client.server_ready()


@pytest.mark.parametrize("call", ["server_ready", "models"])
def test_bytes_that_are_no_message_are_a_decode_error(serve: Any, connect: Any, call: str) -> None:
    url = serve(ServerReady=lambda *_: b"\xff" * 9, RepositoryIndex=lambda *_: b"\xff" * 9)
    with pytest.raises(DecodeError, match="the answer is not Triton's"):
        getattr(connect(url), call)()


def test_a_response_of_a_stream_that_is_no_message_is_a_decode_error(serve: Any, side: Any) -> None:
    def garbage(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield b"\xff" * 9

    with pytest.raises(DecodeError, match="the answer is not Triton's"):
        next(side.transport(serve(stream=garbage)).stream(REQUEST, timeout_s=10))


def _answer(datatype: str, shape: list[int], *raw: bytes) -> bytes:
    message = service_pb2.ModelInferResponse(model_name="m", raw_output_contents=raw)
    message.outputs.add(name="y", datatype=datatype, shape=shape)
    return bytes(message.SerializeToString())


@pytest.mark.parametrize(
    "answer",
    [
        _answer("FP32", [1, 1], b"123"),
        _answer("FP32", [2, 2], b"1234"),
        _answer("FP32", [1, 1]),
        _answer("BYTES", [1], b"\xff\xff\xff\xff"),
        _answer("BYTES", [1], b"\x01"),
        _answer("BYTES", [2], b"\x01\x00\x00\x00a"),
    ],
    ids=["odd size", "too few", "no data", "length beyond", "length cut", "one of two"],
)
def test_tensors_that_make_no_sense_are_decode_errors(serve: Any, side: Any, answer: bytes) -> None:
    transport = side.transport(serve(ModelInfer=lambda *_: answer))
    with pytest.raises(DecodeError, match=r"^model 'm': the answer's tensors can't be read: "):
        transport.send(REQUEST, timeout_s=10)


def test_messages_beyond_the_grpc_default_of_4_mib_pass(serve: Any, side: Any) -> None:
    # This server has the same limit for what it takes, so only the answer is larger.
    def echo_twice(request: bytes, context: grpc.ServicerContext) -> bytes:
        asked = service_pb2.ModelInferRequest.FromString(request)
        rows, width = asked.inputs[0].shape
        return _answer("FP32", [rows, 2 * width], 2 * asked.raw_input_contents[0])

    x = np.zeros((1, 3 * 2**18), np.float32)
    request = Infer(model="m", inputs=(Tensor("x", "FP32", x),))
    transport = side.transport(serve(ModelInfer=echo_twice))
    answer = transport.send(request, timeout_s=10)
    assert answer.outputs["y"].shape == (1, 6 * 2**18)
    assert (request.sent_bytes, answer.received_bytes) == (x.nbytes, 2 * x.nbytes)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_a_compressed_request_is_smaller_on_the_wire(serve: Any, side: Any, compression: Any) -> None:
    relay = Relay(serve(ModelInfer=lambda *_: _answer("FP32", [1], b"1234")))
    x = np.zeros(2**16, np.float32)
    request = Infer(model="m", inputs=(Tensor("x", "FP32", x),), request_compression=compression)
    with contextlib.closing(relay):
        side.transport(relay.url).send(request, timeout_s=10)
    assert (relay.received_bytes < x.nbytes // 10) == (compression is not None)


def test_a_call_on_a_channel_that_was_just_closed_says_so(serve: Any, side: Any) -> None:
    transport = side.transport(serve(ServerReady=lambda *_: b""))
    transport.send(GetServerReady(), timeout_s=10)
    transport.close()
    with pytest.raises(ConfigError, match="the client was closed while a call began"):
        transport.send(GetServerReady(), timeout_s=1)
    with pytest.raises(ConfigError, match="the client was closed while a call began"):
        next(transport.stream(REQUEST, timeout_s=1))


def test_a_stream_that_ends_in_the_midst_is_a_lost_connection(serve: Any, side: Any) -> None:
    def die(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        message = service_pb2.ModelStreamInferResponse()
        message.infer_response.ParseFromString(_answer("FP32", [1], b"1234"))
        yield message.SerializeToString()
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    answers = side.transport(serve(stream=die)).stream(REQUEST, timeout_s=10)
    assert next(answers).outputs["y"].shape == (1,)
    with pytest.raises(TransportError, match="connection lost before an answer came"):
        next(answers)


@pytest.mark.parametrize("responses", [0, 1])
def test_a_stream_without_its_last_response_is_a_lost_connection(
    serve: Any, side: Any, responses: int
) -> None:
    def stop(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        message = service_pb2.ModelStreamInferResponse()
        message.infer_response.ParseFromString(_answer("FP32", [1], b"1234"))
        message.infer_response.parameters["triton_final_response"].bool_param = False
        yield from [message.SerializeToString()] * responses

    answers = side.transport(serve(stream=stop)).stream(REQUEST, timeout_s=10)
    for _ in range(responses):
        assert next(answers).outputs["y"].shape == (1,)
    with pytest.raises(TransportError, match=r"the stream ended before the model's last response"):
        next(answers)


def test_a_model_that_gives_its_last_response_with_tensors_ends_the_stream(serve: Any, side: Any) -> None:
    def last(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        asked = service_pb2.ModelInferRequest.FromString(next(requests))
        assert asked.parameters["triton_enable_empty_final_response"].bool_param
        message = service_pb2.ModelStreamInferResponse()
        message.infer_response.ParseFromString(_answer("FP32", [1], b"1234"))
        message.infer_response.parameters["triton_final_response"].bool_param = True
        yield message.SerializeToString()
        yield b"nobody reads this"

    answers = list(side.transport(serve(stream=last)).stream(REQUEST, timeout_s=10))
    assert len(answers) == 1


def test_a_server_that_comes_back_is_found_again(serve: Any, connect: Any) -> None:
    ready = service_pb2.ServerReadyResponse(ready=True).SerializeToString()
    url = serve(ServerReady=lambda *_: ready)
    client = connect(url, circuit=CircuitPolicy(failures=1000))
    assert client.server_ready()
    serve.server.stop(grace=None).wait()
    with pytest.raises(TransportError):
        client.server_ready()
    serve(int(url.rpartition(":")[2]), ServerReady=lambda *_: ready)
    ends_at_s = time.monotonic() + 20
    while True:  # gRPC's own pause after a failed connect
        try:
            assert client.server_ready()
            return
        except ConnectError:
            assert time.monotonic() < ends_at_s
            time.sleep(0.02)
