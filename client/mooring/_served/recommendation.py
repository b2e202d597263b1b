"""A history of items to their vectors, and a user's vector to the items that suit it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class HistoryError(ValueError):
    """A history that the model does not take; the message names its place in the request and the item."""


class ItemCatalogue:
    """Items with what a recommender knows of them.

    Args:
        items: names, in the catalogue's order.
        vectors: ``[N, D]`` float32: what a history is read by, and what a user's vector is multiplied with.
        biases: ``[N]`` float32: what an item scores for everybody.
        skip_unknown: leave unknown items out of a history instead of refusing it.

    Raises:
        ValueError: they do not fit one another.
    """

    def __init__(
        self,
        items: Sequence[str],
        vectors: np.ndarray,
        biases: np.ndarray,
        *,
        skip_unknown: bool = False,
    ) -> None:
        if vectors.ndim != 2 or not len(items) == len(vectors) == len(biases) > 0:
            raise ValueError(
                f"vectors {list(vectors.shape)} and biases {list(biases.shape)} do not fit {len(items)} items"
            )
        self.items = np.array([item.encode() for item in items], dtype=np.object_)
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._biases = biases.astype(np.float32)
        self._rows = {item: row for row, item in enumerate(self.items)}
        self._skip_unknown = skip_unknown

    @classmethod
    def load(cls, folder: Path, *, skip_unknown: bool = False) -> ItemCatalogue:
        """Read ``items.json`` and ``items.npz`` from a version folder."""
        items = json.loads((folder / "items.json").read_text(encoding="utf-8"))
        with np.load(folder / "items.npz", allow_pickle=False) as arrays:
            return cls(items, arrays["vectors"], arrays["biases"], skip_unknown=skip_unknown)

    def find(self, histories: np.ndarray) -> list[list[int]]:
        """Rows of each history's items, oldest first.

        Args:
            histories: ``[B, H]`` of bytes; empty ones are padding, wherever they stand.

        Raises:
            HistoryError: an item is not in the catalogue.
        """
        found = []
        for index, history in enumerate(histories):
            rows = [self._rows.get(item, -1) for item in history if item]
            if -1 in rows and not self._skip_unknown:
                item = next(item for item in history if item and item not in self._rows)
                raise HistoryError(
                    f"history {index} names item {item.decode(errors='backslashreplace')!r}, which is not "
                    f"among the {len(self.items)} items of this model: leave it out, or build with "
                    'catalogue.unknown_items = "skip"'
                )
            found.append([row for row in rows if row >= 0])
        return found

    def look_up(self, histories: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of the latest ``width`` items of each history.

        Args:
            histories: as in :meth:`find`.
            width: how many items the engine takes; shorter histories are padded to it, so that all requests
                share batches.

        Returns:
            ``[B, width, D]`` float32, oldest first and then padding, and the mask ``[B, width]`` int64: 1 on
            items, 0 on padding.

        Raises:
            HistoryError: as in :meth:`find`.
        """
        latest = [rows[-width:] for rows in self.find(histories)]
        vectors = np.zeros((len(latest), width, self.vectors.shape[1]), np.float32)
        mask = np.zeros((len(latest), width), np.int64)
        for index, rows in enumerate(latest):
            vectors[index, : len(rows)] = self.vectors[rows]
            mask[index, : len(rows)] = 1
        return vectors, mask

    def score(self, users: np.ndarray, seen: Sequence[Sequence[int]]) -> np.ndarray:
        """Scores ``[B, N]`` of all items; -inf for those that a user has seen.

        Args:
            users: ``[B, D]``.
            seen: of each user, rows of items.

        Raises:
            ValueError: the users' vectors have another length or number, or one is not finite.
        """
        if users.ndim != 2 or users.shape != (len(seen), self.vectors.shape[1]):
            raise ValueError(
                f"user {list(users.shape)} does not fit {len(seen)} histories and vectors of "
                f"{self.vectors.shape[1]} values"
            )
        finite = np.isfinite(users).all(axis=1)
        if not finite.all():
            raise ValueError(f"the user of row {int(np.argmin(finite))} is not finite")
        scores: np.ndarray = users @ self.vectors.T + self._biases
        for row, items in zip(scores, seen, strict=True):
            row[list(items)] = -np.inf
        return scores

    def recommend(
        self, users: np.ndarray, histories: np.ndarray, top_k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The items that suit each user best, without those of the user's history.

        Args:
            users: ``[B, D]`` as the engine gives them.
            histories: ``[B, H]`` as in :meth:`find`; all of a history counts, however long.
            top_k: how many items.

        Returns:
            Items (bytes) and their scores (float32), best first, ``[B, top_k]`` each; equal ones in the
            catalogue's order. Where fewer are left, the rest is empty items with score 0.

        Raises:
            HistoryError: as in :meth:`find`.
            ValueError: as in :meth:`score`.
        """
        scores = self.score(users, self.find(histories))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]  # [B, min(top_k, N)]
        best = np.take_along_axis(scores, order, axis=1)
        left = np.isfinite(best)
        items = np.full((len(scores), top_k), b"", np.object_)
        items[:, : order.shape[1]] = np.where(left, self.items[order], b"")
        padded = np.zeros((len(scores), top_k), np.float32)
        padded[:, : order.shape[1]] = np.where(left, best, 0)
        return items, padded
