"""What a client did, counted as it went."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from mooring._circuit import CircuitState


@dataclass(frozen=True, kw_only=True)
class EndpointStatus:
    """One endpoint as a client sees it."""

    url: str
    #: ``closed`` takes requests; ``open`` failed lately; ``probing`` is being asked whether it is back.
    circuit: CircuitState
    #: Requests under way.
    outstanding: int
    #: Requests sent.
    requests: int
    #: Requests that no answer came to.
    failures: int
    #: Requests that were held back, as it refuses too many; not among those sent.
    throttled: int


@dataclass(frozen=True, kw_only=True)
class ClientCounters:
    """What a client did since it was made."""

    #: Calls that asked a server for something, ended ones only.
    calls: int
    #: Calls that ended in an error.
    failed_calls: int
    #: Requests that were sent, extra ones and those to addresses that are gone included.
    requests: int
    #: Requests that repeated a failed one.
    retries: int
    #: Requests that were sent beside a slow one.
    hedges: int
    #: Hedges that answered first.
    hedge_wins: int
    #: Bytes of tensors sent, shared memory not counted.
    sent_bytes: int
    #: Bytes of tensors received, shared memory not counted.
    received_bytes: int
    endpoints: tuple[EndpointStatus, ...]


class Counts:
    """The running numbers behind :class:`ClientCounters`; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls = 0
        self.failed_calls = 0
        self.retries = 0
        self.hedges = 0
        self.hedge_wins = 0
        self.sent_bytes = 0
        self.received_bytes = 0

    def call_ended(self, *, failed: bool, sent_bytes: int, received_bytes: int) -> None:
        """Count one call."""
        with self._lock:
            self.calls += 1
            self.failed_calls += failed
            self.sent_bytes += sent_bytes
            self.received_bytes += received_bytes

    def add(self, name: str) -> None:
        """Count one event by its field's name."""
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)
