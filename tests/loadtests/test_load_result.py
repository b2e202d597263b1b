from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from load_results import load_result
from mooring import ConfigError, DataError
from mooring_loadtests.arrivals import arrival_times
from mooring_loadtests.load_profile import Profile, Slo, Stage
from mooring_loadtests.load_result import LoadResult, read_result
from mooring_loadtests.recorder import Recorder
from mooring_loadtests.server_times import ServerTimes, StepTimes
from mooring_loadtests.slo import bounds

STEP = StepTimes(
    model="ner_onnx",
    requests=9,
    queue_ms=1.0,
    input_ms=0.1,
    compute_ms=8.0,
    output_ms=0.1,
    batches={1: 7, 2: 1},
)
SERVER = ServerTimes(model="ner", requests=9, total_ms=9.5, steps=(STEP,))


def _result(*, late_s: float = 0.0, cpu: float = 0.3, failing: int = 0, **profile: Any) -> LoadResult:
    """20 requests a second for 12 seconds, the first two of them a warm-up, in two protocols."""
    recorder = Recorder()
    for number in range(240):
        at_s = number / 20
        recorder.request(
            f"ner {('grpc', 'http')[number % 2]}",
            intended_s=at_s,
            sent_s=at_s + late_s,
            # The warm-up is slow.
            ended_s=at_s + (1.0 if at_s < 2 else 0.010 + 0.001 * (number % 10)),
            error="Overloaded: full" if number >= 240 - failing else None,
        )
    for second in range(12):
        recorder.health[second].cpu = {0: cpu}
    stages = (Stage(seconds=2, measured=False), Stage(seconds=10))
    return LoadResult(
        name="steady",
        model="ner",
        version="3",
        started="2026-01-01T00:00:00+00:00",
        profile=Profile(
            **{"loop": "open", "rate": 20.0, "arrivals": "constant", "stages": stages, **profile}
        ),
        processes=1,
        machine={"cores": "2"},
        versions={"python": "3.11"},
        settings={"ner": "ensemble"},
        recorder=recorder,
        server=SERVER,
    )


def test_a_warm_up_does_not_count() -> None:
    result = _result()
    assert result.count() == (200, 0)
    assert result.count("ner grpc") == (100, 0)
    figures = result.figures()
    assert (figures["p50_ms"].value, figures["p99_ms"].value) == (14.0, 19.0)
    # Late answers of the warm-up came in the first measured second; they are answers all the same.
    assert figures["throughput"].value == pytest.approx(22.0)
    assert result.doubts == []


def test_late_answers_alone_are_no_requests_that_count() -> None:
    result = _result()
    result.recorder.request("ner rare", intended_s=1.5, sent_s=1.5, ended_s=4.0)
    assert result.names == ("ner grpc", "ner http")
    assert result.figures()["throughput"].value == pytest.approx(22.1)
    assert '"ner rare"' in result.to_json()


@pytest.mark.parametrize(
    ("profile", "at_s", "answered"),
    [
        # Answered in time; in the last stage, but asked before; not at all.
        ({}, (10.5, 10.6), True),
        ({"loop": "closed", "rate": None, "users": 4}, (5.0, 11.0), True),
        ({"loop": "closed", "rate": None, "users": 4}, (5.0, 6.0), False),
        # Nothing was due.
        ({}, (5.0, 6.0), True),
    ],
    ids=["in time", "late", "not", "nothing due"],
)
def test_the_last_stage_is_answered(
    profile: dict[str, Any], at_s: tuple[float, float], answered: bool
) -> None:
    result = replace(_result(stages=(Stage(seconds=10), Stage(seconds=2)), **profile), recorder=Recorder())
    result.recorder.request("ner grpc", intended_s=at_s[0], sent_s=at_s[0], ended_s=at_s[1])
    assert result.answered == answered


