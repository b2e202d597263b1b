"""What changed between two load tests, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mooring_loadtests.load_result import LoadResult
from mooring_loadtests.load_statistics import FIGURES, Draws, interval, wilson

ALL = "all"
_MORE_IS_BETTER = "throughput"
_SHARE = "error_rate"
#: Chance of one false alarm or more in a whole comparison of runs that do not differ.
_FALSE_ALARMS = 0.05
#: Words that say how the machine was, not what it is.
_PASSING = ("load average",)

Verdict = Literal["better", "worse", "no difference", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure of two runs, A and B."""

    #: ``all``, or the name of the requests.
    requests: str
    #: One of :data:`mooring_loadtests.load_statistics.FIGURES`.
    figure: str
    a: float
    b: float
    #: B / A; of the share of failures B - A, which may be 0 on both sides.
    change: float
    #: 95 % confidence interval of the change; ``None`` where a run was too short for one.
    low: float | None = None
    high: float | None = None
    #: Chance of such a difference between runs that do not differ, adjusted for the number of figures.
    p: float | None = None
    #: ``unknown`` where a run was too short to say.
    verdict: Verdict = "unknown"


def compare_runs(a: LoadResult, b: LoadResult, *, threshold: float) -> list[Change]:
    """Hold each figure of two runs against each other.

    A figure is better or worse where the difference is larger than ``threshold`` and beyond chance. With many
    figures, one of them differs by chance sooner or later: they are held together to a chance of about 5 %
    (Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6,
    1979).

    Args:
        a: the earlier run.
        b: the later run.
        threshold: smallest relative change that matters, such as 0.05.

    Returns:
        The changes of all requests together, and where there are several kinds, of each that both runs have.

    Raises:
        DataError: a run sent nothing that counts.
    """
    changes = _changes(ALL, a.draws(), b.draws())
    if len({*a.names, *b.names}) > 1:
        for name in a.names:
            if name in b.names:
                changes += _changes(name, a.draws(name), b.draws(name))
    return [replace(change, verdict=_verdict(change, threshold)) for change in _adjusted(changes)]


def incomparable(a: LoadResult, b: LoadResult) -> list[str]:
    """Why a difference between two runs may not come from the model; empty where nothing speaks for that."""
    reasons = [f"{side} is invalid: {doubt}" for side, run in (("A", a), ("B", b)) for doubt in run.doubts]
    if a.started == b.started and a.recorder.to_dict() == b.recorder.to_dict():
        reasons.append("A and B are the same run")
    load_a, load_b = _load(a), _load(b)
    if a.items and b.items:
        # Whatever the file is called.
        load_a["payload.file"] = load_b["payload.file"] = None
    facts: list[tuple[str, Any, Any]] = [
        ("model", a.model, b.model),
        *_pairs("profile: ", load_a, load_b),
        *([("items (sha256)", a.items, b.items)] if a.items and b.items else []),
        ("generating processes", a.processes, b.processes),
        *_pairs("machine: ", _lasting(a.machine), _lasting(b.machine)),
        ("requests", ", ".join(a.names), ", ".join(b.names)),
    ]
    return reasons + [f"{what} is {one} in A and {other} in B" for what, one, other in facts if one != other]


def differences(a: LoadResult, b: LoadResult) -> list[tuple[str, Any, Any]]:
    """What was compared, on purpose or not: servers, versions and settings of models, in A and in B."""
    pairs = [*_pairs("", a.versions, b.versions), *_pairs("", a.settings, b.settings)]
    if a.urls and b.urls:
        pairs.insert(0, ("server", ", ".join(a.urls), ", ".join(b.urls)))
    return [(what, one, other) for what, one, other in pairs if one != other]


def _changes(requests: str, a: Draws, b: Draws) -> list[Change]:
    return [
        _share_change(requests, a, b) if figure == _SHARE else _ratio_change(requests, figure, a, b)
        for figure in FIGURES
    ]


