"""Find the serving settings that keep a bound on latency at the highest rate, with few short probes.

Successive halving (Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
optimization", AISTATS 2016): every candidate is probed for a moment, the best third for longer, and the best
of these take turns with the present settings. A probe is an open loop whose rate rises stage by stage, so
that it shows how much a candidate takes before its 99th percentile breaks the bound.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, NamedTuple

from mooring import ConfigError

#: One of so many goes on to the next round.
_KEPT = 3
#: A round each: shortest length of a stage in seconds, and its rates as shares of the best known before.
_ROUNDS = (
    (1, (0.6, 0.8, 1.0, 1.2, 1.5, 2.0)),
    (2, (0.7, 0.85, 1.0, 1.15, 1.3)),
)
#: The same of a turn, of which there are so many. The best of many short probes is mostly the luckiest: what
#: it keeps for longer is lower.
_TURN_S = 3
TURN_SHARES = (0.5, 0.65, 0.8, 0.95, 1.1)
TURNS = 3
#: So many take turns with the present settings.
_FINALISTS = 2
#: A stage lasts until it has had about so many requests, but not for ever.
_STAGE_REQUESTS = 50
_LONGEST_STAGE_S = 5
#: Rates are never lower than this share of what was guessed, even where nothing keeps the bound.
LEAST_SHARE = 0.1


class Variant(NamedTuple):
    """What is built, not only configured; as in :class:`Candidate`."""

    engine: str
    precision: str
    mixed_lengths: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Settings of one engine."""

    #: ``onnx`` or ``torchscript``.
    engine: str
    precision: str
    mixed_lengths: str
    instance_count: int
    intra_op_thread_count: int
    max_batch_size: int
    preferred_batch_size: tuple[int, ...]
    max_queue_delay_microseconds: int

    def serving(self) -> dict[str, Any]:
        """As the recipe's table ``[serving]`` has them."""
        settings = asdict(self)
        del settings["engine"], settings["precision"]
        return settings | {"preferred_batch_size": list(self.preferred_batch_size)}

    def distance(self, other: Candidate) -> int:
        """In how many respects another one differs: what is built, who computes, what shares a batch."""

        def respects(one: Candidate) -> list[tuple[Any, ...]]:
            return [
                (one.engine, one.precision, one.mixed_lengths),
                (one.instance_count, one.intra_op_thread_count),
                (one.max_batch_size, one.preferred_batch_size, one.max_queue_delay_microseconds),
            ]

        return sum(mine != its for mine, its in zip(respects(self), respects(other), strict=True))

    def __str__(self) -> str:
        batch = f"batch up to {self.max_batch_size}" if self.max_batch_size > 1 else "no batches"
        if self.preferred_batch_size:
            batch += f", preferred {' or '.join(map(str, self.preferred_batch_size))}"
        delay = f", wait {self.max_queue_delay_microseconds} us" if self.max_queue_delay_microseconds else ""
        threads = f"{self.instance_count} x {self.intra_op_thread_count} threads"
        return f"{self.engine} {self.precision}, {self.mixed_lengths}, {threads}, {batch}{delay}"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One rate of a probe."""

    #: Requests a second.
    rate: float
    #: Infinite where more than 1 % failed or answers fell behind.
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a candidate did."""

    candidate: Candidate
    round: int
    #: Of rising rate; empty where the candidate did not serve.
    stages: tuple[Stage, ...]
    #: Why it did not serve.
    error: str | None = None

    def rate_within(self, p99_ms: float) -> float:
        """Highest rate at which the bound is kept, in requests a second; see :func:`rate_within`."""
        return rate_within(self.stages, p99_ms)

    def told(self, p99_ms: float) -> str:
        """One line: the candidate, and the rate at which it keeps the bound or why it has none."""
        said = self.error or f"{self.rate_within(p99_ms):.1f} requests/s"
        return f"{self.candidate!s:<82}  {said}"


#: Loads a candidate at rates, each for so many seconds, with requests drawn by a seed.
Run = Callable[[Candidate, Sequence[float], int, int], Sequence[Stage]]


