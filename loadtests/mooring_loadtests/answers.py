"""Ask a model the same texts over both protocols and hold the answers against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np

from mooring import Client, Entity, Label

#: Scores may differ in the last bits: the server may put the two requests into different batches.
_TOLERANCE = 1e-4

Answer = list[Entity] | list[Label]


@dataclass(frozen=True, kw_only=True)
class AnswerPair:
    """One text's answers."""

    text: str
    grpc: Answer
    http: Answer

    @property
    def agree(self) -> bool:
        """Whether both say the same, scores within 1e-4."""
        return same(self.grpc, self.http)


def ask_both(grpc: Client, http: Client, model: str, texts: Sequence[str]) -> list[AnswerPair]:
    """Ask every text over gRPC and over HTTP.

    Raises:
        MooringError: as the client does.
    """
    over_grpc, over_http = grpc.task(model), http.task(model)
    return [AnswerPair(text=text, grpc=over_grpc(text), http=over_http(text)) for text in texts]


def same(one: Any, other: Any) -> bool:
    """Whether two answers say the same, numbers within 1e-4."""
    if isinstance(one, np.ndarray):
        return bool(np.allclose(one, other, atol=_TOLERANCE))
    if isinstance(one, float):
        return math.isclose(one, other, abs_tol=_TOLERANCE)
    if is_dataclass(one):
        return type(one) is type(other) and same(vars(one), vars(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
