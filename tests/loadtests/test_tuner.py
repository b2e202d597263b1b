from __future__ import annotations

import argparse
import heapq
import importlib.metadata
import json
import math
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, count
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from load_results import load_result
from mooring import ConfigError, DataError, MooringError, StartError
from mooring_loadtests import tune_check, tune_choice, tune_command
from mooring_loadtests.arrivals import arrival_times
from mooring_loadtests.commands import number
from mooring_loadtests.cores import usable_cores
from mooring_loadtests.load_profile import Payload, Profile
from mooring_loadtests.load_profile import Stage as LoadStage
from mooring_loadtests.load_result import LoadResult
from mooring_loadtests.load_statistics import Estimate
from mooring_loadtests.recorder import Recorder
from mooring_loadtests.tune_choice import Confirmed, Outcome, TimeLeft, choose, confirmation_s, in_words
from mooring_loadtests.tune_command import find, make_plan, slo
from mooring_loadtests.tune_journal import Journal, Plan
from mooring_loadtests.tune_plot import _turns, plot
from mooring_loadtests.tune_probe import Prober, Release
from mooring_loadtests.tuner import (
    TURN_SHARES,
    Candidate,
    Probe,
    Stage,
    Variant,
    affordable,
    finalists,
    grid,
    pooled,
    rate_within,
    search,
    take_turns,
)

DEFAULT = Candidate(
    engine="onnx",
    precision="fp32",
    mixed_lengths="none",
    instance_count=2,
    intra_op_thread_count=1,
    max_batch_size=32,
    preferred_batch_size=(4, 8),
    max_queue_delay_microseconds=500,
)
ONNX = Variant("onnx", "fp32", "none")
TORCHSCRIPT = ONNX._replace(engine="torchscript")
BOUND_MS = 50.0


class Server:
    """A prober: a queue with a capacity by settings; latency grows as 1 / (1 - load), with noise."""

    def __init__(self, noise: float, seed: int = 0) -> None:
        self.seconds = 0
        self.runs = 0
        self._noise = noise
        self._random = Random(seed)

    def capacity(self, candidate: Candidate) -> float:
        busy = candidate.instance_count * candidate.intra_op_thread_count
        rate = 100.0 * min(busy, 2) * (1.0 if busy <= 2 else 0.8)
        rate *= 0.9 if candidate.engine == "torchscript" else 1.0
        return rate * {1: 1.0, 8: 1.1, 32: 0.95}[candidate.max_batch_size]

    def run(self, candidate: Candidate, rates: Sequence[float], seconds: int, seed: int = 0) -> list[Stage]:
        if candidate.intra_op_thread_count == 2 and candidate.instance_count == 1:
            raise ConnectionError("the server died")
        self.runs += 1
        self.seconds += seconds * len(rates)
        stages = []
        for rate in rates:
            load = rate / self.capacity(candidate)
            noise = self._random.lognormvariate(0, self._noise / math.sqrt(seconds))
            stages.append(Stage(rate=rate, p99_ms=noise * 12 / (1 - load) if load < 1 else math.inf))
        return stages

    def load(self, candidate: Candidate, *, loop: str, rate: float, stages: Sequence[Any]) -> Any:
        (_, measured) = stages
        (stage,) = self.run(candidate, [rate], measured.seconds)
        return SimpleNamespace(figures=lambda: {"p99_ms": Estimate(value=stage.p99_ms)}, doubts=[])


@pytest.mark.parametrize("seed", range(5))
def test_the_search_finds_about_the_best_and_probes_few(seed: int) -> None:
    server = Server(noise=0.2, seed=seed)
    candidates = grid(cores=2, variants=[ONNX, TORCHSCRIPT], default=DEFAULT)
    assert len(candidates) == len(set(candidates)) > 30
    probes = search(candidates, server.run, p99_ms=BOUND_MS, guess=100.0, first_round=20, seed=seed)
    assert server.runs <= 20 + 7
    most = max(server.capacity(candidate) for candidate in candidates)
    last = finalists(DEFAULT, probes)
    assert last[0] == DEFAULT
    assert max(server.capacity(candidate) for candidate in last[1:]) >= 0.9 * most
    rates = [share * probes[0].rate_within(BOUND_MS) for share in TURN_SHARES]
    for candidate, its in take_turns(last, server.run, rates=rates, turns=3).items():
        # A load of 1 - 12/50 keeps the bound.
        assert rate_within(pooled(its), BOUND_MS) == pytest.approx(server.capacity(candidate) * 0.76, rel=0.1)


def test_a_gpu_is_tried_with_few_instances_and_large_batches() -> None:
    tried = grid(cores=16, variants=[ONNX], default=DEFAULT, gpu=True)[1:]
    assert {(one.instance_count, one.intra_op_thread_count) for one in tried} == {(1, 1), (2, 1), (4, 1)}
    assert max(one.max_batch_size for one in tried) == 128


