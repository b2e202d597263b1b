"""Which requests are not sent because their server refuses too many."""

from __future__ import annotations

import math
import threading
import time

from mooring._jitter import JITTER
from mooring._policies import ThrottlePolicy

#: What is sent however much is refused, or a client would notice late that its server takes requests again.
_AT_LEAST = 0.1


class Throttle:
    """Counts what one server lately refused of each model, and draws what is not sent; thread-safe.

    Args:
        policy: how much more is sent than is taken, and how long a refusal counts.
    """

    def __init__(self, policy: ThrottlePolicy) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._models: dict[str, _Recent] = {}

    def holds_back(self, model: str) -> bool:
        """Count a request that is meant for a model, and say whether it is better not sent."""
        with self._lock:
            recent = self._recent(model)
            taken = recent.meant - recent.refused
            chance = (recent.meant - self._policy.ratio * taken) / (recent.meant + 1)
            recent.meant += 1
            if chance <= 0 or JITTER.random() >= min(chance, 1 - _AT_LEAST):
                return False
            recent.refused += 1
            return True

    def refused(self, model: str) -> None:
        """The server refused a request that was not held back."""
        with self._lock:
            recent = self._recent(model)
            recent.refused = min(recent.refused + 1, recent.meant)

    def _recent(self, model: str) -> _Recent:
        now_s = time.monotonic()
        recent = self._models.get(model)
        if recent is None:
            recent = self._models[model] = _Recent(now_s)
        left = math.exp((recent.at_s - now_s) / self._policy.window_s)
        recent.meant *= left
        recent.refused *= left
        recent.at_s = now_s
        return recent


class _Recent:
    """Requests of the last seconds, the older the less they count."""

    __slots__ = ("at_s", "meant", "refused")

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s
        self.meant = 0.0
        #: By the server, or held back.
        self.refused = 0.0
