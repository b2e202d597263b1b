"""Labelled images: arrays and encoded files, which stay what they are until training asks for one."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from mooring import DataError
from mooring_build.data_files import data_file
from mooring_build.digests import digest_of, file_sha256
from mooring_build.examples import LabelledImage, Split
from mooring_build.hub_data import label_names, load_hub_split
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import Data

_UINT8_OF_IDX = 0x08
# What damaged archives raise.
_UNREADABLE = (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile, zlib.error)


class LabelledImages(Sequence[LabelledImage]):
    """Images and their labels.

    Args:
        images: uint8 ``[N, H, W]`` or ``[N, H, W, 3]``, or a sequence of such images or encoded files.
        labels: one for each.
    """

    def __init__(self, images: Sequence[Any] | np.ndarray, labels: Sequence[str]) -> None:
        self._images = images
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    @overload
    def __getitem__(self, index: int) -> LabelledImage: ...

    @overload
    def __getitem__(self, index: slice) -> list[LabelledImage]: ...

    def __getitem__(self, index: int | slice) -> LabelledImage | list[LabelledImage]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return LabelledImage(self._images, index, self._labels[index])


def read_images(recipe: Recipe, data: Data, name: str, labels: Sequence[str] | None) -> Split:
    """One split of ``[data]``.

    Args:
        recipe: that ``data`` is part of.
        data: format and place.
        name: ``train`` or ``evaluation``.
        labels: names of the classes, where the data has only their numbers.

    Raises:
        DataError: the data is missing or malformed, or has no name for a class.
        RecipeError: the recipe names no split.
    """
    if data.format == "hub":
        return _read_hub(recipe, data, name)
    path = data_file(recipe, data, name)
    read = _read_idx if data.format == "idx" else _read_npz
    images, classes, files = read(path)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
        raise DataError(
            f"{path}: images are {images.dtype}{list(images.shape)}, expected uint8 [N, H, W] or [N, H, W, 3]"
        )
    if classes.ndim != 1 or len(classes) != len(images) or not images.size:
        raise DataError(f"{path}: {len(images)} images, labels are {list(classes.shape)}")
    if recipe.labels is None and labels is not None and all(label.isdecimal() for label in labels):
        # A served model's, which are the numbers themselves, as nothing else named them.
        labels = None
    names = _names(path, classes, labels)
    # With the names, not the labels: numbers that labels name are other examples, and so are they renamed.
    named = list(dict.fromkeys(names))
    return Split(LabelledImages(images, names), str(path), digest_of([*map(file_sha256, files), named]))


def _names(path: Path, classes: np.ndarray, labels: Sequence[str] | None) -> list[str]:
    if classes.dtype.kind == "U":
        if "" in classes:
            raise DataError(f"{path}: image {int(np.argmax(classes == ''))} has an empty label")
        return classes.tolist()
    if classes.dtype.kind not in "iu":
        raise DataError(f"{path}: labels are {classes.dtype}, expected texts or whole numbers")
    if labels is None:
        return [str(number) for number in classes.tolist()]
    wrong = classes[(classes < 0) | (classes >= len(labels))]
    if len(wrong):
        raise DataError(f"{path}: class {wrong[0]} has no name among the {len(labels)} labels {list(labels)}")
    return [labels[number] for number in classes.tolist()]


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return archive["images"], archive["labels"], [path]
    except (*_UNREADABLE, TypeError, AttributeError) as exc:
        raise DataError(f"{path} is no npz file with the arrays 'images' and 'labels': {exc}") from exc


def _read_idx(path: Path) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if beside == path or not beside.is_file():
        raise DataError(f"{path}: there is no file {beside.name} with its labels beside it")
    return read_idx(path), read_idx(beside), [path, beside]


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes, plain or compressed by gzip.

    Raises:
        DataError: it is none, or cut off.
    """
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except _UNREADABLE as exc:
        raise DataError(f"{path} can't be read: {exc}") from exc
    axes = content[3] if len(content) > 3 else 0
    if content[:3] != bytes((0, 0, _UINT8_OF_IDX)) or not 1 <= axes <= 4 or len(content) < 4 + 4 * axes:
        raise DataError(f"{path} is no IDX file of bytes: it starts with {content[:4]!r}")
    shape = np.frombuffer(content, ">u4", axes, offset=4).tolist()
    pixels = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if pixels.size != np.prod(shape, dtype=object):
        raise DataError(f"{path}: {pixels.size} bytes for shape {shape}")
    return pixels.reshape(shape)


class _EncodedFiles(Sequence[bytes]):
    """Column of a hub data set, as the files that it was made of."""

    def __init__(self, column: Sequence[dict[str, Any]]) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: Any) -> Any:
        cell = self._column[index]
        # A folder of images keeps the paths alone.
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


def _read_hub(recipe: Recipe, data: Data, name: str) -> Split:
    from datasets import Image

    columns = {data.image_column: "data.image_column", data.label_column: "data.label_column"}
    rows, source = load_hub_split(recipe, data, name, columns)
    rows = rows.cast_column(data.image_column, Image(decode=False))
    labels = list(rows[data.label_column])
    names = list(map(label_names(rows.features[data.label_column]), labels))
    if "" in names:
        row = names.index("")
        raise DataError(f"{source}, row {row}: {labels[row]!r} is no label")
    images = _EncodedFiles(rows[data.image_column])
    digest = hashlib.sha256()
    for index in range(len(images)):
        digest.update(hashlib.sha256(images[index]).digest())
    return Split(LabelledImages(images, names), source, digest_of([digest.hexdigest(), names]))
