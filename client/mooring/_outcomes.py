"""What became of one item of many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from mooring._errors import MooringError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[T]):
    """The result of one item, or the error that it alone met."""

    #: Place of the item among those that were given, from 0.
    index: int
    #: ``None`` where there is an error.
    value: T | None = None
    error: MooringError | None = None

    def unwrap(self) -> T:
        """The result.

        Raises:
            MooringError: ``error``, where there is one.
        """
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # None only where T includes it
