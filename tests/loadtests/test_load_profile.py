from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mooring import ConfigError
from mooring_loadtests.load_profile import Profile, Span, Stage, load_profile, read_profile, shipped_profiles

OPEN = {"loop": "open", "rate": 10.0, "stages": [{"seconds": 5}]}
CLOSED = {"loop": "closed", "users": 3, "stages": [{"seconds": 5}]}


def test_the_shipped_profiles() -> None:
    assert set(shipped_profiles()) == {"smoke", "soak", "spike", "steady", "step"}


@pytest.mark.parametrize("name", sorted(shipped_profiles()))
def test_shipped_profiles_are_valid(name: str) -> None:
    profile = load_profile(name)
    assert profile == load_profile(shipped_profiles()[name])
    assert profile.description
    assert profile.seconds == profile.spans()[-1].end_s
    # One load would not find a capacity, or the effect of a spike.
    assert (len({span.amount for span in profile.spans()}) > 1) == (name in ("step", "spike"))


def test_stages_follow_one_another() -> None:
    profile = Profile(
        loop="closed", users=4, stages=(Stage(seconds=2, load=0.5, measured=False), Stage(seconds=3))
    )
    assert profile.seconds == 5
    assert profile.spans() == (
        Span(start_s=0, end_s=2, amount=2.0, measured=False),
        Span(start_s=2, end_s=5, amount=4.0, measured=True),
    )


@pytest.mark.parametrize(
    ("users", "load", "amount"), [(100, 1.1, 110), (3, 0.5, 2), (1, 0.01, 1), (1, 1e-9, 1), (2, 1.0, 2)]
)
def test_users_are_rounded_up(users: int, load: float, amount: float) -> None:
    (span,) = Profile(loop="closed", users=users, stages=(Stage(seconds=2, load=load),)).spans()
    assert span.amount == amount


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        ({"rate": None}, "profile: an open loop has a rate and no users"),
        ({"users": 3}, "profile: an open loop has a rate and no users"),
        ({"loop": "closed"}, "profile: a closed loop has users and no rate"),
        ({"loop": "ajar"}, "loop: Input should be 'open' or 'closed'"),
        ({"rate": 0.0}, "rate: Input should be greater than 0"),
        ({"rate": "10"}, "rate: Input should be a valid number"),
        ({"stages": []}, "stages: .*at least 1 item"),
        ({"stages": [{"seconds": 1.5}]}, r"stages\.0\.seconds: Input should be a valid integer"),
        ({"stages": [{"seconds": 0}]}, r"stages\.0\.seconds: Input should be greater than or equal to 1"),
        ({"stages": [{"seconds": 5, "measured": False}]}, "profile: no stage is measured"),
        ({"stages": [{"second": 5}]}, r"stages\.0\.second: Extra inputs are not permitted"),
        ({"slo": {"p98_ms": 1.0}}, r"slo\.p98_ms: Extra inputs are not permitted"),
        ({"slo": {"error_rate": 1.5}}, r"slo\.error_rate: Input should be less than or equal to 1"),
        ({"payload": {"max_words": 0}}, r"payload\.max_words: Input should be greater than or equal to 1"),
        ({"payload": {"seed": -1}}, r"payload\.seed: Input should be greater than or equal to 0"),
        ({"timeout_s": -1.0}, "timeout_s: Input should be greater than 0"),
        ({"slo": {"p99_ms": math.inf}}, r"slo\.p99_ms: Input should be a finite number"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ConfigError, match=rf"my\.toml has \d mistake\(s\):(.|\n)*  {mistake}"):
        read_profile({**OPEN, **change}, "my.toml")


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"has 2 mistake\(s\):\n  rate: .*\n  arrivals: "):
        read_profile({**OPEN, "rate": -1.0, "arrivals": "never"}, "my.toml")


@pytest.mark.parametrize("table", [OPEN, CLOSED])
def test_a_profile_survives_json(table: dict[str, Any]) -> None:
    profile = read_profile(table, "here")
    assert read_profile(profile.model_dump(mode="json"), "there") == profile


def test_overrides_change_keys(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('loop = "open"\nrate = 5.0\n[[stages]]\nseconds = 5\n', encoding="utf-8")
    profile = load_profile(path, ["rate=40.0", "slo.p99_ms=50.0", "arrivals=constant", "slo.error_rate=0.0"])
    assert (profile.rate, profile.arrivals) == (40.0, "constant")
    assert (profile.slo.p99_ms, profile.slo.error_rate) == (50.0, 0.0)


def test_whole_numbers_may_stand_for_others() -> None:
    assert load_profile("steady", ["rate=40"]).rate == 40.0


@pytest.mark.parametrize("override", ["rate", "=5", "rate.high=5"])
def test_malformed_overrides_are_named(override: str) -> None:
    with pytest.raises(ConfigError, match=f"override '{override}'"):
        load_profile("steady", [override])


def test_an_override_may_be_a_mistake() -> None:
    with pytest.raises(ConfigError, match="rat: Extra inputs are not permitted"):
        load_profile("steady", ["rat=5.0"])


def test_a_missing_profile_names_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"no profile 'quick': .* smoke, soak, spike, steady, step"):
        load_profile("quick")


@pytest.mark.parametrize("content", [b"loop = ", b"\xff"])
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"mine\.toml is not a TOML file"):
        load_profile(path)


def test_seconds_in_which_users_change_do_not_count() -> None:
    seconds = (5, 10, 4, 3, 10, 10)
    stages = tuple(
        Stage(seconds=one, load=load) for one, load in zip(seconds, (1, 8, 1, 2, 2, 1), strict=True)
    )
    closed = Profile(loop="closed", users=2, stages=stages)
    open_ = Profile(loop="open", rate=2.0, stages=stages)
    # The first has its users from the beginning, a stage of 3 s would have too few left, and one has as many.
    assert [len(span.counted) for span in closed.spans()] == [5, 8, 2, 3, 10, 8]
    assert [span.counted.stop for span in closed.spans()] == [span.end_s for span in closed.spans()]
    assert [len(span.counted) for span in open_.spans()] == list(seconds)
