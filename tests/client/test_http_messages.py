"""Requests as Triton's HTTP messages, and events as answers."""

from __future__ import annotations

import email.utils
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from mooring import (
    DecodeError,
    InvalidInput,
    Overloaded,
    SequenceStep,
    TensorSpec,
    TransportError,
)
from mooring._operations import Infer, Tensor
from mooring._wires._grpc_codec import METHODS as GRPC_METHODS
from mooring._wires._http_codec import METHODS, write_infer
from raw_server import always, response

STREAM = Infer(
    model="m",
    inputs=(Tensor("n", "INT32", np.int32([3])),),
    output_specs=(
        TensorSpec(name="i", datatype="INT32", shape=(1,)),
        TensorSpec(name="word", datatype="BYTES", shape=(1,)),
    ),
)


def test_a_request_is_a_json_header_and_the_bytes_of_its_inputs() -> None:
    request = Infer(
        model="a/b",
        version="3",
        inputs=(
            Tensor("x", "FP32", np.float32([[1, 2]])),
            Tensor("t", "BYTES", np.array(["é".encode()], np.object_)),
        ),
        outputs=("y",),
        request_id="order-7",
        priority=2,
        sequence=SequenceStep(id="talk", start=True),
        parameters={"beam": 4, "greedy": False},
        timeout_s=1.5,
    )
    verb, path, headers, body = write_infer(request)
    assert (verb, path) == ("POST", "/models/a%2Fb/versions/3/infer")
    assert headers == {
        "Content-Type": "application/octet-stream",
        "inference-header-content-length": str(len(body[0])),
    }
    assert json.loads(body[0]) == {
        "id": "order-7",
        "inputs": [
            {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
            {"name": "t", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}},
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        "parameters": {
            "beam": 4,
            "greedy": False,
            "timeout": 1_500_000,
            "priority": 2,
            "sequence_id": "talk",
            "sequence_start": True,
            "sequence_end": False,
        },
    }
    assert b"".join(body[1:]) == np.float32([1, 2]).tobytes() + b"\x02\x00\x00\x00\xc3\xa9"
    assert request.sent_bytes == 14


def test_numbers_are_sent_without_a_copy() -> None:
    x = np.zeros((64, 64), np.float32)
    body = write_infer(Infer(model="m", inputs=(Tensor("x", "FP32", x),))).body
    assert np.shares_memory(np.frombuffer(body[1], np.float32), x)


EVENTS = {
    "no json": (b"data: {", "the event can't be read"),
    "no object": (b"data: 5", "the event can't be read"),
    "no number": (b'data: {"i": "x"}', "the event can't be read"),
    "two numbers": (b'data: {"i": [1, 2]}', "the event can't be read"),
    "no text": (b'data: {"i": 1, "word": 5}', "the event can't be read"),
}


@pytest.mark.parametrize(("event", "said"), EVENTS.values(), ids=EVENTS.keys())
def test_events_that_make_no_sense_are_decode_errors(
    serve_raw: Any, side: Any, event: bytes, said: str
) -> None:
    body = b'data: {"i": 7, "word": "a"}\n\n' + event + b"\n\n"
    answers = side.transport(serve_raw(always(response(body))).url).stream(STREAM, timeout_s=10)
    first = next(answers).outputs
    assert (first["i"].tolist(), first["word"].tolist()) == ([7], [b"a"])
    with pytest.raises(DecodeError, match=f"^model 'm': {said}"):
        next(answers)


def test_events_may_come_in_any_pieces(serve_raw: Any, side: Any) -> None:
    body = b"".join(b': a comment\r\ndata:{"i":%d}\n\n' % number for number in range(5))
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    pieces = [body[at : at + 3] for at in range(0, len(body), 3)]
    answers = side.transport(serve_raw(always(head, *pieces)).url).stream(STREAM, timeout_s=10)
    assert [int(answer.outputs["i"][0]) for answer in answers] == [0, 1, 2, 3, 4]


def test_a_stream_that_is_refused_by_a_proxy_says_so(serve_raw: Any, side: Any) -> None:
    answers = side.transport(serve_raw(always(response(b"<html>no", 502))).url).stream(STREAM, timeout_s=10)
    with pytest.raises(Overloaded, match=r"^model 'm': <html>no \[502\]$"):
        next(answers)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"priority": 1}, "sequences, priorities and shared memory"),
        ({"inputs": (Tensor("x", "FP32", np.zeros((2, 1), np.float32)),)}, r"input 'x' of shape \[2, 1\]"),
        (
            {"inputs": (Tensor("x", "FP32", np.zeros((1, 1, 1), np.float32)),)},
            r"input 'x' of shape \[1, 1, 1\]",
        ),
        ({"inputs": (Tensor("x", "BF16", np.zeros(1, np.uint16)),)}, r"input 'x' \(BF16\)"),
        ({"inputs": (Tensor("x", "BYTES", np.array([b"\xff"], np.object_)),)}, "bytes that are no UTF-8"),
    ],
)
def test_what_json_can_not_carry_is_not_streamed(side: Any, change: dict[str, Any], said: str) -> None:
    request = replace(STREAM, **change)
    with pytest.raises(
        InvalidInput, match=f"^model 'm': .*{said}.* can't be streamed over HTTP; use grpc://"
    ):
        next(side.transport("http://127.0.0.1:1").stream(request, timeout_s=1))


def test_a_stream_that_ends_within_an_event_is_a_lost_connection(serve_raw: Any, side: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    event = b'data: {"i": 1, "word": "a"}\n\n'
    for rest in (event.rstrip(), event[:9]):
        answers = side.transport(serve_raw(always(head + event + rest, b"")).url).stream(STREAM, timeout_s=10)
        assert next(answers).outputs["i"].tolist() == [1]
        with pytest.raises(TransportError, match=r"^model 'm': the stream ended within an event: b'data"):
            next(answers)


@pytest.mark.parametrize("value", [b"[" * 100_000, b"1" * 40, b"1e400"], ids=["nested", "large", "endless"])
def test_an_event_that_makes_no_sense_is_a_decode_error(serve_raw: Any, side: Any, value: bytes) -> None:
    event = b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: {"word": "a", "i": %b}\n\n' % value
    transport = side.transport(serve_raw(always(event, b"")).url)
    with pytest.raises(DecodeError, match=r"^model 'm': the event can't be read"):
        next(transport.stream(STREAM, timeout_s=10))


def test_every_operation_has_a_message() -> None:
    assert METHODS.keys() == GRPC_METHODS.keys()


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [
        ("3", 3.0),
        (" 0 ", 0.0),
        (None, None),
        ("soon", None),
        ("-1", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read(serve_raw: Any, connect: Any, value: Any, expected_s: Any) -> None:
    headers = [] if value is None else [f"Retry-After: {value}"]
    client = connect(serve_raw(always(response(b"busy", 503, *headers))).url)
    with pytest.raises(Overloaded) as caught:
        client.metadata("m")
    assert caught.value.retry_after_s == expected_s


def test_retry_after_may_be_a_date(serve_raw: Any, connect: Any) -> None:
    date = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    client = connect(serve_raw(always(response(b"busy", 429, f"Retry-After: {date}"))).url)
    with pytest.raises(Overloaded) as caught:
        client.metadata("m")
    assert 90 < caught.value.retry_after_s <= 100
