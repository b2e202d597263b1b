"""The servers of a client: who gets the next request, who is left out, and who comes back.

Each scenario is a coroutine and runs twice: with the servers for coroutines, and with those for threads,
whose calls then run in threads.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from mooring import (
    CircuitOpen,
    CircuitPolicy,
    ConfigError,
    ConnectError,
    ConnectionPolicy,
    DeadlineExceeded,
    DecodeError,
    InvalidInput,
    ModelNotReady,
    MooringError,
    Overloaded,
    TransportError,
)
from mooring._async import _server as async_server
from mooring._async import _servers as async_servers
from mooring._async._servers import AsyncServers
from mooring._async_work import AsyncWork
from mooring._deadline import Deadline
from mooring._operations import GetIndex, GetServerMetadata, GetServerReady, Infer
from mooring._sync import _server as sync_server
from mooring._sync import _servers as sync_servers
from mooring._sync._servers import Servers
from mooring._sync_work import SyncWork
from mooring._url import parse_urls
from scripted_servers import Clock, Hold, ScriptedServer, ScriptedServers, run, until

#: A probe that is held has time enough for whatever a test does meanwhile.
CIRCUIT = CircuitPolicy(failures=3, pause_s=5.0, max_pause_s=20.0, probe_timeout_s=5.0)
A, B, C = "grpc://10.0.0.1:8001", "grpc://10.0.0.2:8001", "grpc://10.0.0.3:8001"


class Bench:
    """Servers of one kind over scripted ones; every call can be awaited."""

    def __init__(self, kind: str, clock: Clock) -> None:
        self.is_async = kind == "async"
        self.clock = clock
        self.scripted = ScriptedServers()
        self.work: Any = AsyncWork() if self.is_async else SyncWork()

    def start(self, *urls: str, resolve: bool = True, **connections: float) -> None:
        """Make the servers."""
        make = AsyncServers if self.is_async else Servers
        self.servers: Any = make(
            parse_urls(urls),
            self.scripted.open,
            circuit=CIRCUIT,
            throttle=None,
            connections=ConnectionPolicy(**connections),
            work=self.work,
            resolve=resolve,
        )

    async def call(self, method: Any, *args: Any, **options: Any) -> Any:
        """Call a method of either kind."""
        if self.is_async:
            return await method(*args, **options)
        return await asyncio.to_thread(method, *args, **options)

    async def choose(self, *tried: Any, timeout_s: float = 10.0, sticky: object = None) -> Any:
        """The server for the next request."""
        return await self.call(self.servers.choose, tried, Deadline(timeout_s), sticky=sticky)

    async def ask(self, server: Any, operation: Any = None, *, timeout_s: float = 10.0) -> Any:
        """Send a request that is no probe."""
        operation = operation or GetServerMetadata()
        return await self.call(server.send, operation, timeout_s=timeout_s, headers=())

    def begin(self, server: Any) -> asyncio.Future[Any]:
        """Send a request and go on."""
        return asyncio.ensure_future(self.ask(server))

    async def fail(self, server: Any, error: type[MooringError] = ConnectError, times: int = 1) -> None:
        """Let requests fail."""
        self.scripted[server.url].next(GetServerMetadata, *[error] * times)
        for _ in range(times):
            with pytest.raises(error):
                await self.ask(server)

    async def fail_all(self, count: int) -> None:
        """Let requests to so many servers, which are all, fail until they get no more."""
        for server in [await self.choose() for _ in range(count)]:
            await self.fail(server, times=3)

    async def close(self) -> None:
        """As a client does."""
        await self.call(self.work.close)
        await self.call(self.servers.close)

    def status(self) -> dict[str, Any]:
        """By URL."""
        return {status.url: status for status in self.servers.status()}

    def circuits(self) -> dict[str, str]:
        """State of each circuit by URL."""
        return {url: status.circuit for url, status in self.status().items()}


@pytest.fixture(params=["async", "sync"])
def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bench:
    clock = Clock()
    for module in (async_server, async_servers, sync_server, sync_servers, "mooring._circuit"):
        monkeypatch.setattr(f"{getattr(module, '__name__', module)}.time", clock)
    return Bench(request.param, clock)


def play(bench: Bench, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario, close the servers, and look for what should not be left."""

    async def played() -> None:
        try:
            await scenario()
        finally:
            await bench.close()
        for scripted in bench.scripted.by_url.values():
            assert scripted.open_transports == 0
            assert [transport.late for transport in scripted.transports if transport.late] == []

    run(played)


# --- the choice


def test_a_single_server_gets_everything(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A)
        assert {(await bench.choose()).url for _ in range(5)} == {A}

    play(bench, scenario)


def test_equal_servers_take_turns(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B, C)
        chosen = [(await bench.choose()).url for _ in range(9)]
        assert sorted(chosen[:3]) == [A, B, C]
        assert chosen == chosen[:3] * 3

    play(bench, scenario)


