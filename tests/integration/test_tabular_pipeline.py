"""Tabular classification on Triton answers as the PyTorch model does, and refuses what is no row."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mooring import Client, InvalidInput
from mooring_build.building import build
from mooring_build.datasets import load_dataset
from mooring_build.learners.tabular import DenseClassifier
from mooring_build.recipe import load_recipe
from mooring_build.repository import read_manifest
from mooring_serve import TritonServer

pytestmark = pytest.mark.integration

SCORE_TOLERANCE = 1e-4
ENGINES = ["onnx", "torchscript"]


@dataclass(frozen=True)
class Built:
    """What one build left: a repository for each engine, the checkpoint, and the held-out digits."""

    repositories: dict[str, Path]
    checkpoint: Path
    rows: np.ndarray
    digits: list[str]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    tmp = tmp_path_factory.mktemp("digits")
    repositories = {}
    for engine in ENGINES:
        recipe = load_recipe(
            "tabular", [f"export.engine={engine}", "features.top_k=10", "serving.instance_count=1"]
        )
        repositories[engine] = tmp / engine
        build(recipe, repository=tmp / engine, artifacts=tmp / "artifacts")
    (checkpoint,) = (tmp / "artifacts" / "tabular").glob("trained-*")
    held_out = load_dataset(recipe).evaluation
    rows = np.array([row.features for row in held_out])
    return Built(repositories, checkpoint, rows, [row.label for row in held_out])


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest, built: Built) -> Iterator[TritonServer]:
    with TritonServer(built.repositories[request.param]) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def tabular(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Any]:
    with Client(getattr(server, f"{request.param}_url")) as client:
        yield client.task("tabular")


def test_it_answers_as_the_pytorch_model(built: Built, tabular: Any) -> None:
    model = DenseClassifier.from_pretrained(built.checkpoint).eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(built.rows.astype(np.float32))).logits.softmax(-1).numpy()
    found = tabular(built.rows)
    assert len(found) == len(expected) == 360
    for ranking, probabilities in zip(found, expected, strict=True):
        scores = {label.label: label.score for label in ranking}
        assert ranking[0].label == str(probabilities.argmax())
        np.testing.assert_allclose(
            [scores[str(digit)] for digit in range(10)], probabilities, rtol=0, atol=SCORE_TOLERANCE
        )
    right = sum(ranking[0].label == digit for ranking, digit in zip(found, built.digits, strict=True))
    assert right / 360 >= 0.97
    assert [label.label for label in tabular(built.rows[3].tolist())] == [label.label for label in found[3]]
    assert [outcome.unwrap()[0].label for outcome in tabular.map(built.rows)] == [
        row[0].label for row in found
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([0.0] * 63, r"input 'features' has shape \[1, 63\]; expected \[-1, 64\]"),
        ([float("nan"), *[0.0] * 63], "row 0, number 0 is nan"),
        ([float("inf"), *[0.0] * 63], "row 0, number 0 is inf"),
        (["0"] * 64, "row 0 is str"),
    ],
)
def test_what_is_no_row_is_refused(tabular: Any, row: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        tabular(row)


def test_the_server_itself_refuses_what_has_no_answer(server: TritonServer) -> None:
    for row, said in (
        ([3e38] * 64, "the logits of row 0 are not finite"),
        ([0.0] * 5, "'features' to tensor with proper shape"),
    ):
        request = urllib.request.Request(
            f"{server.http_url}/v2/models/tabular/generate",
            json.dumps({"features": row}).encode(),
            {"Content-Type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(request, timeout=30):
            pass
        with caught.value as answer:
            assert said in answer.read().decode()


def test_the_manifest_carries_parity_and_quality(built: Built) -> None:
    for engine in ENGINES:
        facts = read_manifest(built.repositories[engine], "tabular", 1)
        assert facts["parity"][engine]["passed"] is True
        assert facts["metrics"]["accuracy"] >= 0.97
        assert facts["base_checkpoint"]["name"] == "new mooring_dense"