@pytest.mark.parametrize(
    "profile", [{}, {"loop": "closed", "rate": None, "users": 4}], ids=["open", "closed"]
)
def test_late_answers_do_not_make_up_for_failures(profile: dict[str, Any]) -> None:
    result = replace(_result(stages=(Stage(seconds=10), Stage(seconds=2)), **profile), recorder=Recorder())
    result.recorder.request("ner grpc", intended_s=9.0, sent_s=9.0, ended_s=10.5)
    result.recorder.request("ner grpc", intended_s=10.2, sent_s=10.2, ended_s=10.3, error="Overloaded: full")
    assert not result.answered


@pytest.mark.parametrize(
    ("profile", "answered", "others"),
    [
        # Sent are 240; each of two sources and of 4 and then 8 users asks an item first.
        ({}, 242, 0),
        ({}, 254, 0),
        ({}, 255, 13),
        ({"loop": "closed", "rate": None, "users": 4}, 252, 0),
        ({"loop": "closed", "rate": None, "users": 4}, 300, 48),
    ],
)
def test_requests_of_others_are_told_from_ones_own(
    profile: dict[str, Any], answered: int, others: int
) -> None:
    stages = (Stage(seconds=2, measured=False), Stage(seconds=10, load=2.0))
    # Those that failed may have been answered, too late.
    result = _result(failing=10, stages=stages, **profile)
    assert replace(result, server=replace(SERVER, requests=answered)).others == others
    # Or of its engine alone.
    engine = replace(SERVER.steps[0], requests=answered)
    assert replace(result, server=replace(SERVER, requests=200, steps=(engine,))).others == others
    assert replace(result, server=None).others == 0


@pytest.mark.parametrize(("counted", "uncounted"), [(240, 0), (228, 0), (227, 13), (0, 240)])
def test_answers_that_the_server_did_not_count_are_told(counted: int, uncounted: int) -> None:
    # Such as those of another server behind the same name: 240 were answered.
    result = _result()
    assert replace(result, server=replace(SERVER, requests=counted)).uncounted == uncounted
    assert replace(result, server=None).uncounted == 0


def test_each_stage_has_figures() -> None:
    stages = (Stage(seconds=2), Stage(seconds=10, load=2.0))
    slow, fast = _result(stages=stages).stages()
    assert (slow.span.amount, fast.span.amount) == (20.0, 40.0)
    assert (slow.figures["p50_ms"].value, fast.figures["p50_ms"].value) == (1000.0, 14.0)


def test_what_a_stage_has_of_the_one_before_does_not_count() -> None:
    stages = (Stage(seconds=6, load=4.0), Stage(seconds=6))
    result = replace(_result(loop="closed", rate=None, users=1, stages=stages), recorder=Recorder())
    for second in range(12):
        for number in range(40 if second < 8 else 10):
            at_s = second + number / 50
            latency_s = 0.1 if second < 8 else 0.02
            result.recorder.request("ner grpc", intended_s=at_s, sent_s=None, ended_s=at_s + latency_s)
    _, light = result.stages()
    assert (light.figures["throughput"].value, light.figures["p99_ms"].value) == (10.0, 20.0)
    assert result.count() == (6 * 40 + 4 * 10, 0)


def test_failures_are_slower_than_any_percentile() -> None:
    figures = _result(failing=10).figures()
    assert figures["error_rate"].value == 0.05
    assert figures["p95_ms"].value == 19.0
    assert math.isinf(figures["p99_ms"].value)


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"late_s": 0.02}, "100.0% of the requests left more than 5 ms late"),
        ({"cpu": 0.97}, "a generating process used 97% of a core"),
        ({"rate": 40.0}, "200 of 400 requests that were due are missing"),
        (
            {"rate": 10.0},
            "200 requests were sent where 100 were due: is a worker's profile another?",
        ),
    ],
)
def test_a_generator_that_did_not_keep_up_is_doubted(changes: dict[str, Any], doubt: str) -> None:
    (said,) = _result(**changes).doubts
    assert said.startswith(doubt)


def test_what_happens_while_users_change_makes_no_run_invalid() -> None:
    stages = (Stage(seconds=6), Stage(seconds=6, load=2.0))
    result = _result(stages=stages, loop="closed", rate=None, users=4)
    for second in (6, 7):
        result.recorder.health[second].lateness_ms[50.0] += 100
        result.recorder.health[second].cpu[0] = 1.0
    assert result.doubts == []
    result.recorder.health[8].lateness_ms[50.0] += 100
    assert len(replace(result).doubts) == 1