def test_the_least_busy_server_is_chosen(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B, C)
        by_url = {server.url: server for server in [await bench.choose() for _ in range(3)]}
        for url in by_url:
            bench.scripted[url].always(Hold(), GetServerMetadata)
        under_way = [bench.begin(by_url[url]) for url in (A, A, C)]
        await until(lambda: bench.scripted[A].waiting == 2 and bench.scripted[C].waiting == 1)
        assert {url: status.outstanding for url, status in bench.status().items()} == {A: 2, B: 0, C: 1}
        assert {(await bench.choose()).url for _ in range(4)} == {B}
        under_way += [bench.begin(by_url[B]) for _ in range(2)]
        await until(lambda: bench.scripted[B].waiting == 2)
        assert {(await bench.choose()).url for _ in range(4)} == {C}
        for url in by_url:
            bench.scripted[url].release()
        await asyncio.gather(*under_way)
        assert {status.outstanding for status in bench.status().values()} == {0}

    play(bench, scenario)


@pytest.mark.parametrize("error", [ConnectError, InvalidInput, DeadlineExceeded])
def test_a_request_that_fails_is_not_outstanding_any_more(bench: Bench, error: type[MooringError]) -> None:
    async def scenario() -> None:
        bench.start(A)
        await bench.fail(await bench.choose(), error)
        status = bench.status()[A]
        assert (status.outstanding, status.requests) == (0, 1)
        assert status.failures == (error is not InvalidInput)

    play(bench, scenario)


def test_servers_that_were_tried_come_last(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B, C)
        a, b, c = sorted([await bench.choose() for _ in range(3)], key=lambda server: server.url)
        bench.scripted[C].always(Hold(), GetServerMetadata)
        busy = bench.begin(c)
        await until(lambda: bench.scripted[C].waiting == 1)
        assert {(await bench.choose(a)).url for _ in range(4)} == {B}
        assert (await bench.choose(a, b)).url == C, "busy, but not tried"
        assert {(await bench.choose(a, b, c)).url for _ in range(4)} == {A, B}
        assert bench.servers.has_other([a, b])
        assert not bench.servers.has_other([a, b, c])
        bench.scripted[C].release()
        await busy

    play(bench, scenario)


# --- circuits


@pytest.mark.parametrize("error", [ConnectError, TransportError, DecodeError])
def test_a_server_that_fails_too_often_gets_no_requests(
    bench: Bench, error: type[MooringError], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        bench.start(A, B)
        a = next(server for server in [await bench.choose(), await bench.choose()] if server.url == A)
        await bench.fail(a, error, times=2)
        assert {(await bench.choose()).url for _ in range(4)} == {A, B}
        await bench.fail(a, error)
        assert bench.circuits() == {A: "open", B: "closed"}
        assert {(await bench.choose()).url for _ in range(4)} == {B}
        assert not bench.servers.has_other([await bench.choose()])

    with caplog.at_level(logging.WARNING, "mooring"):
        play(bench, scenario)
    assert [record.getMessage() for record in caplog.records] == [
        f"{A} failed too often and gets no requests for a while: {error.__name__}"
        + ("" if error is DecodeError else f": scripted {error.__name__}")
    ]


@pytest.mark.parametrize("error", [InvalidInput, ModelNotReady, Overloaded])
def test_a_server_that_says_no_is_a_server_that_lives(bench: Bench, error: type[MooringError]) -> None:
    async def scenario() -> None:
        bench.start(A)
        server = await bench.choose()
        await bench.fail(server, times=2)
        await bench.fail(server, error)
        await bench.fail(server, times=2)
        assert bench.circuits() == {A: "closed"}

    play(bench, scenario)


def test_the_callers_own_mistakes_say_nothing_of_a_server(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A)
        server = await bench.choose()
        await bench.fail(server, ConfigError, times=10)
        assert bench.circuits() == {A: "closed"}
        assert bench.status()[A].failures == 0

    play(bench, scenario)


def test_without_a_working_server_nothing_is_sent(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B)
        for server in [await bench.choose(), await bench.choose()]:
            await bench.fail(server, times=3)
        said = rf"nothing was sent: every endpoint failed lately and rests for a moment \({A}, {B}\)"
        with pytest.raises(CircuitOpen, match=said):
            await bench.choose()
        assert bench.scripted[A].probes == bench.scripted[B].probes == 0, "none is due"

    play(bench, scenario)


def test_a_good_probe_brings_a_server_back_over_a_fresh_line(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A)
        server = await bench.choose()
        await bench.fail(server, times=3)
        scripted = bench.scripted[A]
        assert len(scripted.transports) == 1
        bench.clock.advance(CIRCUIT.pause_s)
        assert await bench.choose() is server, "this call waits for the probe, having nothing else to do"
        assert (scripted.probes, scripted.timeouts_s[-1]) == (1, CIRCUIT.probe_timeout_s)
        assert bench.circuits() == {A: "closed"}
        assert [transport.closed for transport in scripted.transports] == [1, 0]
        await bench.ask(server)
        assert len(scripted.transports) == 2

    play(bench, scenario)


def test_a_server_that_says_no_to_a_probe_is_back_too(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A)
        await bench.fail(await bench.choose(), times=3)
        bench.scripted[A].next(GetServerReady, InvalidInput)
        bench.clock.advance(CIRCUIT.pause_s)
        assert (await bench.choose()).url == A

    play(bench, scenario)


@pytest.mark.parametrize("action", [ConnectError, DecodeError, Hold()], ids=["refused", "garbled", "silent"])
def test_a_bad_probe_leaves_a_server_out_for_longer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, action: Any
) -> None:
    monkeypatch.setattr(f"{__name__}.CIRCUIT", replace(CIRCUIT, probe_timeout_s=0.1))

    async def scenario() -> None:
        bench.start(A)
        await bench.fail(await bench.choose(), times=3)
        scripted = bench.scripted[A]
        scripted.always(action, GetServerReady)
        for probes, pause_s in enumerate((5.0, 10.0, 20.0, 20.0), start=1):
            bench.clock.advance(pause_s - 1.0)
            with pytest.raises(CircuitOpen):
                await bench.choose()
            assert scripted.probes == probes - 1, "not due"
            bench.clock.advance(1.0)
            with pytest.raises(CircuitOpen):
                await bench.choose()
            assert scripted.probes == probes
            assert scripted.open_transports == 1, "the probe's own is closed, the line stays"

    play(bench, scenario)


