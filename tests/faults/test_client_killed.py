"""A real tritonserver is killed with many requests under way, and started again on the same ports."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from crashes import started_again_if_it_dies
from driven_clients import TWO_PAIRS, AnyClient, Ended, Pair, timed
from fault_proxy import FaultProxy
from mooring import ConnectError, DeadlineExceeded, TransportError
from mooring_serve import TritonServer
from processes import wait_until
from recording_models import executions, write_recorder

pytestmark = pytest.mark.integration

IN_FLIGHT = 200


def infer(client: AnyClient, *, sleep_s: float = 0.0, request_id: str = "", timeout_s: float = 8.0) -> Ended:
    x = {"x": np.float32([[sleep_s]])}
    ended = timed(
        lambda: client.infer("recorder", x, timeout_s=timeout_s, request_id=request_id), timeout_s=timeout_s
    )
    if ended.error is None:
        np.testing.assert_array_equal(ended.value["y"], x["x"])
    return ended


def ports(server: TritonServer) -> dict[str, int]:
    return {f"{name}_port": int(getattr(server, f"{name}_url").split(":")[2]) for name in ("http", "grpc")}


def test_killed_with_requests_in_flight_and_restarted(tmp_path: Path, pair: Pair) -> None:
    record = write_recorder(tmp_path / "repository", instances=2)
    repository = tmp_path / "repository"
    with (
        TritonServer(repository, log_file=tmp_path / "first.log") as server,
        pair(pair.url(server)) as client,
        ThreadPoolExecutor(IN_FLIGHT) as pool,
    ):
        assert infer(client).error is None
        calls = [
            pool.submit(infer, client, sleep_s=0.05, request_id=f"call-{number}")
            for number in range(IN_FLIGHT)
        ]
        wait_until(lambda: len(executions(record)) >= 20)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.is_alive())
        kinds = Counter(call.result().kind for call in calls)
        # Answered before the kill, lost with the connection, or sent too late and refused.
        assert kinds.keys() <= {None, TransportError} | _subclasses(ConnectError), kinds
        assert kinds[None] >= 1
        assert kinds[TransportError] >= 50
        ran = [name for name in executions(record) if name.startswith("call-")]
        assert len(ran) == len(set(ran))
        server.stop()
        assert isinstance(infer(client).error, ConnectError)

        with TritonServer(repository, log_file=tmp_path / "second.log", stop_timeout_s=1, **ports(server)):
            ends_at_s = time.monotonic() + 60
            while infer(client).error is not None:
                assert time.monotonic() < ends_at_s, "no recovery"
                time.sleep(0.05)
            assert [infer(client).kind for _ in range(50)] == [None] * 50
            assert {call.kind for call in pool.map(lambda _: infer(client), range(100))} == {None}
            assert [one.circuit for one in client.counters().endpoints] == ["closed"]


@pytest.mark.filterwarnings("default:started again")
@pytest.mark.parametrize("pair", TWO_PAIRS, ids=str)
def test_stopped_in_the_midst_of_a_process(tmp_path: Path, pair: Pair) -> None:
    """A server that is stopped (SIGSTOP) says nothing, not even that it is gone; later it goes on."""
    repository = tmp_path / "repository"
    write_recorder(repository)
    with (
        TritonServer(repository, log_file=tmp_path / "tritonserver.log", stop_timeout_s=1) as server,
        FaultProxy(pair.address(server)) as proxy,
        started_again_if_it_dies(server, proxy, pair),
        pair(f"{pair.protocol}://{proxy.address}") as client,
    ):
        assert infer(client).error is None
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            x = {"x": np.float32([[0]])}
            kinds = [
                timed(lambda: client.infer("recorder", x, timeout_s=0.4), timeout_s=0.4).kind
                for _ in range(8)
            ]
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert kinds[:3] == [DeadlineExceeded] * 3
        assert set(kinds[3:]) <= {DeadlineExceeded} | _subclasses(ConnectError)
        ends_at_s = time.monotonic() + 60
        while infer(client).error is not None:
            assert time.monotonic() < ends_at_s, "no recovery"
            time.sleep(0.05)
        assert [infer(client).kind for _ in range(20)] == [None] * 20


def _subclasses(kind: type) -> set[type]:
    return {kind, *kind.__subclasses__()}
