"""One client under load on a real tritonserver: right answers for everybody, and nothing leaks."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import shared_memory  # noqa: F401 - starts its helper before anything is counted
from pathlib import Path
from typing import Any

import numpy as np
import numpy.testing  # a child must not wait for an import that a thread of its parent was in the midst of
import psutil
import pytest

from crashes import skipped_if_the_server_dies
from driven_clients import COROUTINES_PAIRS, THREADS_PAIRS, Pair
from mooring import AsyncClient, Client, ConfigError, ConnectionPolicy
from mooring_serve import TritonServer
from processes import wait_until
from python_models import write_python_model
from recording_models import write_recorder

pytestmark = pytest.mark.integration

THREADS = 64
COROUTINES = 2_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder: Path = tmp_path_factory.mktemp("load")
    repository = write_python_model(folder / "repository")
    write_recorder(repository, more_config="dynamic_batching {}")
    with TritonServer(repository, log_file=folder / "tritonserver.log") as running:
        yield running


def values(*numbers: int) -> dict[str, np.ndarray]:
    """A request that no other one is like."""
    return {"x": np.float32([numbers])}


class Holdings:
    """What this process holds: Python's threads, sockets and other descriptors.

    Native threads are left out: gRPC keeps a pool of them for all channels, and it grows and shrinks.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._threads = set(threading.enumerate())
        self._before = self._descriptors()

    def _descriptors(self) -> tuple[int, int]:
        return self._process.num_fds(), len(self._process.net_connections(kind="inet"))

    def _more_threads(self) -> list[str]:
        return [thread.name for thread in set(threading.enumerate()) - self._threads]

    def check_nothing_more(self) -> None:
        """Wait until there is no more of anything than at the start."""
        try:
            wait_until(
                lambda: not self._more_threads() and all(np.subtract(self._descriptors(), self._before) <= 0)
            )
        except AssertionError:
            raise AssertionError(
                f"descriptors and sockets before {self._before}, now {self._descriptors()}; "
                f"more threads {self._more_threads()}"
            ) from None


def warm_up(pair: Pair, server: TritonServer) -> None:
    """What a protocol's library starts once and keeps."""
    with pair(pair.url(server)) as client:
        client.infer("echo", values(0))


@pytest.mark.parametrize("pair", THREADS_PAIRS, ids=str)
def test_many_threads_share_a_client(pair: Pair, server: TritonServer) -> None:
    warm_up(pair, server)
    holdings = Holdings()
    together = threading.Barrier(THREADS)

    def work(seed: int) -> None:
        together.wait()
        for i in range(20):
            x = values(seed, i)
            np.testing.assert_array_equal(client.infer("echo", x)["y"], x["x"])

    with pair(pair.url(server)) as client:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, range(THREADS)))
        counters = client.counters()
        assert (counters.failed_calls, counters.retries) == (0, 0)
        assert [one.outstanding for one in counters.endpoints] == [0]
    holdings.check_nothing_more()


@pytest.mark.parametrize("pair", THREADS_PAIRS, ids=str)
def test_connections_are_replaced_under_load(pair: Pair, server: TritonServer) -> None:
    """With connections that live for a tenth of a second no call fails and none is kept."""
    warm_up(pair, server)
    holdings = Holdings()
    ends_at_s = time.monotonic() + 1.5

    def work(seed: int) -> None:
        i = 0
        while time.monotonic() < ends_at_s:
            i += 1
            x = values(seed, i)
            np.testing.assert_array_equal(client.infer("echo", x)["y"], x["x"])

    with pair(pair.url(server), connections=ConnectionPolicy(max_age_s=0.1)) as client:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert client.counters().failed_calls == 0
    holdings.check_nothing_more()


@pytest.mark.parametrize("pair", COROUTINES_PAIRS, ids=str)
def test_many_coroutines_share_a_client(pair: Pair, server: TritonServer) -> None:
    warm_up(pair, server)
    holdings = Holdings()

    async def work() -> None:
        async with AsyncClient(pair.url(server), timeout_s=60) as client:
            x = [values(i, i + 1) for i in range(COROUTINES)]
            answers = await asyncio.gather(*(client.infer("echo", one) for one in x))
            for one, answer in zip(x, answers, strict=True):
                np.testing.assert_array_equal(answer["y"], one["x"])
            counters = client.counters()
            assert (counters.failed_calls, counters.retries) == (0, 0)
            assert [one.outstanding for one in counters.endpoints] == [0]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(work())
    holdings.check_nothing_more()