def test_a_probe_runs_beside_requests_to_other_servers(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B)
        a = next(server for server in [await bench.choose(), await bench.choose()] if server.url == A)
        await bench.fail(a, times=3)
        bench.scripted[A].always(Hold(), GetServerReady)
        bench.clock.advance(CIRCUIT.pause_s)
        assert (await bench.choose()).url == B
        await until(lambda: bench.scripted[A].waiting == 1)
        assert bench.circuits() == {A: "probing", B: "closed"}
        assert {(await bench.choose()).url for _ in range(5)} == {B}
        assert bench.scripted[A].probes == 1, "one probe at a time"
        bench.scripted[A].release()
        await until(lambda: bench.circuits()[A] == "closed")
        assert {(await bench.choose()).url for _ in range(4)} == {A, B}

    play(bench, scenario)


def test_a_call_without_time_for_a_probe_does_not_wait_for_it(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A)
        await bench.fail(await bench.choose(), times=3)
        bench.scripted[A].always(Hold(), GetServerReady)
        bench.clock.advance(CIRCUIT.pause_s)
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(CircuitOpen):
            await bench.choose(timeout_s=0.05)
        assert asyncio.get_running_loop().time() - began_s < CIRCUIT.probe_timeout_s
        # The probe has its own time all the same: one that was cut short would count against the server.
        await until(lambda: bench.scripted[A].timeouts_s[-1:] == [CIRCUIT.probe_timeout_s])

    play(bench, scenario)


def test_servers_that_a_call_has_no_time_to_probe_are_probed_behind_it(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B, C)
        await bench.fail_all(3)
        bench.scripted[A].always(Hold(), GetServerReady)
        bench.clock.advance(CIRCUIT.pause_s)
        with pytest.raises(CircuitOpen):
            await bench.choose(timeout_s=0.05)
        await until(lambda: bench.circuits() | {A: ""} == {A: "", B: "closed", C: "closed"})
        assert bench.circuits()[A] != "closed"
        assert {(await bench.choose()).url for _ in range(4)} == {B, C}

    play(bench, scenario)


@pytest.mark.parametrize("others", [Hold(), ConnectError], ids=["silent", "refused"])
def test_a_server_that_is_back_is_not_held_up_by_the_probes_of_others(bench: Bench, others: Any) -> None:
    async def scenario() -> None:
        bench.start(A, B, C)
        await bench.fail_all(3)
        for url in (A, B):
            bench.scripted[url].always(others, GetServerReady)
        bench.scripted[C].always(Hold(0.05), GetServerReady)
        bench.clock.advance(CIRCUIT.pause_s)
        assert (await bench.choose()).url == C
        waiting = int(isinstance(others, Hold))
        rest = [bench.scripted[url] for url in (A, B)]
        await until(lambda: all((one.probes, one.waiting) == (1, waiting) for one in rest))

    play(bench, scenario)


@pytest.mark.parametrize("others", [Hold(then=ConnectError), ConnectError], ids=["silent", "refused"])
def test_servers_are_probed_side_by_side(bench: Bench, others: Any) -> None:
    async def scenario() -> None:
        bench.start(A, B, C)
        await bench.fail_all(3)
        for url in (A, B):
            bench.scripted[url].always(others, GetServerReady)
        bench.scripted[C].always(Hold(then=ConnectError), GetServerReady)
        bench.clock.advance(CIRCUIT.pause_s)
        choosing = asyncio.ensure_future(bench.choose())
        silent = [A, B, C] if isinstance(others, Hold) else [C]
        await until(lambda: all(bench.scripted[url].waiting == 1 for url in silent))
        for url in silent:
            bench.scripted[url].release()
        with pytest.raises(CircuitOpen):
            await choosing
        assert [bench.scripted[url].probes for url in (A, B, C)] == [1, 1, 1]

    play(bench, scenario)


def test_a_sequence_waits_for_the_probe_of_its_own_server(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B)
        own = await bench.choose(sticky=7)
        await bench.fail_all(2)
        bench.scripted[own.url].always(Hold(0.03), GetServerReady)
        bench.clock.advance(CIRCUIT.pause_s)
        assert await bench.choose(sticky=7) is own

    play(bench, scenario)


def test_two_timeouts_are_nothing(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A)
        server = await bench.choose()
        await bench.fail(server, DeadlineExceeded, times=2)
        await bench.ask(server)
        await bench.fail(server, DeadlineExceeded, times=2)
        await asyncio.sleep(0.02)
        assert bench.scripted[A].probes == 0
        assert bench.circuits() == {A: "closed"}

    play(bench, scenario)


