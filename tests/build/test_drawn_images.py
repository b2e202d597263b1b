"""The shipped images are those that the script beside them draws."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "build" / "recipes" / "data" / "image"


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_images", FOLDER / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["train", "eval"])
def test_the_files_hold_what_the_script_draws(draw: ModuleType, name: str) -> None:
    images, labels = draw.draw_split(*draw.SPLITS[name])
    with np.load(FOLDER / f"{name}.npz") as archive:
        np.testing.assert_array_equal(archive["labels"], labels)
        np.testing.assert_array_equal(archive["images"], images)


def test_no_picture_is_in_both_files_and_each_shape_is_as_frequent(draw: ModuleType) -> None:
    with np.load(FOLDER / "train.npz") as train, np.load(FOLDER / "eval.npz") as evaluation:
        pictures = [image.tobytes() for image in (*train["images"], *evaluation["images"])]
        assert len(set(pictures)) == len(pictures) == 600
        for archive, count in ((train, 40), (evaluation, 20)):
            assert np.unique(archive["labels"], return_counts=True)[1].tolist() == [count] * 10


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 300_000