@pytest.mark.parametrize(
    ("every", "doubt"),
    [
        # A few answers take a second, and a tenth of that is allowed for the 99th percentile alone: half of
        # the requests may leave 20 ms late for the median of 14 ms, a twentieth for the other of 19 ms.
        (1, "100.0% of the requests left more than 5 ms late"),
        (8, "12.5% of the requests left more than 5 ms late"),
        (20, None),
    ],
)
def test_lateness_that_matters_to_one_percentile_is_doubted(every: int, doubt: str | None) -> None:
    result = _result()
    for number in range(200):
        at_s = 2 + number / 20
        health = result.recorder.health[int(at_s)]
        if not number % 20:
            health.lateness_ms.clear()
        health.lateness_ms[0.1 if number % every else 20.0] += 1
        if number % 50 == 0:
            latencies = result.recorder.seconds["ner grpc", int(at_s)].latencies_ms
            latencies[latencies.most_common()[0][0]] -= 1
            latencies[1000.0] += 1
    assert result.figures()["p99_ms"].value == 1000.0
    assert result.figures()["p95_ms"].value == 19.0
    said = [doubt for doubt in result.doubts if "late" in doubt]
    assert [words.partition(":")[0] for words in said] == ([doubt] if doubt else [])


@pytest.mark.parametrize(("late_s", "doubted"), [(0.02, False), (2.0, True)])
def test_lateness_is_held_against_the_time_budget_where_most_requests_fail(
    late_s: float, doubted: bool
) -> None:
    # A server that crashes breaks its bounds, whatever a few milliseconds of the generator's are.
    result = _result(failing=150, late_s=late_s, slo=Slo(error_rate=0.01))
    assert all(math.isinf(result.figures()[name].value) for name in ("p50_ms", "p95_ms", "p99_ms"))
    assert any("more than 1,000 ms late" in doubt for doubt in result.doubts) == doubted
    assert bool(result.doubts) == doubted


@pytest.mark.parametrize(
    ("late", "late_ms", "p99_ms", "doubted"),
    [
        (27, 280.0, 284.0, True),
        # As many, by what is nothing to a percentile of others.
        (27, 6.0, 20.0, False),
        # No more than there may be, and more than chance.
        (19, 280.0, 20.0, False),
        (29, 6.0, 20.0, True),
    ],
)
def test_late_requests_that_make_a_percentile_are_no_chance(
    late: int, late_ms: float, p99_ms: float, doubted: bool
) -> None:
    result = replace(_result(rate=95.0, stages=(Stage(seconds=20),)), recorder=Recorder())
    for number in range(1900):
        at_s = number / 95
        by_s = late_ms / 1000 if 500 <= number < 500 + late else 0.0
        latency_s = 0.020 if late_ms < 20 else 0.004 + max(by_s, 0.016)
        result.recorder.request("ner grpc", intended_s=at_s, sent_s=at_s + by_s, ended_s=at_s + latency_s)
    for second in range(20):
        result.recorder.health[second].cpu = {0: 0.3}
    assert result.figures()["p99_ms"].value == p99_ms
    assert bool(result.doubts) == doubted


def test_one_busy_process_is_seen_among_idle_ones() -> None:
    result = replace(_result(), processes=4)
    for second in range(12):
        result.recorder.health[second].cpu = {0: 0.1, 1: 0.1, 2: 0.97, 3: 0.1}
    (said,) = result.doubts
    assert said.startswith("a generating process used 97% of a core")


@pytest.mark.parametrize(("last_s", "gone"), [(11, False), (8, False), (4, True), (None, True)])
def test_a_process_that_ended_early_is_missed(last_s: int | None, gone: bool) -> None:
    profile = {"loop": "closed", "rate": None, "users": 4}
    result = replace(_result(**profile), processes=2)
    for second in range(12):
        there = last_s is not None and second <= last_s
        result.recorder.health[second].cpu = {0: 0.1, 1: 0.1} if there else {0: 0.1}
    words = ["1 of 2 generating processes ended early or never began"]
    assert result.doubts == (words if gone else [])


