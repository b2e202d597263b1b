"""Tests go on where tritonserver 24.10 dies of a gRPC caller who gives up just as its answer is sent.

It ends with signal 11 then, now and again (mended since: triton-inference-server/server, pull requests 7840
and 8078).
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from driven_clients import Pair
from fault_proxy import FaultProxy
from mooring_serve import TritonServer
from processes import wait_until


@contextmanager
def started_again_if_it_dies(server: TritonServer, proxy: FaultProxy, pair: Pair) -> Iterator[None]:
    """Does what watches a server in production, which clients are to survive like any other fault.

    It warns of each time; where that may be, a test needs ``filterwarnings("default:started again")``.
    """
    over = threading.Event()

    def start_if_dead() -> None:
        if not server.is_alive():
            warnings.warn(f"started again, as {server.exit_reason()}", stacklevel=2)
            proxy.retarget(pair.address(server.start()))

    def watch() -> None:
        while not over.wait(0.02):
            start_if_dead()

    start_if_dead()
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield
        finally:
            over.set()
            watching.result()


def skipped_if_the_server_dies(test: Callable[..., None]) -> Callable[..., None]:
    """Skip a test under which its fixture ``server`` died, and start that again for those that follow."""

    @functools.wraps(test)
    def run(*, server: TritonServer, **fixtures: Any) -> None:
        try:
            test(server=server, **fixtures)
        except Exception:
            # Whoever started it may hear of its end later than its callers.
            with suppress(AssertionError):
                wait_until(lambda: not server.is_alive(), timeout_s=5.0)
            if "SIGSEGV" not in server.exit_reason():
                raise
            pytest.skip(server.exit_reason().splitlines()[0])
        finally:
            server.start()

    return run