def test_three_timeouts_lead_to_a_probe_that_replaces_the_line(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A)
        server = await bench.choose()
        scripted = bench.scripted[A]
        scripted.next(GetIndex, Hold())
        slow = asyncio.ensure_future(bench.ask(server, GetIndex()))
        await until(lambda: scripted.waiting == 1)
        await bench.fail(server, DeadlineExceeded, times=3)
        await until(lambda: scripted.probes == 1 and len(scripted.transports) == 2)
        await until(lambda: bench.servers.status()[0].circuit == "closed")
        await bench.ask(server)
        assert [transport.closed for transport in scripted.transports] == [0, 0], "one is still in use"
        scripted.release()
        await slow
        assert [transport.closed for transport in scripted.transports] == [1, 0]

    play(bench, scenario)


def test_a_probe_that_can_not_begin_is_made_up_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may have no thread left for a moment."""

    async def scenario() -> None:
        bench.start(A)
        server = await bench.choose()
        with monkeypatch.context() as patch:
            patch.setattr(bench.work, "spawn", lambda work: False)
            await bench.fail(server, DeadlineExceeded, times=3)
            assert bench.scripted[A].probes == 0
        await bench.fail(server, DeadlineExceeded, times=3)
        await until(lambda: bench.scripted[A].probes == 1)
        await until(lambda: bench.circuits() == {A: "closed"})
        await bench.fail(server, times=3)
        bench.clock.advance(CIRCUIT.pause_s)
        with monkeypatch.context() as patch:
            patch.setattr(bench.work, "spawn", lambda work: False)
            with pytest.raises(CircuitOpen):
                await bench.choose()
        assert bench.circuits() == {A: "open"}
        assert await bench.choose() is server

    play(bench, scenario)


def test_three_timeouts_and_silence_open_the_circuit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(f"{__name__}.CIRCUIT", replace(CIRCUIT, probe_timeout_s=0.5))

    async def scenario() -> None:
        bench.start(A, B)
        a = next(server for server in [await bench.choose(), await bench.choose()] if server.url == A)
        bench.scripted[A].always(Hold(), GetServerReady)
        await bench.fail(a, DeadlineExceeded, times=3)
        assert bench.circuits()[A] == "closed", "until the probe's time is over, it may just be slow"
        await until(lambda: bench.circuits()[A] == "open")
        assert {(await bench.choose()).url for _ in range(4)} == {B}

    with caplog.at_level(logging.WARNING, "mooring"):
        play(bench, scenario)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"{A} is silent and gets no requests for a while"]


# --- sequences


def test_a_sequence_stays_with_its_server(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B, C)
        for sequence in range(1, 20):
            chosen = {(await bench.choose(sticky=("m", sequence))).url for _ in range(3)}
            assert len(chosen) == 1
        tried = await bench.choose(sticky=("m", 1))
        assert await bench.choose(tried, sticky=("m", 1)) is tried, "its state is nowhere else"

    play(bench, scenario)


@pytest.mark.parametrize("servers", [2, 3, 5, 8])
def test_sequences_spread_evenly(bench: Bench, servers: int) -> None:
    async def scenario() -> None:
        bench.start(*(f"grpc://10.0.0.{n}:8001" for n in range(1, servers + 1)))
        chosen = Counter([(await bench.choose(sticky=("m", n))).url for n in range(400)])
        assert len(chosen) == servers
        assert all(0.5 * 400 / servers < count < 1.6 * 400 / servers for count in chosen.values()), chosen

    play(bench, scenario)


def test_a_sequence_fails_with_its_server_and_moves_nowhere(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B)
        server = await bench.choose(sticky=("m", 7))
        await bench.fail(server, times=3)
        with pytest.raises(CircuitOpen, match=f"{server.url}, which has the sequence's state, failed lately"):
            await bench.choose(sticky=("m", 7))
        scripted = bench.scripted[server.url]
        scripted.next(GetServerReady, Hold())
        bench.clock.advance(CIRCUIT.pause_s)
        with pytest.raises(CircuitOpen):
            # The other server works, so that nobody waits for the probe.
            await bench.choose(sticky=("m", 7))
        await until(lambda: scripted.waiting == 1)
        scripted.release()
        await until(lambda: bench.circuits()[server.url] == "closed")
        assert await bench.choose(sticky=("m", 7)) is server

    play(bench, scenario)


def test_servers_that_come_or_go_move_only_their_own_sequences(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(monkeypatch)

    async def where() -> dict[int, str]:
        return {n: (await bench.choose(sticky=("m", n))).url for n in range(120)}

    async def scenario() -> None:
        bench.start("grpc://triton:8001", resolve_interval_s=30.0)
        names["triton"] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
        before = await where()
        names["triton"] = ["10.0.0.1", "10.0.0.3", "10.0.0.4"]
        await resolve_again(bench)
        after = await where()
        gone, come = "grpc://triton:8001 (10.0.0.2)", "grpc://triton:8001 (10.0.0.4)"
        assert gone in before.values()
        assert come in after.values()
        moved = {n for n in before if before[n] != after[n]}
        assert moved == {n for n in before if before[n] == gone or after[n] == come}

    play(bench, scenario)


# --- names


class Names:
    """A name service."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        #: Addresses, or an error, or an event to wait for.
        self._known: dict[str, Any] = {}
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def __setitem__(self, name: str, answer: Any) -> None:
        self._known[name] = answer

    def _getaddrinfo(self, host: str, port: int, *args: Any, **options: Any) -> Any:
        self.asked.append(host)
        answer = self._known[host]
        if isinstance(answer, threading.Event):
            answer.wait(10.0)
            answer = []
        if isinstance(answer, Exception):
            raise answer
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port),
            )
            for address in answer
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


