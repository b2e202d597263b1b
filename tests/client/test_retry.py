"""Retrying: the budget, what may be repeated, the pause before it, and when a hedge is due."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring import (
    AccessDenied,
    CircuitOpen,
    ConfigError,
    ConnectError,
    DeadlineExceeded,
    DecodeError,
    HedgePolicy,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    MooringError,
    Overloaded,
    RetryPolicy,
    ServerError,
    TransportError,
)
from mooring._operations import (
    GetMetadata,
    Infer,
    LoadModel,
    MemorySlice,
    Operation,
    RegisterCudaMemory,
    RegisterSystemMemory,
    SequenceStep,
    Tensor,
    UnloadModel,
)
from mooring._retry import Latencies, RetryBudget, may_repeat, pause_before

INFER = Infer(model="m", inputs=())
METADATA = GetMetadata(model="m")


def drain(budget: RetryBudget) -> int:
    """Withdraw until nothing is left; returns how often that went."""
    taken = 0
    while budget.withdraw():
        taken += 1
    return taken


# --- budget


@pytest.mark.parametrize("reserve", [0, 1, 10])
def test_the_reserve_is_there_from_the_start_and_no_more(reserve: int) -> None:
    assert drain(RetryBudget(RetryPolicy(budget_reserve=reserve))) == reserve


@pytest.mark.parametrize(("ratio", "calls", "extra"), [(0.2, 50, 10), (0.1, 100, 10), (0.1, 9, 0), (1, 3, 3)])
def test_calls_earn_their_share(ratio: float, calls: int, extra: int) -> None:
    budget = RetryBudget(RetryPolicy(budget_ratio=ratio, budget_reserve=10))
    drain(budget)
    for _ in range(calls):
        budget.deposit()
    assert drain(budget) == extra


def test_what_is_earned_never_exceeds_the_reserve() -> None:
    budget = RetryBudget(RetryPolicy(budget_ratio=0.5, budget_reserve=4))
    for _ in range(1000):
        budget.deposit()
    assert drain(budget) == 4


def test_without_a_ratio_the_reserve_is_all_there_is() -> None:
    budget = RetryBudget(RetryPolicy(budget_ratio=0, budget_reserve=2))
    drain(budget)
    for _ in range(1000):
        budget.deposit()
    assert drain(budget) == 0


@given(
    ratio=st.floats(0, 2, allow_nan=False),
    reserve=st.integers(0, 20),
    steps=st.lists(st.booleans(), max_size=200),
)
def test_extra_tries_stay_within_reserve_and_share(ratio: float, reserve: int, steps: list[bool]) -> None:
    budget = RetryBudget(RetryPolicy(budget_ratio=ratio, budget_reserve=reserve))
    calls = extra = 0
    for is_call in steps:
        if is_call:
            budget.deposit()
            calls += 1
        else:
            extra += budget.withdraw()
        assert extra <= reserve + ratio * calls + 1e-6


def test_eight_threads_neither_lose_nor_invent_a_try() -> None:
    budget = RetryBudget(RetryPolicy(budget_ratio=0.5, budget_reserve=100_000))
    taken = [0] * 8

    def spend(place: int) -> None:
        for _ in range(2000):
            taken[place] += budget.withdraw()

    def earn() -> None:
        for _ in range(2000):
            budget.deposit()

    run_in_threads([lambda place=place: spend(place) for place in range(8)])
    assert sum(taken) == 16_000
    run_in_threads([earn] * 8)
    assert drain(budget) == 100_000 - 16_000 + 8_000


def run_in_threads(works: list[Any]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- what may be repeated

ENVOY = "upstream connect error or disconnect/reset before headers. reset reason:"
RETRIED = "upstream connect error or disconnect/reset before headers. retried and the latest reset reason:"
#: For each error: whether the operation is repeated, (change, other), (change, none), (question, other),
#: (question, none), where a "change" must not run twice and "other" means that a server is left untried.
REPEATED: dict[type[MooringError], tuple[bool, bool, bool, bool]] = {
    ConfigError: (False, False, False, False),
    TransportError: (False, False, True, True),
    ConnectError: (True, True, True, True),
    CircuitOpen: (False, False, False, False),
    DeadlineExceeded: (False, False, False, False),
    ServerError: (False, False, False, False),
    ModelNotFound: (False, False, False, False),
    ModelNotReady: (True, False, True, False),
    InvalidInput: (False, False, False, False),
    AccessDenied: (False, False, False, False),
    Overloaded: (True, True, True, True),
    DecodeError: (False, False, False, False),
}


@pytest.mark.parametrize("kind", REPEATED, ids=lambda kind: kind.__name__)
def test_only_what_is_safe_is_repeated(kind: type[MooringError]) -> None:
    cases: list[tuple[Operation[Any], bool]] = [
        (INFER, True),
        (INFER, False),
        (METADATA, True),
        (METADATA, False),
    ]
    found = tuple(
        may_repeat(kind("no"), operation, other_endpoint=other_endpoint)
        for operation, other_endpoint in cases
    )
    assert found == REPEATED[kind]


@pytest.mark.parametrize(
    ("code", "said", "inference", "step", "load"),
    [
        ("503", "no", True, True, True),
        ("502", "no", True, False, False),
        ("504", "no", False, False, False),
        ("UNAVAILABLE", "Received http2 header with status: 503", True, True, True),
        ("UNAVAILABLE", "Received http2 header with status: 502", True, False, False),
        ("UNAVAILABLE", "Received http2 header with status: 504", False, False, False),
        ("503", f"{ENVOY} connection termination", True, False, False),
        ("UNAVAILABLE", f"{ENVOY} connection termination", True, False, False),
        ("503", f"{ENVOY} remote connection failure, transport failure reason: refused", True, True, True),
        ("UNAVAILABLE", f"{ENVOY} overflow", True, True, True),
        ("503", f"{RETRIED} remote connection failure", True, False, False),
        ("503", f"model 'stackoverflow': {ENVOY} connection termination", True, False, False),
        ("UNAVAILABLE", "upstream request timeout", False, False, False),
        ("UNAVAILABLE", "stream timeout", False, False, False),
    ],
)
def test_what_a_gateway_gave_up_may_have_been_carried_out(
    code: str, said: str, inference: bool, step: bool, load: bool
) -> None:
    error = Overloaded(said, code=code)
    sequence = SequenceStep(id=7, start=True)
    operations = [INFER, replace(INFER, sequence=sequence), LoadModel(model="m"), METADATA]
    found = [may_repeat(error, operation, other_endpoint=True) for operation in operations]
    assert found == [inference, step, load, True]
    # The first try may still write into the memory when the second has been answered.
    shared = MemorySlice("region", 0, 4)
    x = Tensor("x", "FP32", np.zeros(1, np.float32), shared)
    for operation in (replace(INFER, output_memory={"y": shared}), replace(INFER, inputs=(x,))):
        assert may_repeat(error, operation, other_endpoint=True) is step


@pytest.mark.parametrize("kind", [LoadModel, UnloadModel, RegisterSystemMemory, RegisterCudaMemory])
def test_what_changes_the_server_is_not_asked_twice(kind: type[Operation[Any]]) -> None:
    assert not kind.repeatable


# --- pauses


@given(
    retry=st.integers(0, 5000),
    initial_s=st.floats(0, 1),
    more_s=st.floats(0, 100),
)
def test_a_pause_lies_between_nothing_and_its_doubling_bound(
    retry: int, initial_s: float, more_s: float
) -> None:
    policy = RetryPolicy(initial_delay_s=initial_s, max_delay_s=initial_s + more_s)
    bound_s = min(policy.max_delay_s, initial_s * 2.0 ** min(retry, 1000))
    assert 0 <= pause_before(retry, ConnectError("no"), policy) <= bound_s


def test_the_jitter_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    monkeypatch.setattr("mooring._retry.JITTER.uniform", uniform)
    policy = RetryPolicy(initial_delay_s=0.1, max_delay_s=0.5)
    pauses = [pause_before(retry, ConnectError("no"), policy) for retry in range(5)]
    assert pauses == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert drawn == [(0, pause_s) for pause_s in pauses]


def test_pauses_differ_from_each_other() -> None:
    policy = RetryPolicy(initial_delay_s=1.0)
    assert len({pause_before(0, ConnectError("no"), policy) for _ in range(20)}) == 20


@pytest.mark.parametrize(("asked_s", "pause_s"), [(None, 0.25), (0.0, 0.25), (0.1, 0.25), (7.0, 7.0)])
def test_retry_after_is_the_least_pause(
    monkeypatch: pytest.MonkeyPatch, asked_s: float | None, pause_s: float
) -> None:
    monkeypatch.setattr("mooring._retry.JITTER.uniform", lambda low, high: 0.25)
    error = Overloaded("full", retry_after_s=asked_s)
    assert pause_before(0, error, RetryPolicy()) == pause_s


# --- latencies


def latencies(**options: Any) -> Latencies:
    return Latencies(HedgePolicy(**{"min_delay_s": 0.0} | options))


def test_nothing_is_hedged_before_enough_is_known() -> None:
    known = latencies(min_samples=5)
    for _ in range(4):
        known.add("m", 1.0)
        assert known.hedge_delay_s("m") is None
    known.add("m", 1.0)
    assert known.hedge_delay_s("m") == 1.0


@pytest.mark.parametrize(
    ("percentile", "delay_s"), [(1, 2.0), (50, 51.0), (90, 91.0), (95, 96.0), (99, 100.0)]
)
def test_the_delay_is_the_percentile(percentile: float, delay_s: float) -> None:
    known = latencies(percentile=percentile, min_samples=100)
    for seconds in range(100, 0, -1):
        known.add("m", float(seconds))
    assert known.hedge_delay_s("m") == delay_s


def test_the_highest_percentile_of_few_is_the_slowest() -> None:
    known = latencies(percentile=99.9, min_samples=1)
    known.add("m", 3.0)
    assert known.hedge_delay_s("m") == 3.0


def test_the_delay_has_a_floor() -> None:
    known = latencies(min_delay_s=0.5, min_samples=1)
    known.add("m", 0.001)
    assert known.hedge_delay_s("m") == 0.5


def test_models_are_known_apart() -> None:
    known = latencies(min_samples=2)
    for model, seconds in [("slow", 2.0), ("fast", 0.1), ("slow", 2.0), ("fast", 0.1), ("new", 9.0)]:
        known.add(model, seconds)
    assert [known.hedge_delay_s(model) for model in ("slow", "fast", "new", "unknown")] == [
        2.0,
        0.1,
        None,
        None,
    ]


def test_old_latencies_are_forgotten() -> None:
    known = latencies(percentile=50, min_samples=1)
    for seconds in [9.0] * 1000 + [1.0] * 600:
        known.add("m", seconds)
    assert known.hedge_delay_s("m") == 1.0


def test_the_delay_follows_a_change_soon() -> None:
    known = latencies(percentile=50, min_samples=16)
    for seconds in [1.0] * 16 + [5.0] * 48:
        known.add("m", seconds)
    assert known.hedge_delay_s("m") == 5.0


def test_threads_may_add_at_once() -> None:
    known = latencies(percentile=50, min_samples=1)

    def add() -> None:
        for _ in range(500):
            known.add("m", 2.0)

    run_in_threads([add] * 8)
    assert known.hedge_delay_s("m") == 2.0
