"""One endpoint's circuit breaker. It decides; asking the endpoint is its owner's part."""

from __future__ import annotations

import threading
import time
from typing import Literal

from mooring._policies import CircuitPolicy

CircuitState = Literal["closed", "open", "probing"]

#: Timeouts in a row after which an endpoint is asked whether it lives.
_SUSPICIOUS_TIMEOUTS = 3


class Circuit:
    """Counts an endpoint's failures: closed lets requests through, open does not; thread-safe.

    Args:
        policy: thresholds and pauses.
    """

    def __init__(self, policy: CircuitPolicy) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._failures = 0
        self._timeouts = 0
        self._pause_s = policy.pause_s
        self._probe_at_s = 0.0
        self._probing = False
        #: Whether requests are held back. Read without the lock, as a request's way leads past it.
        self.is_open = False

    @property
    def state(self) -> CircuitState:
        """For people to read."""
        if not self.is_open:
            return "closed"
        return "probing" if self._probing else "open"

    def succeeded(self) -> None:
        """A request was answered, be it with no."""
        if not (self._failures or self._timeouts):
            return
        with self._lock:
            # A late answer does not close an open circuit: the probe does.
            self._failures = self._timeouts = 0

    def failed(self) -> bool:
        """A connection was refused, lost or garbled; returns whether that opened the circuit."""
        with self._lock:
            self._failures += 1
            if self.is_open or self._failures < self._policy.failures:
                return False
            self._open()
            return True

    def timed_out(self) -> bool:
        """No answer came in time; returns whether the endpoint should be probed now."""
        with self._lock:
            self._timeouts += 1
            if self._probing or self.is_open or self._timeouts < _SUSPICIOUS_TIMEOUTS:
                return False
            self._timeouts = 0
            self._probing = True
            return True

    def begin_probe(self) -> bool:
        """Whether the open endpoint is due for a probe; the caller that is told so has to probe."""
        if not self.is_open or self._probing or time.monotonic() < self._probe_at_s:
            return False
        with self._lock:
            if self._probing or not self.is_open:
                return False
            self._probing = True
            return True

    def end_probe(self, *, alive: bool | None) -> bool:
        """A probe has ended, ``None``: given up; returns whether that opened or closed the circuit."""
        with self._lock:
            self._probing = False
            if alive is None:
                return False
            was_open = self.is_open
            if alive:
                self.is_open = False
                self._failures = self._timeouts = 0
                self._pause_s = self._policy.pause_s
            else:
                self._open()
            return was_open != self.is_open

    def _open(self) -> None:
        if self.is_open:
            self._pause_s = min(2 * self._pause_s, self._policy.max_pause_s)
        self.is_open = True
        self._probe_at_s = time.monotonic() + self._pause_s
