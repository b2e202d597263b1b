"""gRPC on bad days."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from mooring import (
    Client,
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
from mooring._transport import Asked, InferRequest, Tensor
from mooring._transports._grpc import GrpcTransport, _grpc_error
from mooring._url import parse_url

SERVICE = "inference.GRPCInferenceService"
ENDPOINT = parse_url("grpc://127.0.0.1:8001")
REQUEST = InferRequest(
    model="m", version="", inputs=(Tensor("x", "FP32", np.float32([[1]])),), outputs=None, request_id=""
)

Method = Callable[[bytes, grpc.ServicerContext], bytes]


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Start a gRPC server whose methods take and give raw bytes; returns its URL."""
    with contextlib.ExitStack() as stack:

        def start(**methods: Method) -> str:
            server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
            handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            stack.callback(lambda: server.stop(grace=None).wait())
            start.server = server  # type: ignore[attr-defined]
            return f"grpc://127.0.0.1:{port}"

        yield start


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    with contextlib.ExitStack() as stack:
        yield lambda url, **options: stack.enter_context(Client(url, **{"timeout_s": 10, **options}))


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
    ("RESOURCE_EXHAUSTED", "rate limit", Overloaded, "rate limit"),
    ("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 4)", InvalidInput, "larger than max"),
    ("INTERNAL", "oops", ServerError, r"oops \[INTERNAL\]"),
    ("INTERNAL", "Exception deserializing response!", DecodeError, "the answer is not Triton's"),
    ("UNIMPLEMENTED", "", ServerError, r"^model 'm': no message \[UNIMPLEMENTED\]$"),
    ("UNAUTHENTICATED", "who are you", ServerError, "who are you"),
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
        "can't connect",
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
    foreign = InferenceServerException(message, status=f"StatusCode.{status}")
    error = _grpc_error(foreign, endpoint=ENDPOINT, asked=Asked("m"), timeout_s=0.5)
    assert type(error) is kind
    with pytest.raises(kind, match=said):
        raise error
    if isinstance(error, ServerError):
        assert (error.model, error.version, error.code) == ("m", None, status)
    if isinstance(error, TransportError):
        assert error.attempts == (foreign,)


def test_a_status_of_the_wire_keeps_the_foreign_error_as_its_cause(serve: Any, connect: Any) -> None:
    def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
        raise AssertionError

    with pytest.raises(ServerError, match=r"^the server: not you \[PERMISSION_DENIED\]$") as caught:
        connect(serve(ServerReady=refuse)).server_ready()
    assert isinstance(caught.value.__cause__, InferenceServerException)


def test_nothing_listening_is_a_connect_error(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"grpc://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ConnectError, match=rf"^{url}: can't connect; is the server running\?"):
        connect(url).server_ready()


def test_a_server_that_is_not_triton_says_so(serve: Any, connect: Any) -> None:
    with pytest.raises(ServerError, match="UNIMPLEMENTED"):
        connect(serve(Other=lambda request, context: b"")).server_ready()


def test_bytes_that_are_no_grpc_are_a_decode_error(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
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
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.3 s"):
            client.server_ready()
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.1 s"):
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
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            client.server_ready()
        except MooringError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert arrived.wait(10)
    serve.server.stop(grace=None).wait()
    thread.join()
    [error] = errors
    assert type(error) is TransportError, repr(error)
    with pytest.raises(ConnectError):
        client.server_ready()


@pytest.mark.parametrize("call", ["server_ready", "models"])
def test_bytes_that_are_no_message_are_a_decode_error(serve: Any, connect: Any, call: str) -> None:
    url = serve(ServerReady=lambda *_: b"\xff" * 9, RepositoryIndex=lambda *_: b"\xff" * 9)
    with pytest.raises(DecodeError, match="the answer is not Triton's"):
        getattr(connect(url), call)()


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
def test_tensors_that_make_no_sense_are_decode_errors(serve: Any, answer: bytes) -> None:
    transport = GrpcTransport(parse_url(serve(ModelInfer=lambda *_: answer)))
    with pytest.raises(DecodeError, match=r"^model 'm': the answer's tensors can't be read: "):
        transport.infer(REQUEST, timeout_s=10)
    transport.close()


def test_messages_beyond_the_grpc_default_of_4_mib_pass(serve: Any) -> None:
    # This server has the same limit for what it takes, so only the answer is larger.
    def echo_twice(request: bytes, context: grpc.ServicerContext) -> bytes:
        asked = service_pb2.ModelInferRequest.FromString(request)
        rows, width = asked.inputs[0].shape
        return _answer("FP32", [rows, 2 * width], 2 * asked.raw_input_contents[0])

    x = np.zeros((1, 3 * 2**18), np.float32)
    request = InferRequest(
        model="m", version="", inputs=(Tensor("x", "FP32", x),), outputs=None, request_id=""
    )
    transport = GrpcTransport(parse_url(serve(ModelInfer=echo_twice)))
    assert transport.infer(request, timeout_s=10)["y"].shape == (1, 6 * 2**18)
    transport.close()


def test_a_call_on_a_channel_that_was_just_closed_says_so(serve: Any) -> None:
    transport = GrpcTransport(parse_url(serve()))
    transport.close()
    with pytest.raises(ConfigError, match="the client was closed while a call began"):
        transport.server_ready(timeout_s=1)


def test_what_tritonclient_can_not_write_is_invalid_input() -> None:
    """Such as bfloat16 with a tritonclient that is too old for it."""
    tensor = Tensor("x", "INT64", np.float32([[1]]))
    request = InferRequest(model="m", version="", inputs=(tensor,), outputs=None, request_id="")
    transport = GrpcTransport(parse_url("grpc://127.0.0.1:1"))
    with pytest.raises(InvalidInput, match=r"^model 'm': tritonclient can't write the request: .* FP32 "):
        transport.infer(request, timeout_s=1)
    transport.close()