async def resolve_again(bench: Bench) -> None:
    """Let the interval pass and the look-up in the background end."""
    known = bench.servers._look_up_at_s
    bench.clock.advance(bench.servers._connections.resolve_interval_s)
    await bench.choose()
    await until(lambda: bench.servers._look_up_at_s != known)
    await until(lambda: not bench.servers._looking_up)


def test_a_name_with_several_addresses_stands_for_as_many_servers(bench: Bench, names: Names) -> None:
    async def scenario() -> None:
        bench.start("grpc://triton:8001")
        names["triton"] = ["10.0.0.1", "10.0.0.2"]
        chosen = [await bench.choose() for _ in range(4)]
        urls = {"grpc://triton:8001 (10.0.0.1)", "grpc://triton:8001 (10.0.0.2)"}
        assert {server.url for server in chosen} == urls
        assert {server.endpoint.connect_to for server in chosen} == {"10.0.0.1", "10.0.0.2"}
        assert {server.endpoint.host for server in chosen} == {"triton"}
        assert set(bench.status()) == urls
        assert names.asked == ["triton"]

    play(bench, scenario)


@pytest.mark.parametrize(
    ("addresses", "connect_to"),
    [
        (["10.0.0.1"], {None}),
        (["fd00::1"], {None}),
        (["10.0.0.1", "fd00::1"], {None}),
        (["fd00::1", "10.0.0.1"], {None}),
        (["fd00::1", "fd00::2", "10.0.0.1"], {"fd00::1", "fd00::2"}),
        (["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"], {"10.0.0.1", "10.0.0.2"}),
        # What comes last may be out of reach, and a majority does not bring it nearer.
        (["fd00::1", "10.0.0.1", "10.0.0.2"], {None}),
        (["10.0.0.1", "fd00::1", "fd00::2"], {None}),
        (["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2", "fd00::3"], {"10.0.0.1", "10.0.0.2"}),
    ],
)
def test_one_server_may_have_an_address_of_each_family(
    bench: Bench, names: Names, addresses: list[str], connect_to: set[str | None]
) -> None:
    async def scenario() -> None:
        bench.start("http://triton:8000")
        names["triton"] = addresses
        chosen = [(await bench.choose()).endpoint.connect_to for _ in range(6)]
        assert set(chosen) == connect_to

    play(bench, scenario)


@pytest.mark.parametrize(
    "url",
    ["grpc://127.0.0.1:8001", "grpc://[::1]:8001", "http://localhost:8000", "grpc://[fe80::1%eth0]:8001"],
)
def test_addresses_and_localhost_are_not_resolved(bench: Bench, names: Names, url: str) -> None:
    async def scenario() -> None:
        bench.start(url)
        assert set(bench.status()) == {url}
        bench.clock.advance(1000.0)
        assert (await bench.choose()).url == url
        assert names.asked == []

    play(bench, scenario)


def test_nothing_is_resolved_where_that_is_not_wanted(bench: Bench, names: Names) -> None:
    async def scenario() -> None:
        bench.start("grpc://triton:8001", resolve=False)
        assert (await bench.choose()).url == "grpc://triton:8001"
        assert names.asked == []

    play(bench, scenario)


def test_names_and_addresses_mix(bench: Bench, names: Names) -> None:
    async def scenario() -> None:
        bench.start(A, "grpc://triton:8001", "grpc://other:8001")
        names["triton"] = ["10.0.1.1", "10.0.1.2"]
        names["other"] = ["10.0.2.1"]
        chosen = {(await bench.choose()).url for _ in range(8)}
        triton = {"grpc://triton:8001 (10.0.1.1)", "grpc://triton:8001 (10.0.1.2)"}
        assert chosen == {A, "grpc://other:8001", *triton}
        assert names.asked == ["triton", "other"]

    play(bench, scenario)


def test_addresses_come_and_go(bench: Bench, names: Names) -> None:
    async def scenario() -> None:
        bench.start("grpc://triton:8001", resolve_interval_s=30.0)
        names["triton"] = ["10.0.0.1", "10.0.0.2"]
        first = {server.endpoint.connect_to: server for server in [await bench.choose() for _ in range(2)]}
        for server in first.values():
            await bench.ask(server)
        bench.clock.advance(29.0)
        await bench.choose()
        assert names.asked == ["triton"], "not yet"
        names["triton"] = ["10.0.0.2", "10.0.0.3"]
        await resolve_again(bench)
        second = {server.endpoint.connect_to: server for server in [await bench.choose() for _ in range(2)]}
        assert set(second) == {"10.0.0.2", "10.0.0.3"}
        assert second["10.0.0.2"] is first["10.0.0.2"], "what stays keeps its connections and its circuit"
        await until(lambda: bench.scripted[first["10.0.0.1"].url].open_transports == 0)
        assert bench.scripted[first["10.0.0.2"].url].open_transports == 1
        assert bench.servers.requests == 2, "what was sent to an address that is gone stays counted"
        await bench.ask(second["10.0.0.3"])
        assert bench.servers.requests == 3
        assert sum(status.requests for status in bench.servers.status()) == 2

    play(bench, scenario)


