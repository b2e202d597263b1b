"""Policies: every field's bounds, and messages that name the field and the value."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mooring import (
    AsyncClient,
    CircuitPolicy,
    Client,
    ConfigError,
    ConnectionPolicy,
    HedgePolicy,
    RetryPolicy,
    ThrottlePolicy,
    TlsConfig,
)

#: Policy, field, the least value that it takes, and the greatest.
BOUNDS: list[tuple[type[Any], str, float, float]] = [
    (RetryPolicy, "max_retries", 0, 1_000_000),
    (RetryPolicy, "initial_delay_s", 0, 2.0),
    (RetryPolicy, "max_delay_s", 0.05, 1e9),
    (RetryPolicy, "budget_ratio", 0, 1e9),
    (RetryPolicy, "budget_reserve", 0, 1_000_000),
    (HedgePolicy, "percentile", 1, 99.9),
    (HedgePolicy, "min_delay_s", 0, 1e9),
    (HedgePolicy, "min_samples", 1, 1_000_000),
    (CircuitPolicy, "failures", 1, 1_000_000),
    (CircuitPolicy, "pause_s", 0.01, 10.0),
    (CircuitPolicy, "max_pause_s", 0.5, 1e9),
    (CircuitPolicy, "probe_timeout_s", 0.01, 1e9),
    (ThrottlePolicy, "ratio", 1, 1e9),
    (ThrottlePolicy, "window_s", 0.1, 1e9),
    (ConnectionPolicy, "resolve_interval_s", 0.1, 1e9),
    (ConnectionPolicy, "max_age_s", 0.1, 1e9),
]
FIELDS = [bounds[:2] for bounds in BOUNDS]


def named(policy: type[Any], field: str) -> str:
    return f"{policy.__name__}.{field}"


def test_every_field_is_tested_here() -> None:
    policies = (RetryPolicy, HedgePolicy, CircuitPolicy, ThrottlePolicy, ConnectionPolicy)
    assert [(policy, field.name) for policy in policies for field in dataclasses.fields(policy)] == FIELDS


@pytest.mark.parametrize("bounds", BOUNDS, ids=lambda bounds: named(*bounds[:2]))
def test_bounds_belong_to_what_is_taken(bounds: tuple[type[Any], str, float, float]) -> None:
    policy, field, least, greatest = bounds
    for value in (least, greatest):
        assert getattr(policy(**{field: value}), field) == value


WHOLE = {
    (RetryPolicy, "max_retries"),
    (RetryPolicy, "budget_reserve"),
    (HedgePolicy, "min_samples"),
    (CircuitPolicy, "failures"),
}


@pytest.mark.parametrize(("policy", "field"), sorted(WHOLE, key=str), ids=lambda part: str(part))
@pytest.mark.parametrize("value", [1.5, 2.0, float("inf")])
def test_counts_are_whole(policy: type[Any], field: str, value: float) -> None:
    said = rf"^{policy.__name__}\.{field} must be a whole number, got {value}$"
    with pytest.raises(ConfigError, match=said):
        policy(**{field: value})


@pytest.mark.parametrize("bounds", BOUNDS, ids=lambda bounds: named(*bounds[:2]))
def test_less_is_refused(bounds: tuple[type[Any], str, float, float]) -> None:
    policy, field, least, _ = bounds
    fractions = () if (policy, field) in WHOLE else (least - 0.001, float("-inf"), float("nan"))
    for value in (least - 1, -1, *fractions):
        said = rf"^{policy.__name__}\.{field} must be at least {least:g}.*, got {value}$"
        with pytest.raises(ConfigError, match=said):
            policy(**{field: value})


@pytest.mark.parametrize(("policy", "field"), FIELDS, ids=[named(*field) for field in FIELDS])
@pytest.mark.parametrize("value", ["1", None, True, [1], 1j])
def test_what_is_no_number_is_refused(policy: type[Any], field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{policy.__name__}\.{field} must be a number, got ") as caught:
        policy(**{field: value})
    assert str(caught.value).endswith(repr(value))


@pytest.mark.parametrize("percentile", [99.91, 100, 1000])
def test_a_percentile_that_hedges_nothing_is_refused(percentile: float) -> None:
    said = rf"HedgePolicy\.percentile must be at least 1 and at most 99\.9, got {percentile}"
    with pytest.raises(ConfigError, match=said):
        HedgePolicy(percentile=percentile)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: RetryPolicy(initial_delay_s=3.0),
            r"RetryPolicy\.max_delay_s must be at least 3, got 2\.0",
        ),
        (
            lambda: CircuitPolicy(pause_s=11.0),
            r"CircuitPolicy\.max_pause_s must be at least 11, got 10\.0",
        ),
    ],
)
def test_an_upper_bound_below_the_first_value_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize("policy", [RetryPolicy, HedgePolicy, CircuitPolicy, ConnectionPolicy, TlsConfig])
def test_policies_are_keyword_only_values(policy: type[Any]) -> None:
    assert policy() == policy()
    assert hash(policy()) == hash(policy())
    with pytest.raises(TypeError, match="positional"):
        policy(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(policy(), dataclasses.fields(policy)[0].name, 1)


def test_certificates_are_files_that_exist(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca_file", "cert_file", "key_file")}
    for path in paths.values():
        path.write_text("a certificate")
    tls = TlsConfig(**paths)
    assert (tls.ca_file, tls.cert_file, tls.key_file) == tuple(paths.values())
    assert TlsConfig(ca_file=str(paths["ca_file"])).ca_file == str(paths["ca_file"])


@pytest.mark.parametrize("missing", ["ca_file", "cert_file", "key_file"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca_file", "cert_file", "key_file")}
    for name, path in paths.items():
        if name != missing:
            path.write_text("a certificate")
    with pytest.raises(ConfigError, match=rf"TlsConfig\.{missing}: there is no file '.*{missing}\.pem'"):
        TlsConfig(**paths)


def test_a_folder_is_no_certificate(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"TlsConfig\.ca_file: there is no file"):
        TlsConfig(ca_file=tmp_path)


@pytest.mark.parametrize("alone", ["cert_file", "key_file"])
def test_half_of_mutual_tls_is_refused(tmp_path: Path, alone: str) -> None:
    path = tmp_path / "alone.pem"
    path.write_text("a certificate")
    with pytest.raises(ConfigError, match="mutual TLS needs both cert_file and key_file"):
        TlsConfig(**{alone: path})


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("value", [0, 3, False, True, "ca.pem", {"max_retries": 0}], ids=repr)
@pytest.mark.parametrize(
    ("option", "policy"),
    [
        ("retry", RetryPolicy),
        ("hedge", HedgePolicy),
        ("circuit", CircuitPolicy),
        ("connections", ConnectionPolicy),
        ("tls", TlsConfig),
    ],
)
def test_what_is_no_policy_is_refused_when_the_client_is_made(
    client: Any, value: Any, option: str, policy: type[Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        client("grpcs://h:1", **{option: value})
    assert str(caught.value) == f"{option} must be a {policy.__name__} or None, got {value!r}"
