"""What goes along with a request: id, priority, sequence, parameters, headers, time and compression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mooring import AccessDenied, ConfigError, SequenceStep
from mooring._operations import GetConfig, GetMetadata, Infer
from wire_models import in_memory

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
SECRET = "s3cret"


def last(wired: Any) -> Infer:
    """The request that the server got last."""
    request: Infer = wired.fake.requests[-1]
    return request


def test_a_plain_request_has_nothing_but_its_tensors_and_its_time(wired: Any) -> None:
    wired.client.infer("double", {"x": X})
    request = last(wired)
    assert (request.model, request.version, request.request_id, request.priority) == ("double", "", "", 0)
    assert (request.sequence, dict(request.parameters), request.outputs) == (None, {}, None)
    assert (request.request_compression, request.response_compression) in ((None, None), (None, ""))


def test_options_arrive(wired: Any) -> None:
    parameters = {"beam": 4, "greedy": True, "temperature": 0.25, "stop": "é", "off": False, "low": -(2**63)}
    wired.client.infer(
        "double", {"x": X}, version="1", request_id="order-7", priority=3, parameters=parameters
    )
    request = last(wired)
    assert (request.version, request.request_id, request.priority) == ("1", "order-7", 3)
    assert request.parameters == parameters
    # 1 == True, but they are not the same to a model.
    assert {key: type(value) for key, value in request.parameters.items()} == {
        key: type(value) for key, value in parameters.items()
    }


@pytest.mark.parametrize(
    "step",
    [
        SequenceStep(id=7, start=True),
        SequenceStep(id=2**63 - 1),
        SequenceStep(id="talk-é", end=True),
        SequenceStep(id="a", start=True, end=True),
    ],
    ids=str,
)
def test_a_sequence_step_arrives(wired: Any, step: SequenceStep) -> None:
    wired.client.infer("double", {"x": X}, sequence=step)
    assert last(wired).sequence == step


@in_memory
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"request_id": 7}, "request_id must be a str, got 7"),
        ({"request_id": "\ud800"}, "request_id .* can't be written as UTF-8"),
        ({"priority": -1}, "priority must be a whole number from 0, got -1"),
        ({"priority": 2**32}, "priority must be"),
        ({"priority": True}, "priority must be"),
        ({"sequence": 7}, "sequence must be a SequenceStep, got 7"),
        ({"sequence": SequenceStep(id=0)}, "SequenceStep.id must be a number above 0 or a text, got 0"),
        ({"parameters": {"timeout": 5}}, "parameter 'timeout' is set by the argument timeout_s"),
        ({"parameters": {"priority": 1}}, "parameter 'priority' is set by the argument priority"),
        ({"parameters": {"sequence_id": 1}}, "parameter 'sequence_id' is set by the argument sequence"),
        ({"parameters": {"sequence_start": True}}, "set by the argument sequence"),
        ({"parameters": {"sequence_end": True}}, "set by the argument sequence"),
        ({"parameters": {"binary_data_output": True}}, "set by the argument outputs"),
        ({"parameters": {"x": None}}, "parameter 'x' must be a str, bool, int or float, got None"),
        ({"parameters": {"x": 2**63}}, "parameter 'x' does not fit 64 bits"),
        (
            {"request_compression": "zip"},
            "request_compression must be None or one of gzip, deflate, got 'zip'",
        ),
        ({"response_compression": ""}, "response_compression must be None or one of gzip, deflate"),
        ({"timeout_s": 0}, "timeout_s must be above 0"),
    ],
)
def test_options_that_can_not_be_right_are_not_sent(wired: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        wired.client.infer("double", {"x": X}, **options)
    assert wired.fake.requests == []


def test_what_is_left_of_the_time_arrives_as_the_queue_timeout(wired: Any) -> None:
    wired.client.infer("double", {"x": X}, timeout_s=7)
    assert 6 < last(wired).timeout_s <= 7
    wired.client.infer("double", {"x": X})
    assert wired.client.timeout_s - 1 < last(wired).timeout_s <= wired.client.timeout_s


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_bodies_hold_the_same(wired: Any, compression: Any) -> None:
    x = np.tile(X, (1, 1000))
    answer = wired.client.infer(
        "double", {"x": x}, request_compression=compression, response_compression=compression
    )
    np.testing.assert_array_equal(answer["y"], 2 * x)
    if wired.wire != "grpc":  # whose library keeps it to itself; see the test of the wire
        request = last(wired)
        assert (request.request_compression, request.response_compression) == (compression, compression)
    # Sizes of tensors are counted, not what is left of them on the wire.
    if wired.wire != "fake":
        assert wired.client.counters().sent_bytes == x.nbytes


def test_fixed_headers_and_token_go_with_every_request(wired: Any) -> None:
    client = wired.open(token=SECRET, headers={"X-Tenant": "blue"})
    client.infer("double", {"x": X}, headers={"X-Trace": "7"})
    client.models()
    next(client.stream("count", {"n": np.int32([1])}))
    # Metadata, config, inference, index; metadata, config, stream.
    assert len(wired.fake.headers) == 7
    for headers in wired.fake.headers:
        assert headers["x-tenant"] == "blue"
        assert headers["authorization"] == f"Bearer {SECRET}"
    assert [headers.get("x-trace") for headers in wired.fake.headers[:4]] == [None, None, "7", None]


def test_a_header_of_the_call_replaces_the_client_s(wired: Any) -> None:
    own = {"X-Tenant": "red", "Authorization": "Bearer mine"}
    for options in (
        {"token": SECRET, "headers": {"x-tenant": "blue"}},
        {"token": lambda: SECRET, "headers": lambda: {"x-tenant": "blue"}},
    ):
        wired.open(**options).infer("double", {"x": X}, headers=own)
        headers = wired.fake.headers[-1]
        assert (headers["x-tenant"], headers["authorization"]) == ("red", "Bearer mine")


def test_the_token_replaces_a_header_of_its_name(wired: Any) -> None:
    for token in (SECRET, lambda: SECRET):
        wired.open(token=token, headers={"Authorization": "Basic x"}).models()
        assert wired.fake.headers[-1]["authorization"] == f"Bearer {SECRET}"


def test_callables_are_asked_for_each_call(wired: Any) -> None:
    numbers = iter(range(1000))
    client = wired.open(token=lambda: f"t{next(numbers)}", headers=lambda: {"x-turn": str(next(numbers))})
    client.models()
    client.models()
    given = [(headers["x-turn"], headers["authorization"]) for headers in wired.fake.headers]
    assert given == [("0", "Bearer t1"), ("2", "Bearer t3")]
    client.infer("double", {"x": X})
    assert [headers["x-turn"] for headers in wired.fake.headers[2:]] == ["4", "6", "8"]
    assert (wired.fake.count(GetMetadata), wired.fake.count(GetConfig)) == (1, 1)


def test_a_call_s_own_headers_join_those_of_a_callable(wired: Any) -> None:
    client = wired.open(headers=lambda: {"x-tenant": "blue"})
    client.infer("double", {"x": X}, headers={"x-trace": "7"})
    headers = wired.fake.headers[-1]
    assert (headers["x-tenant"], headers["x-trace"]) == ("blue", "7")


@pytest.mark.parametrize("side", ["coroutines"], indirect=True)
def test_coroutine_functions_are_awaited(wired: Any) -> None:
    async def token() -> str:
        return "fresh"

    async def headers() -> dict[str, str]:
        return {"x-turn": "1"}

    client = wired.open(token=token, headers=headers)
    client.models()
    assert wired.fake.headers[-1]["authorization"] == "Bearer fresh"
    assert wired.fake.headers[-1]["x-turn"] == "1"


@in_memory
def test_what_a_callable_raises_is_the_callers_own(wired: Any) -> None:
    def token() -> str:
        raise LookupError("no token today")

    with pytest.raises(LookupError, match="no token today"):
        wired.open(token=token).models()
    assert wired.fake.headers == []


BAD_HEADERS = [
    {"x-key": f"{SECRET}\r\nevil: 1"},
    {"x-key": f"{SECRET}\x00"},
    {"x-key": f"{SECRET}é"},
    {"x-key": SECRET.encode()},
    {"x key": SECRET},
    {"": SECRET},
    {"x-bin": SECRET},
    {"Content-Length": SECRET},
    {"Inference-Header-Content-Length": SECRET},
]


@in_memory
@pytest.mark.parametrize("headers", BAD_HEADERS, ids=range(len(BAD_HEADERS)))
def test_headers_that_can_not_be_sent_are_refused_without_their_value(wired: Any, headers: Any) -> None:
    for call in (
        lambda: wired.open(headers=headers),
        lambda: wired.open(headers=lambda: headers).models(),
        lambda: wired.client.infer("double", {"x": X}, headers=headers),
        lambda: next(wired.client.stream("count", {"n": np.int32([1])}, headers=headers)),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert SECRET not in str(caught.value)
        assert repr(next(iter(headers))) in str(caught.value)
    assert wired.fake.requests == []


@in_memory
@pytest.mark.parametrize("token", ["", f"{SECRET} two", f"{SECRET}\n", f"{SECRET}é", SECRET.encode()])
def test_tokens_that_can_not_be_sent_are_refused_without_their_value(wired: Any, token: Any) -> None:
    for call in (lambda: wired.open(token=token), lambda: wired.open(token=lambda: token).models()):
        with pytest.raises(ConfigError, match="token must be a str of printable ASCII") as caught:
            call()
        assert SECRET not in str(caught.value)


def test_a_server_that_wants_another_token_denies_access(wired: Any) -> None:
    wired.fake.error = AccessDenied("who are you")
    with pytest.raises(AccessDenied, match="who are you") as caught:
        wired.open(token=SECRET).models()
    assert len(wired.fake.headers) == 1
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
