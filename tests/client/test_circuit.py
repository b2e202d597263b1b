"""The circuit breaker: when it opens, when it is probed, when it closes."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mooring import CircuitPolicy, _circuit
from mooring._circuit import Circuit
from scripted_servers import StoppedClock

POLICY = CircuitPolicy(failures=3, pause_s=1.0, max_pause_s=5.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    clock = StoppedClock()
    monkeypatch.setattr(_circuit, "time", clock)
    return clock


def open_circuit() -> Circuit:
    circuit = Circuit(POLICY)
    assert [circuit.failed() for _ in range(3)] == [False, False, True]
    return circuit


def test_a_new_circuit_is_closed_and_has_nothing_to_probe(clock: StoppedClock) -> None:
    circuit = Circuit(POLICY)
    assert (circuit.state, circuit.is_open) == ("closed", False)
    assert not circuit.begin_probe()


def test_failures_in_a_row_open_it(clock: StoppedClock) -> None:
    circuit = open_circuit()
    assert (circuit.state, circuit.is_open) == ("open", True)


def test_one_failure_opens_it_where_the_policy_says_so(clock: StoppedClock) -> None:
    circuit = Circuit(CircuitPolicy(failures=1))
    assert circuit.failed()
    assert circuit.is_open


def test_a_success_between_failures_starts_the_count_again(clock: StoppedClock) -> None:
    circuit = Circuit(POLICY)
    for _ in range(10):
        assert not circuit.failed()
        assert not circuit.failed()
        circuit.succeeded()
    assert not circuit.is_open


def test_failures_of_an_open_circuit_do_not_open_it_again(clock: StoppedClock) -> None:
    circuit = open_circuit()
    assert not any(circuit.failed() for _ in range(10))
    clock.now_s += POLICY.pause_s
    assert circuit.begin_probe(), "requests that were still under way don't put the probe off"


def test_a_late_success_does_not_close_it(clock: StoppedClock) -> None:
    circuit = open_circuit()
    circuit.succeeded()
    assert circuit.is_open


def test_it_is_probed_by_one_caller_and_only_when_due(clock: StoppedClock) -> None:
    circuit = open_circuit()
    clock.now_s += POLICY.pause_s - 0.001
    assert not circuit.begin_probe()
    clock.now_s += 0.001
    assert circuit.begin_probe()
    assert (circuit.state, circuit.is_open) == ("probing", True)
    assert not circuit.begin_probe()


def test_one_of_many_threads_begins_the_probe(clock: StoppedClock) -> None:
    circuit = open_circuit()
    clock.now_s += POLICY.pause_s
    started = threading.Barrier(8)
    begun: list[bool] = []

    def begin() -> None:
        started.wait()
        begun.append(circuit.begin_probe())

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(begun) == [False] * 7 + [True]


def test_a_living_server_closes_it_and_a_new_row_of_failures_opens_it(clock: StoppedClock) -> None:
    circuit = open_circuit()
    clock.now_s += POLICY.pause_s
    assert circuit.begin_probe()
    assert circuit.end_probe(alive=True)
    assert (circuit.state, circuit.is_open) == ("closed", False)
    assert [circuit.failed() for _ in range(3)] == [False, False, True]


def test_the_pause_doubles_with_each_silent_probe_and_starts_anew_after_a_good_one(
    clock: StoppedClock,
) -> None:
    circuit = open_circuit()
    for pause_s in (1.0, 2.0, 4.0, 5.0, 5.0):
        clock.now_s += pause_s - 0.001
        assert not circuit.begin_probe()
        clock.now_s += 0.001
        assert circuit.begin_probe()
        assert not circuit.end_probe(alive=False)
        assert circuit.state == "open"
    clock.now_s += 5.0
    assert circuit.begin_probe()
    assert circuit.end_probe(alive=True)
    for _ in range(3):
        circuit.failed()
    clock.now_s += POLICY.pause_s
    assert circuit.begin_probe()


def test_timeouts_ask_for_a_probe_and_open_nothing(clock: StoppedClock) -> None:
    circuit = Circuit(POLICY)
    assert [circuit.timed_out() for _ in range(3)] == [False, False, True]
    assert (circuit.state, circuit.is_open) == ("closed", False)
    assert not circuit.begin_probe(), "a closed circuit is probed on suspicion alone"
    assert not any(circuit.timed_out() for _ in range(5)), "one probe at a time"


def test_a_success_between_timeouts_starts_their_count_again(clock: StoppedClock) -> None:
    circuit = Circuit(POLICY)
    for _ in range(5):
        assert not circuit.timed_out()
        assert not circuit.timed_out()
        circuit.succeeded()


def test_timeouts_and_failures_are_counted_apart(clock: StoppedClock) -> None:
    circuit = Circuit(POLICY)
    assert [circuit.failed(), circuit.timed_out(), circuit.failed(), circuit.timed_out()] == [False] * 4
    assert circuit.failed()


@pytest.mark.parametrize(("alive", "is_open"), [(True, False), (False, True)])
def test_the_probe_on_suspicion_decides(clock: StoppedClock, alive: bool, is_open: bool) -> None:
    circuit = Circuit(POLICY)
    for _ in range(3):
        circuit.timed_out()
    assert circuit.end_probe(alive=alive) is is_open
    assert circuit.is_open is is_open
    clock.now_s += POLICY.pause_s
    assert circuit.begin_probe() is is_open, "the first pause is not doubled"


def test_timeouts_of_an_open_circuit_ask_for_nothing(clock: StoppedClock) -> None:
    circuit = open_circuit()
    assert not any(circuit.timed_out() for _ in range(5))


def test_failures_during_a_probe_on_suspicion_open_it_and_the_probe_closes_it(clock: StoppedClock) -> None:
    circuit = Circuit(POLICY)
    for _ in range(3):
        circuit.timed_out()
    assert [circuit.failed() for _ in range(3)] == [False, False, True]
    assert circuit.state == "probing"
    clock.now_s += 10 * POLICY.max_pause_s
    assert not circuit.begin_probe()
    assert circuit.end_probe(alive=True)
    assert circuit.state == "closed"


class CircuitAgainstModel(RuleBasedStateMachine):
    """The circuit beside a slow and plain account of what its documentation says."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = StoppedClock()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(_circuit, "time", self.clock)
        self.circuit = Circuit(POLICY)
        self.failures = 0
        self.timeouts = 0
        self.is_open = False
        self.probing = False
        self.pause_s = POLICY.pause_s
        self.due_at_s = 0.0

    def teardown(self) -> None:
        self._patch.undo()

    @rule()
    def succeed(self) -> None:
        self.circuit.succeeded()
        self.failures = self.timeouts = 0

    @rule()
    def fail(self) -> None:
        self.failures += 1
        opens = not self.is_open and self.failures >= POLICY.failures
        if opens:
            self.is_open, self.due_at_s = True, self.clock.now_s + self.pause_s
        assert self.circuit.failed() is opens

    @rule()
    def time_out(self) -> None:
        self.timeouts += 1
        suspicious = not self.is_open and not self.probing and self.timeouts >= 3
        if suspicious:
            self.timeouts, self.probing = 0, True
        assert self.circuit.timed_out() is suspicious

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule()
    def begin_probe(self) -> None:
        due = self.is_open and not self.probing and self.clock.now_s >= self.due_at_s
        self.probing = self.probing or due
        assert self.circuit.begin_probe() is due

    @precondition(lambda self: self.probing)
    @rule(alive=st.booleans())
    def end_probe(self, alive: bool) -> None:
        changes = self.is_open is alive
        self.probing = False
        if alive:
            self.failures = self.timeouts = 0
            self.is_open, self.pause_s = False, POLICY.pause_s
        else:
            if self.is_open:
                self.pause_s = min(2 * self.pause_s, POLICY.max_pause_s)
            self.is_open, self.due_at_s = True, self.clock.now_s + self.pause_s
        assert self.circuit.end_probe(alive=alive) is changes

    @invariant()
    def shows_its_state(self) -> None:
        state = ("probing" if self.probing else "open") if self.is_open else "closed"
        assert (self.circuit.state, self.circuit.is_open) == (state, self.is_open)


TestCircuitAgainstModel = CircuitAgainstModel.TestCase
TestCircuitAgainstModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