def _ratio_change(requests: str, figure: str, a: Draws, b: Draws) -> Change:
    change = Change(
        requests=requests,
        figure=figure,
        a=a.values[figure],
        b=b.values[figure],
        change=float(_ratio(np.array(b.values[figure]), np.array(a.values[figure]))),
    )
    if figure not in a.draws or figure not in b.draws:
        return change
    # Every draw of one run with every draw of the other: the runs are independent, their draws are not, as
    # both come from the same seed.
    ratios = _ratio(b.draws[figure][:, None], a.draws[figure][None, :])
    low, high = interval(ratios)
    return replace(change, low=low, high=high, p=_chance(ratios, 1.0))


def _share_change(requests: str, a: Draws, b: Draws) -> Change:
    before, after = a.values[_SHARE], b.values[_SHARE]
    change = Change(requests=requests, figure=_SHARE, a=before, b=after, change=after - before)
    if _SHARE not in a.draws or _SHARE not in b.draws:
        return change
    differences = b.draws[_SHARE][:, None] - a.draws[_SHARE][None, :]
    low, high = interval(differences)
    # A run without failures has draws without failures, all alike. So the interval is no narrower than that
    # of independent failures (Newcombe, "Interval estimation for the difference between independent
    # proportions", Statistics in Medicine 17, 1998, method 10), and the chance no smaller than theirs.
    (least_a, most_a), (least_b, most_b) = wilson(before, a.requests), wilson(after, b.requests)
    below = ((after - least_b) ** 2 + (most_a - before) ** 2) ** 0.5
    above = ((most_b - after) ** 2 + (before - least_a) ** 2) ** 0.5
    return replace(
        change,
        low=min(low, change.change - below),
        high=max(high, change.change + above),
        p=max(_chance(differences, 0.0), _chance_of_shares(before, a.requests, after, b.requests)),
    )


def _ratio(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """``after / before``; 1 where both are 0 or both infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(after == before, 1.0, after / before)


def _chance(draws: np.ndarray, unchanged: float) -> float:
    """Two-sided p value: what it takes for the bootstrap's interval to hold ``unchanged``."""
    fewer = min(np.count_nonzero(draws <= unchanged), np.count_nonzero(draws >= unchanged))
    return min(1.0, 2 * (fewer + 1) / (draws.size + 1))


def _chance_of_shares(before: float, requests_a: int, after: float, requests_b: int) -> float:
    """Two-sided p value of the difference between two shares of independent events (pooled z test)."""
    pooled = (before * requests_a + after * requests_b) / (requests_a + requests_b)
    variance = pooled * (1 - pooled) * (1 / requests_a + 1 / requests_b)
    if not variance:
        return 1.0
    return math.erfc(abs(after - before) / math.sqrt(2 * variance))


def _adjusted(changes: Sequence[Change]) -> list[Change]:
    """With each p value adjusted for their number by Holm's method."""
    tested = [i for i, change in enumerate(changes) if change.p is not None]
    tested.sort(key=lambda i: changes[i].p or 0.0)
    adjusted, highest = list(changes), 0.0
    for rank, i in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * (changes[i].p or 0.0)))
        adjusted[i] = replace(changes[i], p=highest)
    return adjusted


def _verdict(change: Change, threshold: float) -> Verdict:
    if change.p is None:
        return "unknown"
    base = change.a if change.figure == _SHARE else 1.0
    difference = change.change if change.figure == _SHARE else change.change - 1
    if change.p > _FALSE_ALARMS or abs(difference) <= threshold * base:
        return "no difference"
    return "better" if (difference > 0) == (change.figure == _MORE_IS_BETTER) else "worse"


def _load(run: LoadResult) -> dict[str, Any]:
    """What of the profile makes the load."""
    profile = run.profile.model_dump(mode="json", exclude={"description", "slo", "stages"})
    payload = {f"payload.{key}": value for key, value in profile.pop("payload").items()}
    spans = [
        f"{span.end_s - span.start_s} s of {span.amount:g}{'' if span.measured else ' unmeasured'}"
        for span in run.profile.spans()
    ]
    return {**profile, **payload, "stages": ", ".join(spans)}


def _lasting(machine: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in machine.items() if key not in _PASSING}


def _pairs(what: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(f"{what}{key}", a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b])]
