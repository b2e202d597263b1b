"""A progress bar, where one is asked for."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, Protocol


class ProgressBar(Protocol):
    """What a map needs of a bar."""

    def update(self, n: int) -> object:
        """So many more items are done."""

    def close(self) -> None:
        """Nothing more comes."""


class _NoBar:
    def update(self, n: int) -> None:
        pass

    def close(self) -> None:
        pass


def progress_bar(items: Any, *, shown: bool, label: str) -> ProgressBar:
    """A bar on standard error over ``items``, with their number where they have one.

    Raises:
        ImportError: ``shown``, but ``tqdm`` is not installed; the message names the extra that brings it.
    """
    if not shown:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as exc:
        raise ImportError("progress=True needs tqdm: install Mooring's extra [progress]") from exc
    bar: ProgressBar = tqdm(total=len(items) if isinstance(items, Sized) else None, desc=label, unit=" items")
    return bar