def test_a_server_that_goes_is_closed_after_its_last_request(bench: Bench, names: Names) -> None:
    async def scenario() -> None:
        bench.start("grpc://triton:8001")
        names["triton"] = ["10.0.0.1", "10.0.0.2"]
        servers = [await bench.choose() for _ in range(2)]
        gone = next(server for server in servers if server.endpoint.connect_to == "10.0.0.1")
        scripted = bench.scripted[gone.url]
        scripted.next(GetServerMetadata, Hold())
        slow = bench.begin(gone)
        await until(lambda: scripted.waiting == 1)
        names["triton"] = ["10.0.0.2", "10.0.0.3"]
        await resolve_again(bench)
        assert scripted.open_transports == 1
        scripted.release()
        await slow
        assert scripted.open_transports == 0

    play(bench, scenario)


def test_a_request_that_chose_a_server_just_before_it_went_is_still_sent(bench: Bench, names: Names) -> None:
    async def scenario() -> None:
        bench.start("grpc://triton:8001")
        names["triton"] = ["10.0.0.1", "10.0.0.2"]
        servers = [await bench.choose() for _ in range(2)]
        gone = next(server for server in servers if server.endpoint.connect_to == "10.0.0.1")
        await bench.ask(gone)
        names["triton"] = ["10.0.0.2", "10.0.0.3"]
        await resolve_again(bench)
        await until(lambda: bench.scripted[gone.url].open_transports == 0)
        assert (await bench.ask(gone)).name == "fake"
        assert bench.scripted[gone.url].open_transports == 0, "nobody would close it later"

    play(bench, scenario)


def test_a_failed_look_up_keeps_the_addresses_found_before(
    bench: Bench, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        bench.start("grpc://triton:8001", resolve_interval_s=30.0)
        names["triton"] = ["10.0.0.1", "10.0.0.2"]
        first = {await bench.choose() for _ in range(2)}
        names["triton"] = socket.gaierror(-3, "Temporary failure")
        await resolve_again(bench)
        assert {await bench.choose() for _ in range(4)} == first
        assert len(names.asked) == 2, "the next one has its time"
        names["triton"] = ["10.0.0.1", "10.0.0.3"]
        await resolve_again(bench)
        assert set(bench.status()) == {"grpc://triton:8001 (10.0.0.1)", "grpc://triton:8001 (10.0.0.3)"}

    with caplog.at_level(logging.WARNING, "mooring"):
        play(bench, scenario)
    (record,) = caplog.records
    assert "grpc://triton:8001: the name can't be resolved" in record.getMessage()
    assert record.getMessage().endswith("; the addresses found before are kept")


def test_a_look_up_that_can_not_begin_is_made_up_for(
    bench: Bench, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        bench.start("grpc://triton:8001", resolve_interval_s=30.0)
        names["triton"] = ["10.0.0.1", "10.0.0.2"]
        await bench.choose()
        bench.clock.advance(30.0)
        with monkeypatch.context() as patch:
            patch.setattr(bench.work, "spawn", lambda work: False)
            await bench.choose()
        names["triton"] = ["10.0.0.3", "10.0.0.4"]
        bench.clock.advance(1.0)
        await bench.choose()
        await until(
            lambda: {server.endpoint.connect_to for server in bench.servers._list} == {"10.0.0.3", "10.0.0.4"}
        )
        await until(lambda: not bench.servers._looking_up)

    play(bench, scenario)


def test_a_look_up_in_the_background_holds_nobody_up(bench: Bench, names: Names) -> None:
    async def scenario() -> None:
        bench.start("grpc://triton:8001", resolve_interval_s=30.0)
        names["triton"] = ["10.0.0.1", "10.0.0.2"]
        await bench.choose()
        names["triton"] = hanging = threading.Event()
        bench.clock.advance(30.0)
        for _ in range(5):
            await bench.choose(timeout_s=2.0)
        await until(lambda: len(names.asked) == 2)
        names["triton"] = ["10.0.0.1", "10.0.0.2"]
        hanging.set()
        await until(lambda: not bench.servers._looking_up)

    play(bench, scenario)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (socket.gaierror(-2, "Name or service not known"), ConnectError, "can't be resolved .*not known"),
        (UnicodeError("label too long"), ConnectError, r"can't be resolved \(label too long\)"),
    ],
)
def test_the_first_look_up_says_what_is_wrong(
    bench: Bench, names: Names, answer: Any, error: type[MooringError], said: str
) -> None:
    async def scenario() -> None:
        bench.start("grpc://triton:8001")
        names["triton"] = answer
        with pytest.raises(error, match=f"grpc://triton:8001: the name {said}"):
            await bench.choose(timeout_s=3.0)
        names["triton"] = ["10.0.0.1"]
        assert (await bench.choose()).url == "grpc://triton:8001", "the next call asks again"

    play(bench, scenario)


