"""The time budget of one call, spent by everything that the call does."""

from __future__ import annotations

import time

from mooring._errors import ConfigError, DeadlineExceeded

#: Longer waits are surely a mistake in the unit, and sockets can't represent all of them.
MAX_TIMEOUT_S = 86_400.0


def check_timeout(timeout_s: float) -> float:
    """Return ``timeout_s`` as a float, in seconds.

    Raises:
        ConfigError: not a number above 0 and up to a day.
    """
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        raise ConfigError(f"timeout_s must be a number of seconds, got {timeout_s!r}")
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise ConfigError(f"timeout_s must be above 0 and at most {MAX_TIMEOUT_S:.0f}, got {timeout_s!r}")
    return float(timeout_s)


class Deadline:
    """Counts down from ``timeout_s`` seconds, starting now."""

    __slots__ = ("_ends_at_s", "timeout_s")

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = check_timeout(timeout_s)
        self._ends_at_s = time.monotonic() + self.timeout_s

    def left_s(self) -> float:
        """Seconds left, always above 0.

        Raises:
            DeadlineExceeded: nothing is left.
        """
        left_s = self._ends_at_s - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded(
                f"the call's {self.timeout_s:g} s were spent before its last request was sent"
            )
        return left_s

    def allows(self, pause_s: float) -> bool:
        """Whether something can still be done after a pause of so many seconds."""
        return time.monotonic() + pause_s < self._ends_at_s