@pytest.mark.parametrize("pair", COROUTINES_PAIRS, ids=str)
@skipped_if_the_server_dies
def test_many_cancelled_coroutines_leave_nothing(pair: Pair, server: TritonServer) -> None:
    warm_up(pair, server)
    holdings = Holdings()

    async def work() -> None:
        async with AsyncClient(pair.url(server)) as client:
            await client.infer("recorder", values(0))
            slow = {"x": np.float32([[0.02]])}
            tasks = [asyncio.create_task(client.infer("recorder", slow)) for _ in range(200)]
            await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert asyncio.CancelledError in {type(one) for one in ended}
            assert [one.outstanding for one in client.counters().endpoints] == [0]
            x = values(7)
            answer = await client.infer("echo", x)
            np.testing.assert_array_equal(answer["y"], x["x"])
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(work())
    holdings.check_nothing_more()


@pytest.mark.parametrize("pair", COROUTINES_PAIRS, ids=str)
def test_a_client_belongs_to_one_event_loop(pair: Pair, server: TritonServer) -> None:
    async def ask(client: AsyncClient) -> bool:
        return await client.server_ready()

    async def in_two_loops() -> None:
        async with AsyncClient(pair.url(server)) as client:
            assert await ask(client)
            with ThreadPoolExecutor(1) as pool:
                other = pool.submit(asyncio.run, ask(client))
                error = await asyncio.get_running_loop().run_in_executor(None, other.exception)
            assert isinstance(error, ConfigError)
            assert "belongs to the event loop of its first call" in str(error)
            assert await ask(client)

    asyncio.run(in_two_loops())


@pytest.mark.parametrize("pair", THREADS_PAIRS, ids=str)
def test_a_forked_child_uses_the_same_client(pair: Pair, server: TritonServer) -> None:
    """Threads of the parent have called and call again, but not while it forks: gRPC asks for that."""

    def work(seed: int) -> None:
        for i in range(20):
            x = values(seed, i)
            np.testing.assert_array_equal(client.infer("echo", x)["y"], x["x"])

    with pair(pair.url(server)) as client, ThreadPoolExecutor(4) as pool:
        for seed in range(5):
            list(pool.map(work, range(4)))
            assert _ended(_fork(partial(_use, client, seed))) == 0
            assert _ended(_fork(client.close)) == 0
        list(pool.map(work, range(4)))
        assert client.counters().failed_calls == 0


def test_a_child_that_was_forked_amid_http_calls_uses_the_same_client(server: TritonServer) -> None:
    stop = threading.Event()

    def work(seed: int) -> int:
        done = 0
        while not stop.is_set():
            done += 1
            x = values(seed, done)
            np.testing.assert_array_equal(client.infer("echo", x)["y"], x["x"])
        return done

    with Client(server.http_url) as client, ThreadPoolExecutor(4) as pool:
        client.infer("echo", values(0))
        calls = [pool.submit(work, seed) for seed in range(4)]
        try:
            statuses = [_ended(_fork(partial(_use, client, seed))) for seed in range(5)]
            statuses += [_ended(_fork(client.close)) for _ in range(5)]
        finally:
            stop.set()
        assert statuses == [0] * 10
        assert all(call.result() > 5 for call in calls)
        assert client.counters().failed_calls == 0


def _use(client: Any, seed: int) -> None:
    # The first call of a child may be one that needs no signature.
    line = client._caller.servers
    assert client.server_ready(timeout_s=10)
    assert client._caller.servers is not line
    for i in range(3):
        x = values(100 + seed, i)
        np.testing.assert_array_equal(client.infer("echo", x, timeout_s=10)["y"], x["x"])
    client.close()


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    # The child: nothing of pytest may run in it.
    signal.alarm(30)
    try:
        work()
        os._exit(0)
    except BaseException as exc:  # noqa: BLE001 - an exception that left here would run the tests on
        os.write(2, f"in the child: {exc!r}\n".encode())
    os._exit(1)


def _ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