def test_a_name_that_fails_leaves_the_other_servers_be(bench: Bench, names: Names) -> None:
    async def scenario() -> None:
        bench.start(A, "grpc://gone:8001", "grpc://triton:8001", resolve_interval_s=30.0)
        names["gone"] = socket.gaierror(-2, "Name or service not known")
        names["triton"] = ["10.0.0.1", "10.0.0.2"]
        chosen = {(await bench.choose()).url for _ in range(6)}
        assert chosen == {A, "grpc://triton:8001 (10.0.0.1)", "grpc://triton:8001 (10.0.0.2)"}
        names["triton"] = ["10.0.0.3", "10.0.0.4"]
        await resolve_again(bench)
        assert set(bench.status()) == {A, "grpc://triton:8001 (10.0.0.3)", "grpc://triton:8001 (10.0.0.4)"}
        names["gone"] = ["10.0.1.1"]
        names["triton"] = socket.gaierror(-3, "Temporary failure")
        await resolve_again(bench)
        assert set(bench.status()) == {
            A,
            "grpc://gone:8001",
            "grpc://triton:8001 (10.0.0.3)",
            "grpc://triton:8001 (10.0.0.4)",
        }

    play(bench, scenario)


def test_look_ups_of_all_names_end_with_the_calls_deadline(bench: Bench, names: Names) -> None:
    async def scenario() -> None:
        bench.start("grpc://one:8001", "grpc://two:8001", "grpc://three:8001")
        hanging = threading.Event()
        for name in ("one", "two", "three"):
            names[name] = hanging
        try:
            began_s = asyncio.get_running_loop().time()
            with pytest.raises(DeadlineExceeded, match="grpc://one:8001: the name was not resolved within"):
                await bench.choose(timeout_s=0.2)
            assert asyncio.get_running_loop().time() - began_s < 5.0
        finally:
            hanging.set()

    play(bench, scenario)


