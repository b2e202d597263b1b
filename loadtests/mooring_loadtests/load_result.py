"""A load test's result: what was measured, on what, and the figures that follow from it."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mooring import ConfigError, DataError
from mooring_loadtests.arrivals import arrival_times
from mooring_loadtests.load_profile import Profile, Span, read_profile
from mooring_loadtests.load_statistics import PERCENTILES, Draws, Estimate, figures, percentile, together
from mooring_loadtests.recorder import Health, Recorder, Second
from mooring_loadtests.server_times import ServerTimes, StepTimes

#: Raised when the file changes so that older readers would err.
_SCHEMA = 2
#: Share of a core over which a generating process measures itself. Python runs on one core.
_CPU_LIMIT = 0.9
_BUSY_SHARE = 0.75
#: Requests may leave so late, or a tenth of a percentile of latency where that is more.
_LATENESS_LIMIT_MS = 5.0
#: Share of an open loop's requests that may be missing, or too many.
_MISSING_SHARE = 0.02
#: So many may be, as some leave a moment early and so count for the second before.
_FEW_MISSING = 2
#: A generating process that says nothing of itself for so long before the end is gone.
_SILENT_S = 5
#: So large a share may leave later. A few more do no harm where the percentile can't be theirs, as long as
#: they are not beyond chance (two standard deviations of a Poisson count).
_LATE_SHARES = {name: 1 - share for name, share in PERCENTILES.items()}
#: So many late requests of a stage mean nothing.
_FEW_LATE = 2
#: Requests of others are told where they are a larger share of one's own.
_OTHERS_SHARE = 0.05
#: Exit code of a run that says nothing, as its generator did not keep up or the model changed.
INVALID = 3


@dataclass(frozen=True, kw_only=True)
class StageFigures:
    """One measured stage."""

    span: Span
    figures: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """One run."""

    #: Name of the profile.
    name: str
    model: str
    #: Version that was served; empty where the server did not say.
    version: str
    #: When the run began, ISO 8601 in UTC.
    started: str
    profile: Profile
    #: Generating processes.
    processes: int
    #: The machine, versions of the software, and how each model is served, as words.
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    settings: Mapping[str, str]
    recorder: Recorder
    #: Of all requests; ``None`` where the server was not asked.
    server: ServerTimes | None
    #: Of the slowest 1 % of the traced requests; ``None`` where none was traced.
    slowest: ServerTimes | None = None
    #: SHA-256 of the payload's file; empty where items were drawn, and in results of before.
    items: str = ""
    #: What was asked; empty in results of before.
    urls: tuple[str, ...] = ()
    #: How the model was served otherwise after the run than before, in words.
    changes: tuple[str, ...] = ()
    #: Models whose counters began anew during the run, as the server or they were started again.
    anew: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the requests of the stages that count, such as ``ner grpc``."""
        return tuple(
            sorted(
                {
                    name
                    for (name, number), second in self.recorder.seconds.items()
                    if number in self._counted and (second.latencies_ms or second.failures_ms)
                }
            )
        )

    @property
    def answered(self) -> bool:
        """Whether the last stage that counts had answers: bounds may hold of a server that was gone by then.

        An open loop's stage in which nothing was due needs none.
        """
        last = self.seconds(spans=self.measured[-1:])
        if any(second.latencies_ms for second in last):
            return True
        if any(second.failures_ms for second in last):
            return False
        # What users of a closed loop asked before may take until now.
        return self.profile.loop == "open" or any(second.answers for second in last)

    @property
    def measured(self) -> tuple[Span, ...]:
        """The stages that count."""
        return tuple(span for span in self.profile.spans() if span.measured)

    @cached_property
    def _counted(self) -> frozenset[int]:
        """The seconds of the stages that count."""
        return frozenset(second for span in self.measured for second in span.counted)

    def seconds(self, name: str | None = None, spans: Sequence[Span] | None = None) -> list[Second]:
        """One entry a second of the stages.

        Args:
            name: of the requests; ``None`` for all together.
            spans: stages; ``None`` for those that count.
        """
        names = {name for name, _ in self.recorder.seconds} if name is None else {name}
        spans = self.measured if spans is None else spans
        return [
            together(
                [
                    self.recorder.seconds[one, second]
                    for one in names
                    if (one, second) in self.recorder.seconds
                ]
            )
            for span in spans
            for second in span.counted
        ]

    def draws(self, name: str | None = None) -> Draws:
        """Figures of the stages that count, with their bootstrap draws.

        Raises:
            DataError: nothing was sent in them.
        """
        try:
            return figures([self.seconds(name, [span]) for span in self.measured])
        except ValueError as exc:
            raise DataError(f"load test {self.name!r} of {self.model!r} sent nothing that counts") from exc

    def figures(self, name: str | None = None) -> dict[str, Estimate]:
        """Percentiles and mean in milliseconds, answers a second, share of failures; as :meth:`draws`."""
        return self.draws(name).estimates()

    def stages(self) -> list[StageFigures]:
        """Figures of each stage that counts and in which something was sent."""
        found = []
        for span in self.measured:
            seconds = self.seconds(spans=[span])
            if any(second.latencies_ms or second.failures_ms for second in seconds):
                found.append(StageFigures(span=span, figures=figures([seconds]).estimates()))
        return found

    def count(self, name: str | None = None) -> tuple[int, int]:
        """Requests of the stages that count, and how many of them failed."""
        seconds = self.seconds(name)
        failures = sum(second.failures_ms.total() for second in seconds)
        return failures + sum(second.latencies_ms.total() for second in seconds), failures

    @property
    def others(self) -> int:
        """Requests that the server answered to others during the run; 0 where they are hardly any."""
        if self.server is None:
            return 0
        # Each user asks one item before it begins, and those of a lighter stage end for good.
        own = (
            self._sources
            if self.profile.loop == "open"
            else sum(math.ceil(span.amount) for span in self.profile.spans())
        )
        for second in self.recorder.seconds.values():
            own += second.latencies_ms.total() + second.failures_ms.total()
        # Some may ask its engine alone.
        others = max(self.server.requests, *(step.requests for step in self.server.steps)) - own
        return others if others > _OTHERS_SHARE * own else 0

    @property
    def uncounted(self) -> int:
        """Answers that the server did not count, as others gave them or it began anew; 0 where hardly any."""
        if self.server is None:
            return 0
        seconds = self.recorder.seconds.values()
        answered = sum(second.latencies_ms.total() for second in seconds)
        uncounted = answered - self.server.requests
        return uncounted if uncounted > _OTHERS_SHARE * answered else 0

    def cpu(self, span: Span) -> dict[int, Counter[float]]:
        """What each generating process used of a core in the seconds of a stage."""
        used: defaultdict[int, Counter[float]] = defaultdict(Counter)
        for health in self._health(span):
            for process, share in health.cpu.items():
                used[process][share] += 1
        return used

    def _health(self, span: Span) -> list[Health]:
        """What the generator said of itself in the seconds of a stage."""
        health = self.recorder.health
        return [health[second] for second in span.counted if second in health]

    @cached_property
    def doubts(self) -> list[str]:
        """Why the figures can't be trusted: the generator, or two models in one run; empty where they can."""
        doubts = list(self.changes)
        if self.profile.loop == "open":
            due, (sent, _) = self._due(), self.count()
            if sent < due * (1 - _MISSING_SHARE) - _FEW_MISSING:
                doubts.append(f"{due - sent} of {due} requests that were due are missing")
            if sent > due * (1 + _MISSING_SHARE) + _FEW_MISSING:
                doubts.append(
                    f"{sent} requests were sent where {due} were due: is a worker's profile another?"
                )
        if gone := self._gone():
            doubts.append(f"{gone} of {self.processes} generating processes ended early or never began")
        # Of each process and stage the busiest quarter of the seconds.
        used = [cpu for span in self.measured for cpu in self.cpu(span).values()]
        if used and (busiest := max(percentile(cpu, _BUSY_SHARE) for cpu in used)) > _CPU_LIMIT:
            doubts.append(
                f"a generating process used {busiest:.0%} of a core: add --processes, or lower the load"
            )
        # Of the stages in which too many left late the worst: an overloaded one must not excuse a quiet one.
        late = [doubt for stage in self.stages() if (doubt := self._lateness(stage)) is not None]
        return [*doubts, *(words for _, words in sorted(late)[-1:])]

    @property
    def _sources(self) -> int:
        """Of an open loop: each process has one of each protocol's requests."""
        return self.processes * max(1, len({name for name, _ in self.recorder.seconds}))

    def _due(self) -> int:
        """How many requests an open loop should have sent in the stages that count: its seed says when."""
        sources = self._sources
        return sum(
            int(due_s) in self._counted
            for process in self._generators()
            for source in range(process, process + sources, self.processes)
            for due_s in arrival_times(
                self.profile.spans(),
                arrivals=self.profile.arrivals,
                seed=f"{self.profile.payload.seed}",
                source=source,
                sources=sources,
            )
        )

    def _generators(self) -> list[int]:
        """Numbers of the generating processes: not always the first ones, as Locust gives none twice."""
        known = sorted({process for health in self.recorder.health.values() for process in health.cpu})
        others = (number for number in itertools.count() if number not in known)
        return [*known, *itertools.islice(others, max(0, self.processes - len(known)))]

    def _gone(self) -> int:
        """How many of the generating processes were not there until the last stage that counts ended."""
        # A run of a few seconds is over before that shows.
        from_s = max(span.end_s for span in self.measured) - _SILENT_S
        health = self.recorder.health
        there = {process for second in health if second >= from_s for process in health[second].cpu}
        return max(0, self.processes - len(there)) if from_s > 0 else 0

    def _lateness(self, stage: StageFigures) -> tuple[float, str] | None:
        """Share of a stage's requests that left late, and it in words; ``None`` where it does not matter."""
        lateness: Counter[float] = Counter()
        for health in self._health(stage.span):
            lateness.update(health.lateness_ms)
        for name, allowed in _LATE_SHARES.items():
            figure = stage.figures[name].value
            # What failed has waited for up to its time budget.
            waited_ms = figure if math.isfinite(figure) else self.profile.timeout_s * 1000
            limit = max(_LATENESS_LIMIT_MS, waited_ms / 10)
            late = sum(count for value, count in lateness.items() if value > limit)
            expected = allowed * lateness.total()
            if late <= max(_FEW_LATE, expected):
                continue
            share = late / lateness.total()
            by_chance = late <= expected + 2 * math.sqrt(expected)
            if not by_chance or figure - self._without_slowest(stage, name, share) > limit:
                return share, (
                    f"{share:.1%} of the requests left more than {limit:,.4g} ms late: the generator or its "
                    "machine was overloaded"
                )
        return None

    def _without_slowest(self, stage: StageFigures, name: str, share: float) -> float:
        """A percentile of a stage if a share of its requests, the slowest ones, had been fast."""
        second = together(self.seconds(spans=[stage.span]))
        latencies = second.latencies_ms + Counter({math.inf: second.failures_ms.total()})
        rest = PERCENTILES[name] - share
        return percentile(latencies, rest) if rest > 0 else 0.0

    def to_json(self) -> str:
        """The result as JSON: what was measured, and for people the figures that follow."""
        names = {"all": None} | {name: name for name in self.names}
        document = {
            "schema": _SCHEMA,
            "name": self.name,
            "model": self.model,
            "version": self.version,
            "started": self.started,
            "processes": self.processes,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "settings": dict(self.settings),
            "items": self.items,
            "urls": list(self.urls),
            "changes": list(self.changes),
            "anew": list(self.anew),
            "profile": self.profile.model_dump(mode="json"),
            "figures": {
                key: {figure: finite(asdict(value)) for figure, value in self.figures(name).items()}
                for key, name in names.items()
            },
            "doubts": self.doubts,
            "server": None if self.server is None else asdict(self.server),
            "slowest": None if self.slowest is None else asdict(self.slowest),
            "measured": self.recorder.to_dict(),
        }
        return json.dumps(document, indent=1, allow_nan=False)


