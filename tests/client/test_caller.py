"""Calls: what is tried again and where, what it costs, hedges, headers, counters.

Each scenario is a coroutine and runs twice: with ``AsyncClient``, and with ``Client``, whose calls then run
in threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mooring import (
    AccessDenied,
    AsyncClient,
    CircuitOpen,
    CircuitPolicy,
    Client,
    ConfigError,
    ConnectError,
    ConnectionPolicy,
    DeadlineExceeded,
    DecodeError,
    HedgePolicy,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    MooringError,
    Overloaded,
    RetryPolicy,
    SequenceStep,
    ServerError,
    Throttled,
    ThrottlePolicy,
    TransportError,
)
from mooring._deadline import Deadline
from mooring._operations import (
    GetMetadata,
    GetServerReady,
    Infer,
    InferAnswer,
    MemorySlice,
    RegisterSystemMemory,
    UnregisterSystemMemory,
)
from mooring.testing import FakeTransport
from scripted_servers import DOUBLE, INPUTS, Clock, Hold, ScriptedServer, ScriptedServers, run, until

A, B = "grpc://10.0.0.1:8001", "grpc://10.0.0.2:8001"
#: Hedges what takes longer than half of the five requests before it, but never sooner than after 50 ms.
HEDGE = HedgePolicy(percentile=50, min_samples=5, min_delay_s=0.05)
#: Never opens.
PATIENT = CircuitPolicy(failures=1_000_000)


class Bench:
    """A client of one kind over scripted servers; every call can be awaited."""

    def __init__(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_async = kind == "async"
        self.scripted = ScriptedServers()
        #: Pauses before retries, in seconds; nobody waits for them unless ``real_pauses``.
        self.pauses_s: list[float] = []
        self.real_pauses = False
        self.clock = Clock()
        self.client: Any = None

        async def pause(seconds: float) -> None:
            self.pauses_s.append(seconds)
            await asyncio.sleep(seconds if self.real_pauses else 0)

        def sync_pause(seconds: float) -> None:
            self.pauses_s.append(seconds)
            time.sleep(seconds if self.real_pauses else 0)

        monkeypatch.setattr("mooring._async._caller.sleep", pause)
        monkeypatch.setattr("mooring._sync._caller.sleep", sync_pause)
        monkeypatch.setattr("mooring._async._server_client.open_async_transport", self.scripted.open)
        monkeypatch.setattr("mooring._sync._server_client.open_transport", self.scripted.open)
        for module in ("_async._server", "_sync._server", "_circuit"):
            monkeypatch.setattr(f"mooring.{module}.time", self.clock)

    def start(self, *urls: str, **options: Any) -> ScriptedServer:
        """Make the client; returns the first server."""
        self.client = (AsyncClient if self.is_async else Client)(list(urls or (A,)), **options)
        return self.scripted[str(urls[0] if urls else A)]

    async def call(self, method: Any, *args: Any, **options: Any) -> Any:
        """Call a method of either kind."""
        if self.is_async:
            return await method(*args, **options)
        return await asyncio.to_thread(method, *args, **options)

    async def background_ended(self) -> None:
        """Wait for what the client does beside its calls."""
        work = self.client._work
        await until(lambda: not (work._tasks if self.is_async else work._background))

    async def metadata(self, **options: Any) -> Any:
        """A call that may be repeated."""
        return await self.call(self.client.metadata, "double", **options)

    async def infer(self, **options: Any) -> Any:
        """A call that must not run twice."""
        return await self.call(self.client.infer, "double", INPUTS, **options)

    @asynccontextmanager
    async def region(self) -> AsyncIterator[Any]:
        """Shared memory, which the scripted server need not take."""
        self.scripted[A].always(True, RegisterSystemMemory, UnregisterSystemMemory)
        region = self.client.shared_memory(input_bytes=1000)
        await self.call(region.__aenter__ if self.is_async else region.__enter__)
        try:
            yield region
        finally:
            await self.call(region.__aexit__ if self.is_async else region.__exit__, None, None, None)

    async def know_model(self, *urls: str, times: int = 1) -> None:
        """Have the signature asked for, and some latencies known."""
        for _ in range(times):
            answer = await self.infer()
            assert answer["y"].tolist() == [[2.0, 2.0]]
        for scripted in self.scripted.by_url.values():
            scripted.received.clear()
            scripted.headers.clear()
            scripted.timeouts_s.clear()

    async def stream(self, *, limit: int | None = None) -> list[Any]:
        """The responses to a streaming request, or the first few."""
        answers = self.client.stream("double", INPUTS)
        found: list[Any] = []
        if self.is_async:
            try:
                async for answer in answers:
                    found.append(answer)
                    if len(found) == limit:
                        break
            finally:
                await answers.aclose()
            return found

        def read() -> None:
            for answer in answers:
                found.append(answer)
                if len(found) == limit:
                    break
            answers.close()

        await asyncio.to_thread(read)
        return found

    def failures(self) -> int:
        """Requests to its one server that failed."""
        (endpoint,) = self.client.counters().endpoints
        return endpoint.failures

    async def close(self) -> None:
        """Close the client."""
        await self.call(self.client.aclose if self.is_async else self.client.close)


@pytest.fixture(params=["async", "sync"])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(request.param, monkeypatch)


def play(bench: Bench, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario, close the client, and look for what should not be left."""

    async def played() -> None:
        try:
            await scenario()
        finally:
            await bench.close()
        for scripted in bench.scripted.by_url.values():
            assert scripted.open_transports == 0
            assert sum(transport.late for transport in scripted.transports) == 0
        # A thread that lost a race may still be on its way out.
        await until(lambda: all(not one.outstanding for one in bench.client.counters().endpoints))

    run(played)


