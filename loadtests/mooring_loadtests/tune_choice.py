"""Which of the settings that served most in turns is chosen: longer runs confirm it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mooring import ConfigError, DataError, MooringError
from mooring_loadtests.load_profile import Stage as ProfileStage
from mooring_loadtests.load_statistics import Estimate
from mooring_loadtests.tune_probe import Prober
from mooring_loadtests.tuner import Candidate, Probe, pooled, rate_within

#: Others take the place of the present settings where they serve so many times as much.
_CLEARLY = 1.05
#: A longer run begins at this share of what the turns said. Where it breaks the bound, the rate is lowered by
#: how far it is off, within these shares, and run again; so many runs in all.
_CONFIRMED_SHARE = 0.95
_LOWERED_SHARES = (0.75, 0.95)
_CONFIRMATIONS = 3
_CONFIRM_S = 15
#: A longer run lasts at least so many times the bound, as an overload by a twentieth shows by then, but no
#: longer than this share of the whole search.
_CONFIRMED_BOUNDS = 20
_TIME_SHARE = 0.2
#: A longer run with fewer requests says nothing about a 99th percentile; beyond this length it isn't tried.
_FEWEST_REQUESTS = 10
_LONGEST_CONFIRMATION_S = 60
#: So many longer runs, as a rule: two of what is found, as turns promise too much, and one of the present
#: settings at the same rate.
USUAL_CONFIRMATIONS = 3
#: What a longer run takes beside itself, about.
_OVERHEAD_S = 10.0


@dataclass(frozen=True, kw_only=True)
class TimeLeft:
    """What a search may take."""

    minutes: float = math.inf
    #: When it should be over, as ``time.monotonic`` counts.
    until_s: float = math.inf

    @classmethod
    def of(cls, minutes: float) -> TimeLeft:
        """So many from now on."""
        return cls(minutes=minutes, until_s=time.monotonic() + 60 * minutes)

    def has(self, seconds: float) -> bool:
        """Whether there is time for so much more."""
        return time.monotonic() + seconds <= self.until_s


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """What settings did in a longer run."""

    #: Requests a second; 0 where the bound was kept at no rate that was tried.
    rate: float
    p99_ms: Estimate
    #: Why it says little: the generator did not keep up, or the settings did not serve.
    doubts: Sequence[str]
    #: At which the bound was broken last, where it was kept at none; 0 where nothing was run or served.
    broke: float = 0.0
    served: bool = True

    def headroom(self, p99_ms: float) -> float:
        """Share of the bound that the 99th percentile leaves free; 0 where the bound was not kept."""
        return max(0.0, 1 - self.p99_ms.value / p99_ms)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search came to."""

    choice: Candidate
    #: At which each finalist kept the bound in turns, in requests a second.
    rates: Mapping[Candidate, float]
    #: What was run longer: the choice, what was not confirmed before it, and the present settings.
    confirmed: Mapping[Candidate, Confirmed]


def choose(
    prober: Prober,
    default: Candidate,
    turns: Mapping[Candidate, Sequence[Probe]],
    p99_ms: float,
    *,
    time_left: TimeLeft = TimeLeft(),
) -> Outcome:
    """Confirm in longer runs what served most in turns.

    Args:
        prober: serves and loads candidates.
        default: the present settings.
        turns: what each finalist did, as many as of the others.
        p99_ms: the bound.
        time_left: for this. Without any, the best in turns and the present settings have their runs all the
            same until one keeps the bound: a search that ends with nothing was for nothing.

    Returns:
        With the present settings as the choice where no other is clearly better in the turns together and
        better in each, or where they keep the bound at the rate at which the other was confirmed, or where
        the generator did not keep up and they keep the bound.
    """
    rates = {candidate: rate_within(pooled(its), p99_ms) for candidate, its in turns.items()}
    better = [one for one in rates if one != default and _is_better(turns[one], turns[default], p99_ms)]
    runs = _LongerRuns(prober, default, p99_ms, time_left)
    doubtful: list[Candidate] = []
    for candidate in sorted(better, key=lambda one: -rates[one]):
        found = runs.confirm(candidate, rates[candidate])
        if not found.rate or runs.present_keeps(found.rate):
            continue
        if not found.doubts:
            return Outcome(choice=candidate, rates=rates, confirmed=runs.confirmed)
        doubtful.append(candidate)
    present = runs.confirm(default, rates[default])
    choice = doubtful[0] if doubtful and not present.rate else default
    return Outcome(choice=choice, rates=rates, confirmed={**runs.confirmed, default: present})


def _is_better(those: Sequence[Probe], present: Sequence[Probe], p99_ms: float) -> bool:
    """Whether settings did clearly better in their turns, and better in each: chance has it in some."""
    together, before = rate_within(pooled(those), p99_ms), rate_within(pooled(present), p99_ms)
    return together >= before * _CLEARLY and all(
        one.rate_within(p99_ms) > other.rate_within(p99_ms) for one, other in zip(those, present, strict=True)
    )


