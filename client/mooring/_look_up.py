"""Addresses of host names, within a time."""

from __future__ import annotations

import queue
import socket
import sys
import threading
from typing import Any


def look_up(host: str, port: int, *, timeout_s: float) -> list[tuple[Any, ...]]:
    """What ``socket.getaddrinfo`` says of a host's TCP port.

    Where no thread can be started, the time is the resolver's.

    Raises:
        OSError: there is no address, the program is ending, or ``TimeoutError``.
        UnicodeError: that can't be a host name.
    """
    # The system's resolver takes no deadline, so it gets a thread of its own.
    answers: queue.SimpleQueue[list[tuple[Any, ...]] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as exc:  # noqa: BLE001 - raised below, in the thread that waits
            answers.put(exc)

    if sys.is_finalizing():
        # Up to Python 3.11 a thread that is started now never runs, and start() waits for it.
        raise OSError("the program is ending")
    try:
        threading.Thread(target=ask, name="mooring-look-up", daemon=True).start()
    except RuntimeError:
        ask()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"no address of {host} within {timeout_s:.3g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
