"""Requests that wait in a real tritonserver: given up they are dropped, slow ones are hedged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from crashes import skipped_if_the_server_dies
from driven_clients import COROUTINES_PAIRS, AnyClient, CoroutinesClient, Pair, timed
from mooring import DeadlineExceeded, HedgePolicy
from mooring_serve import TritonServer
from processes import wait_until
from recording_models import QUEUE, executions, write_recorder

pytestmark = pytest.mark.integration


def seconds(value: float) -> dict[str, np.ndarray]:
    return {"x": np.float32([[value]])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("queues")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[TritonServer]:
    write_recorder(folder / "repository", more_config=QUEUE)
    with TritonServer(folder / "repository", log_file=folder / "tritonserver.log") as running:
        yield running


@pytest.fixture
def ran(folder: Path) -> Callable[[], list[str]]:
    """Ids of what the model ran since the test began."""
    record = folder / "recorder.record"
    before = len(executions(record)) if record.exists() else 0
    return lambda: executions(record)[before:]


@pytest.fixture
def client(server: TritonServer, pair: Pair) -> Iterator[AnyClient]:
    with pair(pair.url(server)) as made:
        yield made


def wait_until_idle(client: AnyClient) -> None:
    """Until the model has run, or dropped, whatever was in its queue."""
    client.infer("recorder", seconds(0), request_id="idle")


@skipped_if_the_server_dies
def test_giving_up_drops_queued_work(
    client: AnyClient, server: TritonServer, ran: Callable[[], list[str]]
) -> None:
    """Eight callers with 1.7 s for a model that takes 1 s: without it the model would run eight times."""
    wait_until_idle(client)
    with ThreadPoolExecutor(8) as pool:

        def call(number: int) -> object:
            ended = timed(
                lambda: client.infer("recorder", seconds(1), timeout_s=1.7, request_id=f"call-{number}"),
                timeout_s=1.7,
            )
            return ended.kind

        kinds = list(pool.map(call, range(8)))
    assert set(kinds) <= {None, DeadlineExceeded}
    assert 1 <= kinds.count(None) <= 2
    wait_until_idle(client)
    assert 1 <= len([name for name in ran() if name.startswith("call-")]) <= 3


@pytest.mark.parametrize("pair", COROUTINES_PAIRS, ids=str)
@skipped_if_the_server_dies
def test_cancelling_a_task_drops_its_queued_request(
    client: CoroutinesClient, server: TritonServer, pair: Pair, ran: Callable[[], list[str]]
) -> None:
    async def work() -> None:
        running = asyncio.create_task(client.client.infer("recorder", seconds(3), request_id="running"))
        while "running" not in ran():
            await asyncio.sleep(0.01)
        queued = asyncio.create_task(client.client.infer("recorder", seconds(0), request_id="cancelled"))
        await asyncio.sleep(0.5)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        await running

    wait_until_idle(client)
    client.run(work())
    wait_until_idle(client)
    # tritonserver does not notice that an HTTP connection was closed, so there it runs in the end.
    assert ("cancelled" in ran()) == (pair.protocol == "http")


@pytest.fixture(scope="module")
def other_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("other")
    write_recorder(folder / "repository")
    with TritonServer(folder / "repository", log_file=folder / "tritonserver.log") as running:
        yield running


@skipped_if_the_server_dies
def test_a_slow_server_is_hedged(
    server: TritonServer, other_server: TritonServer, pair: Pair, ran: Callable[[], list[str]]
) -> None:
    """Two servers, of which one is kept busy: the hedge goes to the other one."""
    hedge = HedgePolicy(percentile=90, min_delay_s=0.5, min_samples=10)
    with (
        pair([pair.url(server), pair.url(other_server)], hedge=hedge) as client,
        pair(pair.url(server)) as busy,
        ThreadPoolExecutor(1) as pool,
    ):
        for _ in range(12):
            client.infer("recorder", seconds(0))
        assert client.counters().hedges == 0
        blocking = pool.submit(busy.infer, "recorder", seconds(4), request_id="blocking")
        wait_until(lambda: "blocking" in ran())
        for number in range(2):
            client.infer("recorder", seconds(0), request_id=f"call-{number}")
        assert not blocking.done(), "the busy server was fast: this test shows nothing"
        counters = client.counters()
        assert (counters.hedges, counters.hedge_wins, counters.failed_calls) == (1, 1, 0)
        assert [one.requests >= 7 for one in counters.endpoints] == [True, True]
        blocking.result()