def grid(
    *,
    cores: int,
    variants: Iterable[Variant],
    default: Candidate,
    vary_batches: bool = True,
    smallest_batch: int = 1,
    gpu: bool = False,
) -> list[Candidate]:
    """Every candidate worth a thought on a machine, the present settings first.

    Args:
        cores: of the machine.
        variants: what the release's engines can be.
        default: the present settings.
        vary_batches: whether other ways to form batches would change anything.
        smallest_batch: least ``max_batch_size`` that may be.
        gpu: whether the engines run on one: each instance has weights there, and batches may be larger.
    """
    threads = [
        (instances, per_instance)
        for instances, per_instance in itertools.product(sorted({1, 2, cores, 2 * cores}), sorted({1, cores}))
        if instances * per_instance <= 2 * cores
    ]
    if gpu:
        threads = [(1, 1), (2, 1), (4, 1)]
    batches = [(default.max_batch_size, default.preferred_batch_size, default.max_queue_delay_microseconds)]
    if vary_batches:
        batches += [(1, (), 0), (8, (4, 8), 0), (8, (4, 8), 2000), (32, (8, 16), 0), (32, (8, 16), 2000)]
        batches += [(128, (32, 64), 0), (128, (32, 64), 2000)] if gpu else []
    found = [
        Candidate(
            **variant._asdict(),
            instance_count=instances,
            intra_op_thread_count=per_instance,
            max_batch_size=size,
            preferred_batch_size=preferred,
            max_queue_delay_microseconds=delay,
        )
        for variant in variants
        for instances, per_instance in threads
        for size, preferred, delay in dict.fromkeys(batches)
        if size >= smallest_batch
    ]
    return [default, *(candidate for candidate in found if candidate != default)]


def search(
    candidates: Sequence[Candidate],
    run: Run,
    *,
    p99_ms: float,
    guess: float,
    first_round: int,
    known: Iterable[Probe] = (),
    note: Callable[[Probe], None] = lambda probe: None,
    seed: int = 0,
) -> list[Probe]:
    """Probe by successive halving.

    Args:
        candidates: the first is in the first round in any case, and of the others those that are nearest to
            it; which of those that are equally near, the seed says.
        run: serves a candidate at rates, each for so many seconds, with requests drawn by a seed, which is
            the round's: in a round everyone gets the same. An error counts against the candidate, but for
            :class:`~mooring.ConfigError`, which ends the search.
        p99_ms: bound on the 99th percentile of latency.
        guess: a rate of about what the first takes within the bound, in requests a second.
        first_round: number of candidates of the first round; see :func:`affordable`.
        known: probes of an interrupted search, which are not run again. Those at other rates than the
            round's count for nothing: what failed before and serves now may have raised them.
        note: receives every new probe.
        seed: of the choice.

    Returns:
        The last round's probes, the best first.
    """
    known = list(known)
    default, *others = candidates
    Random(seed).shuffle(others)
    others.sort(key=default.distance)
    chosen = [default, *others[: first_round - 1]]
    best = guess
    probes: list[Probe] = []
    for number, (shortest_s, shares) in enumerate(_ROUNDS):
        probes = []
        seconds = stage_s(shortest_s, best)
        rates = [share * best for share in shares]
        done = _done(known, number, rates)
        for candidate in chosen:
            probe = done.get(candidate)
            if probe is None:
                probe = _probe(run, candidate, number, rates, seconds)
                note(probe)
            probes.append(probe)
        probes.sort(key=lambda probe: _rank(probe, p99_ms))
        best = max(probes[0].rate_within(p99_ms), LEAST_SHARE * guess)
        chosen = [probe.candidate for probe in probes[: _kept(len(probes))]]
    return probes


def finalists(default: Candidate, probes: Sequence[Probe]) -> list[Candidate]:
    """The present settings, and the best others of a search.

    Args:
        default: the present settings.
        probes: what :func:`search` returned.
    """
    others = [probe.candidate for probe in probes if probe.candidate != default and probe.stages]
    return [default, *others[:_FINALISTS]]


def take_turns(
    candidates: Sequence[Candidate],
    run: Run,
    *,
    rates: Sequence[float],
    turns: int,
    known: Iterable[Probe] = (),
    note: Callable[[Probe], None] = lambda probe: None,
) -> dict[Candidate, list[Probe]]:
    """Probe candidates at the same rates one after the other, several times: a machine's speed drifts.

    Args:
        candidates: at least one.
        run: as for :func:`search`.
        rates: rising.
        turns: how often.
        known: as for :func:`search`.
        note: likewise.

    Returns:
        The probes of each, one a turn; :func:`pooled` joins them.
    """
    known = list(known)
    seconds = stage_s(_TURN_S, _middle(rates))
    probes: dict[Candidate, list[Probe]] = {candidate: [] for candidate in candidates}
    for number in range(len(_ROUNDS), len(_ROUNDS) + turns):
        done = _done(known, number, rates)
        for candidate in candidates:
            probe = done.get(candidate)
            if probe is None:
                probe = _probe(run, candidate, number, rates, seconds)
                note(probe)
            probes[candidate].append(probe)
    return probes


