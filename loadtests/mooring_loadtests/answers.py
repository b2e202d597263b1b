"""Ask a model the same texts over both protocols and hold the answers against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mooring import Client, Entity, Label

#: Scores may differ in the last bits: the server may put the two requests into different batches.
_SCORE_TOLERANCE = 1e-4

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
        return len(self.grpc) == len(self.http) and all(map(_same, self.grpc, self.http))


def ask_both(grpc: Client, http: Client, model: str, texts: Sequence[str]) -> list[AnswerPair]:
    """Ask every text over gRPC and over HTTP.

    Raises:
        MooringError: as the client does.
    """
    over_grpc, over_http = grpc.task(model), http.task(model)
    return [AnswerPair(text=text, grpc=over_grpc(text), http=over_http(text)) for text in texts]


def _same(one: Entity | Label, other: Entity | Label) -> bool:
    return _place(one) == _place(other) and math.isclose(one.score, other.score, abs_tol=_SCORE_TOLERANCE)


def _place(item: Entity | Label) -> tuple[object, ...]:
    return (item.label, item.start, item.end) if isinstance(item, Entity) else (item.label,)