def test_processes_that_began_anew_have_other_numbers() -> None:
    result = load_result(names=("ner grpc",))
    sent = replace(result, processes=2, recorder=Recorder())
    # The first one was started twice, so that Locust calls the second start 2.
    for number, process in enumerate((1, 2)):
        times = arrival_times(sent.profile.spans(), arrivals="poisson", seed="0", source=process, sources=2)
        for at_s in times:
            sent.recorder.request("ner grpc", intended_s=at_s, sent_s=at_s, ended_s=at_s + 0.01)
        for second in range(sent.profile.seconds):
            sent.recorder.health[second].cpu[process] = 0.3 + number / 10
    assert sent.doubts == []


def test_it_is_known_how_many_requests_of_a_poisson_stream_are_due() -> None:
    # Chance alone might be 3 % below the rate; the seed says that it was not.
    result = load_result(stages=[Stage(seconds=60)])
    assert result.doubts == []
    for second in range(4):
        del result.recorder.seconds["ner grpc", second]
    (said,) = replace(result).doubts
    assert re.fullmatch(r"\d+ of \d+ requests that were due are missing", said)


def test_an_overloaded_stage_does_not_excuse_a_quiet_one() -> None:
    # A tenth of the slow stage's second would be allowed.
    stages = (Stage(seconds=2), Stage(seconds=10))
    (said,) = _result(late_s=0.02, stages=stages, rate=240 / 12).doubts
    assert said.startswith("100.0% of the requests left more than 5 ms late")


def test_bounds_are_kept_or_broken() -> None:
    result = _result(slo=Slo(p50_ms=14.0, p95_ms=15.0, error_rate=0.0, min_throughput=25.0))
    assert [(bound.name, bound.kept) for bound in bounds(result)] == [
        ("p50_ms", True),
        ("p95_ms", False),
        ("error_rate", True),
        ("min_throughput", False),
    ]
    p50, p95, _, _ = bounds(result)
    assert not p50.sure
    assert p95.sure


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    result = replace(
        _result(failing=10), items="0a", urls=("grpc://models:8001",), changes=("another",), anew=("ner",)
    )
    path.write_text(result.to_json(), encoding="utf-8")
    again = read_result(path)
    assert (again.items, again.urls) == (result.items, result.urls)
    assert (again.changes, again.anew, again.doubts) == (("another",), ("ner",), ["another"])
    assert again.figures() == result.figures()
    assert (again.profile, again.server, again.doubts) == (result.profile, SERVER, result.doubts)
    assert again.to_json() == result.to_json()
    # JSON has no infinity.
    assert json.loads(result.to_json())["figures"]["all"]["p99_ms"]["value"] is None


def test_a_file_of_before_is_read(tmp_path: Path) -> None:
    document = json.loads(_result().to_json())
    for key in ("items", "urls", "changes", "anew"):
        del document[key]
    (tmp_path / "run.json").write_text(json.dumps(document), encoding="utf-8")
    old = read_result(tmp_path / "run.json")
    assert (old.items, old.urls, old.changes, old.anew) == ("", (), (), ())


@pytest.mark.parametrize("content", [None, "[]", "{", '{"schema": 1}', '{"schema": 99}'])
def test_other_files_are_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"run\.json"):
        read_result(path)


def test_what_is_wrong_with_a_file_is_said_plainly(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"schema": 99}', encoding="utf-8")
    with pytest.raises(DataError, match=r"^\S+run\.json has schema 99, this version reads \d+$"):
        read_result(path)
    document = json.loads(_result().to_json())
    document["profile"]["rate"] = -1
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^\S+run\.json has 1 mistake\(s\):\n  rate: "):
        read_result(path)


def test_a_run_that_sent_nothing_has_no_figures() -> None:
    result = _result()
    result.recorder.seconds.clear()
    with pytest.raises(DataError, match="sent nothing that counts"):
        result.figures()