def confirmation_s(p99_ms: float, minutes: float = math.inf) -> int:
    """Length of a longer run, in seconds: with a generous bound an overload takes its time to break it.

    Args:
        p99_ms: the bound.
        minutes: for the whole search.
    """
    return math.ceil(max(_CONFIRM_S, min(_CONFIRMED_BOUNDS * p99_ms / 1000, _TIME_SHARE * 60 * minutes)))


class _LongerRuns:
    """Longer runs of settings, and what came of them."""

    def __init__(self, prober: Prober, default: Candidate, p99_ms: float, time_left: TimeLeft) -> None:
        self._prober = prober
        self._default = default
        self._p99_ms = p99_ms
        self._time_left = time_left
        #: The best of each.
        self.confirmed: dict[Candidate, Confirmed] = {}

    def confirm(self, candidate: Candidate, rate: float) -> Confirmed:
        """Lower the rate until a longer run keeps the bound."""
        rate *= _CONFIRMED_SHARE
        for _ in range(_CONFIRMATIONS):
            known = self.confirmed.get(candidate)
            if known is not None and (known.rate >= rate or not known.served):
                break
            if not self._may_run(candidate, rate):
                break
            one = self._run(candidate, rate)
            if one.rate or not one.served:
                break
            least, most = _LOWERED_SHARES
            rate *= min(most, max(least, self._p99_ms / one.p99_ms.value))
        never = Confirmed(rate=0.0, p99_ms=Estimate(value=math.inf), doubts=())
        return self.confirmed.get(candidate, never)

    def present_keeps(self, rate: float) -> bool:
        """Whether the present settings keep the bound in a longer run at a rate."""
        known = self.confirmed.get(self._default)
        if known is not None and (known.rate >= rate or not known.served):
            return known.served
        return self._run(self._default, rate).rate > 0

    def _may_run(self, candidate: Candidate, rate: float) -> bool:
        """Whether a run says anything and there is time for it, and for the present settings after it."""
        usual_s = confirmation_s(self._p99_ms, self._time_left.minutes)
        if not rate or self._seconds(rate) > max(usual_s, _LONGEST_CONFIRMATION_S):
            return False
        best = next(iter(self.confirmed), candidate)
        nothing_kept = not any(one.rate for one in self.confirmed.values())
        is_due = candidate == self._default and candidate not in self.confirmed
        has_to = is_due or (nothing_kept and candidate in (best, self._default))
        return has_to or self._time_left.has(2 * (self._seconds(rate) + _OVERHEAD_S))

    def _seconds(self, rate: float) -> int:
        usual_s = confirmation_s(self._p99_ms, self._time_left.minutes)
        return max(usual_s, math.ceil(_FEWEST_REQUESTS / rate))

    def _run(self, candidate: Candidate, rate: float) -> Confirmed:
        """What settings do at a rate."""
        stages = (ProfileStage(seconds=2, measured=False), ProfileStage(seconds=self._seconds(rate)))
        try:
            result = self._prober.load(candidate, loop="open", rate=rate, stages=stages)
            estimate = result.figures()["p99_ms"]
        except MooringError as exc:
            # A run without requests that count is the server's, any other mistake that of what was asked for.
            if isinstance(exc, ConfigError) and not isinstance(exc, DataError):
                raise
            doubt = f"it did not serve ({str(exc).partition(chr(10))[0]})"
            one = Confirmed(rate=0.0, p99_ms=Estimate(value=math.inf), doubts=(doubt,), served=False)
        else:
            kept = estimate.value <= self._p99_ms
            one = Confirmed(
                rate=rate if kept else 0.0,
                p99_ms=estimate,
                doubts=tuple(result.doubts),
                broke=0.0 if kept else rate,
            )
        known = self.confirmed.get(candidate)
        if known is None or one.rate >= known.rate:
            self.confirmed[candidate] = one
        return one


def in_words(candidate: Candidate, confirmed: Confirmed, bound_ms: float) -> str:
    """One line of what settings did, and why it is doubtful where it is."""
    p99 = confirmed.p99_ms
    interval = "" if p99.low is None or p99.high is None else f" [{p99.low:.3g}, {p99.high:.3g}]"
    # What to do about it, behind a colon, is for load tests.
    facts = (doubt.partition(":")[0] if confirmed.served else doubt for doubt in confirmed.doubts)
    doubt = "".join(f"\n         doubtful: {fact}" for fact in facts)
    if not confirmed.rate:
        tried = f"{confirmed.broke:.1f} requests/s" if confirmed.broke else "the rates that were tried"
        return f"{candidate}: does not keep the bound at {tried}{doubt}"
    headroom = f"{confirmed.headroom(bound_ms):.0%} below the bound"
    return (
        f"{candidate}: {confirmed.rate:.1f} requests/s, p99 {p99.value:.3g}{interval} ms, {headroom}{doubt}"
    )