# --- retries


@pytest.mark.parametrize("error", [ConnectError, Overloaded])
def test_what_was_not_carried_out_is_tried_again(bench: Bench, error: type[MooringError]) -> None:
    async def scenario() -> None:
        server = bench.start()
        await bench.know_model()
        server.next(Infer, error, error)
        assert (await bench.infer())["y"].tolist() == [[2.0, 2.0]]
        assert server.count(Infer) == 3
        assert len(bench.pauses_s) == 2

    play(bench, scenario)


def test_a_lost_connection_is_tried_again_for_questions(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start()
        server.next(GetMetadata, TransportError, TransportError)
        assert (await bench.metadata()).name == "double"
        assert server.count(GetMetadata) == 3

    play(bench, scenario)


@pytest.mark.parametrize(
    "error",
    [
        TransportError,
        DecodeError,
        InvalidInput,
        AccessDenied,
        ModelNotFound,
        ModelNotReady,
        ServerError,
        DeadlineExceeded,
    ],
)
def test_an_inference_that_may_have_been_carried_out_is_sent_once(
    bench: Bench, error: type[MooringError]
) -> None:
    async def scenario() -> None:
        server = bench.start()
        await bench.know_model()
        server.next(Infer, error)
        with pytest.raises(error) as caught:
            await bench.infer()
        assert type(caught.value) is error
        assert caught.value.attempts == (caught.value,)
        assert server.count(Infer) == 1
        assert bench.pauses_s == []

    play(bench, scenario)


@pytest.mark.parametrize("error", [DecodeError, InvalidInput, AccessDenied, ModelNotReady, DeadlineExceeded])
def test_a_question_is_not_repeated_where_that_brings_nothing(
    bench: Bench, error: type[MooringError]
) -> None:
    async def scenario() -> None:
        server = bench.start()
        server.always(error, GetMetadata)
        with pytest.raises(error):
            await bench.metadata()
        assert server.count(GetMetadata) == 1

    play(bench, scenario)


@pytest.mark.parametrize("max_retries", [0, 1, 4])
def test_no_more_than_max_retries(bench: Bench, max_retries: int) -> None:
    async def scenario() -> None:
        server = bench.start(retry=RetryPolicy(max_retries=max_retries), circuit=PATIENT)
        server.always(ConnectError, GetMetadata)
        with pytest.raises(ConnectError) as caught:
            await bench.metadata()
        assert len(caught.value.attempts) == server.count(GetMetadata) == max_retries + 1

    play(bench, scenario)


def test_the_last_error_keeps_every_attempt_in_order_with_its_cause(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start()
        attempts = [ConnectError("refused"), Overloaded("full"), TransportError("lost")]
        for number, error in enumerate(attempts):
            error.__cause__ = OSError(number, "foreign")
        server.next(GetMetadata, *attempts)
        with pytest.raises(TransportError, match="lost") as caught:
            await bench.metadata()
        assert caught.value.attempts == tuple(attempts)
        assert [type(error) for error in caught.value.attempts] == [ConnectError, Overloaded, TransportError]
        assert [error.__cause__.errno for error in caught.value.attempts] == [0, 1, 2]  # type: ignore[union-attr]

    play(bench, scenario)


def test_pauses_grow_and_keep_to_their_bounds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mooring._retry.JITTER.uniform", lambda low, high: high)

    async def scenario() -> None:
        policy = RetryPolicy(max_retries=5, initial_delay_s=0.1, max_delay_s=0.5)
        server = bench.start(retry=policy, circuit=PATIENT)
        server.always(ConnectError, GetMetadata)
        with pytest.raises(ConnectError):
            await bench.metadata()
        assert bench.pauses_s == [0.1, 0.2, 0.4, 0.5, 0.5]

    play(bench, scenario)


def overloaded(retry_after_s: float) -> Overloaded:
    return Overloaded("full", retry_after_s=retry_after_s)


def test_retry_after_is_waited_for(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start()
        server.next(GetMetadata, overloaded(7.5))
        await bench.metadata()
        assert bench.pauses_s == [7.5]

    play(bench, scenario)


def test_retry_after_beyond_the_deadline_ends_the_call_at_once(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start()
        server.next(GetMetadata, error := overloaded(7.5))
        with pytest.raises(Overloaded) as caught:
            await bench.metadata(timeout_s=5.0)
        assert caught.value is error
        assert (server.count(GetMetadata), bench.pauses_s) == (1, [])

    play(bench, scenario)


def test_the_budget_stops_a_storm(bench: Bench) -> None:
    async def scenario() -> None:
        policy = RetryPolicy(max_retries=3, budget_ratio=0.1, budget_reserve=5)
        server = bench.start(retry=policy, circuit=PATIENT)
        server.always(ConnectError, GetMetadata)
        for _ in range(100):
            with pytest.raises(ConnectError):
                await bench.metadata()
        extra = server.count(GetMetadata) - 100
        assert 5 + 8 <= extra <= 5 + 10
        assert bench.client.counters().retries == extra

    play(bench, scenario)


def test_a_client_without_a_budget_does_not_retry(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(retry=RetryPolicy(budget_ratio=0, budget_reserve=0))
        server.always(ConnectError, GetMetadata)
        with pytest.raises(ConnectError):
            await bench.metadata()
        assert server.count(GetMetadata) == 1

    play(bench, scenario)


# --- the deadline


def test_silence_ends_with_the_deadline(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start()
        server.always(Hold(), GetMetadata)
        began_s = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await bench.metadata(timeout_s=0.2)
        assert 0.2 <= time.monotonic() - began_s < 5.0
        assert server.count(GetMetadata) == 1

    play(bench, scenario)


def test_retries_and_pauses_spend_one_deadline(bench: Bench) -> None:
    bench.real_pauses = True

    async def scenario() -> None:
        policy = RetryPolicy(max_retries=1000, budget_reserve=1000, initial_delay_s=0.04, max_delay_s=0.04)
        server = bench.start(retry=policy, circuit=PATIENT)
        server.always(Hold(0.01, then=Overloaded), GetMetadata)
        began_s = time.monotonic()
        with pytest.raises((Overloaded, DeadlineExceeded)) as caught:
            await bench.metadata(timeout_s=1.0)
        assert time.monotonic() - began_s < 5.0
        # The time may be up just before the last one leaves.
        assert server.count(GetMetadata) - len(caught.value.attempts) in (-1, 0)
        assert server.count(GetMetadata) > 2
        assert server.timeouts_s == sorted(server.timeouts_s, reverse=True)
        assert 0 < server.timeouts_s[-1] < server.timeouts_s[0] <= 1.0

    play(bench, scenario)


def test_what_is_left_travels_with_the_request(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(timeout_s=50.0)
        await bench.know_model()
        await bench.infer()
        await bench.infer(timeout_s=3.0)
        (long, short) = server.received
        assert (long.timeout_s, short.timeout_s) == tuple(server.timeouts_s)
        assert 49.0 < long.timeout_s <= 50.0
        assert 2.0 < short.timeout_s <= 3.0

    play(bench, scenario)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), 1e6, "1", True])
def test_a_deadline_that_is_none_is_refused(bench: Bench, timeout_s: Any) -> None:
    async def scenario() -> None:
        server = bench.start()
        with pytest.raises(ConfigError, match="timeout_s must be"):
            await bench.metadata(timeout_s=timeout_s)
        assert server.received == []

    play(bench, scenario)


# --- several endpoints


@pytest.mark.parametrize("error", [ConnectError, Overloaded, ModelNotReady])
def test_another_endpoint_is_tried_at_once(bench: Bench, error: type[MooringError]) -> None:
    async def scenario() -> None:
        bench.start(A, B, circuit=PATIENT)
        await bench.know_model()
        bench.scripted[A].always(error, Infer)
        for _ in range(6):
            await bench.infer()
        assert bench.scripted[B].count(Infer) == 6
        assert bench.scripted[A].count(Infer) >= 2
        assert bench.pauses_s == []

    play(bench, scenario)


def test_overload_everywhere_is_waited_for_once_all_were_asked(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B)
        for url in (A, B):
            bench.scripted[url].always(overloaded(2.0), GetMetadata)
        with pytest.raises(Overloaded):
            await bench.metadata()
        counts = [bench.scripted[url].count(GetMetadata) for url in (A, B)]
        assert sorted(counts) == [1, 2]
        assert bench.pauses_s == [2.0]

    play(bench, scenario)


def test_a_model_that_no_endpoint_has_ready_is_not_waited_for(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B)
        for url in (A, B):
            bench.scripted[url].always(ModelNotReady, GetMetadata)
        with pytest.raises(ModelNotReady) as caught:
            await bench.metadata()
        assert len(caught.value.attempts) == 2
        assert [bench.scripted[url].count(GetMetadata) for url in (A, B)] == [1, 1]

    play(bench, scenario)


def test_an_open_circuit_ends_the_call_and_the_reason_is_among_its_attempts(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(circuit=CircuitPolicy(failures=1))
        server.always(ConnectError("refused"), GetMetadata)
        with pytest.raises(CircuitOpen) as caught:
            await bench.metadata()
        assert [type(error) for error in caught.value.attempts] == [ConnectError, CircuitOpen]
        with pytest.raises(CircuitOpen) as caught:
            await bench.metadata()
        assert len(caught.value.attempts) == 1
        assert server.count(GetMetadata) == 1
        bench.clock.advance(1.0)
        server.always(None, GetMetadata)
        assert (await bench.metadata()).name == "double"
        assert server.probes == 1

    play(bench, scenario)


def test_a_sequence_is_tried_again_where_its_state_is_and_with_a_pause(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B)
        await bench.know_model()
        for url in (A, B):
            bench.scripted[url].next(Infer, overloaded(2.0), overloaded(3.0))
        await bench.infer(sequence=SequenceStep(id=7, start=True))
        assert sorted(bench.scripted[url].count(Infer) for url in (A, B)) == [0, 3]
        assert bench.pauses_s == [2.0, 3.0]

    play(bench, scenario)


def test_a_sequences_model_that_is_not_ready_is_not_asked_again(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B)
        await bench.know_model()
        for url in (A, B):
            bench.scripted[url].always(ModelNotReady, Infer)
        with pytest.raises(ModelNotReady):
            await bench.infer(sequence=SequenceStep(id="talk", start=True))
        assert sorted(bench.scripted[url].count(Infer) for url in (A, B)) == [0, 1]

    play(bench, scenario)


# --- the throttle


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever may be held back is."""
    monkeypatch.setattr("mooring._throttle.JITTER", SimpleNamespace(random=lambda: 0.0))


ONCE = RetryPolicy(max_retries=0)


@pytest.mark.usefixtures("held_back")
def test_what_a_server_refuses_too_much_of_is_not_sent(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(throttle=ThrottlePolicy(window_s=1e9), retry=ONCE)
        await bench.know_model()
        server.always(Overloaded, Infer)
        with pytest.raises(Overloaded) as caught:
            await bench.infer()
        assert not isinstance(caught.value, Throttled)
        with pytest.raises(Throttled) as caught:
            await bench.infer()
        said = f"nothing was sent: {A} lately refused too many requests for model 'double'"
        assert (str(caught.value), caught.value.model) == (said, "double")
        with pytest.raises(Throttled):
            await bench.stream()
        # Questions about it are.
        await bench.metadata()
        assert (server.count(Infer), server.count(GetMetadata)) == (1, 1)
        counters = bench.client.counters()
        (endpoint,) = counters.endpoints
        assert (endpoint.throttled, endpoint.failures, endpoint.circuit) == (2, 0, "closed")
        assert endpoint.requests == counters.requests

    play(bench, scenario)


@pytest.mark.parametrize(
    ("error", "throttle"),
    [
        *(
            (error, ThrottlePolicy())
            for error in (ConnectError, ServerError, DeadlineExceeded, ModelNotReady)
        ),
        (Overloaded, None),
    ],
)
@pytest.mark.usefixtures("held_back")
def test_other_failures_hold_nothing_back(
    bench: Bench, error: type[MooringError], throttle: ThrottlePolicy | None
) -> None:
    async def scenario() -> None:
        server = bench.start(throttle=throttle, retry=ONCE, circuit=PATIENT)
        await bench.know_model()
        server.always(error, Infer)
        for _ in range(20):
            with pytest.raises(error) as caught:
                await bench.infer()
            assert not isinstance(caught.value, Throttled)
        assert server.count(Infer) == 20

    play(bench, scenario)


@pytest.mark.usefixtures("held_back")
def test_streams_that_are_refused_count(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(throttle=ThrottlePolicy(), retry=ONCE)
        server.always(Overloaded, Infer)
        kinds = []
        for _ in range(3):
            with pytest.raises(Overloaded) as caught:
                await bench.stream()
            kinds.append(type(caught.value))
        assert kinds == [Overloaded, Throttled, Throttled]

    play(bench, scenario)


@pytest.mark.usefixtures("held_back")
def test_what_is_held_back_goes_to_another_server_at_once(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B, throttle=ThrottlePolicy(), retry=RetryPolicy(budget_reserve=100))
        await bench.know_model()
        bench.scripted[A].always(Overloaded, Infer)
        for _ in range(10):
            await bench.infer()
        assert bench.scripted[B].count(Infer) == 10
        throttled = {one.url: one.throttled for one in bench.client.counters().endpoints}
        assert throttled[A] >= 3
        assert throttled[B] == 0
        assert bench.pauses_s == []

    play(bench, scenario)


def test_what_is_held_back_is_meant_again_after_a_pause(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    chances = iter([0.0, 1.0])
    monkeypatch.setattr("mooring._throttle.JITTER", SimpleNamespace(random=lambda: next(chances)))

    async def scenario() -> None:
        server = bench.start(throttle=ThrottlePolicy())
        server.next(Infer, Overloaded("full"))
        assert (await bench.infer())["y"].tolist() == [[2.0, 2.0]]
        assert (server.count(Infer), len(bench.pauses_s)) == (2, 2)
        counters = bench.client.counters()
        assert (counters.retries, counters.endpoints[0].throttled) == (2, 1)

    play(bench, scenario)


# --- headers


def test_fixed_headers_and_token_go_with_every_request(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(token="abc", headers={"X-Tenant": "eu"})
        await bench.metadata()
        await bench.infer(headers={"X-Trace": "7"})
        common = {"authorization": "Bearer abc", "x-tenant": "eu"}
        assert server.headers[0] == common
        assert server.headers[-1] == {**common, "x-trace": "7"}

    play(bench, scenario)


@pytest.mark.parametrize("awaited", [False, True])
def test_callables_are_asked_for_each_call(bench: Bench, awaited: bool) -> None:
    asked: list[str] = []

    def token() -> str:
        asked.append("token")
        return f"t{len(asked)}"

    def headers() -> dict[str, str]:
        asked.append("headers")
        return {"X-N": f"h{len(asked)}"}

    async def async_token() -> str:
        await asyncio.sleep(0)
        return token()

    async def async_headers() -> dict[str, str]:
        await asyncio.sleep(0)
        return headers()

    sources: dict[str, Any] = {"token": token, "headers": headers}
    if awaited and bench.is_async:
        sources = {"token": async_token, "headers": async_headers}
    elif awaited:
        sources["headers"] = {"x-n": "fixed"}

    async def scenario() -> None:
        server = bench.start(**sources)
        assert asked == []
        server.next(GetMetadata, ConnectError)
        await bench.metadata()
        await bench.metadata()
        first, again, second = server.headers
        assert first == again, "a retry is the same call"
        assert first["authorization"] != second["authorization"]
        assert asked.count("token") == 2

    play(bench, scenario)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"token": lambda: "s3cret\n"}, "token must be a str of printable ASCII"),
        ({"token": lambda: None}, "token must be a str of printable ASCII"),
        ({"headers": lambda: {"x": "s3cret\n"}}, "header 'x' has a value that is not printable"),
        ({"headers": lambda: [("x", "s3cret")]}, "headers must map names to values, got list"),
    ],
)
def test_what_a_callable_gives_is_checked_and_not_shown(bench: Bench, options: Any, said: str) -> None:
    async def scenario() -> None:
        server = bench.start(**options)
        with pytest.raises(ConfigError, match=said) as caught:
            await bench.metadata()
        assert "s3cret" not in str(caught.value)
        assert server.received == []
        assert bench.client.counters().failed_calls == 1

    play(bench, scenario)


def test_fixed_ones_are_checked_when_the_client_is_made(bench: Bench) -> None:
    for options in ({"token": "a b"}, {"token": ""}, {"headers": {"content-type": "x"}}):
        with pytest.raises(ConfigError):
            bench.start(**options)


def test_a_calls_own_headers_are_checked_before_anything_is_sent(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start()
        with pytest.raises(ConfigError, match="header 'a b' can't be set"):
            await bench.infer(headers={"a b": "x"})
        assert server.received == []

    play(bench, scenario)


# --- hedges


def test_a_slow_request_is_sent_again_and_the_first_answer_counts(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(hedge=HEDGE)
        await bench.know_model(times=5)
        server.next(Infer, Hold())
        assert (await bench.infer())["y"].tolist() == [[2.0, 2.0]]
        assert server.count(Infer) == 2
        await until(lambda: len(server.cancelled) == 1)
        assert server.cancelled == [server.received[0]], "its transport saw the end of it"
        counters = bench.client.counters()
        assert (counters.hedges, counters.hedge_wins, counters.retries) == (1, 1, 0)
        assert counters.failed_calls == 0

    play(bench, scenario)


def test_the_first_may_still_win(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(hedge=HEDGE)
        await bench.know_model(times=5)
        server.next(Infer, Hold(until=lambda: server.count(Infer) == 2), Hold())
        await bench.infer()
        await until(lambda: len(server.cancelled) == 1)
        assert (server.count(Infer), bench.client.counters().hedge_wins) == (2, 0)

    play(bench, scenario)


def test_a_hedge_goes_to_another_server(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B, hedge=HEDGE)
        await bench.know_model(times=5)
        slow = bench.scripted[A]
        slow.always(Hold(), Infer)
        for _ in range(4):
            await bench.infer()
        assert slow.count(Infer) >= 1
        assert bench.scripted[B].count(Infer) == 4
        await until(lambda: len(slow.cancelled) == slow.count(Infer))

    play(bench, scenario)


def test_losing_hedges_open_no_circuit(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(
            hedge=HEDGE, circuit=CircuitPolicy(failures=1), retry=RetryPolicy(budget_reserve=100)
        )
        await bench.know_model(times=5)
        for _ in range(4):
            server.next(Infer, Hold())
            await bench.infer()
        await until(lambda: len(server.cancelled) == 4)
        (endpoint,) = bench.client.counters().endpoints
        assert (endpoint.circuit, endpoint.failures) == ("closed", 0)
        assert server.probes == 0

    play(bench, scenario)


def test_where_both_fail_the_first_ones_error_counts(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(hedge=HEDGE)
        await bench.know_model(times=5)
        first = Hold(until=lambda: bench.failures() == 1, then=TransportError("the first"))
        server.next(Infer, first, TransportError("the second"))
        with pytest.raises(TransportError, match="the first"):
            await bench.infer()
        assert server.count(Infer) == 2

    play(bench, scenario)


def test_a_hedge_that_fails_harms_nothing(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(hedge=HEDGE)
        await bench.know_model(times=5)
        server.next(Infer, Hold(until=lambda: bench.failures() == 1), TransportError("the second"))
        assert (await bench.infer())["y"].tolist() == [[2.0, 2.0]]
        assert bench.client.counters().hedge_wins == 0

    play(bench, scenario)


def test_a_hedge_answers_where_the_first_fails(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(hedge=HEDGE)
        await bench.know_model(times=5)
        first = Hold(until=lambda: server.count(Infer) == 2, then=TransportError)
        server.next(Infer, first, Hold(until=lambda: bench.failures() == 1))
        assert (await bench.infer())["y"].tolist() == [[2.0, 2.0]]
        assert bench.client.counters().hedge_wins == 1

    play(bench, scenario)


def test_a_request_that_fails_soon_is_retried_and_not_hedged(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(hedge=replace(HEDGE, min_delay_s=5.0))
        await bench.know_model(times=5)
        server.next(Infer, ConnectError)
        await bench.infer()
        counters = bench.client.counters()
        assert (server.count(Infer), counters.retries, counters.hedges) == (2, 1, 0)

    play(bench, scenario)


@pytest.mark.parametrize(
    "case", ["sequence", "output memory", "question", "unknown latency", "no budget", "no policy"]
)
def test_what_must_not_or_need_not_run_twice_is_not_hedged(bench: Bench, case: str) -> None:
    async def scenario() -> None:
        options: dict[str, Any] = {"hedge": None if case == "no policy" else HEDGE}
        if case == "no budget":
            options["retry"] = RetryPolicy(budget_reserve=0)
        server = bench.start(**options)
        await bench.know_model(times=2 if case == "unknown latency" else 5)
        server.next(Infer, Hold(0.2, then=response(2)))
        server.next(GetMetadata, Hold(0.2))
        if case == "question":
            await bench.metadata()
        elif case == "sequence":
            await bench.infer(sequence=SequenceStep(id=1, start=True))
        elif case == "output memory":
            request = Infer(model="double", inputs=(), output_memory={"y": MemorySlice("region", 0, 8)})
            await bench.call(bench.client._caller.call, request, Deadline(5.0))
        else:
            await bench.infer()
        assert len(server.received) == 1
        assert bench.client.counters().hedges == 0

    play(bench, scenario)


def test_a_hedged_call_keeps_its_deadline(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(hedge=HEDGE)
        await bench.know_model(times=5)
        server.always(Hold(), Infer)
        began_s = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await bench.infer(timeout_s=0.3)
        assert 0.3 <= time.monotonic() - began_s < 5.0
        assert server.count(Infer) == 2

    play(bench, scenario)


def test_a_call_with_less_time_than_a_hedge_needs_is_not_hedged(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(hedge=HEDGE)
        await bench.know_model(times=5)
        server.always(Hold(), Infer)
        with pytest.raises(DeadlineExceeded):
            await bench.infer(timeout_s=0.04)
        assert server.count(Infer) <= 1

    play(bench, scenario)


def test_hedges_under_load_all_end(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(hedge=HEDGE, retry=RetryPolicy(budget_reserve=1000))
        await bench.know_model(times=5)
        for _ in range(20):
            server.next(Infer, Hold(0.3), None)
        answers = await asyncio.gather(*(bench.infer() for _ in range(40)))
        assert len(answers) == 40
        counters = bench.client.counters()
        assert counters.hedges > 0
        assert counters.failed_calls == 0

    play(bench, scenario)


def test_a_token_that_does_not_come_ends_with_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("async", monkeypatch)

    async def never() -> str:
        await asyncio.Event().wait()
        raise AssertionError

    async def broken() -> str:
        raise TimeoutError("the vault's own")

    async def scenario() -> None:
        server = bench.start(token=never)
        with pytest.raises(DeadlineExceeded, match=r"0\.1 s were spent before its token or headers"):
            await bench.metadata(timeout_s=0.1)
        await bench.client.aclose()
        server = bench.start(token=broken)
        with pytest.raises(TimeoutError, match="the vault's own"):
            await bench.metadata()
        assert server.count(GetMetadata) == 0

    play(bench, scenario)


# --- streams


def response(value: float) -> InferAnswer:
    array = np.full((1, 2), value, np.float32)
    return InferAnswer(outputs={"y": array}, model_version="1", received_bytes=8)


def test_a_stream_that_did_not_begin_is_tried_again(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start()
        server.next(Infer, ConnectError, Overloaded, [response(1), response(2)])
        assert [answer["y"][0, 0] for answer in await bench.stream()] == [1.0, 2.0]
        counters = bench.client.counters()
        assert (server.count(Infer), counters.retries, counters.received_bytes) == (3, 2, 16)

    play(bench, scenario)


def test_a_stream_that_began_is_not_tried_again(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start()
        server.next(Infer, ConnectError, [response(1), ConnectError("lost midway")])
        with pytest.raises(ConnectError, match="lost midway") as caught:
            await bench.stream()
        assert len(caught.value.attempts) == 2
        assert server.count(Infer) == 2

    play(bench, scenario)


def test_a_stream_whose_connection_is_lost_before_the_first_response_is_not_sent_again(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start()
        server.next(Infer, TransportError)
        with pytest.raises(TransportError):
            await bench.stream()
        assert server.count(Infer) == 1

    play(bench, scenario)


def test_a_stream_that_is_left_counts_as_answered(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start()
        server.next(Infer, [response(1), response(2), response(3)])
        assert len(await bench.stream(limit=2)) == 2
        counters = bench.client.counters()
        assert (counters.failed_calls, counters.received_bytes) == (0, 16)

    play(bench, scenario)


# --- counters


def test_counters_add_up(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B, circuit=PATIENT)
        assert bench.client.counters().calls == 0
        await bench.infer()  # asks for metadata and config too
        for url in (A, B):
            bench.scripted[url].next(Infer, ConnectError)
        await bench.infer()
        for url in (A, B):
            bench.scripted[url].next(Infer, InvalidInput)
        with pytest.raises(InvalidInput):
            await bench.infer()
        counters = bench.client.counters()
        assert (counters.calls, counters.failed_calls) == (5, 1)
        assert (counters.requests, counters.retries) == (7, 2)
        assert (counters.hedges, counters.hedge_wins) == (0, 0)
        assert sum(endpoint.requests for endpoint in counters.endpoints) == 7
        assert sum(endpoint.failures for endpoint in counters.endpoints) == 2
        assert {endpoint.url for endpoint in counters.endpoints} == {A, B}

    play(bench, scenario)


def test_received_bytes_are_the_answers(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start()
        server.next(Infer, response(1), response(2))
        await bench.infer()
        await bench.infer()
        assert bench.client.counters().received_bytes == 16

    play(bench, scenario)


# --- shared memory


@pytest.mark.parametrize(
    ("action", "may_go_on"),
    [
        (Hold(), True),
        (TransportError, True),
        (Overloaded("upstream request timeout", code="504"), True),
        (Overloaded("Exceeds maximum queue size"), False),
        (InvalidInput, False),
        (ConnectError, False),
        (DecodeError, False),
    ],
)
def test_a_region_is_not_lent_again_while_a_request_may_use_it(
    bench: Bench, action: Any, may_go_on: bool
) -> None:
    async def scenario() -> None:
        server = bench.start(retry=RetryPolicy(max_retries=0))
        async with bench.region() as region:
            await bench.infer(shared_memory=region)
            server.next(Infer, action)
            with pytest.raises(MooringError):
                await bench.infer(shared_memory=region, timeout_s=0.5 if isinstance(action, Hold) else 10.0)
            for _ in range(2):
                if may_go_on:
                    with pytest.raises(ConfigError, match="was given up and may still use it: open another"):
                        await bench.infer(shared_memory=region)
                else:
                    await bench.infer(shared_memory=region)
        assert server.count(Infer) == (2 if may_go_on else 4)
        async with bench.region() as another:
            await bench.infer(shared_memory=another)

    play(bench, scenario)


def test_a_request_that_a_gateway_may_have_passed_on_is_not_sent_again_over_a_region(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start()
        async with bench.region() as region:
            server.next(Infer, Overloaded("Bad Gateway", code="502"))
            with pytest.raises(Overloaded):
                await bench.infer(shared_memory=region)
            with pytest.raises(ConfigError, match="may still use it"):
                await bench.infer(shared_memory=region)
        assert server.count(Infer) == 1

    play(bench, scenario)


@pytest.mark.parametrize(
    ("action", "removals"),
    [(Hold(), 2), (TransportError, 2), (ServerError, 1), (ConnectError, 1)],
    ids=["silence", "lost", "refused", "unreachable"],
)
def test_what_a_server_may_have_registered_is_removed(bench: Bench, action: Any, removals: int) -> None:
    async def scenario() -> None:
        timeout_s = 0.5 if isinstance(action, Hold) else 10.0
        server = bench.start(timeout_s=timeout_s, retry=RetryPolicy(max_retries=0))
        server.always(True, UnregisterSystemMemory)
        server.next(RegisterSystemMemory, action)
        region = bench.client.shared_memory(input_bytes=1000)
        with pytest.raises(MooringError):
            await bench.call(region.__aenter__ if bench.is_async else region.__enter__)
        # One goes before each registration.
        await until(lambda: server.count(UnregisterSystemMemory) >= removals)
        await bench.background_ended()
        assert server.count(UnregisterSystemMemory) == removals

    play(bench, scenario)


def test_what_is_registered_again_is_not_removed(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start(retry=RetryPolicy(max_retries=0))
        server.always(True, RegisterSystemMemory, UnregisterSystemMemory)
        server.next(RegisterSystemMemory, TransportError)
        region = bench.client.shared_memory(input_bytes=1000)
        enter = region.__aenter__ if bench.is_async else region.__enter__
        with pytest.raises(TransportError):
            await bench.call(enter)
        await bench.call(enter)
        await bench.background_ended()
        assert server.count(UnregisterSystemMemory) == 2
        await bench.call(region.__aexit__ if bench.is_async else region.__exit__, None, None, None)

    play(bench, scenario)


def test_a_removal_that_is_given_up_is_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        server = bench.start()
        async with bench.region() as region:
            server.always(ServerError, UnregisterSystemMemory)
        assert f"{region.name} stays registered on the server: ServerError" in caplog.text

    with caplog.at_level("WARNING", logger="mooring"):
        play(bench, scenario)


def test_a_region_is_not_lent_again_after_a_cancelled_request(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("async", monkeypatch)

    async def scenario() -> None:
        server = bench.start()
        async with bench.region() as region:
            server.next(Infer, Hold())
            call = asyncio.ensure_future(bench.infer(shared_memory=region))
            await until(lambda: server.waiting == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            with pytest.raises(ConfigError, match="may still use it"):
                await bench.infer(shared_memory=region)

    play(bench, scenario)


# --- the client's life


def test_a_cancelled_call_gives_its_request_up(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("async", monkeypatch)

    async def scenario() -> None:
        server = bench.start()
        await bench.know_model()
        server.next(Infer, Hold())
        call = asyncio.ensure_future(bench.infer())
        await until(lambda: server.waiting == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert server.cancelled == server.received
        counters = bench.client.counters()
        assert counters.failed_calls == 1
        assert counters.endpoints[0].failures == 0

    play(bench, scenario)


def test_closing_ends_calls_under_way_and_refuses_others(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start()
        server.next(GetMetadata, Hold())
        call = asyncio.ensure_future(bench.metadata())
        await until(lambda: server.waiting == 1)
        await bench.close()
        with pytest.raises(MooringError):
            await call
        with pytest.raises(ConfigError, match=f"the client of {A} is closed; make a new one"):
            await bench.metadata()
        await bench.close()

    play(bench, scenario)


def test_the_callers_transport_is_closed_with_the_client_and_not_before(bench: Bench) -> None:
    fake = FakeTransport({"double": DOUBLE})

    async def scenario() -> None:
        bench.start(
            A,
            B,
            transport=fake,
            circuit=CircuitPolicy(failures=1),
            retry=RetryPolicy(max_retries=0),
            connections=ConnectionPolicy(max_age_s=10.0),
        )
        await bench.infer()
        bench.clock.advance(12.0)
        for _ in range(4):
            await bench.infer()
        assert not fake.closed, "lines get old, the transport stays"
        fake.error = ConnectError("refused")
        for _ in range(2):
            with pytest.raises(ConnectError):
                await bench.metadata()
        bench.clock.advance(1.0)
        with pytest.raises(CircuitOpen):
            await bench.metadata()
        fake.error = None
        bench.clock.advance(2.0)
        await bench.metadata()
        await bench.metadata()
        assert not fake.closed, "probes come and go, the transport stays"
        await bench.close()
        assert fake.closed

    play(bench, scenario)


def test_the_callers_transport_is_closed_by_a_client_that_never_called(bench: Bench) -> None:
    fake = FakeTransport({})

    async def scenario() -> None:
        bench.start(A, transport=fake)

    play(bench, scenario)
    assert fake.closed


def test_silence_leads_to_a_probe_and_the_probe_to_a_fresh_line(bench: Bench) -> None:
    async def scenario() -> None:
        server = bench.start()
        server.next(GetMetadata, *[DeadlineExceeded] * 3)
        for _ in range(3):
            with pytest.raises(DeadlineExceeded):
                await bench.metadata()
        await until(lambda: server.count(GetServerReady) == 1 and len(server.transports) == 2)
        await until(lambda: server.transports[0].closed == 1)
        assert (await bench.metadata()).name == "double"

    play(bench, scenario)
