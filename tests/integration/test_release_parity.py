"""Both shipped recipes, fine-tuned briefly on real data, answer on Triton as the PyTorch model does."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from mooring import Client
from mooring._served.entities import BioLabels
from mooring_build.building import build
from mooring_build.data_files import read_conll, read_csv
from mooring_build.models import load_fine_tuned_model, load_tokenizer
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.repository import read_manifest, released_version
from mooring_build.triton_config import engine_name
from mooring_serve import TritonServer
from random_texts import random_texts
from shared_data import shared_data

pytestmark = pytest.mark.integration

HELD_OUT = 200
#: The recipes allow 1e-4 on a logit; a probability moves by no more than half of that, plus rounding.
SCORE_TOLERANCE = 1e-4
#: The same engine, so only the rounding of batches of other sizes.
LOCAL_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Built:
    """What one build left: the recipe, its repositories by pipeline engine, and held-out texts."""

    recipe: Recipe
    repositories: dict[str, Path]
    checkpoint: Path
    texts: list[str]


def _slice_of_conll(folder: Path, target: Path, sentences: int) -> Path:
    blocks = (folder).read_text(encoding="utf-8").split("\n\n")
    target.write_text("\n\n".join(blocks[1 : sentences + 1]) + "\n", encoding="utf-8")
    return target


def _slice_of_csv(path: Path, target: Path, every: int) -> Path:
    with (
        path.open(encoding="utf-8", newline="") as source,
        target.open("w", encoding="utf-8", newline="") as file,
    ):
        header, *rows = csv.reader(source)
        csv.writer(file).writerows([header, *rows[::every]])
    return target


def _build(name: str, overrides: list[str], tmp: Path, texts: list[str]) -> Built:
    repositories = {}
    for engine in ("onnx", "torchscript"):
        recipe = load_recipe(
            name, [*overrides, f"export.engine={engine}", "serving.instance_count=1", "text.max_length=192"]
        )
        repositories[engine] = tmp / engine
        build(recipe, repository=tmp / engine, artifacts=tmp / "artifacts")
    (checkpoint,) = (tmp / "artifacts" / name).glob("trained-*")
    return Built(recipe, repositories, checkpoint, texts)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="module")
def ner(workspace: Path) -> Built:
    data = shared_data("conll2003")
    overrides = [
        f"data.train={_slice_of_conll(data / 'train.txt', workspace / 'train.conll', 450)}",
        f"data.evaluation={_slice_of_conll(data / 'valid.txt', workspace / 'valid.conll', 100)}",
        "training.epochs=1",
    ]
    texts = [example.text for example in read_conll(data / "test.txt")][:HELD_OUT]
    return _build("ner", overrides, workspace, texts)


@pytest.fixture(scope="module")
def intent(workspace: Path) -> Built:
    data = shared_data("banking77")
    overrides = [
        f"data.train={_slice_of_csv(data / 'train.csv', workspace / 'train.csv', 20)}",
        f"data.evaluation={_slice_of_csv(data / 'test.csv', workspace / 'test.csv', 30)}",
        "data.label_column=category",
        "training.epochs=1",
        "text.top_k=77",
    ]
    held_out = read_csv(data / "test.csv", text_column="text", label_column="category")
    return _build("intent", overrides, workspace, [example.text for example in held_out][::7][:HELD_OUT])


@pytest.fixture(scope="module", params=["onnx", "torchscript"])
def server(request: pytest.FixtureRequest, ner: Built, intent: Built) -> Iterator[TritonServer]:
    assert ner.repositories == intent.repositories
    with TritonServer(ner.repositories[request.param]) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Client]:
    with Client(getattr(server, f"{request.param}_url")) as connected:
        yield connected


def test_ner_answers_as_the_pytorch_model(ner: Built, client: Client) -> None:
    assert len(ner.texts) == HELD_OUT
    served = client.task("ner")(ner.texts)
    found = 0
    for text, entities in zip(ner.texts, served, strict=True):
        expected = _reference_entities(ner, text)
        assert [(e.label, e.start, e.end) for e in entities] == [
            (e.label, e.start, e.end) for e in expected
        ], text
        np.testing.assert_allclose(
            [e.score for e in entities], [e.score for e in expected], rtol=0, atol=SCORE_TOLERANCE
        )
        assert all(e.text == text[e.start : e.end] for e in entities)
        found += len(entities)
    assert found > HELD_OUT / 4, "a model that finds nothing proves nothing"


def test_intent_answers_as_the_pytorch_model(intent: Built, client: Client) -> None:
    assert len(intent.texts) == HELD_OUT
    model, tokenizer = _pytorch(intent)
    served = client.task("intent")(intent.texts)
    for text, ranking in zip(intent.texts, served, strict=True):
        with torch.inference_mode():
            probabilities = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].numpy()
        labels = model.config.id2label
        assert ranking[0].label == labels[int(probabilities.argmax())], text
        expected = {labels[index]: value for index, value in enumerate(probabilities)}
        scores = {item.label: item.score for item in ranking}
        assert scores.keys() == expected.keys()
        np.testing.assert_allclose(
            [scores[label] for label in expected], list(expected.values()), rtol=0, atol=SCORE_TOLERANCE
        )


@pytest.mark.parametrize("source", ["server", "folder"])
@pytest.mark.parametrize("name", ["ner", "intent"])
def test_the_client_tokenizes_as_the_server_does(
    name: str, source: str, request: pytest.FixtureRequest, client: Client
) -> None:
    built: Built = request.getfixturevalue(name)
    local = client.task(name, tokenize="client", tokenizer=built.checkpoint if source == "folder" else None)
    served = client.task(name)
    texts = built.texts + random_texts(150, seed=len(name + source))
    refused = 0
    for one, other in zip(local.map(texts), served.map(texts), strict=True):
        assert type(one.error) is type(other.error), texts[one.index]
        refused += one.error is not None
        for ours, theirs in zip(one.value or [], other.value or [], strict=True):
            assert {**vars(ours), "score": 0} == {**vars(theirs), "score": 0}, texts[one.index]
            # The batches that the engine ran were other ones.
            assert ours.score == pytest.approx(theirs.score, abs=LOCAL_TOLERANCE)
    assert 0 < refused < 100


@pytest.mark.parametrize(("name", "built"), [("ner", "ner"), ("intent", "intent")])
def test_the_manifest_carries_parity_and_quality(
    name: str, built: str, request: pytest.FixtureRequest, server: TritonServer
) -> None:
    made = request.getfixturevalue(built)
    repository = made.repositories["onnx"]
    version = released_version(repository, name)
    assert version == 1
    for engine in ("onnx", "torchscript"):
        parity = read_manifest(repository, engine_name(made.recipe, engine), version)["parity"][engine]
        assert parity["passed"] is True
        assert parity["max_abs_difference"] <= parity["tolerance"] == 1e-4
        assert parity["cases"] > 50
    facts = read_manifest(repository, name, version)
    assert 0 < facts["metrics"]["entity_f1" if name == "ner" else "accuracy"] <= 1
    assert facts["recipe"]["name"] == name
    json.dumps(facts)


@cache
def _pytorch_at(checkpoint: Path, task: str):
    return load_fine_tuned_model(checkpoint, task), load_tokenizer(checkpoint)


def _pytorch(built: Built):
    return _pytorch_at(built.checkpoint, built.recipe.task)


def _reference_entities(built: Built, text: str):
    model, tokenizer = _pytorch(built)
    encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping").numpy()
    words = np.full_like(offsets, -1)
    for place, word in enumerate(encoded.word_ids()):
        if word is not None:
            first = encoded.word_ids().index(word)
            words[0, first] = offsets[0, first, 0], offsets[0, place, 1]
    with torch.inference_mode():
        logits = model(**encoded).logits.numpy()
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    return BioLabels(labels).decode([text], logits, words)[0]
