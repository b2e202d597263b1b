"""A client's life: threads and coroutines that share it, its end, and what it says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pickle
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mooring import AsyncClient, Client, ConfigError, TlsConfig, TransportError
from mooring._open_transports import open_async_transport
from mooring._operations import Infer, Tensor
from mooring._url import parse_url
from mooring._wires import _http_aio
from wire_models import in_memory

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


def test_threads_or_coroutines_may_share_a_client(wired: Any) -> None:
    def row(number: int) -> np.ndarray:
        return np.full((1, 8), number, np.float32)

    def work(number: int) -> None:
        answer = wired.client.infer("double", {"x": row(number)}, outputs=["y"])
        np.testing.assert_array_equal(answer["y"], 2 * row(number))

    async def many() -> None:
        client: AsyncClient = wired.client.wrapped

        async def some(first: int) -> None:
            for number in range(first, 160, 16):
                answer = await client.infer("double", {"x": row(number)}, outputs=["y"])
                np.testing.assert_array_equal(answer["y"], 2 * row(number))

        await asyncio.gather(*map(some, range(16)))

    if wired.is_async:
        wired.side.run(many())
    else:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(160)))
    assert len(wired.fake.requests) == 160
    assert wired.client.counters().endpoints[0].outstanding == 0


def test_close_is_idempotent_and_later_calls_say_so(wired: Any) -> None:
    client = wired.client
    ner = client.task("ner")
    client.close()
    client.close()
    for call in (
        client.server_ready,
        client.server_metadata,
        client.models,
        client.statistics,
        lambda: client.load("ner"),
        lambda: client.infer("double", {"x": X}),
        lambda: next(client.stream("count", {"n": np.int32([1])})),
        lambda: next(client.infer_many("double", [{"x": X}])),
        lambda: ner("A"),
        lambda: next(ner.map(["A"])),
    ):
        with pytest.raises(ConfigError, match=r"the client of \w+://[\w.:]+ is closed; make a new one"):
            call()
    assert not wired.fake.requests


def test_a_client_that_was_never_used_can_be_closed(wired: Any) -> None:
    wired.open().close()


def test_a_block_closes_its_client(wired: Any) -> None:
    with wired.open() as client:
        assert client.ready("ner")
    with pytest.raises(ConfigError, match="is closed"):
        client.ready("ner")
    with pytest.raises(RuntimeError, match="of the block"), wired.open() as client:
        raise RuntimeError("of the block")
    with pytest.raises(ConfigError, match="is closed"):
        client.ready("ner")


def _sockets() -> int:
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found += str(descriptor.readlink()).startswith("socket:")
        except OSError:
            continue
    return found


def test_a_closed_client_leaves_no_socket(wired: Any) -> None:
    # What a protocol's library keeps for good is there after the first client.
    wired.client.ready("ner")
    wired.client.close()
    ends_at_s = time.monotonic() + 20

    def settled() -> int:
        counts = [_sockets()]
        while len(counts) < 5 or len(set(counts[-5:])) > 1:
            assert time.monotonic() < ends_at_s, counts
            time.sleep(0.005)
            counts.append(_sockets())
        return counts[-1]

    before = settled()
    client = wired.open()
    client.infer("double", {"x": X})
    if wired.wire != "fake":
        assert _sockets() > before
    client.close()
    # The server's ends of the connections are in this process too.
    while _sockets() > before and time.monotonic() < ends_at_s:
        time.sleep(0.005)
    assert _sockets() <= before


def test_counters_count_what_was_done(wired: Any) -> None:
    client = wired.client
    before = client.counters()
    assert (before.calls, before.requests, before.sent_bytes, before.received_bytes) == (0, 0, 0, 0)
    client.infer("double", {"x": X})
    with pytest.raises(ConfigError):
        client.ready("")
    counters = client.counters()
    assert (counters.calls, counters.failed_calls) == (3, 0)
    assert (counters.requests, counters.retries, counters.hedges, counters.hedge_wins) == (3, 0, 0, 0)
    if wired.wire != "fake":  # which has no bytes
        assert (counters.sent_bytes, counters.received_bytes) == (X.nbytes, X.nbytes + 16)
    [endpoint] = counters.endpoints
    assert endpoint.url == wired.url
    assert (endpoint.circuit, endpoint.outstanding) == ("closed", 0)
    assert (endpoint.requests, endpoint.failures) == (3, 0)


@in_memory
@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), 1e9, "5", True])
def test_timeouts_that_can_not_be_right_are_refused(wired: Any, timeout_s: Any) -> None:
    ner = wired.client.task("ner")
    for call in (
        lambda: wired.open(timeout_s=timeout_s),
        lambda: wired.client.server_ready(timeout_s=timeout_s),
        lambda: ner("A", timeout_s=timeout_s),
        lambda: next(ner.map(["A"], timeout_s=timeout_s)),
        lambda: next(wired.client.infer_many("double", [{"x": X}], timeout_s=timeout_s)),
    ):
        with pytest.raises(ConfigError, match="timeout_s must be"):
            call()


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_client_is_not_copied_and_says_what_to_do(client: Any, send: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        send(client("grpc://h:1"))
    said = "can't be copied or sent to another process: make a client there"
    assert str(caught.value) == f"{client.__name__}('grpc://h:1') {said}"


@in_memory
def test_a_task_is_not_copied_either(wired: Any) -> None:
    task = wired.client.task("ner")
    with pytest.raises(ConfigError, match="can't be copied or sent to another process"):
        pickle.dumps(getattr(task, "wrapped", task))


def test_reprs_name_server_and_model_and_no_secret(wired: Any) -> None:
    client = wired.open(token="s3cret", headers={"x-key": "s3cret"})
    assert repr(client) == f"{wired.side.name('Client')}({wired.url!r})"
    assert repr(client.task("ner")) == f"{wired.side.name('TokenClassifier')}('ner')"


def test_several_servers_are_named_and_are_not_loaded(side: Any) -> None:
    urls = ["http://a:1", "http://b:2"]
    client = side.client(urls)
    assert repr(client) == f"{side.name('Client')}({urls!r})"
    assert client.urls == ("http://a:1", "http://b:2")
    for call, said in (
        (lambda: client.load("m"), "load"),
        (lambda: client.unload("m"), "unload"),
        (lambda: client.shared_memory(input_bytes=1), "shared memory"),
    ):
        with pytest.raises(ConfigError, match=f"{said} concerns one server, but this client has 2"):
            call()


def test_a_client_for_coroutines_belongs_to_one_event_loop(fake: Any) -> None:
    client = AsyncClient("grpc://fake:8001", transport=fake)

    async def use() -> None:
        assert await client.ready("ner")

    asyncio.run(use())
    with pytest.raises(ConfigError, match="belongs to the event loop of its first call"):
        asyncio.run(use())
    asyncio.run(client.aclose())


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_transport_that_is_closed_ends_its_calls_with_an_error(scheme: str, connected: bool) -> None:
    request = Infer(model="m", inputs=(Tensor("x", "FP32", X[:1, :1]),))

    async def stream(transport: Any) -> None:
        async for _ in transport.astream(request, timeout_s=60):
            """Nothing comes."""

    async def work(listener: socket.socket) -> None:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        transport = open_async_transport(parse_url(url), TlsConfig())
        calls = [
            asyncio.create_task(transport.asend(request, timeout_s=60)),
            asyncio.create_task(stream(transport)),
            asyncio.create_task(transport.asend(request, timeout_s=60)),
        ]
        accept = asyncio.get_running_loop().sock_accept(listener)
        async with asyncio.timeout(30):
            with (await accept)[0] if connected else contextlib.closing(accept):
                await asyncio.sleep(0)
                # Who cancels a call gets what asyncio promises, closed or not.
                calls[-1].cancel()
                closing = asyncio.create_task(transport.aclose())
                *ended, cancelled = await asyncio.gather(*calls, return_exceptions=True)
                await closing
        for one in ended:
            assert isinstance(one, TransportError)
            assert "the client was closed while the request was under way" in str(one)
        assert isinstance(cancelled, asyncio.CancelledError)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        asyncio.run(work(listener))


def test_calls_that_wait_for_a_connection_end_with_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http_aio, "_MAX_CONNECTIONS", 1)
    request = Infer(model="m", inputs=(Tensor("x", "FP32", X[:1, :1]),))

    async def work(listener: socket.socket) -> list[Any]:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        transport = open_async_transport(parse_url(url), TlsConfig())
        calls = [asyncio.create_task(transport.asend(request, timeout_s=60)) for _ in range(3)]
        async with asyncio.timeout(30):
            with (await asyncio.get_running_loop().sock_accept(listener))[0]:
                await asyncio.sleep(0)
                await transport.aclose()
                return await asyncio.gather(*calls, return_exceptions=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        ended = asyncio.run(work(listener))
    assert {type(one) for one in ended} == {TransportError}
    assert all("the client was closed while the request was under way" in str(one) for one in ended)


def test_tls_options_need_an_encrypted_url(side: Any, certificates: Any) -> None:
    with pytest.raises(ConfigError, match=r"tls is given, but http://h:1 is not encrypted: write"):
        side.client("http://h:1", tls=TlsConfig(ca_file=certificates.ca_file))


def test_a_client_for_threads_is_no_asynchronous_context() -> None:
    assert not hasattr(Client, "__aenter__")
    assert not hasattr(AsyncClient, "__enter__")
