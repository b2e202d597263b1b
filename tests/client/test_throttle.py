"""What a client holds back where a server refuses much, in simulated time."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring import ThrottlePolicy, _throttle
from mooring._throttle import Throttle
from scripted_servers import StoppedClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    clock = StoppedClock()
    monkeypatch.setattr(_throttle, "time", clock)
    return clock


def draw(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Let chance be this number from now on."""
    monkeypatch.setattr("mooring._throttle.JITTER.random", lambda: value)


class Server:
    """Takes so many requests a second, with a queue for 16, and refuses the others at once."""

    def __init__(self, policy: ThrottlePolicy, clock: StoppedClock) -> None:
        self.throttle = Throttle(policy)
        self.clock = clock
        self.random = Random(1)
        self.waiting = 0.0

    def ask(self, *, per_s: float, seconds: float, takes_per_s: float) -> tuple[int, int, int]:
        """Ask at random times: how many requests were meant, sent and taken."""
        sent = taken = 0
        meant = round(per_s * seconds)
        for _ in range(meant):
            pause_s = self.random.expovariate(per_s)
            self.clock.now_s += pause_s
            self.waiting = max(0.0, self.waiting - takes_per_s * pause_s)
            if self.throttle.holds_back("m"):
                continue
            sent += 1
            if takes_per_s and self.waiting <= 15:
                self.waiting += 1
                taken += 1
            else:
                self.throttle.refused("m")
        return meant, sent, taken


@pytest.fixture
def server(clock: StoppedClock, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr("mooring._throttle.JITTER.random", Random(2).random)
    return Server(ThrottlePolicy(), clock)


@given(
    ratio=st.floats(1, 10),
    pauses_s=st.lists(st.floats(0, 5), max_size=50),
)
def test_nothing_is_held_back_from_a_server_that_takes_all(ratio: float, pauses_s: list[float]) -> None:
    clock = StoppedClock()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_throttle, "time", clock)
        draw(patched, 0.0)
        throttle = Throttle(ThrottlePolicy(ratio=ratio))
        for pause_s in pauses_s:
            clock.now_s += pause_s
            assert not throttle.holds_back("m")


@pytest.mark.parametrize(
    ("meant", "refused", "ratio", "chance"),
    [
        (9, 3, 1.5, 0.0),
        (9, 6, 1.5, (9 - 1.5 * 3) / 10),
        (9, 6, 3.0, 0.0),
        (9, 1, 1.0, 1 / 10),
        (4, 4, 2.0, 4 / 5),
        (999, 999, 2.0, 0.9),
    ],
)
def test_the_chance_of_being_held_back(
    clock: StoppedClock,
    monkeypatch: pytest.MonkeyPatch,
    meant: int,
    refused: int,
    ratio: float,
    chance: float,
) -> None:
    def held_back(drawn: float) -> bool:
        throttle = Throttle(ThrottlePolicy(ratio=ratio))
        draw(monkeypatch, 1.0)
        assert [throttle.holds_back("m") for _ in range(meant)] == [False] * meant
        for _ in range(refused):
            throttle.refused("m")
        draw(monkeypatch, drawn)
        assert not throttle.holds_back("other")
        return throttle.holds_back("m")

    assert held_back(chance - 1e-9) == (chance > 0)
    assert not held_back(chance + 1e-9)


def test_what_is_held_back_counts_as_refused(clock: StoppedClock, monkeypatch: pytest.MonkeyPatch) -> None:
    throttle = Throttle(ThrottlePolicy(ratio=2.0))
    draw(monkeypatch, 1.0)
    assert [throttle.holds_back("m") for _ in range(4)] == [False] * 4
    for _ in range(3):
        throttle.refused("m")
    draw(monkeypatch, 0.0)
    # 4 meant and 1 taken; then 5 and 1: (5 - 2) / 6.
    assert throttle.holds_back("m")
    draw(monkeypatch, 0.499)
    assert throttle.holds_back("m")


@pytest.mark.parametrize("window_s", [0.5, 2.0, 30.0])
def test_a_refusal_counts_a_third_after_the_window(
    clock: StoppedClock, monkeypatch: pytest.MonkeyPatch, window_s: float
) -> None:
    throttle = Throttle(ThrottlePolicy(window_s=window_s))
    draw(monkeypatch, 1.0)
    assert not throttle.holds_back("m")
    throttle.refused("m")
    clock.now_s += window_s
    chance = 0.36788 / 1.36788
    draw(monkeypatch, chance + 1e-4)
    assert not throttle.holds_back("m")
    clock.now_s += 1000 * window_s
    draw(monkeypatch, 0.0)
    assert not throttle.holds_back("m")


@pytest.mark.parametrize("ratio", [1.2, 1.5, 2.0])
def test_an_overloaded_server_gets_little_more_than_it_takes(
    server: Server, clock: StoppedClock, ratio: float
) -> None:
    server.throttle = Throttle(ThrottlePolicy(ratio=ratio))
    server.ask(per_s=1000, seconds=10, takes_per_s=200)
    _, sent, taken = server.ask(per_s=1000, seconds=30, takes_per_s=200)
    assert sent / taken == pytest.approx(ratio, rel=0.05)
    assert taken == pytest.approx(200 * 30, rel=0.05)


@pytest.mark.parametrize(("takes_per_s", "seconds"), [(200, 6), (0, 15)])
def test_soon_after_an_overload_everything_is_sent_again(
    server: Server, takes_per_s: float, seconds: float
) -> None:
    server.ask(per_s=1000, seconds=30, takes_per_s=takes_per_s)
    server.ask(per_s=150, seconds=seconds, takes_per_s=200)
    meant, sent, taken = server.ask(per_s=150, seconds=20, takes_per_s=200)
    assert meant == sent == taken


def test_a_tenth_is_sent_to_a_server_that_takes_nothing(server: Server) -> None:
    server.ask(per_s=1000, seconds=10, takes_per_s=0)
    meant, sent, _ = server.ask(per_s=1000, seconds=30, takes_per_s=0)
    assert sent == pytest.approx(0.1 * meant, rel=0.1)
