"""Whether a failed try is repeated, and after what pause; and when a slow one gets a second."""

from __future__ import annotations

import threading
from typing import Any, Literal

from mooring._errors import (
    CircuitOpen,
    ConfigError,
    ConnectError,
    DeadlineExceeded,
    DecodeError,
    ModelNotReady,
    MooringError,
    Overloaded,
    ServerError,
    TransportError,
)
from mooring._jitter import JITTER
from mooring._operations import Infer, Operation
from mooring._policies import HedgePolicy, RetryPolicy

#: What says over gRPC that a gateway waited for too long; the last two are Envoy's.
_TIMED_OUT = ("header with status: 504", "upstream request timeout", "stream timeout")
#: Envoy's reasons for a reset that came before the request left.
_NOT_PASSED_ON = ("connection failure", "connection refused", "connection timeout", "overflow")


class RetryBudget:
    """Extra tries as a share of calls: each call deposits a part of one, each extra try takes a whole one.

    A bucket of ``budget_reserve`` tokens, full at the start, as in Finagle and gRPC's retry throttling
    (https://github.com/grpc/proposal/blob/master/A6-client-retries.md#throttling-retry-attempts-and-hedged-rpcs).
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._ratio = policy.budget_ratio
        self._limit = float(policy.budget_reserve)
        self._tokens = self._limit
        self._lock = threading.Lock()

    def deposit(self) -> None:
        """A call begins."""
        if self._tokens < self._limit:
            with self._lock:
                self._tokens = min(self._limit, self._tokens + self._ratio)

    def withdraw(self) -> bool:
        """Take one extra try; ``False`` where none is left."""
        with self._lock:
            # Ten deposits of 0.1 are a hair less than 1.
            if self._tokens < 1 - 1e-9:
                return False
            self._tokens -= 1
            return True


def may_repeat(error: MooringError, operation: Operation[Any], *, other_endpoint: bool) -> bool:
    """Whether the operation may be sent again after this error.

    Args:
        error: how the last try ended.
        operation: what was asked.
        other_endpoint: whether an endpoint is left that was not tried yet.
    """
    if isinstance(error, CircuitOpen | DeadlineExceeded):
        return False
    if isinstance(error, Overloaded) and (status := _gateway_status(error)) is not None:
        # What is behind the gateway may be carrying it out still, or have died of it.
        return operation.repeatable or (status == "502" and _stands_alone(operation))
    if isinstance(error, ConnectError | Overloaded):
        return True
    if isinstance(error, ModelNotReady):
        return other_endpoint
    # A lost connection: the server may be carrying it out.
    return isinstance(error, TransportError) and operation.repeatable


def _stands_alone(operation: Operation[Any]) -> bool:
    """Whether another try of the inference may overtake it: they share no sequence and no memory."""
    if not isinstance(operation, Infer) or operation.sequence is not None or operation.output_memory:
        return False
    return all(tensor.memory is None for tensor in operation.inputs)


def may_go_on(error: BaseException) -> bool:
    """Whether a server may still be carrying out a request whose call ended so, in whichever try."""
    for one in error.attempts if isinstance(error, MooringError) else (error,):
        if isinstance(one, Overloaded) and _gateway_status(one) is not None:
            return True
        if not isinstance(one, ConfigError | ConnectError | DecodeError | ServerError):
            return True
    return False


def _gateway_status(error: Overloaded) -> Literal["502", "504"] | None:
    """How a gateway gave up a request that it may have passed on: lost it, or waited for too long.

    By its status, which gRPC tells in words; Envoy answers 503 to whatever became of it, and says more
    (https://github.com/istio/istio/issues/13205).
    """
    words = str(error).lower()
    reason = words.partition("reset reason:")[2]
    if error.code == "504" or any(part in words for part in _TIMED_OUT):
        return "504"
    lost = "reset before headers" in words and (
        # The last of its own tries: one before may have been passed on.
        "retried and the latest" in words or not any(part in reason for part in _NOT_PASSED_ON)
    )
    if error.code == "502" or "header with status: 502" in words or lost:
        return "502"
    return None


def pause_before(retry: int, error: MooringError, policy: RetryPolicy) -> float:
    """Seconds to wait before the retry of this number, counted from 0."""
    # A power beyond 1023 is no float; it is never needed either.
    bound = min(policy.max_delay_s, policy.initial_delay_s * 2.0 ** min(retry, 1000))
    pause_s = JITTER.uniform(0, bound)
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        return max(pause_s, error.retry_after_s)
    return pause_s


class Latencies:
    """Recent latencies of each model, and the percentile after which a request is hedged."""

    #: Latencies kept of each model.
    _KEPT = 512
    #: Latencies after which the percentile is worked out again.
    _INTERVAL = 16

    def __init__(self, policy: HedgePolicy) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._kept: dict[str, list[float]] = {}
        self._seen: dict[str, int] = {}
        self._delays: dict[str, float] = {}

    def add(self, model: str, seconds: float) -> None:
        """Note how long one answer took."""
        with self._lock:
            kept = self._kept.setdefault(model, [])
            seen = self._seen.get(model, 0)
            if len(kept) < self._KEPT:
                kept.append(seconds)
            else:
                kept[seen % self._KEPT] = seconds
            self._seen[model] = seen + 1
            enough = len(kept) >= self._policy.min_samples
            if enough and (model not in self._delays or seen % self._INTERVAL == 0):
                rank = min(len(kept) - 1, int(len(kept) * self._policy.percentile / 100))
                self._delays[model] = max(self._policy.min_delay_s, sorted(kept)[rank])

    def hedge_delay_s(self, model: str) -> float | None:
        """Seconds after which the model's request should be sent a second time; ``None``: not yet known."""
        return self._delays.get(model)
