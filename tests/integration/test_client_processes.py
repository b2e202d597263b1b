"""Programs of their own that use the client: under gevent, and ending without having closed it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from driven_clients import COROUTINES_PAIRS, PAIRS, THREADS_PAIRS, Pair
from mooring_serve import TritonServer
from python_models import write_python_model
from recording_models import write_recorder

pytestmark = pytest.mark.integration

#: A program that hangs is killed after so many seconds, and its test fails.
LIMIT_S = 60

GEVENT = """
    from gevent import monkey; monkey.patch_all()
    import json, sys
    import gevent, gevent.pool
    import numpy as np
    import psutil
    from mooring import Client

    process = psutil.Process()
    ticks = 0

    def tick():
        global ticks
        while True:
            gevent.sleep(0.01)
            ticks += 1

    def ask(client, seed):
        for i in range(5):
            x = np.float32([[seed, i]])
            assert client.infer("echo", {"x": x})["y"].tolist() == x.tolist()
        return True

    def holdings():
        return process.num_fds(), len(process.net_connections(kind="inet"))

    with Client(sys.argv[1], timeout_s=30) as warm:
        warm.infer("echo", {"x": np.float32([[0]])})
    before = holdings()
    with Client(sys.argv[1], timeout_s=30) as client:
        right = sum(gevent.pool.Pool(200).imap_unordered(lambda seed: ask(client, seed), range(200)))
        many = ({"x": np.float32([[i]])} for i in range(100))
        in_order = [int(one.unwrap()["y"][0, 0]) for one in client.infer_many("echo", many)]
        ticker = gevent.spawn(tick)
        client.infer("recorder", {"x": np.float32([[1]])})
        ticks_while_waiting = ticks
        ticker.kill()
    for _ in range(200):
        if holdings() <= before:
            break
        gevent.sleep(0.05)
    print(json.dumps({
        "right": right,
        "in_order": in_order == list(range(100)),
        "ticks": ticks_while_waiting,
        "left": [now - then for now, then in zip(holdings(), before)],
    }))
"""
GEVENT_EXIT = """
    from gevent import monkey; monkey.patch_all()
    import sys
    import gevent
    import numpy as np
    from mooring import Client

    client = Client(sys.argv[1])
    x = {"x": np.float32([[1]])}
    gevent.joinall([gevent.spawn(client.infer, "echo", x) for _ in range(10)], raise_error=True)
    print("answered")
"""
THREADS_EXIT = """
    import sys
    import numpy as np
    from mooring import Client

    client = Client(sys.argv[1])
    client.infer("echo", {"x": np.float32([[1]])})
    print("answered")
"""
COROUTINES_EXIT = """
    import asyncio, sys
    import numpy as np
    from mooring import AsyncClient

    async def main():
        global client
        client = AsyncClient(sys.argv[1])
        await client.infer("echo", {"x": np.float32([[1]])})
        print("answered")

    asyncio.run(main())
"""
#: The client is garbage before its event loop ends.
COROUTINES_LOCAL_EXIT = COROUTINES_EXIT.replace("        global client\n", "")
#: With a thread, or a task, that waits for an answer.
THREADS_BUSY_EXIT = """
    import sys, threading, time
    import numpy as np
    from mooring import Client

    client = Client(sys.argv[1])
    client.infer("recorder", {"x": np.float32([[0]])})
    thread = threading.Thread(
        target=client.infer, args=("recorder", {"x": np.float32([[20]])}), daemon=True
    )
    thread.start()
    time.sleep(0.3)
    print("answered")
"""
COROUTINES_BUSY_EXIT = """
    import asyncio, sys
    import numpy as np
    from mooring import AsyncClient

    async def main():
        global client
        client = AsyncClient(sys.argv[1])
        await client.infer("recorder", {"x": np.float32([[0]])})
        task = asyncio.create_task(client.infer("recorder", {"x": np.float32([[20]])}))
        await asyncio.sleep(0.3)
        print("answered")

    asyncio.run(main())
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder: Path = tmp_path_factory.mktemp("processes")
    repository = write_python_model(folder / "repository")
    write_recorder(repository, instances=4)
    with TritonServer(repository, log_file=folder / "tritonserver.log", stop_timeout_s=1) as running:
        yield running


def run(program: str, url: str) -> str:
    """What the program prints; it has to end by itself, well, and with nothing on standard error."""
    ended = subprocess.run(
        [sys.executable, "-c", dedent(program), url],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.mark.parametrize("pair", THREADS_PAIRS, ids=str)
def test_many_greenlets_share_a_client(server: TritonServer, pair: Pair) -> None:
    said: dict[str, Any] = json.loads(run(GEVENT, pair.url(server)))
    assert (said["right"], said["in_order"]) == (200, True)
    # Others run while one waits: a second has a hundred ticks, and without gevent none.
    assert said["ticks"] >= 10
    assert max(said["left"]) <= 0


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_program_may_end_without_closing_its_client(server: TritonServer, pair: Pair) -> None:
    assert run(COROUTINES_EXIT if pair.is_async else THREADS_EXIT, pair.url(server)) == "answered\n"


@pytest.mark.parametrize("pair", COROUTINES_PAIRS, ids=str)
def test_a_program_may_forget_its_client_before_it_ends(server: TritonServer, pair: Pair) -> None:
    assert run(COROUTINES_LOCAL_EXIT, pair.url(server)) == "answered\n"


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_program_may_end_in_the_midst_of_a_call(server: TritonServer, pair: Pair) -> None:
    """It does not wait for the answer, which would take longer than the test allows."""
    program = COROUTINES_BUSY_EXIT if pair.is_async else THREADS_BUSY_EXIT
    assert run(program, pair.url(server)) == "answered\n"


@pytest.mark.parametrize("pair", THREADS_PAIRS, ids=str)
def test_a_gevent_program_may_end_without_closing_its_client(server: TritonServer, pair: Pair) -> None:
    assert run(GEVENT_EXIT, pair.url(server)) == "answered\n"
