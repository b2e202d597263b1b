from __future__ import annotations

import argparse
import json
import math
import operator
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import accumulate, count
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mooring import ConfigError, DataError, MooringError, StartError
from mooring_loadtests import tune_check, tune_command
from mooring_loadtests.load_statistics import Estimate
from mooring_loadtests.tune_command import (
    Confirmed,
    Journal,
    Plan,
    choose,
    confirmation_s,
    in_words,
    make_plan,
    number_of_minutes,
    slo,
)
from mooring_loadtests.tune_plot import plot
from mooring_loadtests.tune_probe import Prober
from mooring_loadtests.tuner import (
    Candidate,
    Probe,
    Stage,
    Variant,
    affordable,
    grid,
    pooled,
    rate_within,
    search,
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
    """A queue whose capacity depends on the settings; latency grows as 1 / (1 - load), with noise."""

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

    def run(self, candidate: Candidate, rates: Sequence[float], seconds: int) -> list[Stage]:
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


@pytest.mark.parametrize("seed", range(5))
def test_the_search_finds_about_the_best_and_probes_few(seed: int) -> None:
    server = Server(noise=0.2, seed=seed)
    candidates = grid(cores=2, variants=[ONNX, TORCHSCRIPT], default=DEFAULT)
    assert len(candidates) == len(set(candidates)) > 30
    best, *_ = search(candidates, server.run, p99_ms=BOUND_MS, guess=150.0, first_round=20, seed=seed)
    most = max(server.capacity(candidate) for candidate in candidates)
    assert server.capacity(best.candidate) >= 0.9 * most
    # A load of 1 - 12/50 keeps the bound.
    assert best.rate_within(BOUND_MS) == pytest.approx(server.capacity(best.candidate) * 0.76, rel=0.1)
    assert server.runs <= 20 + 7 + 3


@pytest.mark.parametrize(("overhead_s", "budget_s"), [(5.0, 300.0), (12.0, 480.0), (12.0, 900.0)])
def test_a_search_begins_with_as_many_as_it_has_time_for(overhead_s: float, budget_s: float) -> None:
    candidates = grid(cores=2, variants=[ONNX, TORCHSCRIPT], default=DEFAULT)
    first = affordable(len(candidates), overhead_s=overhead_s, budget_s=budget_s)
    took_s = {}
    for first_round in (first, first + 1):
        # Nothing crashes: what does is not counted.
        server = Server(noise=0.0)
        chosen = [one for one in candidates if one.intra_op_thread_count == 1]
        search(chosen, server.run, p99_ms=BOUND_MS, guess=150.0, first_round=first_round)
        took_s[first_round] = server.runs * overhead_s + server.seconds
    assert took_s[first] <= budget_s < took_s[first + 1]


def test_a_search_without_time_probes_the_present_settings_alone() -> None:
    assert affordable(60, overhead_s=10.0, budget_s=-5.0) == 1
    assert affordable(60, overhead_s=10.0, budget_s=1e6) == 60


def test_a_plan_goes_by_how_long_the_first_run_took(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"throughput": SimpleNamespace(value=120.0)}
    errors = Counter({"DeadlineExceeded: no answer within 1 s": 100})
    result = SimpleNamespace(
        figures=lambda: figures, count=lambda: (400, 100), recorder=SimpleNamespace(errors=errors)
    )
    prober = cast(Prober, SimpleNamespace(load=lambda candidate, **profile: result))
    candidates = grid(cores=2, variants=[ONNX], default=DEFAULT)

    def plan(took_s: float, minutes: float, p99_ms: float = BOUND_MS) -> Plan:
        times = count(100.0, took_s)
        monkeypatch.setattr(tune_command, "time", SimpleNamespace(monotonic=lambda: next(times)))
        return make_plan(prober, candidates, minutes=minutes, p99_ms=p99_ms)

    usual = plan(14.0, 10.0)
    assert usual.guess == 120.0
    assert 10 < usual.first_round < len(candidates)
    assert plan(28.0, 10.0).first_round < usual.first_round < plan(14.0, 20.0).first_round
    # Longer runs for a generous bound leave less time for the search.
    assert plan(14.0, 10.0, 2000.0).first_round < usual.first_round
    errors["InvalidInput: text 0 has 40 tokens"] = 5
    with pytest.raises(ConfigError, match=r"does not take what is asked: \{'InvalidInput: text 0 has 40"):
        plan(14.0, 10.0)
    figures["throughput"].value = 0.0
    with pytest.raises(ConfigError, match="the present settings answer nothing"):
        plan(14.0, 10.0)


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


def test_a_search_goes_on_where_it_was(tmp_path: Path) -> None:
    about = {"model": "ner", "version": 1, "p99_ms": BOUND_MS}
    candidates = grid(cores=2, variants=[ONNX], default=DEFAULT)

    def run(journal: Journal, server: Server) -> list[Probe]:
        journal.start(Plan(guess=150.0, first_round=20))
        assert journal.plan is not None
        return search(
            candidates,
            server.run,
            p99_ms=BOUND_MS,
            **asdict(journal.plan),
            known=list(journal.probes),
            note=journal.add,
        )

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


@pytest.mark.parametrize(
    ("latencies", "rate"),
    [
        ([10, 20, 40], 30.0),
        # Half-way between 25 and 100 on a logarithmic scale.
        ([10, 25, 100], 25.0),
        ([10, 25, math.inf], 20.0),
        # A stage that was disturbed does not end the search for the highest one.
        ([10, 60, 40], 30.0),
        ([100, 200, 400], 5.0),
        ([math.inf, math.inf, math.inf], 0.0),
        ([], 0.0),
    ],
)
def test_the_rate_within_a_bound(latencies: list[float], rate: float) -> None:
    stages = [Stage(rate=10.0 * (i + 1), p99_ms=latency) for i, latency in enumerate(latencies)]
    assert rate_within(stages, BOUND_MS) == pytest.approx(rate)


def test_what_disturbed_one_of_several_probes_counts_for_nothing() -> None:
    def probe(*latencies: float) -> Probe:
        stages = [Stage(rate=10.0 * (i + 1), p99_ms=latency) for i, latency in enumerate(latencies)]
        return Probe(candidate=DEFAULT, round=3, stages=tuple(stages))

    steady, disturbed, crashed = probe(10, 20, 80), probe(10, 90, 80), probe()
    assert pooled([steady, disturbed, steady]) == list(steady.stages)
    assert pooled([steady, steady, crashed]) == list(steady.stages)
    assert [stage.p99_ms for stage in pooled([steady, crashed, crashed])] == [math.inf] * 3
    assert pooled([crashed, crashed]) == []


OTHER = replace(DEFAULT, max_batch_size=8)
BEST = Probe(candidate=OTHER, round=2, stages=(Stage(rate=200.0, p99_ms=30.0),))


class Confirming:
    """A prober of longer runs: settings keep the bound up to a rate of their own."""

    def __init__(
        self, keeps: dict[Candidate, float], doubts: dict[Candidate, list[str]] | None = None
    ) -> None:
        self.keeps = keeps
        self.doubts = doubts or {}
        self.runs: list[tuple[Candidate, float]] = []

    def load(self, candidate: Candidate, *, loop: str, rate: float, stages: Any) -> Any:
        self.runs.append((candidate, rate))
        p99_ms = BOUND_MS if rate <= self.keeps[candidate] else 2 * BOUND_MS
        figures = {"p99_ms": Estimate(value=p99_ms)}
        return SimpleNamespace(figures=lambda: figures, doubts=self.doubts.get(candidate, []))


@pytest.mark.parametrize(
    ("present", "found", "stays"),
    [
        (150.0, 185.0, False),
        (185.0, 185.0, True),
        (185.0, 160.0, True),
        (0.0, 160.0, False),
        (0.0, 0.0, True),
        # The probe was wrong by more than half.
        (0.0, 80.0, False),
        (90.0, 80.0, True),
    ],
)
def test_settings_change_only_for_better_ones(present: float, found: float, stays: bool) -> None:
    prober = Confirming({DEFAULT: present, OTHER: found})
    choice, confirmed = choose(cast(Prober, prober), DEFAULT, BEST, BOUND_MS)
    assert choice == (DEFAULT if stays else OTHER)
    rates = list(accumulate([0.95] * 5 + [0.8] * 5, operator.mul, initial=200.0))[1:]
    if max(present, found) >= rates[4]:
        # Lower ones are for settings that may have been probed wrongly.
        rates = rates[:5]
    for candidate, keeps in prober.keeps.items():
        highest = next((rate for rate in rates if rate <= keeps), 0.0)
        assert confirmed[candidate].rate == pytest.approx(highest)


def test_longer_runs_take_turns_at_each_rate() -> None:
    prober = Confirming({DEFAULT: 175.0, OTHER: 185.0})
    choose(cast(Prober, prober), DEFAULT, BEST, BOUND_MS)
    first, second, third = (pytest.approx(200.0 * 0.95**number) for number in (1, 2, 3))
    assert prober.runs == [
        (DEFAULT, first),
        (OTHER, first),
        (DEFAULT, second),
        (OTHER, second),
        # The other one has kept it.
        (DEFAULT, third),
    ]


@pytest.mark.parametrize("present", [170.0, 0.0])
def test_a_run_in_doubt_changes_nothing_that_keeps_the_bound(present: float) -> None:
    prober = Confirming({DEFAULT: present, OTHER: 185.0}, {OTHER: ["requests left late"]})
    choice, _ = choose(cast(Prober, prober), DEFAULT, BEST, BOUND_MS)
    assert choice == (DEFAULT if present else OTHER)


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

    prober = Crashing({DEFAULT: 150.0, OTHER: 0.0})
    choice, confirmed = choose(cast(Prober, prober), DEFAULT, BEST, BOUND_MS)
    assert choice == DEFAULT
    told = in_words(OTHER, confirmed[OTHER], BOUND_MS)
    assert told.endswith(f"tried\n         doubtful: it did not serve ({error})")
    # Once is enough.
    assert [candidate for candidate, _ in prober.runs].count(OTHER) == 1


def test_a_wrong_demand_ends_a_longer_run_too() -> None:
    def refuse(candidate: Candidate, **options: Any) -> None:
        raise ConfigError("no such items")

    with pytest.raises(ConfigError, match="no such items"):
        choose(cast(Prober, SimpleNamespace(load=refuse)), DEFAULT, BEST, BOUND_MS)


def test_what_is_found_says_how_sure_it_is_and_what_it_leaves_free() -> None:
    confirmed = Confirmed(rate=40.0, p99_ms=Estimate(value=40.0, low=38.0, high=43.0), doubts=())
    assert in_words(OTHER, confirmed, BOUND_MS) == (
        f"{OTHER}: 40.0 requests/s, p99 40 [38, 43] ms, 20% below the bound"
    )


def test_settings_that_keep_no_rate_are_not_run_longer() -> None:
    def never(candidate: Candidate, **profile: Any) -> None:
        raise AssertionError

    prober = cast(Prober, SimpleNamespace(load=never))
    # Every request failed, and a bound far below what a single request takes.
    for stages in ((Stage(rate=200.0, p99_ms=math.inf),), (Stage(rate=4.0, p99_ms=5000.0),)):
        best = Probe(candidate=DEFAULT, round=2, stages=stages)
        choice, confirmed = choose(prober, DEFAULT, best, BOUND_MS)
        assert (choice, confirmed[choice].rate) == (DEFAULT, 0.0)


def test_a_longer_run_lasts_long_enough_for_an_overload_to_show() -> None:
    assert confirmation_s(100.0) == confirmation_s(500.0) == 15
    assert confirmation_s(5000.0) == 100


def test_a_wrong_demand_ends_a_search_and_is_held_against_no_candidate() -> None:
    def run(candidate: Candidate, rates: Sequence[float], seconds: int) -> list[Stage]:
        raise ConfigError("no such items")

    with pytest.raises(ConfigError, match="no such items"):
        search([DEFAULT], run, p99_ms=BOUND_MS, guess=150.0, first_round=1)


def test_of_those_that_take_every_rate_the_fastest_is_the_best() -> None:
    other = replace(DEFAULT, max_batch_size=8)

    def run(candidate: Candidate, rates: Sequence[float], seconds: int) -> list[Stage]:
        return [Stage(rate=rate, p99_ms=20.0 if candidate == other else 40.0) for rate in rates]

    best, *_ = search([DEFAULT, other], run, p99_ms=BOUND_MS, guess=150.0, first_round=2)
    assert best.candidate == other


def test_bounds_are_written_with_their_unit() -> None:
    assert (slo("p99=50ms"), slo("p99=1.5s")) == (50.0, 1500.0)
    for text in ("50ms", "p99=50", "p50=50ms", "p99=0ms", "p99=-1ms"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not of the form p99=50ms"):
            slo(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "ten"])
def test_a_time_to_tune_is_a_number_above_0(text: str) -> None:
    assert number_of_minutes("2.5") == 2.5
    with pytest.raises(argparse.ArgumentTypeError, match=f"{text!r} is no number above 0"):
        number_of_minutes(text)


def test_the_picture_names_the_best(tmp_path: Path) -> None:
    server, noted = Server(noise=0.0), []
    candidates = grid(cores=2, variants=[ONNX], default=DEFAULT)
    best, *_ = search(candidates, server.run, p99_ms=BOUND_MS, guess=150.0, first_round=20, note=noted.append)
    plot(noted, BOUND_MS, tmp_path / "probes.svg")
    picture = (tmp_path / "probes.svg").read_text(encoding="utf-8")
    assert "<svg" in picture
    assert str(best.candidate) in picture


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
    plan = Plan(guess=150.0, first_round=20)
    monkeypatch.setattr(tune_check, "make_plan", lambda prober, candidates, minutes, p99_ms: plan)
    monkeypatch.setattr(tune_check, "choose", lambda prober, default, best, p99_ms: (best.candidate, {}))
    if crippled:
        # A search that stays with what it is given, which is the worst that there is.
        worst = replace(DEFAULT, instance_count=1, max_batch_size=1)
        probe = Probe(candidate=worst, round=2, stages=tuple(server.run(worst, [50.0], 5)))
        monkeypatch.setattr(tune_check, "search", lambda *args, **options: [probe])
    arguments = ["intent", "--repository", "models", "--work", str(tmp_path), "--slo", "p99=50ms"]
    assert tune_check.main(arguments) == status
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["tuner_over_grid"] < 0.95) == crippled
    assert figures["candidates"] == len(grid(cores=os.cpu_count() or 1, variants=[ONNX], default=DEFAULT))
