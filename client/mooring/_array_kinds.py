"""Tasks whose items are arrays: images and rows of numbers."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from mooring._errors import InvalidInput
from mooring._task_kind import Labels, invalid

#: An encoded file's bytes, its path, or pixels: uint8 ``[H, W]`` or ``[H, W, 3]`` (red, green, blue).
ImageItem = bytes | str | os.PathLike[str] | np.ndarray

_SHOWN = 200


class ImageClassification(Labels[ImageItem]):
    """Labels of an image."""

    name = "image-classification"
    item = "image"
    items = "images"
    input_name = "image"

    def is_one(self, items: Any) -> bool:
        return isinstance(items, bytes | str | os.PathLike | np.ndarray)

    def check_item(self, item: Any, *, where: str, model: str) -> None:
        if isinstance(item, np.ndarray):
            if item.dtype != np.uint8 or item.shape[2:] not in ((), (3,)) or item.ndim < 2 or not item.size:
                raise invalid(
                    model,
                    f"{where} is {item.dtype}{list(item.shape)}, expected uint8 [height, width] or "
                    "[height, width, 3]",
                )
            return
        if not isinstance(item, bytes | str | os.PathLike):
            raise invalid(model, f"{where} is {type(item).__name__}, expected bytes, a path or an array")
        if isinstance(item, bytes) and not item:
            raise invalid(model, f"{where} is empty")
        # Path.is_file raises where a text is too long for a path or a folder can't be searched.
        if not isinstance(item, bytes) and not (os.path.isfile(item) and os.access(item, os.R_OK)):  # noqa: PTH113
            raise invalid(model, f"{where}: there is no file {_shown(item)} that can be read")

    def _expected(self) -> str:
        return "an image (bytes, a path or an array) or a sequence of images"

    def write(self, items: Sequence[ImageItem]) -> dict[str, np.ndarray]:
        rows = np.empty((len(items), 1), np.object_)
        rows[:, 0] = [_image_bytes(item) for item in items]
        return {self.input_name: rows}


def _image_bytes(item: ImageItem) -> bytes:
    if isinstance(item, bytes):
        return item
    if not isinstance(item, np.ndarray):
        try:
            return Path(item).read_bytes()
        except OSError as exc:
            raise InvalidInput(f"file {_shown(item)} can't be read: {exc.strerror}") from exc
    file = io.BytesIO()
    np.save(file, item, allow_pickle=False)
    return file.getvalue()


def _shown(path: str | os.PathLike[str]) -> str:
    """A path for a message; what is none may be a whole file's content."""
    text = os.fspath(path)
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}... ({len(text)} characters)"


#: Numbers, ``[F]``.
RowItem = Sequence[float] | np.ndarray


class TabularClassification(Labels[RowItem]):
    """Labels of a row of numbers."""

    name = "tabular-classification"
    item = "row"
    items = "rows"
    input_name = "features"
    input_datatype = "FP32"
    input_shape = (-1, None)

    def is_one(self, items: Any) -> bool:
        if isinstance(items, np.ndarray):
            return items.ndim == 1
        return isinstance(items, Sequence) and bool(items) and isinstance(items[0], Real)

    def check_items(self, items: Any, *, model: str) -> list[RowItem]:
        if isinstance(items, np.ndarray) and items.ndim == 2:
            items = list(items)
        rows = super().check_items(items, model=model)
        self._check_widths(rows, model=model)
        return rows

    def check_item(self, item: Any, *, where: str, model: str) -> None:
        if isinstance(item, np.ndarray):
            if item.dtype.kind not in "biuf" or item.ndim != 1:
                raise invalid(model, f"{where} is {item.dtype}{list(item.shape)}, expected numbers [F]")
        elif isinstance(item, str | bytes | bytearray) or not isinstance(item, Sequence):
            raise invalid(model, f"{where} is {type(item).__name__}, expected a sequence of numbers")
        for i, value in enumerate(() if isinstance(item, np.ndarray) else item):
            if not isinstance(value, Real):
                raise invalid(model, f"{where}, number {i} is {type(value).__name__}, expected a number")
        if not len(item):
            raise invalid(model, f"{where} is empty")
        try:
            finite = np.isfinite(_float32(item))
        except OverflowError as exc:
            raise invalid(model, f"{where} has a number that is too large for float32") from exc
        if not finite.all():
            i = int(np.argmin(finite))
            raise invalid(model, f"{where}, number {i} is {item[i]}, expected one that is finite as float32")

    def _expected(self) -> str:
        return "a row (a sequence of numbers or an array [F]) or a sequence of rows (or an array [B, F])"

    def write(self, items: Sequence[RowItem]) -> dict[str, np.ndarray]:
        self._check_widths(items)
        return {self.input_name: np.stack([_float32(item) for item in items])}

    def _check_widths(self, rows: Sequence[RowItem], *, model: str | None = None) -> None:
        """Rows of one width; whether it is the model's is seen in the model's signature."""
        for i, row in enumerate(rows):
            if len(row) != len(rows[0]):
                raise InvalidInput(
                    f"{'' if model is None else f'model {model!r}: '}row {i} has {len(row)} numbers, "
                    f"row 0 has {len(rows[0])}",
                    model=model,
                )


def _float32(row: RowItem) -> np.ndarray:
    """Numbers as float32, ``[F]``; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(row, np.float64).astype(np.float32)
