"""Labelled images from IDX, npz and hub data sets, and what is wrong with some."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mooring import DataError, RecipeError
from mooring_build.datasets import load_dataset
from mooring_build.image_data import LabelledImages
from mooring_build.recipe import Recipe, load_recipe
from shared_data import shared_data

IMAGES = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
CLASSES = np.array([1, 0, 1, 1], np.uint8)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, images: bytes, classes: bytes) -> Path:
    (folder / "t-labels-idx1-ubyte.gz").write_bytes(classes)
    path = folder / "t-images-idx3-ubyte.gz"
    path.write_bytes(images)
    return path


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def recipe_of(data_format: str, path: Path | str, *more: str) -> Recipe:
    return load_recipe(
        "image", [f"data.format={data_format}", f"data.train={path}", f"data.evaluation={path}", *more]
    )


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_idx_files_with_their_labels_beside_them(tmp_path: Path, pack: Any) -> None:
    path = write_idx(tmp_path, pack(idx(IMAGES)), pack(idx(CLASSES)))
    dataset = load_dataset(recipe_of("idx", path))
    assert dataset.labels == ["0", "1"]
    assert [example.label for example in dataset.train] == ["1", "0", "1", "1"]
    np.testing.assert_array_equal(np.stack([example.image for example in dataset.train]), IMAGES)
    named = load_dataset(recipe_of("idx", path, 'labels=["shirt", "bag"]'))
    assert [example.label for example in named.evaluation] == ["bag", "shirt", "bag", "bag"]
    assert named.labels == ["shirt", "bag"]
    assert named.digest != dataset.digest


def test_numbers_stay_the_names_that_a_served_model_has_from_them(tmp_path: Path) -> None:
    # Sorted as texts, "10" comes before "2".
    classes = np.array([2, 10, 2, 1], np.uint8)
    path = write_idx(tmp_path, idx(IMAGES), idx(classes))
    built = load_dataset(recipe_of("idx", path))
    assert built.labels == ["1", "10", "2"]
    served = load_dataset(recipe_of("idx", path), labels=built.labels, evaluation_only=True)
    assert [example.label for example in served.evaluation] == ["2", "10", "2", "1"]
    assert served.evaluation_digest == built.evaluation_digest


def test_images_stay_arrays_until_one_is_asked_for(tmp_path: Path) -> None:
    class Watched(list[int]):
        asked = 0

        def __getitem__(self, index: Any) -> Any:
            Watched.asked += 1
            return super().__getitem__(index)

    images = LabelledImages(Watched([7, 8, 9]), ["a", "b", "c"])
    assert ([example.label for example in images], len(images)) == (["a", "b", "c"], 3)
    assert [example.label for example in images[1:]] == ["b", "c"]
    assert Watched.asked == 0
    assert images[-1].image == 9
    assert Watched.asked == 1


def test_npz_files_with_names_or_numbers(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", images=IMAGES, labels=np.array(["x", "y", "x", "x"]))
    dataset = load_dataset(recipe_of("npz", path))
    assert dataset.labels == ["x", "y"]
    color = np.repeat(IMAGES[..., None], 3, axis=-1)
    write_npz(path, images=color, labels=CLASSES.astype(np.int64))
    dataset = load_dataset(recipe_of("npz", path))
    assert [example.label for example in dataset.train] == ["1", "0", "1", "1"]
    assert dataset.train[0].image.shape == (5, 6, 3)


def test_the_digest_follows_the_files(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", images=IMAGES, labels=CLASSES)
    before = load_dataset(recipe_of("npz", path)).digest
    assert load_dataset(recipe_of("npz", path)).digest == before
    write_npz(path, images=IMAGES + 1, labels=CLASSES)
    assert load_dataset(recipe_of("npz", path)).digest != before


IDX_MISTAKES = [
    (b"", idx(CLASSES), "is no IDX file of bytes: it starts with b''"),
    (b"\x89PNG", idx(CLASSES), "is no IDX file of bytes"),
    (idx(IMAGES)[:-1], idx(CLASSES), r"119 bytes for shape \[4, 5, 6\]"),
    (idx(IMAGES)[:9], idx(CLASSES), "is no IDX file of bytes"),
    (bytes((0, 0, 8, 3)) + b"\xff" * 12, idx(CLASSES), r"0 bytes for shape \[4294967295, "),
    (gzip.compress(idx(IMAGES))[:-9], idx(CLASSES), "can't be read: Compressed file ended"),
    (idx(IMAGES), idx(CLASSES[:3]), r"4 images, labels are \[3\]"),
    (idx(IMAGES[0]), idx(CLASSES), r"images are uint8\[5, 6\], expected uint8 \[N, H, W\]"),
    (idx(IMAGES[:0]), idx(CLASSES[:0]), r"0 images, labels are \[0\]"),
]


@pytest.mark.parametrize(("images", "classes", "complaint"), IDX_MISTAKES, ids=range(len(IDX_MISTAKES)))
def test_malformed_idx(tmp_path: Path, images: bytes, classes: bytes, complaint: str) -> None:
    with pytest.raises(DataError, match=f"t-(images|labels)-idx.*{complaint}"):
        load_dataset(recipe_of("idx", write_idx(tmp_path, images, classes)))


def test_idx_files_without_labels_or_without_a_name_for_one(tmp_path: Path) -> None:
    path = write_idx(tmp_path, idx(IMAGES), idx(CLASSES))
    with pytest.raises(DataError, match=r"class 1 has no name among the 1 labels \['shirt'\]"):
        load_dataset(recipe_of("idx", path), labels=["shirt"])
    (tmp_path / "t-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        DataError, match=r"there is no file t-labels-idx1-ubyte\.gz with its labels beside it"
    ):
        load_dataset(recipe_of("idx", path))
    with pytest.raises(DataError, match="there is no file other with its labels beside it"):
        load_dataset(recipe_of("idx", path.rename(tmp_path / "other")))


NPZ_MISTAKES = [
    ({"images": IMAGES}, "no npz file with the arrays 'images' and 'labels'"),
    ({"images": IMAGES / 255, "labels": CLASSES}, r"images are float64\[4, 5, 6\]"),
    ({"images": IMAGES[..., None], "labels": CLASSES}, r"images are uint8\[4, 5, 6, 1\]"),
    ({"images": IMAGES, "labels": np.array(["a", "b", "", "a"])}, "image 2 has an empty label"),
    ({"images": IMAGES, "labels": CLASSES / 1}, "labels are float64, expected texts or whole numbers"),
    ({"images": IMAGES, "labels": np.array([None] * 4)}, "no npz file with the arrays"),
    ({"images": IMAGES, "labels": CLASSES[:, None]}, r"4 images, labels are \[4, 1\]"),
]


@pytest.mark.parametrize(("arrays", "complaint"), NPZ_MISTAKES, ids=range(len(NPZ_MISTAKES)))
def test_malformed_npz(tmp_path: Path, arrays: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        load_dataset(recipe_of("npz", write_npz(tmp_path / "a.npz", **arrays)))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_what_is_no_npz(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is no npz file with the arrays"):
        load_dataset(recipe_of("npz", path))
    np.save(tmp_path / "b.npy", IMAGES)
    with pytest.raises(DataError, match="is no npz file with the arrays"):
        load_dataset(recipe_of("npz", tmp_path / "b.npy"))


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_a_hub_data_set_keeps_its_files(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["shirt", "bag"])}
    )
    files = [png(image) for image in IMAGES]
    rows = datasets.Dataset.from_dict(
        {"img": [{"bytes": file, "path": None} for file in files], "kind": CLASSES.tolist()},
        features=features,
    )
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    names = [f"data.dataset={tmp_path}", "data.image_column=img", "data.label_column=kind"]
    dataset = load_dataset(recipe_of("hub", "train", *names))
    assert dataset.labels == ["bag", "shirt"]
    assert [example.label for example in dataset.train] == ["bag", "shirt", "bag", "bag"]
    assert [example.image for example in dataset.evaluation] == files
    with pytest.raises(
        DataError, match=r"data\.label_column 'label' is not among its columns \['img', 'kind'\]"
    ):
        load_dataset(recipe_of("hub", "train", *names[:2]))
    with pytest.raises(DataError, match=r"data\.dataset: .*, split 'test' can't be loaded: "):
        load_dataset(recipe_of("hub", "test", *names))


def test_a_hub_data_set_needs_its_name() -> None:
    with pytest.raises(RecipeError, match=r"data\.dataset goes with data\.format 'hub'"):
        recipe_of("hub", "train")
    with pytest.raises(RecipeError, match=r"data\.dataset goes with data\.format 'hub'"):
        load_recipe("image", ["data.dataset=mnist"])


def test_fashion_mnist_is_read() -> None:
    folder = shared_data("fashion_mnist")
    path = folder / "t10k-images-idx3-ubyte.gz"
    dataset = load_dataset(recipe_of("idx", path))
    assert len(dataset.evaluation) == 10_000
    assert {example.label for example in dataset.evaluation} == set("0123456789")
    assert sum(example.label == "0" for example in dataset.evaluation) == 1000
    assert dataset.evaluation[9_999].image.shape == (28, 28)
