"""The service as BentoML loads it: adaptive batching, one model in each of its processes."""

from __future__ import annotations

from typing import Any

import bentoml

from alternatives.models import BatchedModel
from alternatives.options import options_from_environment

_OPTIONS = options_from_environment()
# There is no wait to set: BentoML learns it from the batches so far. Its max_latency_ms is no wait either; it
# refuses what it expects to take longer, and stays at its default of a minute.
_BATCHING = (
    {"batchable": True, "max_batch_size": _OPTIONS.max_batch_size} if _OPTIONS.max_batch_size > 1 else {}
)


@bentoml.service(
    workers=_OPTIONS.workers,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Classifier:
    def __init__(self) -> None:
        self.model = BatchedModel(_OPTIONS)

    @bentoml.api(**_BATCHING)
    def answer(self, text: list[str]) -> list[dict[str, Any]]:
        """Answer texts ``[b]``: what batches must come as a list and goes back as one."""
        return [{"answers": answers} for answers in self.model(text)]
