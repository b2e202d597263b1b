"""Query vectors to the items of a catalogue, best first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


class Catalogue:
    """Items, each known by one vector or more: a query is as near to an item as to the nearest of these.

    Args:
        vectors: ``[V, D]`` float32 of unit length, so that a product is a cosine.
        owners: ``[V]`` index of each vector's item, never falling, none left out.
        items: names, in the catalogue's order.
        answers: text of each item; empty where it has none.

    Raises:
        ValueError: they do not fit one another.
    """

    def __init__(self, vectors: np.ndarray, owners: np.ndarray, items: list[str], answers: list[str]) -> None:
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        fits = vectors.ndim == 2 and len(owners) == len(vectors) > 0 and len(items) == len(answers)
        if not fits or owners[starts].tolist() != list(range(len(items))):
            raise ValueError(
                f"vectors {list(vectors.shape)} of owners {list(owners.shape)} do not fit {len(items)} items "
                f"and {len(answers)} answers"
            )
        self._vectors = np.ascontiguousarray(vectors.T, dtype=np.float32)  # [D, V]
        self._starts = starts
        self.items = items
        self.answers = answers

    @classmethod
    def load(cls, folder: Path) -> Catalogue:
        """Read ``catalogue.npz`` and ``catalogue.json`` from a version folder."""
        names = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))
        with np.load(folder / "catalogue.npz", allow_pickle=False) as arrays:
            return cls(arrays["vectors"], arrays["owners"], names["items"], names["answers"])

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return len(self._vectors)

    def rank(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rank the items for each query.

        Args:
            queries: ``[B, D]`` float32 of unit length.
            top_k: how many items to return, at most all.

        Returns:
            Indices of the items and their scores (cosine of the nearest vector, float32), best first,
            ``[B, min(top_k, items)]`` each; equal ones in the catalogue's order.

        Raises:
            ValueError: the queries have another length, or one is not finite.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ValueError(
                f"embedding {list(queries.shape)} does not fit a catalogue of {self.dimension} values each"
            )
        finite = np.isfinite(queries).all(axis=1)
        if not finite.all():
            raise ValueError(f"the embedding of row {int(np.argmin(finite))} is not finite")
        scores = np.maximum.reduceat(queries @ self._vectors, self._starts, axis=1)  # [B, items]
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return order, np.take_along_axis(scores, order, axis=1)