def test_a_late_name_does_not_get_the_whole_budget_again(
    bench: Bench, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        bench.start("grpc://one:8001", "grpc://two:8001")
        asked: list[float] = []

        async def look_up(host: str, port: int, *, timeout_s: float) -> list[str]:
            asked.append(timeout_s)
            await asyncio.sleep(0.1)
            return ["10.0.0.1"]

        def sync_look_up(host: str, port: int, *, timeout_s: float) -> list[str]:
            asked.append(timeout_s)
            threading.Event().wait(0.1)
            return ["10.0.0.1"]

        monkeypatch.setattr(bench.work, "look_up", look_up if bench.is_async else sync_look_up)
        await bench.choose(timeout_s=5.0)
        # Each has an equal part of what is left.
        assert 2.0 < asked[0] <= 2.5
        assert 3.0 < asked[1] < 4.95

    play(bench, scenario)


def test_a_client_that_is_closed_during_its_first_look_up_goes_no_further(bench: Bench, names: Names) -> None:
    async def scenario() -> None:
        bench.start("grpc://triton:8001")
        names["triton"] = answered = threading.Event()
        choosing = asyncio.ensure_future(bench.choose())
        await until(lambda: names.asked == ["triton"])
        await bench.close()
        answered.set()
        with pytest.raises(ConfigError, match="grpc://triton:8001: the client was closed while a call began"):
            await choosing
        assert bench.status() == {}

    play(bench, scenario)


# --- ages and ends


def test_an_old_line_is_replaced_and_closed_when_idle(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, max_age_s=100.0)
        server = await bench.choose()
        await bench.ask(server)
        bench.clock.advance(89.0)
        await bench.ask(server)
        scripted = bench.scripted[A]
        assert len(scripted.transports) == 1, "an age lies within a tenth of what was asked for"
        bench.clock.advance(22.0)
        await bench.ask(server)
        assert [transport.closed for transport in scripted.transports] == [1, 0]

    play(bench, scenario)


def test_an_old_line_is_closed_after_the_answer_over_the_new_one(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, max_age_s=100.0)
        server = await bench.choose()
        await bench.ask(server)
        bench.clock.advance(111.0)
        scripted = bench.scripted[A]
        scripted.next(GetServerMetadata, Hold())
        slow = bench.begin(server)
        await until(lambda: scripted.waiting == 1)
        assert [transport.closed for transport in scripted.transports] == [0, 0]
        scripted.release()
        await slow
        assert [transport.closed for transport in scripted.transports] == [1, 0]

    play(bench, scenario)


def test_an_old_line_is_closed_only_after_its_last_request(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, max_age_s=100.0)
        server = await bench.choose()
        scripted = bench.scripted[A]
        scripted.next(GetServerMetadata, Hold(), Hold())
        slow = [bench.begin(server), bench.begin(server)]
        await until(lambda: scripted.waiting == 2)
        bench.clock.advance(111.0)
        await bench.ask(server)
        assert [transport.closed for transport in scripted.transports] == [0, 0]
        scripted.release()
        await asyncio.gather(*slow)
        assert [transport.closed for transport in scripted.transports] == [1, 0]
        await bench.ask(server)
        assert len(scripted.transports) == 2

    play(bench, scenario)


def test_lines_opened_together_are_not_replaced_together(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(*(f"grpc://10.0.0.{n}:8001" for n in range(1, 21)), max_age_s=100.0)
        servers = [await bench.choose() for _ in range(20)]
        for server in servers:
            await bench.ask(server)
        assert len({round(server._line.ends_at_s) for server in servers}) > 3

    play(bench, scenario)


def test_closing_ends_what_is_under_way_and_refuses_the_rest(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A)
        server = await bench.choose()
        bench.scripted[A].always(Hold(), GetServerMetadata)
        slow = bench.begin(server)
        await until(lambda: bench.scripted[A].waiting == 1)
        await bench.close()
        with pytest.raises(TransportError, match="closed while the request was under way"):
            await slow
        with pytest.raises(ConfigError, match=f"{A}: the client was closed while a call began"):
            await bench.ask(server)
        await bench.close()

    play(bench, scenario)


def test_closing_ends_what_is_under_way_over_an_old_line(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, max_age_s=100.0)
        server = await bench.choose()
        bench.scripted[A].next(GetServerMetadata, Hold())
        slow = bench.begin(server)
        await until(lambda: bench.scripted[A].waiting == 1)
        bench.clock.advance(111.0)
        await bench.ask(server)
        await bench.close()
        with pytest.raises(TransportError, match="closed while the request was under way"):
            await slow

    play(bench, scenario)


def test_closing_ends_what_is_under_way_at_an_address_that_is_gone(bench: Bench, names: Names) -> None:
    async def scenario() -> None:
        bench.start("grpc://triton:8001")
        names["triton"] = ["10.0.0.1", "10.0.0.2"]
        servers = [await bench.choose() for _ in range(2)]
        gone = next(server for server in servers if server.endpoint.connect_to == "10.0.0.1")
        bench.scripted[gone.url].next(GetServerMetadata, Hold())
        slow = bench.begin(gone)
        await until(lambda: bench.scripted[gone.url].waiting == 1)
        names["triton"] = ["10.0.0.2", "10.0.0.3"]
        await resolve_again(bench)
        await resolve_again(bench)
        await bench.close()
        with pytest.raises(TransportError, match="closed while the request was under way"):
            await slow

    play(bench, scenario)


def test_closing_ends_a_probe(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B)
        a = next(server for server in [await bench.choose(), await bench.choose()] if server.url == A)
        await bench.fail(a, times=3)
        bench.scripted[A].always(Hold(), GetServerReady)
        bench.clock.advance(CIRCUIT.pause_s)
        await bench.choose()
        await until(lambda: bench.scripted[A].waiting == 1)

    play(bench, scenario)


def test_a_probe_that_ends_after_closing_leaves_no_line(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A)
        server = await bench.choose()
        bench.scripted[A].next(GetServerReady, Hold())
        probe = asyncio.ensure_future(bench.call(server.probe))
        await until(lambda: bench.scripted[A].waiting == 1)
        await bench.call(bench.servers.close)
        bench.scripted[A].release()
        await probe

    play(bench, scenario)


def test_a_server_is_retired_without_ever_having_been_used(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A)
        server = await bench.choose()
        await bench.call(server.retire)
        assert bench.scripted[A].transports == []

    play(bench, scenario)


def test_abandoned_connections_are_forgotten_and_not_closed(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A, B)
        for _ in range(2):
            await bench.ask(await bench.choose())
        bench.servers.abandon()
        transports = [*bench.scripted[A].transports, *bench.scripted[B].transports]
        assert [(transport.abandoned, transport.closed) for transport in transports] == [(1, 0)] * 2

    play(bench, scenario)


# --- streams


async def collect(bench: Bench, server: Any, *, limit: int | None = None) -> list[Any]:
    """The responses of a stream, or the first few."""
    answers = server.stream(Infer(model="m", inputs=()), timeout_s=10.0, headers=())
    found: list[Any] = []
    if bench.is_async:
        async for answer in answers:
            found.append(answer)
            if len(found) == limit:
                break
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


@pytest.mark.parametrize("limit", [None, 2], ids=["whole", "left early"])
def test_a_stream_is_outstanding_until_it_ends(bench: Bench, limit: int | None) -> None:
    async def scenario() -> None:
        bench.start(A)
        server = await bench.choose()
        bench.scripted[A].next(Infer, [1, 2, 3])
        assert await collect(bench, server, limit=limit) == [1, 2, 3][:limit]
        status = bench.status()[A]
        assert (status.outstanding, status.requests, status.failures) == (0, 1, 0)

    play(bench, scenario)


def test_streams_that_break_open_the_circuit(bench: Bench) -> None:
    async def scenario() -> None:
        bench.start(A)
        server = await bench.choose()
        for _ in range(3):
            bench.scripted[A].next(Infer, [1, TransportError("lost")])
            with pytest.raises(TransportError, match="lost"):
                await collect(bench, server)
        assert bench.circuits() == {A: "open"}
        assert bench.status()[A].outstanding == 0

    play(bench, scenario)


def test_scripted_servers_are_one_per_address() -> None:
    scripted = ScriptedServers()
    assert scripted[A] is scripted[A]
    assert isinstance(scripted[B], ScriptedServer)
    assert scripted[A] is not scripted[B]
