"""Where the slowest requests spent their time: Triton's traces of a run."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mooring import DataError
from mooring_loadtests.load_profile import Profile
from mooring_loadtests.server_times import ServerTimes, StepTimes

#: What lies between two of Triton's times of one model.
_PARTS = {
    "queue_ms": ("QUEUE_START", "COMPUTE_START"),
    "input_ms": ("COMPUTE_START", "COMPUTE_INPUT_END"),
    "compute_ms": ("COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START"),
    "output_ms": ("COMPUTE_OUTPUT_START", "COMPUTE_END"),
}
_Times = Mapping[str, int]


class Began(NamedTuple):
    """When a run began."""

    #: On the machine's monotonic clock, which Triton's traces have.
    monotonic_ns: int
    #: Since 1970, as files have it.
    wall_ns: int

    @classmethod
    def now(cls) -> Began:
        return cls(time.monotonic_ns(), time.time_ns())

    def measured(self, profile: Profile, generated_ns: int) -> list[tuple[int, int]]:
        """When what counts of the stages begins and ends, on the monotonic clock.

        Args:
            profile: of the run.
            generated_ns: when the clock of its stages began, since 1970.
        """
        zero_ns = self.monotonic_ns + generated_ns - self.wall_ns
        return [
            (zero_ns + span.counted.start * 10**9, zero_ns + span.end_s * 10**9)
            for span in profile.spans()
            if span.measured
        ]


def slowest(
    file: Path,
    model: str,
    *,
    share: float = 0.01,
    since: Began | None = None,
    spans: Sequence[tuple[int, int]] = (),
) -> ServerTimes | None:
    """Mean times of the slowest requests among the traced ones.

    Args:
        file: what ``mooring serve --trace`` was given; the server adds ``.0``, ``.1`` and so on.
        model: that was called.
        share: of the traced requests; one at least.
        since: requests that began earlier do not count, nor files that were written before: an earlier
            server's, whose numbers are used again.
        spans: of :meth:`Began.measured`; requests that began in none of them do not count, if there are any.

    Returns:
        Times as Triton's statistics have them; ``None`` where no request of the model was traced.

    Raises:
        DataError: there is no such file, or it holds no traces.
    """
    since = since or Began(0, 0)
    times, names, children = _read(file, since.wall_ns)
    roots = [
        number
        for number, name in names.items()
        if name == model
        and {"REQUEST_START", "REQUEST_END"} <= times[number].keys()
        and times[number]["REQUEST_START"] >= since.monotonic_ns
        and (not spans or any(start <= times[number]["REQUEST_START"] < end for start, end in spans))
    ]
    if not roots:
        return None
    roots.sort(key=lambda number: -_between(times[number], "REQUEST_START", "REQUEST_END"))
    chosen = roots[: max(1, round(len(roots) * share))]
    steps: defaultdict[str, list[_Times]] = defaultdict(list)
    for root in chosen:
        for number in _below(root, children) or [root]:
            steps[names[number]].append(times[number])
    # In the order in which they ran.
    order = sorted(steps, key=lambda name: min(entry.get("REQUEST_START", 0) for entry in steps[name]))
    return ServerTimes(
        model=model,
        requests=len(chosen),
        total_ms=sum(_between(times[root], "REQUEST_START", "REQUEST_END") for root in chosen) / len(chosen),
        steps=tuple(_step(name, steps[name], len(chosen)) for name in order if _ran(steps[name])),
    )


def _step(name: str, entries: Sequence[_Times], requests: int) -> StepTimes:
    means = {
        part: sum(_between(entry, *ends) for entry in entries) / requests for part, ends in _PARTS.items()
    }
    return StepTimes(model=name, requests=len(entries), batches={}, **means)


def _ran(entries: Sequence[_Times]) -> bool:
    """Whether it is a model that computes; a pipeline within a pipeline has no times of its own."""
    return any("COMPUTE_START" in entry for entry in entries)


def _between(entry: _Times, start: str, end: str) -> float:
    """Milliseconds; 0 where one of the times is missing, as of a request that failed."""
    return (entry[end] - entry[start]) / 1e6 if start in entry and end in entry else 0.0


def _below(number: int, children: Mapping[int, Sequence[int]]) -> list[int]:
    """All that a request called, and what these called."""
    found = list(children.get(number, ()))
    for child in found:
        found += children.get(child, ())
    return found


def _read(
    file: Path, from_ns: int
) -> tuple[Mapping[int, _Times], Mapping[int, str], Mapping[int, list[int]]]:
    """Times, models and calls by the number of the trace."""
    paths = [*file.parent.glob(f"{file.name}.*"), *([file] if file.is_file() else [])]
    if not paths:
        raise DataError(
            f"{file} is missing: start the server with 'mooring serve --trace {file}'; it writes to the file "
            "for the first time after 100 traces, one of ten requests each"
        )
    paths = [path for path in paths if path.stat().st_mtime_ns >= from_ns]
    times: defaultdict[int, dict[str, int]] = defaultdict(dict)
    names: dict[int, str] = {}
    children: defaultdict[int, list[int]] = defaultdict(list)
    for path in paths:
        for entry in _entries(path):
            number = entry["id"]
            for stamp in entry.get("timestamps", ()):
                times[number][stamp["name"]] = stamp["ns"]
            if "model_name" in entry:
                names[number] = entry["model_name"]
                if "parent_id" in entry:
                    children[entry["parent_id"]].append(number)
    return times, names, children


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        # The server closes the list of the file that it writes to only when it stops.
        entries: list[dict[str, Any]] = json.loads(
            text if text.rstrip().endswith("]") else f"{text.rstrip(',')}]"
        )
        [entry["id"] for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise DataError(f"{path} holds no traces of Triton ({exc!r})") from exc
    return entries
