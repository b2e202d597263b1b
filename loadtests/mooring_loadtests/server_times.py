"""Where requests spend their time in the server: what Triton counted between two moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mooring import Client, ModelStatistics
from mooring_loadtests.served_settings import pipeline_models


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """One model of a pipeline, in means over the pipeline's requests."""

    model: str
    #: Its own, which differ where a cache answers, or a pipeline calls it twice.
    requests: int
    #: Waiting for an instance, and for others to share its batch with.
    queue_ms: float
    #: Putting the requests' inputs together.
    input_ms: float
    compute_ms: float
    #: Taking the outputs apart.
    output_ms: float
    #: Executions by their number of items.
    batches: Mapping[int, int]

    @property
    def total_ms(self) -> float:
        return self.queue_ms + self.input_ms + self.compute_ms + self.output_ms


@dataclass(frozen=True, kw_only=True)
class ServerTimes:
    """A model and, where it is a pipeline, its steps."""

    model: str
    requests: int
    #: Mean time from a request's arrival in the server to its answer.
    total_ms: float
    steps: tuple[StepTimes, ...]


Snapshot = Mapping[str, ModelStatistics]
_DURATIONS = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)


def snapshot(client: Client, model: str) -> Snapshot:
    """What the server has counted by now for a model and all that its pipeline calls, by model.

    A pipeline within the pipeline is left out: Triton reports the sum of its steps' times for it.

    Raises:
        MooringError: as the client does.
    """
    configs = pipeline_models(client, model)
    names = [config.name for config in configs if config.name == model or not config.steps]
    return {name: _newest(client.statistics(name)) for name in names}


def between(model: str, before: Snapshot, after: Snapshot) -> ServerTimes:
    """What happened between two snapshots.

    Models that were loaded anew in between count from their loading.
    """
    changes = {name: _Change(before.get(name), now) for name, now in after.items()}
    whole = changes[model]
    steps = [name for name in after if name != model] or [model]
    answered, failed = whole.count("success"), whole.count("fail")
    return ServerTimes(
        model=model,
        requests=answered,
        total_ms=whole.mean_ms("success", answered),
        steps=tuple(changes[name].step(name, answered, failed) for name in steps),
    )


def switched(before: Snapshot, after: Snapshot) -> list[str]:
    """Which models have another version in the second snapshot, in words."""
    return [
        f"{name} was version {before[name].version} before the run and {now.version} after it"
        for name, now in after.items()
        if name in before and before[name].version != now.version
    ]


def loaded_anew(before: Snapshot, after: Snapshot) -> list[str]:
    """Models of the same version whose counts began again in between, as after a restart of the server."""
    return [
        name
        for name, now in after.items()
        if name in before and before[name].version == now.version and _fell(before[name], now)
    ]


def _fell(before: ModelStatistics, after: ModelStatistics) -> bool:
    """Whether any count is lower: they only grow, and after a restart some may be higher than ever."""
    later = _counts(after)
    return any(later.get(what, 0) < count for what, count in _counts(before).items())


def _counts(statistics: ModelStatistics) -> dict[str | int, int]:
    """Every count of a model by its name, executions by their size."""
    counts: dict[str | int, int] = {
        batch.batch_size: batch.compute_infer.count for batch in statistics.batches
    }
    for what in ("inference_count", "execution_count"):
        counts[what] = getattr(statistics, what)
    for what in _DURATIONS:
        duration = getattr(statistics, what)
        counts[what], counts[f"{what}_ns"] = duration.count, duration.ns
    return counts


class _Change:
    """Difference of one model's counts."""

    def __init__(self, before: ModelStatistics | None, after: ModelStatistics) -> None:
        same = before is not None and before.version == after.version and not _fell(before, after)
        self._before = before if same else None
        self._after = after

    def count(self, what: str) -> int:
        return int(
            getattr(self._after, what).count - (getattr(self._before, what).count if self._before else 0)
        )

    def mean_ms(self, what: str, requests: int) -> float:
        """Mean over so many requests."""
        earlier = getattr(self._before, what).ns if self._before else 0
        return (getattr(self._after, what).ns - earlier) / max(1, requests) / 1e6

    def step(self, model: str, answered: int, failed: int) -> StepTimes:
        own = self.count("success")
        # Some of those that failed may have come this far; of more than that others have asked it, too.
        requests = max(own, answered) if own <= answered + failed else own
        return StepTimes(
            model=model,
            requests=own,
            queue_ms=self.mean_ms("queue", requests),
            input_ms=self.mean_ms("compute_input", requests),
            compute_ms=self.mean_ms("compute_infer", requests),
            output_ms=self.mean_ms("compute_output", requests),
            batches=self._batches(),
        )

    def _batches(self) -> dict[int, int]:
        earlier = (
            {batch.batch_size: batch.compute_infer.count for batch in self._before.batches}
            if self._before
            else {}
        )
        counts = {
            batch.batch_size: batch.compute_infer.count - earlier.get(batch.batch_size, 0)
            for batch in self._after.batches
        }
        return {size: count for size, count in sorted(counts.items()) if count}


def _newest(versions: Sequence[ModelStatistics]) -> ModelStatistics:
    return max(versions, key=lambda entry: int(entry.version))
