"""What a run of the users measured: the file of ``--results``, read and condensed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mooring import DataError


@dataclass(frozen=True, kw_only=True)
class ProtocolResult:
    """Requests of one protocol."""

    #: As in Locust's report, such as ``ner grpc``.
    name: str
    #: ``grpc`` or ``http``.
    protocol: str
    #: Requests that ended, well or badly.
    requests: int
    failures: int
    #: Requests over the time from the first answer to the last.
    requests_per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """One run."""

    #: Sorted by name.
    protocols: tuple[ProtocolResult, ...]
    #: Reasons of failures, and errors of the users' own code, each with its count; most frequent first.
    errors: tuple[tuple[str, int], ...]

    @property
    def passed(self) -> bool:
        """Whether there were requests, and each was answered."""
        answered = all(result.requests > 0 for result in self.protocols)
        return bool(self.protocols) and answered and not self.errors and not self.failures

    @property
    def failures(self) -> int:
        """Failed requests of all protocols."""
        return sum(result.failures for result in self.protocols)


def read_results(path: Path) -> LoadResult:
    """Read the file that a run wrote for ``--results``.

    Raises:
        DataError: the file is missing, or not such a file.
    """
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        errors = [
            (str(error["error"]), int(error["occurrences"]))
            for error in [*written["errors"], *written["crashes"]]
        ]
        return LoadResult(
            protocols=tuple(sorted(map(_protocol_result, written["stats"]), key=lambda result: result.name)),
            errors=tuple(sorted(errors, key=lambda error: -error[1])),
        )
    except FileNotFoundError as exc:
        raise DataError(f"{path} is missing: the load test did not come to its end") from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise DataError(f"{path} holds no results of a load test ({exc!r})") from exc


def percentile(counts: Mapping[float, int], share: float) -> float:
    """Nearest-rank percentile of a histogram: the smallest value such that ``share`` of all are at most it.

    Args:
        counts: number of occurrences by value, not empty.
        share: above 0 and at most 1, such as 0.99.

    Raises:
        ValueError: there is nothing to rank, or ``share`` is no share.
    """
    total = sum(counts.values())
    if total < 1 or not 0 < share <= 1:
        raise ValueError(f"no percentile {share} of {total} values")
    rank = math.ceil(share * total)
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= rank:
            break
    return value


def round_response_time(time_ms: float) -> float:
    """Round to three significant digits: few bars in a histogram, and percentiles err by 0.5 % at most."""
    return float(f"{time_ms:.3g}")


def _protocol_result(entry: Mapping[str, Any]) -> ProtocolResult:
    counts = {float(value): int(count) for value, count in entry["response_times"].items()}
    lasted_s = entry["last_request_timestamp"] - entry["start_time"]
    return ProtocolResult(
        name=entry["name"],
        protocol=entry["method"],
        requests=entry["num_requests"],
        failures=entry["num_failures"],
        requests_per_s=entry["num_requests"] / lasted_s if lasted_s > 0 else 0.0,
        p50_ms=percentile(counts, 0.5),
        p99_ms=percentile(counts, 0.99),
    )
