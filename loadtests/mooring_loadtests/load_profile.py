"""What a load test sends, when, and what it must reach: one small TOML file, a profile."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mooring import ConfigError
from mooring._toml_files import find_file, find_override

_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(ge=0, le=1)]


#: How long Locust takes to change users, as it looks for it once a second.
_SETTLING_S = 2


class _Table(BaseModel):
    # What follows from infinity is no JSON.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Stage(_Table):
    """A stretch of time under one load."""

    #: Whole seconds.
    seconds: Annotated[int, Field(ge=1)]
    #: Times the profile's ``rate``, or its ``users``, rounded up.
    load: _Positive = 1.0
    #: Whether its requests count; a warm-up's don't.
    measured: bool = True


class Payload(_Table):
    """What is asked. Every source draws anew from the seed."""

    seed: Annotated[int, Field(ge=0)] = 0
    #: JSON lines, one item of the model's task each, asked in turn; ``None`` draws items.
    file: str | None = None
    #: Words of a drawn text: lognormal with this median, and ``sigma`` of the logarithm.
    median_words: _Positive = 15.0
    sigma: Annotated[float, Field(ge=0)] = 0.6
    max_words: Annotated[int, Field(ge=1)] = 80


class Slo(_Table):
    """Bounds that the measured stages must keep; one that is left out does not matter."""

    p50_ms: _Positive | None = None
    p95_ms: _Positive | None = None
    p99_ms: _Positive | None = None
    #: Share of the requests that may fail.
    error_rate: _Share | None = None
    #: Answers a second at least.
    min_throughput: _Positive | None = None


class Profile(_Table):
    """A load test.

    An open loop sends at set times, whether or not the server keeps up, and counts latency from the time at
    which a request should have left. A closed loop's users each wait for an answer before they ask again.
    """

    description: str = ""
    loop: Literal["open", "closed"]
    #: Of an open loop, requests a second at ``load`` 1.
    rate: _Positive | None = None
    #: ``poisson``: independent callers; ``constant``: the same time between any two.
    arrivals: Literal["poisson", "constant"] = "poisson"
    #: Of a closed loop, users at ``load`` 1.
    users: Annotated[int, Field(ge=1)] | None = None
    #: Time budget of a request in seconds.
    timeout_s: _Positive = 10.0
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, strict=False)]
    payload: Payload = Payload()
    slo: Slo = Slo()

    @model_validator(mode="after")
    def _amount_fits_the_loop(self) -> Profile:
        if self.loop == "open" and (self.rate is None or self.users is not None):
            raise ValueError("an open loop has a rate and no users")
        if self.loop == "closed" and (self.users is None or self.rate is not None):
            raise ValueError("a closed loop has users and no rate")
        if not any(stage.measured for stage in self.stages):
            raise ValueError("no stage is measured")
        return self

    @property
    def seconds(self) -> int:
        """Length of the whole."""
        return sum(stage.seconds for stage in self.stages)

    def spans(self) -> tuple[Span, ...]:
        """The stages with their times and amounts."""
        spans: list[Span] = []
        start = 0
        for stage in self.stages:
            amount = stage.load * float(self.rate or self.users or 0)
            if self.loop == "closed":
                # Of 1.1 times 100 a float makes a little more than 110.
                amount = float(math.ceil(round(amount, 6)) or 1)
            changes = self.loop == "closed" and spans and spans[-1].amount != amount
            spans.append(
                Span(
                    start_s=start,
                    end_s=start + stage.seconds,
                    amount=amount,
                    measured=stage.measured,
                    # At least as long is left.
                    settling_s=_SETTLING_S if changes and stage.seconds >= 2 * _SETTLING_S else 0,
                )
            )
            start += stage.seconds
        return tuple(spans)


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stage on the clock of the run."""

    start_s: int
    end_s: int
    #: Requests a second, or users.
    amount: float
    measured: bool
    #: Seconds in the beginning that do not count, as the users change.
    settling_s: int = 0

    @property
    def counted(self) -> range:
        """The seconds that count, where it is measured."""
        return range(self.start_s + self.settling_s, self.end_s)


def load_profile(profile: str | Path, overrides: Sequence[str] = ()) -> Profile:
    """Read and validate a profile.

    Args:
        profile: path of a TOML or JSON file, or the name of a shipped profile.
        overrides: ``key=value`` or ``table.key=value`` each, the value in TOML; a bare word is a string.

    Raises:
        ConfigError: there is none, or it has mistakes; the message lists every one with its key.
    """
    path = find_file("profile", profile, shipped_profiles())
    read = json.loads if path.suffix == ".json" else tomllib.loads
    try:
        table = read(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise ConfigError(f"{path} is not a {path.suffix[1:].upper() or 'TOML'} file: {exc}") from exc
    for override in overrides:
        place, key, value = find_override(table, override)
        place[key] = value
    return read_profile(table, str(path))


def read_profile(table: Mapping[str, Any], source: str) -> Profile:
    """Validate what a profile's file holds.

    Raises:
        ConfigError: as in :func:`load_profile`; ``source`` says of what.
    """
    try:
        return Profile.model_validate(table)
    except ValidationError as exc:
        mistakes = "\n".join(
            f"  {'.'.join(map(str, error['loc'])) or 'profile'}: {error['msg'].removeprefix('Value error, ')}"
            for error in exc.errors()
        )
        raise ConfigError(f"{source} has {exc.error_count()} mistake(s):\n{mistakes}") from exc


def shipped_profiles() -> dict[str, Path]:
    """Path of each shipped profile by its name."""
    package = Path(__file__).resolve().parent
    # In a wheel they lie inside the package.
    for folder in (package / "profiles", package.parent / "profiles"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}
