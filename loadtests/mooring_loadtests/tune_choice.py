"""Which of the settings that served most in turns is chosen: longer runs confirm it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mooring import ConfigError, DataError, MooringError
from mooring_loadtests.load_profile import Stage as ProfileStage
from mooring_loadtests.load_statistics import Estimate
from mooring_loadtests.tune_probe import Prober
from mooring_loadtests.tuner import Candidate

#: Others take the place of the present settings where they serve so many times as much.
_CLEARLY = 1.05
#: A longer run begins at this share of what the turns said. Where it breaks the bound, the rate is lowered by
#: how far it is off, within these shares, and run again; so many runs in all.
_CONFIRMED_SHARE = 0.95
_LOWERED_SHARES = (0.75, 0.95)
_CONFIRMATIONS = 3
_CONFIRM_S = 15
#: A longer run lasts at least so many times the bound: an overload by a twentieth shows by then.
_CONFIRMED_BOUNDS = 20
#: A longer run with fewer requests says nothing about a 99th percentile; beyond this length it isn't tried.
_FEWEST_REQUESTS = 10
_LONGEST_CONFIRMATION_S = 60


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """What settings did in a longer run."""

    #: Requests a second; 0 where the bound was kept at no rate that was tried.
    rate: float
    p99_ms: Estimate
    #: Why it says little: the generator did not keep up, or the settings did not serve.
    doubts: Sequence[str]
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
    #: What was run longer: the choice, and what was not confirmed before it.
    confirmed: Mapping[Candidate, Confirmed]


def choose(prober: Prober, default: Candidate, rates: Mapping[Candidate, float], p99_ms: float) -> Outcome:
    """Confirm in longer runs what served most in turns.

    Args:
        prober: serves and loads candidates.
        default: the present settings.
        rates: at which each finalist kept the bound, in requests a second.
        p99_ms: the bound.

    Returns:
        With the present settings as the choice where no other is clearly better in turns and in a longer
        run, or where the generator did not keep up and they keep the bound.
    """

    def weighed(candidate: Candidate, rate: float) -> float:
        return rate * _CLEARLY if candidate == default else rate

    confirmed: dict[Candidate, Confirmed] = {}
    least = weighed(default, rates[default]) * _CONFIRMED_SHARE
    for candidate in sorted(rates, key=lambda one: weighed(one, rates[one]), reverse=True):
        one = confirmed[candidate] = _confirm(prober, candidate, rates[candidate], p99_ms)
        if candidate == default:
            if one.rate:
                break
        elif one.rate >= least and one.rate and not one.doubts:
            return Outcome(choice=candidate, rates=rates, confirmed=confirmed)
    present = confirmed[default]
    others = [one for one in confirmed if one != default and not (present.rate and confirmed[one].doubts)]
    choice = max([default, *others], key=lambda one: weighed(one, confirmed[one].rate))
    return Outcome(choice=choice, rates=rates, confirmed=confirmed)


def confirmation_s(p99_ms: float) -> int:
    """Length of a longer run, in seconds: with a generous bound an overload takes its time to break it."""
    return max(_CONFIRM_S, math.ceil(_CONFIRMED_BOUNDS * p99_ms / 1000))


def _confirm(prober: Prober, candidate: Candidate, rate: float, p99_ms: float) -> Confirmed:
    """Lower the rate until a longer run keeps the bound."""
    confirmed = Confirmed(rate=0.0, p99_ms=Estimate(value=math.inf), doubts=())
    rate *= _CONFIRMED_SHARE
    for _ in range(_CONFIRMATIONS):
        seconds = max(confirmation_s(p99_ms), math.ceil(_FEWEST_REQUESTS / rate) if rate else 0)
        if not rate or seconds > max(confirmation_s(p99_ms), _LONGEST_CONFIRMATION_S):
            break
        stages = (ProfileStage(seconds=2, measured=False), ProfileStage(seconds=seconds))
        try:
            result = prober.load(candidate, loop="open", rate=rate, stages=stages)
            estimate = result.figures()["p99_ms"]
        except MooringError as exc:
            # A run without requests that count is the server's, any other mistake that of what was asked for.
            if isinstance(exc, ConfigError) and not isinstance(exc, DataError):
                raise
            doubt = f"it did not serve ({str(exc).partition(chr(10))[0]})"
            return Confirmed(rate=0.0, p99_ms=Estimate(value=math.inf), doubts=(doubt,), served=False)
        kept = estimate.value <= p99_ms
        confirmed = Confirmed(rate=rate if kept else 0.0, p99_ms=estimate, doubts=tuple(result.doubts))
        if kept:
            break
        least, most = _LOWERED_SHARES
        rate *= min(most, max(least, p99_ms / estimate.value))
    return confirmed


def in_words(candidate: Candidate, confirmed: Confirmed, bound_ms: float) -> str:
    """One line of what settings did, and why it is doubtful where it is."""
    p99 = confirmed.p99_ms
    interval = "" if p99.low is None or p99.high is None else f" [{p99.low:.3g}, {p99.high:.3g}]"
    # What to do about it, behind a colon, is for load tests.
    facts = (doubt.partition(":")[0] if confirmed.served else doubt for doubt in confirmed.doubts)
    doubt = "".join(f"\n         doubtful: {fact}" for fact in facts)
    if not confirmed.rate:
        return f"{candidate}: does not keep the bound at the rates that were tried{doubt}"
    headroom = f"{confirmed.headroom(bound_ms):.0%} below the bound"
    return (
        f"{candidate}: {confirmed.rate:.1f} requests/s, p99 {p99.value:.3g}{interval} ms, {headroom}{doubt}"
    )
