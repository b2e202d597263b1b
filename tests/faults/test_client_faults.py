"""One real tritonserver behind a proxy that injects faults: each call ends in time, as documented."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from crashes import started_again_if_it_dies
from driven_clients import PAIRS, AnyClient, Pair, timed
from fault_kinds import (
    BlackHole,
    CloseAfter,
    Delay,
    Fault,
    Garbage,
    HttpStatus,
    Pass,
    Refuse,
    ResetAfter,
    Trickle,
)
from fault_proxy import FaultProxy
from mooring import (
    CircuitOpen,
    CircuitPolicy,
    ConnectError,
    DeadlineExceeded,
    DecodeError,
    MooringError,
    Overloaded,
    TransportError,
)
from mooring_serve import TritonServer
from recording_models import executions, write_recorder

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default:started again")]

#: Comes back soon, so that tests of recovery are quick.
QUICK = CircuitPolicy(pause_s=0.1, max_pause_s=0.2, probe_timeout_s=0.5)
HTTP_PAIRS = [pair for pair in PAIRS if pair.protocol == "http"]
_ids = map(str, itertools.count())


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recorder(tmp_path_factory.mktemp("faults") / "repository", instances=2)


@pytest.fixture(scope="module")
def server(record: Path) -> Iterator[TritonServer]:
    folder = record.parent
    with TritonServer(folder / "repository", log_file=folder / "tritonserver.log") as running:
        yield running


@pytest.fixture
def proxy(server: TritonServer, pair: Pair) -> Iterator[FaultProxy]:
    with FaultProxy(pair.address(server)) as running, started_again_if_it_dies(server, running, pair):
        yield running


@pytest.fixture
def client(proxy: FaultProxy, pair: Pair) -> Iterator[AnyClient]:
    """Has asked for the model's signature already."""
    with pair(f"{pair.protocol}://{proxy.address}", circuit=QUICK) as made:
        infer(made)
        yield made


@pytest.fixture
def ran(record: Path) -> Callable[[str], int]:
    """How often the model ran the request of this id."""
    return lambda request_id: executions(record).count(request_id)


def infer(
    client: AnyClient,
    *,
    timeout_s: float = 10.0,
    request_id: str = "",
    columns: int = 1,
    sleep_s: float = 0.0,
) -> None:
    """One inference, whose answer is compared."""
    x = np.full((1, columns), random.random() / 1e6, np.float32)
    x[0, 0] = sleep_s
    answer = client.infer("recorder", {"x": x}, timeout_s=timeout_s, request_id=request_id)
    np.testing.assert_array_equal(answer["y"], x)


def fail(client: AnyClient, *, timeout_s: float, columns: int = 1) -> tuple[MooringError, str]:
    """One inference that has to fail in time; returns its error and its id."""
    request_id = f"fail-{next(_ids)}"
    ended = timed(
        lambda: infer(client, timeout_s=timeout_s, request_id=request_id, columns=columns),
        timeout_s=timeout_s,
    )
    assert ended.error is not None, "it was answered"
    return ended.error, request_id


def check_recovery(client: AnyClient, *, within_s: float = 60.0) -> None:
    """Calls succeed again before long, and from then on every one does."""
    ends_at_s = time.monotonic() + within_s
    while True:
        ended = timed(lambda: infer(client, timeout_s=2), timeout_s=2)
        if ended.error is None:
            break
        assert time.monotonic() < ends_at_s, f"no recovery: {ended.error!r}"
        time.sleep(0.05)
    for _ in range(20):
        infer(client)
    assert {endpoint.circuit for endpoint in client.counters().endpoints} == {"closed"}


def hit_open_connections(proxy: FaultProxy, fault: Fault) -> None:
    """Only connections that are open already get the fault."""
    proxy.fault = fault
    proxy.fault = Pass()


def test_refused(client: AnyClient, proxy: FaultProxy) -> None:
    proxy.fault = Refuse(apply_to_open=True)
    before = proxy.connections
    errors = [fail(client, timeout_s=2)[0] for _ in range(6)]
    # The first may be told of its connection's loss, which happened while none was under way.
    assert all(isinstance(error, ConnectError) for error in errors[1:]), errors
    assert type(errors[-1]) is CircuitOpen
    assert "every endpoint failed lately" in str(errors[-1])
    assert proxy.connections == before
    assert client.counters().endpoints[0].circuit in ("open", "probing")
    proxy.fault = Pass()
    check_recovery(client)


