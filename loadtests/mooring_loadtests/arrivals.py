"""When an open loop's requests leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from mooring_loadtests.load_profile import Span


def arrival_times(
    spans: Sequence[Span], *, arrivals: str, seed: str, source: int = 0, sources: int = 1
) -> Iterator[float]:
    """Times of one source's requests, in seconds from the start of the run.

    ``sources`` of them together make the profile's rate: Poisson streams add up to one, and constant ones are
    shifted against each other.

    Args:
        spans: stages that follow one another; ``amount`` in requests a second of all sources.
        arrivals: ``poisson`` or ``constant``.
        seed: of a Poisson stream; the same times for the same seed and source.
        source: which of the ``sources`` it is, from 0.
        sources: how many there are.
    """
    random = Random(f"{seed}/{source}")
    # One request leaves whenever so much more of the source's own expected number has gone by.
    due = random.expovariate(1.0) if arrivals == "poisson" else (source + 0.5) / sources
    expected = 0.0
    for span in spans:
        rate = span.amount / sources
        until = expected + rate * (span.end_s - span.start_s)
        while due < until:
            yield span.start_s + (due - expected) / rate
            due += random.expovariate(1.0) if arrivals == "poisson" else 1.0
        expected = until
