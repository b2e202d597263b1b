"""Three endpoints of which some are dead, silent or slow: the others do the work until they are back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest

from driven_clients import AnyClient, Ended, Pair, timed
from fault_kinds import BlackHole, Delay, Pass, Refuse
from fault_proxy import FaultProxy
from mooring import CircuitOpen, CircuitPolicy, ConnectError, DeadlineExceeded, EndpointStatus
from mooring_serve import TritonServer
from processes import wait_until
from python_models import write_python_model

pytestmark = pytest.mark.integration

X = {"x": np.float32([[1, 2]])}
QUICK = CircuitPolicy(pause_s=0.1, max_pause_s=0.2, probe_timeout_s=0.5)
#: Until the clients have noticed that connections were lost: what is lost within a request is not repeated.
NOTICED_S = 0.5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("endpoints")
    repository = write_python_model(folder / "repository")
    with TritonServer(repository, log_file=folder / "tritonserver.log") as running:
        yield running


@pytest.fixture
def proxies(server: TritonServer, pair: Pair) -> Iterator[list[FaultProxy]]:
    with ExitStack() as running:
        yield [running.enter_context(FaultProxy(pair.address(server))) for _ in range(3)]


@pytest.fixture
def client(proxies: list[FaultProxy], pair: Pair) -> Iterator[AnyClient]:
    """Has asked for the model's signature, and each endpoint something."""
    with pair([f"{pair.protocol}://{proxy.address}" for proxy in proxies], circuit=QUICK) as made:
        for _ in range(6):
            made.infer("echo", X)
        assert min(endpoint.requests for endpoint in made.counters().endpoints) >= 2
        yield made


def call(client: AnyClient, *, timeout_s: float = 5.0) -> Ended:
    ended = timed(lambda: client.infer("echo", X, timeout_s=timeout_s), timeout_s=timeout_s)
    if ended.error is None:
        np.testing.assert_array_equal(ended.value["y"], X["x"])
    return ended


def last(client: AnyClient) -> EndpointStatus:
    """The state of the third endpoint, the one that the tests break."""
    return client.counters().endpoints[2]


def check_return(client: AnyClient) -> None:
    """The third endpoint gets traffic again, and no call fails."""
    before, ends_at_s = last(client).requests, time.monotonic() + 60
    while last(client).requests < before + 5:
        assert time.monotonic() < ends_at_s, f"it gets no traffic: {last(client)}"
        assert call(client).error is None
        time.sleep(0.01)
    assert last(client).circuit == "closed"


def test_one_of_three_is_dead(client: AnyClient, proxies: list[FaultProxy]) -> None:
    proxies[2].fault = Refuse(apply_to_open=True)
    time.sleep(NOTICED_S)
    for _ in range(40):
        assert call(client).error is None
    assert last(client).circuit in ("open", "probing")
    counters = client.counters()
    # Refused requests went elsewhere at once, until the endpoint was left alone.
    assert 1 <= counters.retries <= 10
    assert counters.failed_calls == 0
    proxies[2].fault = Pass()
    check_return(client)


def test_one_of_three_is_a_black_hole(client: AnyClient, proxies: list[FaultProxy]) -> None:
    proxies[2].fault = BlackHole(apply_to_open=True)
    ended = []
    while last(client).circuit == "closed":
        ended.append(call(client, timeout_s=0.4))
        assert len(ended) < 60, "it was not ejected"
    failed = [one.kind for one in ended if one.error is not None]
    # Three timeouts raise suspicion; some more come in while the endpoint is asked whether it lives.
    assert 3 <= len(failed) <= 8
    assert set(failed) == {DeadlineExceeded}
    for _ in range(30):
        assert call(client, timeout_s=2).error is None
    proxies[2].fault = Pass()
    check_return(client)


def test_a_black_hole_under_load(client: AnyClient, proxies: list[FaultProxy]) -> None:
    """Requests that wait count against an endpoint, so few more go there."""
    proxies[2].fault = BlackHole(apply_to_open=True)
    with ThreadPoolExecutor(12) as pool:
        ended = list(pool.map(lambda _: call(client, timeout_s=0.6), range(600)))
    kinds = [one.kind for one in ended]
    assert set(kinds) <= {None, DeadlineExceeded}
    assert kinds.count(DeadlineExceeded) <= 30
    wait_until(lambda: last(client).circuit != "closed")
    proxies[2].fault = Pass()
    check_return(client)


def test_one_of_three_is_slow(client: AnyClient, proxies: list[FaultProxy]) -> None:
    proxies[2].fault = Delay(0.3, apply_to_open=True)
    before = [endpoint.requests for endpoint in client.counters().endpoints]
    with ThreadPoolExecutor(6) as pool:
        ended = list(pool.map(lambda _: call(client), range(150)))
    assert [one.kind for one in ended] == [None] * 150
    after = [endpoint.requests for endpoint in client.counters().endpoints]
    fast, also_fast, slow = np.subtract(after, before).tolist()
    assert slow < min(fast, also_fast)
    # Slow is not dead.
    assert last(client).circuit == "closed"
    proxies[2].fault = Pass(apply_to_open=True)
    check_return(client)


def test_all_are_dead_and_come_back(client: AnyClient, proxies: list[FaultProxy]) -> None:
    for proxy in proxies:
        proxy.fault = Refuse(apply_to_open=True)
    time.sleep(NOTICED_S)
    kinds = [call(client, timeout_s=2).kind for _ in range(12)]
    assert set(kinds) <= {ConnectError, CircuitOpen}
    assert kinds[-1] is CircuitOpen
    proxies[2].fault = Pass()
    ends_at_s = time.monotonic() + 60
    while call(client, timeout_s=2).error is not None:
        assert time.monotonic() < ends_at_s, "no recovery"
        time.sleep(0.05)
    for _ in range(20):
        assert call(client).error is None
    for proxy in proxies:
        proxy.fault = Pass()
    check_return(client)


def test_probes_stay_within_the_deadline(proxies: list[FaultProxy], pair: Pair) -> None:
    """A call that finds every endpoint at rest asks whether one is back, but for no longer than it has."""
    urls = [f"{pair.protocol}://{proxy.address}" for proxy in proxies]
    policy = CircuitPolicy(failures=1, pause_s=0.1, max_pause_s=0.1, probe_timeout_s=5)
    with pair(urls, circuit=policy) as client:
        assert call(client).error is None
        for proxy in proxies:
            proxy.fault = Refuse(apply_to_open=True)
        time.sleep(NOTICED_S)
        while call(client, timeout_s=0.5).kind is not CircuitOpen:
            pass
        for proxy in proxies:
            proxy.fault = BlackHole()
        time.sleep(0.2)
        for _ in range(3):
            assert call(client, timeout_s=0.5).kind in (CircuitOpen, DeadlineExceeded)
            time.sleep(0.15)