def test_turns_alternate_and_outvote_a_disturbed_one() -> None:
    asked: list[tuple[Candidate, int]] = []
    noted: list[Probe] = []

    def run(candidate: Candidate, rates: Sequence[float], seconds: int, seed: int = 0) -> list[Stage]:
        asked.append((candidate, seed))
        # The machine is busy in the second turn.
        p99_ms = 400.0 if len(asked) in (3, 4) else 20.0
        return [Stage(rate=rate, p99_ms=p99_ms) for rate in rates]

    turns = take_turns([DEFAULT, OTHER], run, rates=[50.0, 80.0], turns=3, note=noted.append)
    # In a turn everyone gets the same requests, in each turn others.
    assert asked == [(candidate, turn) for turn in (2, 3, 4) for candidate in (DEFAULT, OTHER)]
    assert {candidate: rate_within(pooled(its), BOUND_MS) for candidate, its in turns.items()} == {
        DEFAULT: 80.0,
        OTHER: 80.0,
    }
    # A search that was interrupted in its turns goes on there.
    asked.clear()
    known = noted[:4]
    assert take_turns([DEFAULT, OTHER], run, rates=[50.0, 80.0], turns=3, known=known) == turns
    assert asked == [(DEFAULT, 4), (OTHER, 4)]
    # What was found at other rates can't be joined.
    asked.clear()
    take_turns([DEFAULT, OTHER], run, rates=[50.0, 81.0], turns=3, known=known)
    assert len(asked) == 6


def test_only_what_served_takes_turns_with_the_present_settings() -> None:
    def probe(candidate: Candidate, *latencies: float) -> Probe:
        stages = tuple(Stage(rate=100.0, p99_ms=latency) for latency in latencies)
        return Probe(candidate=candidate, round=1, stages=stages)

    fourth = replace(DEFAULT, instance_count=4)
    probes = [probe(OTHER, 20.0), probe(DEFAULT, 30.0), probe(THIRD), probe(fourth, 70.0), probe(THIRD, 80.0)]
    assert finalists(DEFAULT, probes) == [DEFAULT, OTHER, fourth]
    assert finalists(DEFAULT, probes[1:2]) == [DEFAULT]


@pytest.mark.parametrize(("guess", "seconds"), [(400.0, [1, 2, 3]), (20.0, [3, 3, 4]), (0.5, [5, 5, 5])])
def test_slow_models_get_stages_of_enough_requests(guess: float, seconds: list[int]) -> None:
    asked: list[int] = []

    def run(candidate: Candidate, rates: Sequence[float], seconds: int, seed: int = 0) -> list[Stage]:
        asked.append(seconds)
        # Keeps the bound at the rate that was guessed.
        return [Stage(rate=rate, p99_ms=BOUND_MS * rate / guess) for rate in rates]

    (probe,) = search([DEFAULT], run, p99_ms=BOUND_MS, guess=guess, first_round=1)
    assert probe.rate_within(BOUND_MS) == pytest.approx(guess)
    take_turns([DEFAULT], run, rates=[share * guess for share in TURN_SHARES], turns=1)
    assert asked == seconds


@pytest.mark.parametrize(("overhead_s", "budget_s"), [(5.0, 300.0), (12.0, 480.0), (12.0, 900.0)])
def test_a_search_begins_with_as_many_as_it_has_time_for(overhead_s: float, budget_s: float) -> None:
    candidates = grid(cores=2, variants=[ONNX, TORCHSCRIPT], default=DEFAULT)
    guess = 100.0
    first = affordable(len(candidates), overhead_s=overhead_s, budget_s=budget_s, guess=guess)
    took_s = {}
    for first_round in (first, first + 1):
        # Nothing crashes: what does is not counted.
        server = Server(noise=0.0)
        serving = [one for one in candidates if one.intra_op_thread_count == 1]
        plan = Plan(guess=guess, first_round=first_round)
        find(cast(Prober, server), serving, plan, BOUND_MS)
        # The longer runs, of what is found and of the present settings, are none of these.
        took_s[first_round] = (server.runs - 2) * overhead_s + server.seconds - 2 * confirmation_s(BOUND_MS)
    assert took_s[first] <= budget_s < took_s[first + 1]


def test_a_search_without_time_probes_the_present_settings_alone() -> None:
    assert affordable(60, overhead_s=10.0, budget_s=-5.0, guess=100.0) == 1
    assert affordable(60, overhead_s=10.0, budget_s=1e6, guess=100.0) == 60


def test_a_plan_goes_by_how_long_the_first_run_took(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"throughput": SimpleNamespace(value=120.0)}
    errors = Counter({"DeadlineExceeded: no answer within 1 s": 100})
    result = SimpleNamespace(
        figures=lambda: figures, count=lambda: (400, 100), recorder=SimpleNamespace(errors=errors)
    )
    # Keeps the bound up to half of what it answers.
    latency = {"rate": 60.0}

    def run(candidate: Candidate, rates: Sequence[float], seconds: int, seed: int = 0) -> list[Stage]:
        assert candidate == DEFAULT
        return [Stage(rate=rate, p99_ms=BOUND_MS * (rate / latency["rate"]) ** 4) for rate in rates]

    prober = cast(Prober, SimpleNamespace(load=lambda candidate, **profile: result, run=run))
    candidates = grid(cores=2, variants=[ONNX], default=DEFAULT)

    def plan(took_s: float, minutes: float, p99_ms: float = BOUND_MS) -> Plan:
        times = count(100.0, took_s)
        monkeypatch.setattr(tune_command, "time", SimpleNamespace(monotonic=lambda: next(times)))
        return make_plan(prober, candidates, minutes=minutes, p99_ms=p99_ms)

    # Both runs, of which 13 s are the stages.
    usual = plan(25.0, 10.0)
    assert usual.guess == pytest.approx(60.0)
    assert 10 < usual.first_round < len(candidates)
    assert plan(40.0, 10.0).first_round < usual.first_round < plan(25.0, 20.0).first_round
    # Longer runs for a generous bound leave less time for the search.
    assert plan(25.0, 10.0, 2000.0).first_round < usual.first_round
    # A tenth of what it answers, where the present settings keep the bound nowhere.
    latency["rate"] = 1.0
    assert plan(25.0, 10.0).guess == 12.0
    figures["throughput"].value = 0.0
    with pytest.raises(
        MooringError, match=r"the present settings answered nothing in 4 s: \{'Deadline"
    ) as raised:
        plan(14.0, 10.0)
    # No fault of the input.
    assert not isinstance(raised.value, ConfigError)
    errors["InvalidInput: text 0 has 40 tokens"] = 5
    with pytest.raises(ConfigError, match=r"does not take what is asked: \{'InvalidInput: text 0 has 40"):
        plan(14.0, 10.0)


