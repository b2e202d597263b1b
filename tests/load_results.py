"""Results of load tests that nobody ran: a simulated queue, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mooring_loadtests.arrivals import arrival_times
from mooring_loadtests.load_profile import Payload, Profile, Slo, Stage
from mooring_loadtests.load_result import LoadResult
from mooring_loadtests.recorder import Recorder
from mooring_loadtests.server_times import ServerTimes, StepTimes

STEADY = (Stage(seconds=5, measured=False), Stage(seconds=60))
STEPS = (
    Stage(seconds=5, load=0.2, measured=False),
    *(Stage(seconds=15, load=load) for load in (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)),
)


def load_result(
    *,
    seed: int = 0,
    arrivals: int = 0,
    stages: Sequence[Stage] = STEADY,
    rate: float = 50.0,
    service_ms: float = 8.0,
    stall: tuple[float, float] | None = None,
    failures: float = 0.0,
    names: Sequence[str] = ("ner grpc",),
    cpu: float = 0.35,
    slo: Slo = Slo(),  # noqa: B008 (frozen)
    **facts: Any,
) -> LoadResult:
    """An open loop of Poisson arrivals at one server with lognormal service times.

    Requests queue, so that latencies depend on those before, as they do in practice.

    Args:
        seed: of the server's times and of what fails.
        arrivals: the profile's seed, which says when requests leave.
        stages: of the profile.
        rate: requests a second at load 1.
        service_ms: mean service time.
        stall: seconds from the start at which the server stops and goes on.
        failures: share of the requests that are refused.
        names: of the requests, each with a stream of its own.
        cpu: share of a core that the generator used.
        slo: bounds.
        facts: other fields of the result.
    """
    random = np.random.default_rng(seed)
    profile = Profile(
        loop="open", rate=rate, timeout_s=5.0, stages=tuple(stages), slo=slo, payload=Payload(seed=arrivals)
    )
    streams = [
        arrival_times(
            profile.spans(), arrivals="poisson", seed=f"{arrivals}", source=source, sources=len(names)
        )
        for source in range(len(names))
    ]
    due = sorted((at_s, name) for name, stream in enumerate(streams) for at_s in stream)
    arrivals_s, which = np.array([at_s for at_s, _ in due]), [name for _, name in due]
    ends_s = _serve(arrivals_s, random.lognormal(-0.08, 0.4, len(arrivals_s)) * service_ms / 1000, stall)
    refused = random.random(len(arrivals_s)) < failures
    late_s = random.exponential(0.0004, len(arrivals_s))
    recorder = Recorder()
    for at_s, end_s, no, name, late in zip(arrivals_s, ends_s, refused, which, late_s, strict=True):
        error = "Overloaded: the queue is full" if no else None
        if end_s - at_s > profile.timeout_s:
            error, end_s = "DeadlineExceeded: no answer within 5 s", at_s + profile.timeout_s
        recorder.request(
            names[name],
            intended_s=float(at_s),
            sent_s=float(at_s + late),
            ended_s=float(at_s + 0.002 if no else end_s),
            error=error,
        )
    for second in range(profile.seconds):
        recorder.health[second].cpu = {0: cpu}
    given: dict[str, Any] = {
        "name": "steady",
        "model": "ner",
        "version": "3",
        "started": "2026-01-01T12:00:00+00:00",
        "processes": 1,
        "machine": {
            "system": "Linux-6.8-x86_64",
            "processor": "a processor",
            "cores": "2",
            "load average": "1.02",
        },
        "versions": {"python": "3.11.7", "mooring": "0.1.0", "triton": "2.51.0"},
        "settings": {"ner": "ensemble", "ner_onnx": "onnxruntime, 2 instances, batches up to 32"},
        "server": server_times(service_ms, len(arrivals_s)),
    }
    return LoadResult(profile=profile, recorder=recorder, **{**given, **facts})


def server_times(service_ms: float, requests: int) -> ServerTimes:
    """A pipeline whose engine takes most of the time."""

    def step(
        model: str, queue: float, compute: float, batches: dict[int, int], copying: float = 0.01
    ) -> StepTimes:
        return StepTimes(
            model=model,
            requests=requests,
            queue_ms=queue * service_ms,
            input_ms=copying * service_ms,
            compute_ms=compute * service_ms,
            output_ms=copying * service_ms,
            batches=batches,
        )

    steps = (
        step("ner_tokenizer", 0.02, 0.05, {1: requests}),
        step(
            "ner_onnx",
            0.15,
            0.75,
            {1: requests // 3, 2: requests // 6, 3: requests // 20, 4: requests // 20, 8: requests // 200},
        ),
        step("ner_postprocessor", 0.02, 0.04, {1: requests // 2, 2: requests // 4}),
    )
    total_ms = sum(one.total_ms for one in steps) + 0.03 * service_ms
    return ServerTimes(model="ner", requests=requests, total_ms=total_ms, steps=steps)


def _serve(arrivals_s: np.ndarray, services_s: np.ndarray, stall: tuple[float, float] | None) -> np.ndarray:
    """When each request is done: one at a time, first come, first served."""
    ends_s, free_s = np.empty_like(arrivals_s), 0.0
    for i, (at_s, service_s) in enumerate(zip(arrivals_s, services_s, strict=True)):
        begin_s = max(at_s, free_s)
        if stall is not None and stall[0] <= begin_s < stall[1]:
            begin_s = stall[1]
        ends_s[i] = free_s = begin_s + service_s
    return ends_s
