from __future__ import annotations

import json
from collections import Counter

import pytest

from mooring_loadtests.recorder import Recorder, Second, round_ms


def _note(recorder: Recorder, number: int) -> None:
    at_s = number * 0.037
    recorder.request(
        f"ner {('grpc', 'http')[number % 2]}",
        intended_s=at_s,
        sent_s=at_s + 0.0001 * (number % 7),
        ended_s=at_s + 0.004 + 0.003 * (number % 11),
        error=("Overloaded: full", "ConnectError: refused")[number % 4 // 2] if number % 5 == 0 else None,
    )
    recorder.health[int(at_s)].cpu[number % 3] = round(0.1 * (number % 3), 1)


def test_merged_recorders_are_one_recorder() -> None:
    whole, merged, parts = Recorder(), Recorder(), [Recorder() for _ in range(3)]
    for number in range(300):
        _note(whole, number)
        _note(parts[number % 3], number)
        if number % 50 == 0:
            # A worker reports now and then, as JSON.
            merged.add(json.loads(json.dumps(parts[0].take())))
    for part in parts:
        merged.add(json.loads(json.dumps(part.take())))
    assert merged.to_dict() == whole.to_dict()
    assert sum(second.latencies_ms.total() for second in merged.seconds.values()) == 240
    assert merged.errors.total() == 60


def test_taking_forgets() -> None:
    recorder = Recorder()
    _note(recorder, 1)
    assert recorder.take() != Recorder().to_dict()
    assert recorder.take() == Recorder().to_dict()


def test_a_request_counts_where_it_should_have_left_and_its_answer_where_it_came() -> None:
    recorder = Recorder()
    recorder.request("ner grpc", intended_s=1.5, sent_s=2.25, ended_s=4.0)
    assert dict(recorder.seconds) == {
        ("ner grpc", 1): Second(latencies_ms=Counter({2500.0: 1})),
        ("ner grpc", 4): Second(answers=1),
    }
    assert recorder.health[1].lateness_ms == {750.0: 1}


def test_a_failure_is_no_answer() -> None:
    recorder = Recorder()
    recorder.request("ner grpc", intended_s=1.0, sent_s=None, ended_s=1.25, error="Overloaded: full")
    assert dict(recorder.seconds) == {("ner grpc", 1): Second(failures_ms=Counter({250.0: 1}))}
    assert recorder.errors == {"Overloaded: full": 1}
    assert not recorder.health


def test_messages_that_never_repeat_do_not_pile_up() -> None:
    recorder = Recorder()
    for number in range(200):
        recorder.request(
            "ner", intended_s=0.0, sent_s=None, ended_s=0.1, error=f"ConnectError: after {number} ms"
        )
    recorder.request("ner", intended_s=0.0, sent_s=None, ended_s=0.1, error="ConnectError: after 3 ms")
    assert len(recorder.errors) == 51
    assert recorder.errors["ConnectError"] == 150
    assert recorder.errors["ConnectError: after 3 ms"] == 2


def test_nor_do_they_where_processes_hand_over_a_few_at_a_time() -> None:
    master, worker = Recorder(), Recorder()
    for number in range(200):
        error = f"ConnectError: after {number} ms"
        worker.request("ner", intended_s=0.0, sent_s=None, ended_s=0.1, error=error)
        if number % 20 == 19:
            master.add(worker.take())
    assert len(master.errors) == 51
    assert master.errors["ConnectError"] == 150


@pytest.mark.parametrize(
    ("time_ms", "rounded"),
    [(0.0, 0.0), (0.01234, 0.0123), (12.345, 12.3), (999.6, 1000.0), (61234.0, 61200.0)],
)
def test_times_keep_three_digits(time_ms: float, rounded: float) -> None:
    assert round_ms(time_ms) == rounded
