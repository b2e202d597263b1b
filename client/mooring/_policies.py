"""How a client behaves when something goes wrong: values that are checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mooring._errors import ConfigError

PolicyT = TypeVar("PolicyT")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Which failed tries are repeated.

    Repeated is what the server can't have carried out: refused connections, overload and a model that
    another endpoint may have. A connection that is lost on the way is repeated only for calls that change
    nothing, never for inference. The pause before retry ``n`` is drawn evenly from 0 to
    ``min(max_delay_s, initial_delay_s * 2 ** n)`` ("full jitter",
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """

    #: Extra tries after the first; 0 turns retrying off.
    max_retries: int = 2
    #: Upper bound of the first pause, in seconds; it doubles with every further retry.
    initial_delay_s: float = 0.05
    #: Upper bound of one pause between tries, in seconds.
    max_delay_s: float = 2.0
    #: Retries and hedges per call that a client may spend in the long run, so that they can't storm.
    budget_ratio: float = 0.2
    #: Retries and hedges that it may spend at once, and the most that it may save up; 0 allows none at all.
    budget_reserve: int = 10

    def __post_init__(self) -> None:
        check_field(self, "max_retries", whole=True, at_least=0)
        check_field(self, "initial_delay_s", at_least=0)
        check_field(self, "max_delay_s", at_least=self.initial_delay_s)
        check_field(self, "budget_ratio", at_least=0)
        check_field(self, "budget_reserve", whole=True, at_least=0)


@dataclass(frozen=True, kw_only=True)
class HedgePolicy:
    """When a slow inference request is sent a second time; the first answer counts, the other is cancelled.

    The model runs twice then, so this is for models without side effects. Requests of a sequence are
    never hedged. Hedges spend the budget of :class:`RetryPolicy`.
    """

    #: Percentile of the model's recent latencies after which the second request is sent.
    percentile: float = 95.0
    #: Never sooner than this, in seconds.
    min_delay_s: float = 0.001
    #: Latencies that must be known of a model before it is hedged.
    min_samples: int = 20

    def __post_init__(self) -> None:
        check_field(self, "percentile", at_least=1, at_most=99.9)
        check_field(self, "min_delay_s", at_least=0)
        check_field(self, "min_samples", whole=True, at_least=1)


@dataclass(frozen=True, kw_only=True)
class CircuitPolicy:
    """When an endpoint gets no more requests, and when it gets them again.

    Refused, lost and garbled connections count as failures; an endpoint's own "no" does not. Timeouts alone
    do not open the circuit, because the model may be slow: the endpoint is asked over a new connection
    whether it lives, and only silence opens it.
    """

    #: Failures in a row that open an endpoint's circuit.
    failures: int = 5
    #: Time until an open endpoint is probed, in seconds; it doubles with every failed probe.
    pause_s: float = 0.5
    #: Upper bound of that time, in seconds.
    max_pause_s: float = 10.0
    #: Time budget of a probe, in seconds.
    probe_timeout_s: float = 1.0

    def __post_init__(self) -> None:
        check_field(self, "failures", whole=True, at_least=1)
        check_field(self, "pause_s", at_least=0.01)
        check_field(self, "max_pause_s", at_least=self.pause_s)
        check_field(self, "probe_timeout_s", at_least=0.01)


@dataclass(frozen=True, kw_only=True)
class ThrottlePolicy:
    """When inference requests are not sent because their server refuses too many of a model ("adaptive
    throttling", https://sre.google/sre-book/handling-overload/).

    Refusing costs a server time that it lacks for what it takes. Of ``n`` requests that a client lately meant
    for a model of a server, which took ``t``, the next one is held back with a probability of
    ``(n - ratio * t) / (n + 1)``, but at most 0.9. Those held back count among the ``n``. Taken is what was
    not refused, answered or not.
    """

    #: Requests that are sent for each one that is taken, where more are meant for the server.
    ratio: float = 1.5
    #: Time in seconds after which a request counts a third (1 / e) of what it did.
    window_s: float = 1.0

    def __post_init__(self) -> None:
        check_field(self, "ratio", at_least=1)
        check_field(self, "window_s", at_least=0.1)


@dataclass(frozen=True, kw_only=True)
class ConnectionPolicy:
    """How long names and connections are relied on."""

    #: Time after which a host name is resolved again, in seconds.
    resolve_interval_s: float = 30.0
    #: Age at which connections are replaced, in seconds, so that none pins its traffic to one server
    #: behind a load balancer; requests under way finish on the old one.
    max_age_s: float = 300.0

    def __post_init__(self) -> None:
        check_field(self, "resolve_interval_s", at_least=0.1)
        check_field(self, "max_age_s", at_least=0.1)


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """Certificates for ``grpcs://`` and ``https://``, each a file in PEM format."""

    #: Authorities that may have signed the server's certificate; ``None`` takes the system's, over gRPC those
    #: that come with it.
    ca_file: str | Path | None = None
    #: This client's certificate chain, for servers that ask for one (mutual TLS).
    cert_file: str | Path | None = None
    #: Its private key.
    key_file: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigError("mutual TLS needs both cert_file and key_file")
        for name in ("ca_file", "cert_file", "key_file"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"TlsConfig.{name}: there is no file {str(path)!r}")


def check_policy(option: str, policy: PolicyT | None, kind: type[PolicyT]) -> PolicyT | None:
    """Return what a client was given for an option.

    Raises:
        ConfigError: it is neither ``None`` nor of that kind.
    """
    if policy is not None and not isinstance(policy, kind):
        raise ConfigError(f"{option} must be a {kind.__name__} or None, got {policy!r}")
    return policy


def check_field(
    policy: object, name: str, *, at_least: float, at_most: float = float("inf"), whole: bool = False
) -> None:
    """Check one number of a policy.

    Raises:
        ConfigError: it is no number, or out of bounds.
    """
    value = getattr(policy, name)
    where = f"{type(policy).__name__}.{name}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where} must be a number, got {value!r}")
    if whole and not isinstance(value, int):
        raise ConfigError(f"{where} must be a whole number, got {value!r}")
    if not at_least <= value <= at_most:
        bounds = f"at least {at_least:g}" + (f" and at most {at_most:g}" if at_most < float("inf") else "")
        raise ConfigError(f"{where} must be {bounds}, got {value!r}")