class Fifo:
    """A prober: instances that take a request of a queue each, and callers that give up."""

    def __init__(self, instances: int, service_s: float) -> None:
        self.instances, self.service_s = instances, service_s

    def load(
        self, candidate: Candidate, *, users: int, stages: Any, timeout_s: float = 1.0, **profile: Any
    ) -> LoadResult:
        end_s = sum(stage.seconds for stage in stages)
        asking = [(0.0, user) for user in range(users)]
        free_s, recorder = [0.0] * self.instances, Recorder()
        while asking and asking[0][0] < end_s:
            asked_s, user = heapq.heappop(asking)
            done_s = max(asked_s, heapq.heappop(free_s)) + self.service_s
            # It computes for those who have given up, too.
            heapq.heappush(free_s, done_s)
            late = done_s - asked_s > timeout_s
            ended_s = asked_s + timeout_s if late else done_s
            error = "DeadlineExceeded: no answer" if late else None
            recorder.request("ner grpc", intended_s=asked_s, sent_s=None, ended_s=ended_s, error=error)
            heapq.heappush(asking, (ended_s, user))
        measured = Profile(loop="closed", users=users, stages=stages, timeout_s=timeout_s)
        return replace(load_result(stages=[LoadStage(seconds=1)]), profile=measured, recorder=recorder)

    def run(self, candidate: Candidate, rates: Sequence[float], seconds: int) -> list[Stage]:
        capacity = self.instances / self.service_s
        return [Stage(rate=rate, p99_ms=self.service_s * 1000 / (1 - rate / capacity)) for rate in rates]