def _done(known: Iterable[Probe], number: int, rates: Sequence[float]) -> dict[Candidate, Probe]:
    """What is known of a round at its rates."""
    return {
        probe.candidate: probe
        for probe in known
        if probe.round == number and probe.stages and all(stage.rate in rates for stage in probe.stages)
    }


def _rank(probe: Probe, p99_ms: float) -> tuple[float, float]:
    """The best first: by the rate, and by latency where several keep the highest rate that was tried."""
    return -probe.rate_within(p99_ms), probe.stages[-1].p99_ms if probe.stages else math.inf


def affordable(count: int, *, overhead_s: float, budget_s: float, guess: float) -> int:
    """How many of the candidates a search has time for in its first round; at least one.

    Args:
        count: of all candidates.
        overhead_s: what a probe takes beside its stages, in seconds.
        budget_s: for all probes, those of the turns included.
        guess: as for :func:`search`.
    """
    turn_s = overhead_s + stage_s(_TURN_S, _middle(TURN_SHARES) * guess) * len(TURN_SHARES)

    def search_s(first_round: int) -> float:
        seconds, probes = 0.0, first_round
        for shortest_s, shares in _ROUNDS:
            seconds += probes * (overhead_s + stage_s(shortest_s, guess) * len(shares))
            last, probes = probes, _kept(probes)
        return seconds + TURNS * (1 + min(last, _FINALISTS)) * turn_s

    return next((number for number in range(count, 1, -1) if search_s(number) <= budget_s), 1)


def stage_s(shortest_s: int, rate: float) -> int:
    """Length of a stage in seconds: at least what is given, and more at a rate of few requests a second."""
    return max(shortest_s, min(math.ceil(_STAGE_REQUESTS / rate), _LONGEST_STAGE_S))


def is_turn(probe: Probe) -> bool:
    """Whether it is one of :func:`take_turns`."""
    return probe.round >= len(_ROUNDS)


def _middle(rates: Sequence[float]) -> float:
    return rates[len(rates) // 2]


def _kept(probes: int) -> int:
    return max(1, math.ceil(probes / _KEPT))


def pooled(probes: Sequence[Probe]) -> list[Stage]:
    """Join a candidate's probes at the same rates, so that what disturbed one of them counts for nothing.

    Returns:
        At each rate the median of the percentiles; a probe without stages counts as one that failed. One
        that lacks a rate had nothing due at it.
    """
    failed = [math.inf for probe in probes if not probe.stages]
    latencies: dict[float, list[float]] = {}
    for stage in (stage for probe in probes for stage in probe.stages):
        latencies.setdefault(stage.rate, []).append(stage.p99_ms)
    return [
        Stage(rate=rate, p99_ms=statistics.median([*seen, *failed]))
        for rate, seen in sorted(latencies.items())
    ]


def _probe(run: Run, candidate: Candidate, number: int, rates: Sequence[float], seconds: int) -> Probe:
    try:
        stages = tuple(run(candidate, rates, seconds, number))
    except ConfigError:
        # What was asked for is wrong, not the candidate.
        raise
    except Exception as exc:  # noqa: BLE001 - a candidate may crash the server in any way
        return Probe(candidate=candidate, round=number, stages=(), error=f"{type(exc).__name__}: {exc}")
    return Probe(candidate=candidate, round=number, stages=stages)


def rate_within(stages: Sequence[Stage], p99_ms: float) -> float:
    """Highest rate at which the bound is kept, in requests a second.

    Latency grows with the rate, so the percentiles are put in order first (Chernozhukov, Fernández-Val and
    Galichon, "Improving point and interval estimators of monotone functions by rearrangement", Biometrika
    96, 2009): neither a lucky stage beyond the first break nor a disturbed one before it decides alone.
    Between the last that keeps the bound and the next, the logarithm of the percentile is taken to be linear
    in the rate. Where none keeps it, the lowest rate is scaled down by how far it is off; where all do, the
    highest rate is returned.

    Args:
        stages: of rising rate; none gives 0.
        p99_ms: the bound.
    """
    if not stages:
        return 0.0
    latencies = sorted(stage.p99_ms for stage in stages)
    ordered = [Stage(rate=one.rate, p99_ms=latency) for one, latency in zip(stages, latencies, strict=True)]
    kept = sum(latency <= p99_ms for latency in latencies)
    if not kept:
        first = ordered[0]
        return first.rate * p99_ms / first.p99_ms if math.isfinite(first.p99_ms) else 0.0
    if kept == len(ordered):
        return ordered[-1].rate
    low, high = ordered[kept - 1], ordered[kept]
    if math.isinf(high.p99_ms):
        return low.rate
    share = math.log(p99_ms / low.p99_ms) / math.log(high.p99_ms / low.p99_ms)
    return low.rate + share * (high.rate - low.rate)