def read_result(path: Path) -> LoadResult:
    """Read the JSON file of a run.

    Raises:
        DataError: the file is missing, or not such a file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != _SCHEMA:
            raise DataError(f"{path} has schema {document['schema']!r}, this version reads {_SCHEMA}")
        recorder = Recorder()
        recorder.add(document["measured"])
        return LoadResult(
            name=document["name"],
            model=document["model"],
            version=document["version"],
            started=document["started"],
            processes=document["processes"],
            machine=document["machine"],
            versions=document["versions"],
            settings=document["settings"],
            profile=read_profile(document["profile"], str(path)),
            recorder=recorder,
            server=_read_server(document["server"]),
            slowest=_read_server(document["slowest"]),
            items=document.get("items", ""),
            urls=tuple(document.get("urls", ())),
            changes=tuple(document.get("changes", ())),
            anew=tuple(document.get("anew", ())),
        )
    except ConfigError:
        # Of another schema, or a profile with mistakes: that says it all.
        raise
    except FileNotFoundError as exc:
        raise DataError(f"{path} is missing") from exc
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise DataError(f"{path} holds no result of a load test ({exc!r})") from exc


def _read_server(server: Mapping[str, Any] | None) -> ServerTimes | None:
    if server is None:
        return None
    steps = tuple(
        StepTimes(**{**step, "batches": {int(size): count for size, count in step["batches"].items()}})
        for step in server["steps"]
    )
    return ServerTimes(**{**server, "steps": steps})


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same for JSON, which knows no infinity: ``None`` there."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
