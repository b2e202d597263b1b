"""One line that fills up while something of known length runs."""

from __future__ import annotations

import sys


class Progress:
    """Drawn on standard error; nothing where there is no terminal."""

    _WIDTH = 40

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._shown = sys.stderr.isatty()

    def show(self, elapsed_s: float) -> None:
        """Draw it as far as it is."""
        if self._shown:
            seconds = min(elapsed_s, self._seconds)
            bar = ("#" * int(seconds / self._seconds * self._WIDTH)).ljust(self._WIDTH, ".")
            print(f"\r{bar} {seconds:3.0f}/{self._seconds} s", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave the line empty."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