@pytest.mark.parametrize("service_s", [0.1, 0.5])
def test_a_plan_begins_with_a_server_whose_queue_is_longer_than_the_bound(
    service_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 32 users: the last of them waits 16 times as long as the server takes.
    monkeypatch.setattr(tune_command, "usable_cores", lambda: 8)
    fifo = Fifo(2, service_s)
    plan = make_plan(cast(Prober, fifo), [DEFAULT], minutes=10.0, p99_ms=2.5 * service_s * 1000)
    assert plan.guess == pytest.approx(0.6 * 2 / service_s, rel=0.2)


def test_a_server_that_answers_nothing_is_a_failure() -> None:
    with pytest.raises(MooringError, match="the present settings answered nothing in 4 s"):
        make_plan(cast(Prober, Fifo(1, 60.0)), [DEFAULT], minutes=10.0, p99_ms=100.0)


def test_batches_are_no_smaller_than_those_of_the_pipelines_that_join_the_model() -> None:
    candidates = grid(cores=2, variants=[ONNX], default=DEFAULT, smallest_batch=32)
    assert {one.max_batch_size for one in candidates} == {32}
    assert len({one.preferred_batch_size for one in candidates}) > 1


def test_batches_are_left_alone_where_their_settings_count_for_nothing() -> None:
    candidates = grid(cores=2, variants=[ONNX], default=DEFAULT, vary_batches=False)
    assert len(candidates) > 1
    assert {(one.max_batch_size, one.preferred_batch_size) for one in candidates} == {
        (DEFAULT.max_batch_size, DEFAULT.preferred_batch_size)
    }


def test_a_candidate_that_crashes_the_server_loses() -> None:
    crashing = replace(DEFAULT, instance_count=1, intra_op_thread_count=2)
    noted: list[Probe] = []
    best, *_ = search(
        [crashing, DEFAULT],
        Server(noise=0.0).run,
        p99_ms=BOUND_MS,
        guess=150.0,
        first_round=2,
        note=noted.append,
    )
    assert best.candidate == DEFAULT
    assert noted[0].error == "ConnectionError: the server died"
    assert noted[0].rate_within(BOUND_MS) == 0.0


def test_where_nothing_serves_any_more_that_is_no_verdict_on_the_settings() -> None:
    def run(candidate: Candidate, rates: Sequence[float], seconds: int, seed: int = 0) -> list[Stage]:
        raise OSError(28, "No space left on device")

    prober = cast(Prober, SimpleNamespace(run=run))
    said = "the present settings served no more, nor did others: OSError: .*No space left on device"
    with pytest.raises(MooringError, match=said):
        find(prober, [DEFAULT, OTHER], Plan(guess=100.0, first_round=2), BOUND_MS)


def test_a_search_goes_on_where_it_was(tmp_path: Path) -> None:
    about = {"model": "ner", "version": 1, "p99_ms": BOUND_MS}
    candidates = grid(cores=2, variants=[ONNX], default=DEFAULT)

    def run(journal: Journal, server: Server) -> Outcome:
        journal.start(Plan(guess=100.0, first_round=20))
        assert journal.plan is not None
        known = list(journal.probes)
        return find(cast(Prober, server), candidates, journal.plan, BOUND_MS, known=known, note=journal.add)

    whole = run(Journal(tmp_path / "probes.jsonl", about), Server(noise=0.0))
    lines = (tmp_path / "probes.jsonl").read_text(encoding="utf-8").splitlines()
    # Killed while the tenth probe was written.
    (tmp_path / "probes.jsonl").write_text("\n".join([*lines[:10], lines[10][:20]]), encoding="utf-8")
    rest = Server(noise=0.0)
    assert run(Journal(tmp_path / "probes.jsonl", about), rest) == whole
    assert rest.runs < len(lines) - 1 - 5
    # The line that was cut off does not spoil what was written after it, and what crashed was tried again.
    known = Journal(tmp_path / "probes.jsonl", about).probes
    assert len(known) == sum('"error": null' in line for line in lines)
    assert all(probe.error is None for probe in known)
    assert Journal(tmp_path / "probes.jsonl", {**about, "version": 2}).probes == []


def test_what_is_known_at_other_rates_is_probed_again() -> None:
    keeps = {DEFAULT: 100.0, OTHER: 200.0, THIRD: 50.0, replace(DEFAULT, instance_count=4): 40.0}
    asked: list[tuple[Candidate, int]] = []
    noted: list[Probe] = []
    failing = {OTHER}

    def run(candidate: Candidate, rates: Sequence[float], seconds: int, seed: int = 0) -> list[Stage]:
        asked.append((candidate, seed))
        if candidate in failing:
            raise ConnectionError("no memory")
        return [Stage(rate=rate, p99_ms=BOUND_MS * rate / keeps[candidate]) for rate in rates]

    options: dict[str, Any] = {"p99_ms": BOUND_MS, "guess": 100.0, "first_round": 4}
    search([*keeps], run, **options, note=noted.append)
    known = [probe for probe in noted if probe.error is None]
    assert [(probe.candidate, probe.round) for probe in known[-2:]] == [(DEFAULT, 1), (THIRD, 1)]
    # What failed serves by now, and twice as much as all others: the second round is at higher rates.
    failing.clear()
    asked.clear()
    probes = search([*keeps], run, **options, known=known)
    assert asked == [(OTHER, 0), (OTHER, 1), (DEFAULT, 1)]
    assert len({tuple(stage.rate for stage in probe.stages) for probe in probes}) == 1


def test_a_search_that_came_to_its_end_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    probe = Probe(candidate=DEFAULT, round=0, stages=(Stage(rate=9.0, p99_ms=5.0),))
    journal = Journal(path, {"model": "ner"})
    journal.start(Plan(guess=9.0, first_round=1))
    journal.add(probe)
    assert Journal(path, {"model": "ner"}).probes == [probe]
    journal.finish()
    anew = Journal(path, {"model": "ner"})
    assert (anew.plan, anew.probes) == (None, [])
    anew.start(Plan(guess=8.0, first_round=1))
    assert Journal(path, {"model": "ner"}).plan == Plan(guess=8.0, first_round=1)


def test_beside_a_search_that_was_interrupted_lies_no_outcome_of_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    about = {"default": DEFAULT, "digest": "a", "variants": [ONNX], "candidates": lambda cores: [DEFAULT]}
    monkeypatch.setattr(tune_command, "Release", lambda repository, model: SimpleNamespace(**about))
    monkeypatch.setattr(tune_command, "make_plan", lambda *args, **more: Plan(guess=9.0, first_round=1))
    monkeypatch.setattr(tune_command, "find", interrupt)
    folder = tmp_path / "intent-tune"
    folder.mkdir()
    for name in ("probes.svg", "result.json"):
        (folder / name).touch()
    parser = argparse.ArgumentParser()
    tune_command.add_command(parser.add_subparsers())
    args = parser.parse_args(["tune", "intent", "--slo", "p99=5s", "--reports", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        args.run(args)
    assert [path.name for path in folder.iterdir()] == ["probes.jsonl"]


def test_what_serves_is_part_of_what_a_search_is_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    embedded = tune_command._software()
    assert embedded["tritonserver"].startswith("nvidia-pytriton==")
    assert embedded["onnxruntime"] == importlib.metadata.version("onnxruntime")
    official = tmp_path / "tritonserver"
    told = []
    for content in ("#!one", "#!another"):
        official.write_text(content, encoding="utf-8")
        official.chmod(0o755)
        told.append(tune_command._software()["tritonserver"])
    assert told[0].startswith(str(official))
    assert told[0] != told[1]


@pytest.mark.parametrize(
    ("latencies", "rate"),
    [
        ([10, 20, 40], 30.0),
        # Half-way between 25 and 100 on a logarithmic scale.
        ([10, 25, 100], 25.0),
        ([10, 25, math.inf], 20.0),
        # A stage that was disturbed does not end the search for the highest one, nor does a lucky one end it:
        # as much as of 10, 40 and 60.
        ([10, 60, 40], 25.5),
        ([10, 400, 400, 40], 21.0),
        ([100, 200, 400], 5.0),
        ([math.inf, math.inf, math.inf], 0.0),
        ([], 0.0),
    ],
)
def test_the_rate_within_a_bound(latencies: list[float], rate: float) -> None:
    stages = [Stage(rate=10.0 * (i + 1), p99_ms=latency) for i, latency in enumerate(latencies)]
    assert rate_within(stages, BOUND_MS) == pytest.approx(rate, rel=0.01)


def test_what_disturbed_one_of_several_probes_counts_for_nothing() -> None:
    def probe(*latencies: float) -> Probe:
        stages = [Stage(rate=10.0 * (i + 1), p99_ms=latency) for i, latency in enumerate(latencies)]
        return Probe(candidate=DEFAULT, round=3, stages=tuple(stages))

    steady, disturbed, crashed = probe(10, 20, 80), probe(10, 90, 80), probe()
    assert pooled([steady, disturbed, steady]) == list(steady.stages)
    assert pooled([steady, steady, crashed]) == list(steady.stages)
    assert [stage.p99_ms for stage in pooled([steady, crashed, crashed])] == [math.inf] * 3
    assert pooled([crashed, crashed]) == []
    # At a low rate chance may have nothing leave in a stage.
    assert pooled([steady, probe(10, 20)]) == list(steady.stages)


OTHER = replace(DEFAULT, max_batch_size=8)
THIRD = replace(DEFAULT, max_batch_size=1)


class Confirming:
    """A prober of longer runs: settings keep the bound up to a rate of their own."""

    def __init__(
        self,
        keeps: dict[Candidate, float],
        doubts: dict[Candidate, list[str]] | None = None,
        over: float = 2.0,
    ) -> None:
        self.keeps = keeps
        self.doubts = doubts or {}
        self.over = over
        self.runs: list[tuple[Candidate, float]] = []

    def load(self, candidate: Candidate, *, loop: str, rate: float, stages: Any) -> Any:
        self.runs.append((candidate, rate))
        p99_ms = BOUND_MS if rate <= self.keeps[candidate] else self.over * BOUND_MS
        figures = {"p99_ms": Estimate(value=p99_ms)}
        return SimpleNamespace(figures=lambda: figures, doubts=self.doubts.get(candidate, []))


def in_turns(candidate: Candidate, *rates: float) -> list[Probe]:
    """Turns in which the bound was kept up to these rates."""
    return [
        Probe(
            candidate=candidate,
            round=number,
            stages=(Stage(rate=rate, p99_ms=BOUND_MS),) if rate else (),
        )
        for number, rate in enumerate(rates, start=2)
    ]


def chosen(prober: Any, rates: dict[Candidate, float], **options: Any) -> Outcome:
    turns = {candidate: in_turns(candidate, rate) for candidate, rate in rates.items()}
    return choose(cast(Prober, prober), DEFAULT, turns, BOUND_MS, **options)


@pytest.mark.parametrize(
    ("present", "found", "stays"), [(150.0, 185.0, False), (180.0, 185.0, True), (185.0, 160.0, True)]
)
def test_settings_change_only_for_clearly_better_ones(present: float, found: float, stays: bool) -> None:
    rates = {DEFAULT: present, OTHER: found}
    outcome = chosen(Confirming(rates), rates)
    assert outcome.choice == (DEFAULT if stays else OTHER)
    # What is not in question takes no time; the present settings are, until they break the bound.
    assert list(outcome.confirmed) == ([DEFAULT] if stays else [OTHER, DEFAULT])
    assert outcome.confirmed[outcome.choice].rate == pytest.approx(0.95 * rates[outcome.choice])
    assert outcome.rates == rates


@pytest.mark.parametrize(("over", "shares"), [(1.01, [0.95] * 2), (1.1, [1 / 1.1] * 2), (9.0, [0.75])])
def test_a_longer_run_is_lowered_by_how_far_it_is_off(over: float, shares: list[float]) -> None:
    prober = Confirming({DEFAULT: 0.0, OTHER: 172.0}, over=over)
    outcome = chosen(prober, {DEFAULT: 0.0, OTHER: 200.0})
    rates = list(accumulate(shares, operator.mul, initial=190.0))
    assert prober.runs == [
        *((OTHER, pytest.approx(rate)) for rate in rates),
        (DEFAULT, pytest.approx(rates[-1])),
    ]
    assert outcome.confirmed[OTHER].rate == pytest.approx(rates[-1])


@pytest.mark.parametrize(
    ("keeps", "choice"),
    [
        ({DEFAULT: 150.0, OTHER: 140.0}, DEFAULT),
        ({DEFAULT: 0.0, OTHER: 110.0}, OTHER),
        ({DEFAULT: 85.0, OTHER: 110.0}, OTHER),
        # As good as the other one: nothing changes.
        ({DEFAULT: 107.0, OTHER: 110.0}, DEFAULT),
        ({DEFAULT: 0.0, OTHER: 0.0}, DEFAULT),
    ],
)
def test_settings_that_turns_were_wrong_about_are_held_against_the_others(
    keeps: dict[Candidate, float], choice: Candidate
) -> None:
    prober = Confirming(keeps)
    outcome = chosen(prober, {DEFAULT: 150.0, OTHER: 200.0})
    assert outcome.choice == choice
    assert set(outcome.confirmed) == {DEFAULT, OTHER}
    assert bool(outcome.confirmed[choice].rate) == any(keeps.values())
    if not outcome.confirmed[DEFAULT].rate:
        tried = min(rate for candidate, rate in prober.runs if candidate == DEFAULT)
        told = in_words(DEFAULT, outcome.confirmed[DEFAULT], BOUND_MS)
        assert told.endswith(f"does not keep the bound at {tried:.1f} requests/s")


@pytest.mark.parametrize("present", [170.0, 0.0])
def test_a_run_in_doubt_changes_nothing_that_keeps_the_bound(present: float) -> None:
    late = ["requests left late"]
    prober = Confirming({DEFAULT: present, OTHER: 200.0}, {DEFAULT: late, OTHER: late})
    outcome = chosen(prober, {DEFAULT: 170.0, OTHER: 200.0})
    assert outcome.choice == (DEFAULT if present else OTHER)
    # The present settings are in no need of a proof.
    assert list(chosen(prober, {DEFAULT: 170.0, OTHER: 150.0}).confirmed) == [DEFAULT]


@pytest.mark.parametrize("keeps", [{DEFAULT: 60.0, OTHER: 60.0}, {DEFAULT: 0.0, OTHER: 60.0}])
def test_what_did_worst_in_turns_is_not_chosen(keeps: dict[Candidate, float]) -> None:
    # The turns were wrong about the present settings, which keep no rate that is tried of theirs.
    prober = Confirming(keeps, over=9.0)
    outcome = chosen(prober, {DEFAULT: 150.0, OTHER: 60.0})
    assert (outcome.choice, list(outcome.confirmed)) == (DEFAULT, [DEFAULT])


def test_the_present_settings_stay_where_they_keep_the_bound_at_the_rate_of_what_is_found() -> None:
    # Lowered to 105, what is found keeps the bound: so do the present settings, if they are asked.
    prober = Confirming({DEFAULT: 107.0, OTHER: 106.0, THIRD: 200.0}, over=9.0)
    outcome = chosen(prober, {DEFAULT: 180.0, OTHER: 197.0})
    assert outcome.choice == DEFAULT
    assert (DEFAULT, pytest.approx(197 * 0.95 * 0.75**2)) in prober.runs
    assert outcome.confirmed[DEFAULT].rate >= outcome.confirmed[OTHER].rate > 100
    # What is second in turns has its chance.
    assert chosen(prober, {DEFAULT: 180.0, OTHER: 197.0, THIRD: 190.0}).choice == THIRD


@pytest.mark.parametrize(
    ("found", "changes"),
    [((120.0, 121.0, 122.0), True), ((120.0, 160.0, 99.0), False), ((101.0, 102.0, 103.0), False)],
)
def test_a_gain_shows_in_every_turn(found: tuple[float, ...], changes: bool) -> None:
    prober = Confirming({DEFAULT: 100.0, OTHER: 200.0})
    turns = {DEFAULT: in_turns(DEFAULT, 100.0, 100.0, 100.0), OTHER: in_turns(OTHER, *found)}
    outcome = choose(cast(Prober, prober), DEFAULT, turns, BOUND_MS)
    assert outcome.choice == (OTHER if changes else DEFAULT)


@pytest.mark.parametrize(
    ("left_s", "keeps", "runs", "choice"),
    [
        # The best keeps none of the three rates that are tried; the third keeps its first.
        (1e6, {DEFAULT: 0.0, OTHER: 0.0, THIRD: 190.0}, [OTHER] * 3 + [THIRD, DEFAULT], THIRD),
        (40.0, {DEFAULT: 0.0, OTHER: 0.0, THIRD: 190.0}, [OTHER] * 3 + [DEFAULT] * 3, DEFAULT),
        (-1.0, {DEFAULT: 110.0, OTHER: 0.0, THIRD: 190.0}, [OTHER] * 3 + [DEFAULT] * 2, DEFAULT),
        # Turns promised too much, which is no reason to end with nothing.
        (-1.0, {DEFAULT: 0.0, OTHER: 150.0, THIRD: 190.0}, [OTHER] * 3 + [DEFAULT], OTHER),
    ],
)
def test_without_time_longer_runs_go_on_only_until_one_keeps_the_bound(
    left_s: float,
    keeps: dict[Candidate, float],
    runs: list[Candidate],
    choice: Candidate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tune_choice, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    prober = Confirming(keeps, over=9.0)
    rates = {DEFAULT: 150.0, OTHER: 250.0, THIRD: 200.0}
    outcome = chosen(prober, rates, time_left=TimeLeft(minutes=10.0, until_s=1000.0 + left_s))
    assert [candidate for candidate, _ in prober.runs] == runs
    assert outcome.choice == choice
    assert bool(outcome.confirmed[choice].rate) == (choice != DEFAULT or keeps[DEFAULT] > 0)
    # What had no run is told nowhere.
    assert set(outcome.confirmed) == set(runs)


def test_the_present_settings_have_a_run_without_time_where_what_is_found_is_in_doubt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tune_choice, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    prober = Confirming({DEFAULT: 90.0, OTHER: 250.0}, {OTHER: ["requests left late"]}, over=9.0)
    no_time = TimeLeft(minutes=10.0, until_s=999.0)
    outcome = chosen(prober, {DEFAULT: 150.0, OTHER: 250.0}, time_left=no_time)
    assert [candidate for candidate, _ in prober.runs] == [OTHER, DEFAULT]
    assert outcome.choice == OTHER


@pytest.mark.parametrize(
    "error", [StartError("tritonserver ended: 139"), DataError("nothing that counts: 0")]
)
def test_settings_that_crash_in_a_longer_run_are_not_chosen(error: MooringError) -> None:
    class Crashing(Confirming):
        def load(self, candidate: Candidate, **options: Any) -> Any:
            loaded = super().load(candidate, **options)
            if candidate == OTHER:
                raise error
            return loaded

    prober = Crashing({DEFAULT: 150.0, OTHER: 200.0, THIRD: 170.0})
    outcome = chosen(prober, {DEFAULT: 150.0, OTHER: 200.0, THIRD: 170.0})
    assert outcome.choice == THIRD
    told = in_words(OTHER, outcome.confirmed[OTHER], BOUND_MS)
    assert told.endswith(f"tried\n         doubtful: it did not serve ({error})")
    # Once is enough.
    assert [candidate for candidate, _ in prober.runs].count(OTHER) == 1


def test_a_wrong_demand_ends_a_longer_run_too() -> None:
    def refuse(candidate: Candidate, **options: Any) -> None:
        raise ConfigError("no such items")

    with pytest.raises(ConfigError, match="no such items"):
        chosen(SimpleNamespace(load=refuse), {DEFAULT: 150.0})


def test_what_is_found_says_how_sure_it_is_and_what_it_leaves_free() -> None:
    confirmed = Confirmed(rate=40.0, p99_ms=Estimate(value=40.0, low=38.0, high=43.0), doubts=())
    assert in_words(OTHER, confirmed, BOUND_MS) == (
        f"{OTHER}: 40.0 requests/s, p99 40 [38, 43] ms, 20% below the bound"
    )


@pytest.mark.parametrize("rate", [0.0, 0.04])
def test_settings_that_keep_no_rate_are_not_run_longer(rate: float) -> None:
    def never(candidate: Candidate, **profile: Any) -> None:
        raise AssertionError

    outcome = chosen(SimpleNamespace(load=never), {DEFAULT: rate})
    assert (outcome.choice, outcome.confirmed[DEFAULT].rate) == (DEFAULT, 0.0)


def test_a_longer_run_lasts_long_enough_for_an_overload_to_show() -> None:
    assert confirmation_s(100.0) == confirmation_s(500.0) == 15
    assert confirmation_s(5000.0) == confirmation_s(5000.0, 10.0) == 100
    # But not as long as the whole search.
    assert confirmation_s(60_000.0, 10.0) == 120


def test_a_wrong_demand_ends_a_search_and_is_held_against_no_candidate() -> None:
    def run(candidate: Candidate, rates: Sequence[float], seconds: int, seed: int = 0) -> list[Stage]:
        raise ConfigError("no such items")

    with pytest.raises(ConfigError, match="no such items"):
        search([DEFAULT], run, p99_ms=BOUND_MS, guess=150.0, first_round=1)


def test_of_those_that_take_every_rate_the_fastest_is_the_best() -> None:
    other = replace(DEFAULT, max_batch_size=8)

    def run(candidate: Candidate, rates: Sequence[float], seconds: int, seed: int = 0) -> list[Stage]:
        return [Stage(rate=rate, p99_ms=20.0 if candidate == other else 40.0) for rate in rates]

    best, *_ = search([DEFAULT, other], run, p99_ms=BOUND_MS, guess=100.0, first_round=2)
    assert best.candidate == other


def test_variants_are_made_of_what_the_release_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    tune_command.add_command(parser.add_subparsers())
    words = [
        "tune",
        "intent",
        "--slo",
        "p99=5s",
        "--precision",
        "int8",
        "--checkpoint",
        "mine",
        "--set",
        "a=b",
    ]
    asked: list[tuple[str, list[str], str]] = []
    monkeypatch.setattr(
        "mooring_build.recipe.load_recipe",
        lambda name, overrides, *, fine_tuned: asked.append((name, list(overrides), fine_tuned)),
    )
    release = SimpleNamespace(default=DEFAULT, add=lambda recipe, **where: None)
    tune_command._add_variants(cast(Release, release), parser.parse_args(words), tmp_path)
    int8 = ["export.precision=int8", "serving.mixed_lengths=none"]
    assert asked == [("intent", ["a=b"], "mine"), ("intent", ["a=b", *int8], "mine")]


@pytest.mark.parametrize("words", [["--set", "a=b"], ["--recipe", "mine"], ["--checkpoint", "mine"]])
def test_what_says_how_variants_are_built_needs_some(words: list[str], tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    tune_command.add_command(parser.add_subparsers())
    args = parser.parse_args(["tune", "intent", "--slo", "p99=5s", *words])
    with pytest.raises(ConfigError, match="--recipe, --set and --checkpoint say how variants are built"):
        tune_command._add_variants(cast(Release, SimpleNamespace(default=DEFAULT)), args, tmp_path)


@pytest.mark.parametrize(
    ("size", "said"),
    [(1, "of more than one item will be"), (8, "of more than 8 items will be"), (64, "")],
)
@pytest.mark.parametrize("configured", [True, False])
def test_smaller_batches_than_before_are_told(size: int, said: str, configured: bool) -> None:
    candidate = replace(DEFAULT, max_batch_size=size)
    release = SimpleNamespace(
        default=replace(DEFAULT, max_batch_size=32),
        is_configured=lambda candidate: configured,
        configs=lambda candidate: {},
    )
    shown = "\n".join(tune_command._proposal(cast(Release, release), candidate))
    assert ("will be refused" in shown) == bool(said)
    assert said in shown


def test_candidates_are_served_with_the_resources_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[list[str]] = []

    def refuse(repository: Path, *, extra_args: list[str], **more: Any) -> None:
        served.append(extra_args)
        raise StartError("seen enough")

    monkeypatch.setattr("mooring_serve.TritonServer", refuse)
    release = cast(Release, SimpleNamespace(copy=lambda candidate, folder: None))
    prober = Prober(release, payload=Payload(), timeout_s=1.0, folder=tmp_path, resources=["cores:2"])
    with pytest.raises(StartError):
        prober.run(DEFAULT, [5.0], 1)
    assert served == [["--rate-limit-resource=cores:2"]]


def _probed(result: LoadResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    prober = Prober(cast(Release, None), payload=Payload(), timeout_s=20.0, folder=tmp_path)
    monkeypatch.setattr(prober, "load", lambda candidate, **profile: result)
    return [stage.p99_ms for stage in prober.run(DEFAULT, RISING, 1)]


RISING = (60.0, 80.0, 100.0, 120.0, 150.0, 200.0)
RISING_STAGES = [
    LoadStage(seconds=1, load=60.0, measured=False),
    *(LoadStage(seconds=1, load=rate) for rate in RISING),
]


@pytest.mark.parametrize("seed", range(3))
def test_a_queue_that_grows_within_a_generous_bound_keeps_no_bound(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server of 100 requests a second, of whose queue nobody waits for five seconds.
    slow = load_result(seed=seed, rate=1.0, stages=RISING_STAGES, service_ms=10.0)
    assert max(stage.figures["p99_ms"].value for stage in slow.stages()) < 5000.0
    latencies = _probed(slow, monkeypatch, tmp_path)
    assert all(map(math.isinf, latencies[4:]))
    assert all(map(math.isfinite, latencies[:2]))
    fast = load_result(seed=seed, rate=1.0, stages=RISING_STAGES, service_ms=3.0)
    assert all(map(math.isfinite, _probed(fast, monkeypatch, tmp_path)))


def test_a_server_that_answers_late_and_all_keeps_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    for at_s in arrival_times(
        Profile(loop="open", rate=1.0, stages=RISING_STAGES).spans(), arrivals="poisson", seed="0"
    ):
        recorder.request("ner grpc", intended_s=at_s, sent_s=at_s, ended_s=at_s + 0.8)
    late = replace(load_result(rate=1.0, stages=RISING_STAGES), recorder=recorder)
    assert _probed(late, monkeypatch, tmp_path) == [800.0] * 6


def test_bounds_are_written_with_their_unit() -> None:
    assert (slo("p99=50ms"), slo("p99=1.5s")) == (50.0, 1500.0)
    for text in ("50ms", "p99=50", "p50=50ms", "p99=0ms", "p99=-1ms"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not of the form p99=50ms"):
            slo(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "ten"])
def test_a_time_to_tune_is_a_number_above_0(text: str) -> None:
    assert number("2.5") == 2.5
    with pytest.raises(argparse.ArgumentTypeError, match=f"{text!r} is no number above 0"):
        number(text)


def test_the_picture_names_the_best(tmp_path: Path) -> None:
    server, noted = Server(noise=0.0), []
    candidates = grid(cores=2, variants=[ONNX], default=DEFAULT)
    plan = Plan(guess=100.0, first_round=20)
    outcome = find(cast(Prober, server), candidates, plan, BOUND_MS, note=noted.append)
    plot(noted, BOUND_MS, tmp_path / "probes.svg")
    picture = (tmp_path / "probes.svg").read_text(encoding="utf-8")
    assert "<svg" in picture
    # What took turns is named, and nothing else.
    assert len(outcome.rates) == 3
    assert {one for one in candidates if f"{one} -->" in picture} == set(outcome.rates)


def test_the_picture_joins_turns_as_the_choice_does() -> None:
    def turn(number: int, *latencies: float, rates: Sequence[float] = (10.0, 20.0)) -> Probe:
        stages = tuple(
            Stage(rate=rate, p99_ms=p99_ms) for rate, p99_ms in zip(rates, latencies, strict=False)
        )
        return Probe(candidate=DEFAULT, round=number, stages=stages, error=None if stages else "died")

    steady, given_up = turn(2, 10.0, 20.0), turn(2, 1.0, 2.0, rates=(5.0, 15.0))
    assert _turns([given_up, steady]) == {DEFAULT: list(steady.stages)}
    # Of three turns two failed.
    assert [stage.p99_ms for stage in _turns([steady, turn(3), turn(4)])[DEFAULT]] == [math.inf, math.inf]
    # Nothing was due at the highest rate of the last turn, by chance.
    joined = _turns([steady, steady, turn(4, 12.0)])[DEFAULT]
    assert [(stage.rate, stage.p99_ms) for stage in joined] == [(10.0, 10.0), (20.0, 20.0)]
    assert _turns([replace(steady, round=1)]) == {}


class FakeRelease:
    default = DEFAULT

    def __init__(self, repository: Path, model: str) -> None:
        assert (repository, model) == (Path("models"), "intent")

    def candidates(self, cores: int, *, engine: str | None) -> list[Candidate]:
        assert engine is None
        return grid(cores=cores, variants=[ONNX], default=DEFAULT)


@pytest.mark.parametrize(("crippled", "status"), [(False, 0), (True, 1)])
def test_the_choice_is_held_against_the_grid(
    crippled: bool,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = Server(noise=0.0)
    monkeypatch.setattr(tune_check, "Release", FakeRelease)
    monkeypatch.setattr(tune_check, "Prober", lambda *args, **options: server)
    plan = Plan(guess=100.0, first_round=20)
    monkeypatch.setattr(tune_check, "make_plan", lambda prober, candidates, minutes, p99_ms: plan)
    if crippled:
        # Chooses what is worst of all.
        worst = replace(DEFAULT, instance_count=1, max_batch_size=1)
        outcome = Outcome(choice=worst, rates={worst: 50.0}, confirmed={})
        monkeypatch.setattr(tune_check, "find", lambda *args, **options: outcome)
    arguments = ["intent", "--repository", "models", "--work", str(tmp_path), "--slo", "p99=50ms"]
    assert tune_check.main(arguments) == status
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["tuner_over_grid"] < 0.95) == crippled
    assert figures["candidates"] == len(grid(cores=usable_cores(), variants=[ONNX], default=DEFAULT))