@pytest.mark.parametrize("fault", [ResetAfter, CloseAfter])
@pytest.mark.parametrize("size", [0, 20_000])
def test_connection_lost_in_an_answer(
    client: AnyClient, proxy: FaultProxy, pair: Pair, ran: Callable[[str], int], fault: type, size: int
) -> None:
    """The model has run: the call fails, and it does not run again."""
    hit_open_connections(proxy, fault(size, apply_to_open=True))
    error, request_id = fail(client, timeout_s=5, columns=100_000)
    assert type(error) is TransportError
    assert "connection lost before an answer came" in str(error)
    assert len(error.attempts) == 1
    if pair.protocol == "grpc" and size == 0:
        # The server's first bytes make room for the rest of the request, so it may not have run.
        assert ran(request_id) <= 1
    else:
        assert ran(request_id) == 1
    assert client.counters().retries == 0
    check_recovery(client)


@pytest.mark.parametrize("fault", [ResetAfter(0, apply_to_open=True), CloseAfter(0, apply_to_open=True)])
def test_reads_are_repeated_after_a_lost_connection(
    client: AnyClient, proxy: FaultProxy, fault: Fault
) -> None:
    for read in (client.server_ready, client.models, lambda: client.metadata("recorder")):
        hit_open_connections(proxy, fault)
        assert timed(read, timeout_s=30).value
    # gRPC may notice the loss before the next call; aiohttp repeats GET by itself, and models() is a POST.
    assert 1 <= client.counters().retries <= 3
    assert client.counters().failed_calls == 0


def test_every_connection_is_lost(client: AnyClient, proxy: FaultProxy) -> None:
    proxy.fault = ResetAfter(0, apply_to_open=True)
    ended = timed(lambda: client.metadata("recorder", timeout_s=3), timeout_s=3)
    assert isinstance(ended.error, TransportError)
    assert len(ended.error.attempts) == 3
    proxy.fault = Pass()
    check_recovery(client)


def test_black_hole(client: AnyClient, proxy: FaultProxy, ran: Callable[[str], int]) -> None:
    proxy.fault = BlackHole(apply_to_open=True)
    errors = [fail(client, timeout_s=0.4)[0] for _ in range(3)]
    assert [type(error) for error in errors] == [DeadlineExceeded] * 3
    assert "no answer within 0." in str(errors[0])
    # The third is followed by a probe, which finds nobody.
    ends_at_s = time.monotonic() + 10
    while type(fail(client, timeout_s=0.4)[0]) is not CircuitOpen:
        assert time.monotonic() < ends_at_s, "the circuit did not open"
    proxy.fault = Pass()
    check_recovery(client)


def test_a_first_call_into_a_black_hole(proxy: FaultProxy, pair: Pair) -> None:
    proxy.fault = BlackHole()
    with pair(f"{pair.protocol}://{proxy.address}", timeout_s=0.5) as client:
        assert timed(lambda: infer(client, timeout_s=0.5), timeout_s=0.5).kind is DeadlineExceeded
        assert timed(client.models, timeout_s=0.5).kind is DeadlineExceeded


def test_slow_trickle(client: AnyClient, proxy: FaultProxy) -> None:
    """Bytes that keep coming do not prolong a call."""
    proxy.fault = Trickle(bytes_per_s=300, apply_to_open=True)
    error, _ = fail(client, timeout_s=0.6, columns=50_000)
    assert type(error) is DeadlineExceeded
    proxy.fault = Pass(apply_to_open=True)
    check_recovery(client)


