"""Watch processes from tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Wait for a condition; the limit only keeps a failing test from hanging."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not so after {timeout_s} s")
        time.sleep(0.02)


def settled(read: Callable[[], T], *, quiet_s: float = 0.5) -> T:
    """A reading of what tritonserver counts, once it stays: it counts a request a moment after its answer."""
    last, since_s = read(), time.monotonic()
    while time.monotonic() - since_s < quiet_s:
        time.sleep(0.02)
        if (now := read()) != last:
            last, since_s = now, time.monotonic()
    return last


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def all_gone(pids: list[int]) -> bool:
    """Whether none of the processes runs."""
    return not any(map(is_running, pids))


def family(pid: int) -> list[int]:
    """The process and all that it started."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
