"""Models that answer one request with any number of responses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from mooring import ConfigError, ConnectError, DecodeError, InvalidInput, ModelNotFound, ServerError
from mooring._operations import GetMetadata

THREE = {"n": np.int32([3])}


def test_responses_come_one_by_one(wired: Any) -> None:
    responses = list(wired.client.stream("count", THREE))
    assert [response["i"].tolist() for response in responses] == [[0], [1], [2]]
    assert [response["word"].tolist() for response in responses] == [
        [f"№ {number}".encode()] for number in range(3)
    ]
    assert {response["i"].dtype for response in responses} == {np.dtype(np.int32)}
    counters = wired.client.counters()
    assert (counters.calls, counters.failed_calls) == (3, 0)
    assert (counters.received_bytes > 0) == (wired.wire != "fake")


def test_no_response_at_all_is_fine(wired: Any) -> None:
    assert list(wired.client.stream("count", {"n": np.int32([0])})) == []


def test_outputs_are_those_asked_for(wired: Any) -> None:
    responses = list(wired.client.stream("count", THREE, outputs=["i"]))
    assert [set(response) for response in responses] == [{"i"}] * 3
    with pytest.raises(InvalidInput, match="there is no output 'z'"):
        next(wired.client.stream("count", THREE, outputs=["z"]))


def test_options_arrive(wired: Any) -> None:
    stream = wired.client.stream(
        "count",
        THREE,
        version="1",
        request_id="order-7",
        parameters={"beam": 4},
        headers={"x-trace": "7"},
        timeout_s=9,
    )
    assert len(list(stream)) == 3
    [request] = wired.fake.requests
    assert (request.version, request.request_id, request.parameters) == ("1", "order-7", {"beam": 4})
    assert wired.fake.headers[-1]["x-trace"] == "7"
    if wired.wire != "http":  # generate_stream has no place for it
        assert 8 < request.timeout_s <= 9


def test_a_priority_arrives_where_the_protocol_carries_it(wired: Any) -> None:
    stream = wired.client.stream("count", THREE, priority=2)
    if wired.wire == "http":
        with pytest.raises(InvalidInput, match="priorities and shared memory can't be streamed over HTTP"):
            next(stream)
        return
    assert len(list(stream)) == 3
    assert wired.fake.requests[-1].priority == 2


def test_what_contradicts_the_signature_is_not_sent(wired: Any) -> None:
    with pytest.raises(InvalidInput, match=r"input 'n' is int64; expected INT32 \(int32\)"):
        next(wired.client.stream("count", {"n": np.array([3])}))
    with pytest.raises(ModelNotFound):
        next(wired.client.stream("nope", THREE))
    with pytest.raises(ConfigError, match="parameter 'timeout' is set by the argument timeout_s"):
        next(wired.client.stream("count", THREE, parameters={"timeout": 1}))
    assert wired.fake.requests == []


def test_nothing_is_sent_before_the_first_response_is_asked_for(wired: Any) -> None:
    stream = wired.client.stream("count", THREE)
    assert wired.fake.headers == []
    stream.close()
    assert wired.fake.headers == []


def test_a_model_may_say_no_at_once_and_in_the_midst(wired: Any) -> None:
    fail = np.array(["bananas"], np.object_)
    with pytest.raises(InvalidInput, match="expected no bananas"):
        next(wired.client.stream("count", {"n": np.int32([0]), "fail": fail}))
    stream = wired.client.stream("count", {"n": np.int32([2]), "fail": fail})
    assert [int(next(stream)["i"][0]) for _ in range(2)] == [0, 1]
    with pytest.raises(InvalidInput, match="expected no bananas") as caught:
        next(stream)
    if wired.wire != "fake":  # where it is what the model raised
        assert (caught.value.model, caught.value.code) == ("count", "STREAM")
    # What has begun is not begun again.
    assert len(wired.fake.requests) == 2
    assert caught.value.attempts == (caught.value,)


def test_closing_early_ends_the_request_on_the_server(wired: Any) -> None:
    ended = threading.Event()

    def count_on(inputs: Any) -> Iterator[dict[str, np.ndarray]]:
        try:
            number = 0
            while True:
                yield {"i": np.array([number], np.int32), "word": np.array([b"x" * 10_000], np.object_)}
                number += 1
        finally:
            ended.set()

    wired.fake.change("count", answer=count_on)
    with closing(wired.client.stream("count", THREE)) as stream:
        assert [int(next(stream)["i"][0]) for _ in range(3)] == [0, 1, 2]
        assert not ended.is_set()
    assert wired.side.wait(ended)
    counters = wired.client.counters()
    assert (counters.failed_calls, counters.endpoints[0].outstanding) == (0, 0)
    # The client is as good as before.
    assert wired.client.ready("count")


def test_two_streams_at_a_time_do_not_mix(wired: Any) -> None:
    first = wired.client.stream("count", {"n": np.int32([5])})
    second = wired.client.stream("count", {"n": np.int32([5])})
    for number in range(5):
        assert int(next(first)["i"][0]) == int(next(second)["i"][0]) == number
    assert list(first) == list(second) == []


def test_what_fails_before_the_first_response_is_tried_again(side: Any, fake: Any) -> None:
    plain, failures = fake.stream, [ConnectError("down"), ConnectError("still down")]

    def fail_twice(request: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop(0)
        yield from plain(request, **options)

    fake.stream = fail_twice
    client = side.client("grpc://fake:8001", transport=fake)
    assert len(list(client.stream("count", THREE))) == 3
    assert client.counters().retries == 2


def test_what_fails_after_the_first_response_is_not(side: Any, fake: Any) -> None:
    def lose(inputs: Any) -> Iterator[dict[str, np.ndarray]]:
        yield {"i": np.int32([0])}
        raise ConnectError("lost")

    fake.change("count", answer=lose)
    stream = side.client("grpc://fake:8001", transport=fake).stream("count", THREE)
    # A response may lack outputs.
    assert set(next(stream)) == {"i"}
    with pytest.raises(ConnectError, match="lost"):
        next(stream)
    assert len(fake.requests) == 1


def test_a_response_unlike_the_signature_is_a_decode_error(wired: Any) -> None:
    wired.fake.change("count", answer=lambda inputs: iter([{"i": np.int32([1, 2])}]))
    with pytest.raises(DecodeError, match=r"output i INT32\[1\] came as int32\[2\]|the event can't be read"):
        next(wired.client.stream("count", THREE))


def test_a_model_of_one_response_may_be_streamed(wired: Any) -> None:
    [answer] = wired.client.stream("echo", {"t": np.array(["a", "ü"], np.object_)})
    assert answer["t"].tolist() == [b"a", "ü".encode()]


def test_an_error_of_the_server_s_own_ends_it(wired: Any) -> None:
    def break_down(inputs: Any) -> Iterator[dict[str, np.ndarray]]:
        yield {"i": np.int32([0]), "word": np.array([b""], np.object_)}
        raise ServerError("out of memory")

    wired.fake.change("count", answer=break_down)
    stream = wired.client.stream("count", THREE)
    next(stream)
    with pytest.raises(ServerError, match="out of memory") as caught:
        next(stream)
    assert type(caught.value) is ServerError


def test_a_stream_of_a_reloaded_model_is_not_read_by_its_old_signature(wired: Any) -> None:
    assert len(list(wired.client.stream("count", THREE))) == 3

    def count_in_halves(inputs: Any) -> Iterator[dict[str, np.ndarray]]:
        yield {"i": np.array([0.5], np.float32), "word": np.array([b"half"], np.object_)}

    outputs = {"i": ("FP32", [1]), "word": ("BYTES", [1])}
    wired.fake.change("count", outputs=outputs, answer=count_in_halves)
    with pytest.raises(DecodeError):
        list(wired.client.stream("count", THREE))
    (answer,) = wired.client.stream("count", THREE)
    assert answer["i"].tolist() == [0.5]


def test_a_stream_of_another_version_makes_the_next_call_ask(wired: Any) -> None:
    list(wired.client.stream("count", THREE))
    wired.fake.version = "2"
    list(wired.client.stream("count", THREE))
    assert wired.fake.count(GetMetadata) == 1
    list(wired.client.stream("count", THREE))
    assert wired.fake.count(GetMetadata) == 2