def test_a_replaced_server_behind_a_half_open_connection(
    client: AnyClient, proxy: FaultProxy, server: TritonServer, pair: Pair
) -> None:
    """The old connection says nothing any more, not even that it is gone; a new one works."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: infer(client, sleep_s=0.05), range(4)))
        proxy.freeze()
        proxy.retarget(pair.address(server))
        kinds = [timed(lambda: infer(client, timeout_s=0.5), timeout_s=0.5).kind for _ in range(8)]
    # Three timeouts in a row raise suspicion; the fourth may begin before the probe has ended.
    assert set(kinds) <= {None, DeadlineExceeded}
    assert kinds[5:] == [None] * 3
    check_recovery(client)


GARBAGE = {
    "binary": b"\x00\xff\x13garbage" * 10,
    "text": b"SSH-2.0-OpenSSH_9.6\r\n",
    "half": b"HTTP/1.1 200 OK\r\nContent-Le",
    "page": b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n<html></html",
    "json": b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"a": []}',
    "frame": b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" * 3,
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage(
    client: AnyClient, proxy: FaultProxy, pair: Pair, data: bytes, request: pytest.FixtureRequest
) -> None:
    proxy.fault = Garbage(data, apply_to_open=True)
    errors = [fail(client, timeout_s=2)[0], timed(lambda: client.models(timeout_s=2), timeout_s=2).error]
    allowed: tuple[type[MooringError], ...] = (DecodeError,)
    if pair.protocol == "grpc" or request.node.callspec.id.endswith("half"):
        allowed = (DecodeError, TransportError)
    assert all(isinstance(error, allowed) for error in errors), errors
    assert not any(isinstance(error, DeadlineExceeded) for error in errors)
    proxy.fault = Pass()
    check_recovery(client)


@pytest.mark.parametrize("pair", HTTP_PAIRS, ids=str)
@pytest.mark.parametrize("status", [429, 502, 503])
def test_http_overload_is_waited_for(
    client: AnyClient, proxy: FaultProxy, ran: Callable[[str], int], status: int
) -> None:
    proxy.fault = HttpStatus(status, {"Retry-After": "1"}, b"busy", times=1, apply_to_open=True)
    request_id = f"waited-{next(_ids)}"
    ended = timed(lambda: infer(client, timeout_s=10, request_id=request_id), timeout_s=10)
    assert ended.error is None
    assert ended.seconds >= 0.95
    assert (client.counters().retries, ran(request_id)) == (1, 1)


@pytest.mark.parametrize("pair", HTTP_PAIRS, ids=str)
@pytest.mark.parametrize("status", [429, 502, 503])
def test_http_overload_for_longer_than_the_deadline(
    client: AnyClient, proxy: FaultProxy, ran: Callable[[str], int], status: int
) -> None:
    proxy.fault = HttpStatus(status, {"Retry-After": "60"}, b"busy until noon", apply_to_open=True)
    error, request_id = fail(client, timeout_s=0.5)
    assert type(error) is Overloaded
    assert (error.code, error.retry_after_s) == (str(status), 60)
    assert "busy until noon" in str(error)
    assert len(error.attempts) == 1
    assert ran(request_id) == 0
    # A server that says no is there: its circuit stays closed.
    assert client.counters().endpoints[0].circuit == "closed"


@pytest.mark.parametrize("pair", HTTP_PAIRS, ids=str)
def test_http_overload_without_end(client: AnyClient, proxy: FaultProxy) -> None:
    proxy.fault = HttpStatus(503, apply_to_open=True)
    seen = proxy.requests_seen
    error, _ = fail(client, timeout_s=5)
    assert [type(attempt) for attempt in error.attempts] == [Overloaded] * 3
    assert proxy.requests_seen == seen + 3


def test_one_fault_after_another_under_load(
    client: AnyClient, proxy: FaultProxy, ran: Callable[[str], int], record: Path, pair: Pair
) -> None:
    """Eight callers while the network does what it likes: no call hangs, and none runs twice."""
    faults: list[Fault] = [
        ResetAfter(300, apply_to_open=True),
        CloseAfter(2_000, apply_to_open=True),
        BlackHole(apply_to_open=True),
        Garbage(GARBAGE["text"], apply_to_open=True),
        Refuse(apply_to_open=True),
        Trickle(bytes_per_s=1_000, apply_to_open=True),
        Delay(0.2, apply_to_open=True),
    ]
    chance = random.Random(f"{pair}")
    ends_at_s = time.monotonic() + 2.5
    marks = f"chaos-{pair}-"

    def call_on(caller: int) -> tuple[int, int]:
        answered = failed = 0
        while time.monotonic() < ends_at_s:
            request_id = f"{marks}{caller}-{answered + failed}"
            call = partial(infer, client, timeout_s=0.5, request_id=request_id, columns=500)
            ended = timed(call, timeout_s=0.5)
            if ended.error is None:
                answered += 1
            else:
                assert isinstance(ended.error, TransportError | DecodeError), ended.error
                failed += 1
                time.sleep(0.01)
        return answered, failed

    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(call_on, number) for number in range(8)]
        while time.monotonic() < ends_at_s:
            proxy.fault = chance.choice(faults)
            time.sleep(0.15)
            proxy.fault = Pass(apply_to_open=True)
            time.sleep(0.25)
        counts = [caller.result() for caller in callers]
    proxy.fault = Pass(apply_to_open=True)
    assert sum(answered for answered, _ in counts) > 0
    assert sum(failed for _, failed in counts) > 0
    check_recovery(client)
    ids = [name for name in executions(record) if name.startswith(marks)]
    assert len(ids) == len(set(ids))
    assert client.counters().endpoints[0].outstanding == 0
