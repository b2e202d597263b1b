"""Chance that spreads retries and reconnections."""

from __future__ import annotations

from random import SystemRandom

# Not the generator of `random`: a caller may have seeded that one, and its numbers are the caller's.
JITTER = SystemRandom()
