"""Fixtures that tests of several rooms share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mooring_serve import TritonServer


def pytest_configure() -> None:
    """Let programs under test hear SIGINT, which what a script starts in the background ignores."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What fails fast comes first: unit tests before those that start a server."""
    items.sort(key=lambda item: item.get_closest_marker("integration") is not None)


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., TritonServer]]:
    """Start a server with ``TritonServer``'s arguments; it is stopped when the test ends."""
    with ExitStack() as running:

        def start(model_repository: Path, **options: Any) -> TritonServer:
            options.setdefault("log_file", tmp_path / "tritonserver.log")
            return running.enter_context(TritonServer(model_repository, **options))

        yield start
