"""Image classification on Triton answers as the PyTorch model does, and refuses what is no image."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mooring import Client, InvalidInput, Label
from mooring_build.building import build
from mooring_build.image_data import read_idx
from mooring_build.learners.image import LogitsOnly
from mooring_build.models import load_fine_tuned_model
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.repository import read_manifest
from mooring_serve import TritonServer
from shared_data import shared_data

pytestmark = pytest.mark.integration

KINDS = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
HELD_OUT = 200
#: The recipe allows 1e-4 on a logit; a probability moves by no more than half of that, plus rounding.
SCORE_TOLERANCE = 1e-4
ENGINES = ["onnx", "torchscript"]


@dataclass(frozen=True)
class Built:
    """What one build left: the recipe, a repository for each engine, the checkpoint, and held-out images."""

    recipe: Recipe
    repositories: dict[str, Path]
    checkpoint: Path
    images: np.ndarray


def _slice_of_idx(source: Path, target: Path, count: int) -> None:
    array = read_idx(source)[:count]
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    target.write_bytes(gzip.compress(header + array.tobytes(), 1))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = shared_data("fashion_mnist")
    tmp = tmp_path_factory.mktemp("fashion")
    for split, count in (("train", 640), ("t10k", HELD_OUT)):
        for name in (f"{split}-images-idx3-ubyte.gz", f"{split}-labels-idx1-ubyte.gz"):
            _slice_of_idx(folder / name, tmp / name, count)
    overrides = [
        "data.format=idx",
        f"data.train={tmp / 'train-images-idx3-ubyte.gz'}",
        f"data.evaluation={tmp / 't10k-images-idx3-ubyte.gz'}",
        f"labels={KINDS}",
        "training.epochs=2",
        "image.flip=true",
        "image.top_k=10",
        "image.max_pixels=40000",
        "image.max_bytes=120000",
        "serving.instance_count=1",
        "serving.max_batch_size=8",
    ]
    repositories = {}
    for engine in ENGINES:
        recipe = load_recipe("image", [*overrides, f"export.engine={engine}"])
        repositories[engine] = tmp / engine
        build(recipe, repository=tmp / engine, artifacts=tmp / "artifacts")
    (checkpoint,) = (tmp / "artifacts" / "image").glob("trained-*")
    images = read_idx(folder / "t10k-images-idx3-ubyte.gz")[:HELD_OUT]
    return Built(recipe, repositories, checkpoint, images)


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest, built: Built) -> Iterator[TritonServer]:
    with TritonServer(built.repositories[request.param]) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def image(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Any]:
    with Client(getattr(server, f"{request.param}_url")) as client:
        yield client.task("image")


def _png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def _expected(built: Built, images: np.ndarray) -> np.ndarray:
    """Probabilities of the PyTorch model, ``[N, labels]``, by arithmetic of this test's own."""
    model = LogitsOnly(load_fine_tuned_model(built.checkpoint, "image-classification")).eval()
    pixels = (images[:, None].astype(np.float32) / 255 - 0.29) / 0.35
    with torch.inference_mode():
        return model(torch.from_numpy(pixels.astype(np.float32))).softmax(-1).numpy()


def _check(found: list[list[Label]], expected: np.ndarray) -> None:
    for ranking, probabilities in zip(found, expected, strict=True):
        assert ranking[0].label == KINDS[int(probabilities.argmax())]
        scores = {label.label: label.score for label in ranking}
        np.testing.assert_allclose(
            [scores[kind] for kind in KINDS], probabilities, rtol=0, atol=SCORE_TOLERANCE
        )


def test_it_answers_as_the_pytorch_model(built: Built, image: Any, tmp_path: Path) -> None:
    expected = _expected(built, built.images)
    assert len(np.unique(expected.argmax(-1))) >= 5, "a model that always says the same proves nothing"
    _check(image(list(built.images)), expected)
    files = [_png(one) for one in built.images[:20]]
    _check(image(files), expected[:20])
    path = tmp_path / "0.png"
    path.write_bytes(files[0])
    _check([image(path), image(built.images[0]), image(files[0])], expected[[0, 0, 0]])
    outcomes = list(image.map(iter(built.images)))
    _check([outcome.unwrap() for outcome in outcomes], expected)


def test_color_and_size_are_the_servers_business(built: Built, image: Any) -> None:
    large = np.kron(built.images[0], np.ones((7, 7), np.uint8))
    shown = np.asarray(Image.fromarray(large).resize((28, 28), Image.Resampling.BILINEAR))
    expected = _expected(built, shown[None])
    _check([image(large), image(np.stack([large] * 3, axis=-1)), image(_png(large))], expected[[0, 0, 0]])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"just a text", "image 1 is none of JPEG, PNG and .npy: it starts with b'just a t'"),
        (b"GIF89a" + bytes(50), "image 1 is none of JPEG, PNG and .npy"),
        (
            _png(np.zeros((300, 200), np.uint8)),
            r"image 1 is 200 x 300, 60000 pixels; at most 40000 are decoded",
        ),
        (np.zeros((201, 200, 3), np.uint8), "image 1 has 120728 bytes, at most 120000 are taken"),
        (np.zeros((201, 200), np.uint8), "image 1 is 200 x 201, 40200 pixels; at most 40000 are decoded"),
        (
            _png(np.random.default_rng(0).integers(0, 255, (28, 28), np.uint8))[:400],
            "image 1 is damaged or cut",
        ),
        (bytes(120_001), "image 1 has 120001 bytes, at most 120000 are taken"),
    ],
    ids=range(7),
)
def test_what_is_no_image_is_refused(built: Built, image: Any, bad: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        image([built.images[0], bad])
    outcomes = list(image.map([built.images[0], bad, built.images[1]]))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]


def test_the_manifest_carries_parity_and_quality(built: Built) -> None:
    for engine in ENGINES:
        facts = read_manifest(built.repositories[engine], "image", 1)
        assert facts["parity"][engine]["passed"] is True
        assert facts["parity"][engine]["label_agreement"] == 1.0
        assert facts["labels"] == KINDS
        assert facts["data"]["train_examples"] == 640
        assert 0.3 < facts["metrics"]["accuracy"] <= 1
