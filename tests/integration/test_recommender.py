"""A recommender from its recipe to answers: built small, served by a real tritonserver, by both engines."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from mooring import Client, InvalidInput, RankedItem
from mooring_build.behaviour import read_items
from mooring_build.building import build
from mooring_build.evaluate_command import evaluate_served
from mooring_build.learners.recommender import load_recommender
from mooring_build.publish import read_manifest
from mooring_build.recipe import Recipe, load_recipe, shipped_recipes
from mooring_serve import TritonServer
from tiny_checkpoint import make_tiny_checkpoint

pytestmark = pytest.mark.integration

ENGINES = ("onnx", "torchscript")
NEW_ITEM = "the-river-at-night"
# No reader sees more, so no history is longer by itself.
MAX_HISTORY = 12


@dataclass
class Built:
    """A repository with one recommender for each engine, and what it came from."""

    repository: Path
    artifacts: Path
    catalogue: Path
    encoder: Path
    recipes: dict[str, Recipe]

    def recipe(self, engine: str, *overrides: str) -> Recipe:
        return load_recipe(
            "recommender",
            [
                f"name={engine}_recommender",
                f"base.checkpoint={self.encoder}",
                f"catalogue.file={self.catalogue}",
                f"catalogue.max_history={MAX_HISTORY}",
                "catalogue.dimension=16",
                "training.epochs=8",
                "text.max_length=64",
                "serving.instance_count=1",
                f"export.engine={engine}",
                *overrides,
            ],
        )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("recommender")
    shipped = shipped_recipes()["recommender"].parent / "data" / "recommender" / "items.csv"
    encoder = make_tiny_checkpoint(folder / "encoder", "text-classification", ["a", "b"])
    built = Built(
        folder / "repository",
        folder / "artifacts",
        shipped,
        encoder,
        {},
    )
    for engine in ENGINES:
        recipe = built.recipes[engine] = built.recipe(engine)
        assert build(recipe, repository=built.repository, artifacts=built.artifacts) == 1
    return built


@pytest.fixture(scope="module")
def server(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(built.repository, log_file=tmp_path_factory.mktemp("log") / "log") as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_url if request.param == "grpc" else server.http_url) as opened:
        yield opened


def ranking_by_pytorch(built: Built, recipe: Recipe, history: Sequence[str]) -> dict[str, float]:
    """Scores of all items that are not in the history, best first, without any of the served code."""
    (folder,) = (built.artifacts / recipe.name).glob("trained-*")
    model, texts = load_recommender(folder, recipe)
    places = {item: place for place, item in enumerate(texts)}
    with torch.inference_mode():
        vectors, biases = model.known_items()
        latest = vectors[[places[item] for item in history][-MAX_HISTORY:]][None]
        user = model.tower.states(latest)[0, -1]
        scores = (vectors @ user + biases).tolist()
    left = {item: scores[places[item]] for item in read_items(recipe) if item not in history}
    return dict(sorted(left.items(), key=lambda pair: -pair[1]))


def check(answer: list[RankedItem], expected: dict[str, float]) -> None:
    assert len(answer) == 10
    best = list(expected.values())[:10]
    assert [ranked.score for ranked in answer] == pytest.approx(best, abs=1e-4)
    # Items may change places only where their scores are that near.
    assert [expected[ranked.item] for ranked in answer] == pytest.approx(best, abs=1e-4)
    assert len({ranked.item for ranked in answer}) == 10


@pytest.mark.parametrize("engine", ENGINES)
def test_served_answers_are_the_pytorch_models(built: Built, client: Client, engine: str) -> None:
    recipe = built.recipes[engine]
    items = list(read_items(recipe))
    histories = [
        items[:1],
        ["rain-barrel", "compost-without-smell", "soil-first"],
        items[20:29],
        items[40 : 40 + MAX_HISTORY],
        # Longer than the engine takes: the latest count, and all are left out of the answer.
        items[:30],
        list(reversed(items[:30])),
    ]
    task = client.task(recipe.name)
    expected = [ranking_by_pytorch(built, recipe, history) for history in histories]
    for history, scores in zip(histories, expected, strict=True):
        check(task(history), scores)
    for answer, scores in zip(task(histories), expected, strict=True):
        check(answer, scores)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_history_is_answered_with_what_readers_start_with(
    built: Built, client: Client, engine: str
) -> None:
    recipe = built.recipes[engine]
    (answer,) = client.task(recipe.name)([[]])
    check(answer, ranking_by_pytorch(built, recipe, []))


def test_an_unknown_item_is_refused_by_its_name(client: Client) -> None:
    task = client.task("onnx_recommender")
    with pytest.raises(
        InvalidInput, match=r"history 0 names item 'no-such-article', which is not among the 80"
    ):
        task(["rain-barrel", "no-such-article"])
    good, bad = task.map([["rain-barrel"], ["no-such-article"]])
    assert len(good.value) == 10
    assert isinstance(bad.error, InvalidInput)


def test_little_is_left_for_who_has_seen_nearly_everything(built: Built, client: Client) -> None:
    items = list(read_items(built.recipes["onnx"]))
    answer = client.task("onnx_recommender")(items[:-2])
    assert sorted(ranked.item for ranked in answer) == sorted(items[-2:])
    assert client.task("onnx_recommender")(items) == []


def test_the_engine_takes_shorter_rows_than_the_pipeline_sends(built: Built, client: Client) -> None:
    recipe = built.recipes["onnx"]
    vectors = np.zeros((2, 3, 16), np.float32)
    mask = np.array([[1, 0, 0], [0, 0, 0]])
    users = client.infer("onnx_recommender_onnx", {"vectors": vectors, "mask": mask})["user"]
    assert users.shape == (2, 16)
    (folder,) = (built.artifacts / recipe.name).glob("trained-*")
    model, _ = load_recommender(folder, recipe)
    with torch.inference_mode():
        expected = model.tower(torch.from_numpy(vectors), torch.from_numpy(mask)).numpy()
    assert users == pytest.approx(expected, abs=1e-4)


def test_the_manifest_compares_with_popularity_and_similarity(built: Built) -> None:
    metrics = read_manifest(built.repository, "onnx_recommender", 1)["metrics"]
    for name in ("ndcg_at_10", "recall_at_50"):
        assert 0 < metrics[f"popularity_{name}"] < metrics[name] <= 1
        assert 0 < metrics[f"similarity_{name}"] < 1
    assert metrics["ndcg_over_popularity"] == pytest.approx(
        metrics["ndcg_at_10"] / metrics["popularity_ndcg_at_10"], abs=1e-4
    )
    assert metrics["validation_ndcg_at_10"] > 0
    assert (metrics["items"], metrics["items_by_text_alone"]) == (80, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_served_model_is_as_good_as_the_manifest_says(built: Built, client: Client, engine: str) -> None:
    recipe = built.recipes[engine]
    version, score = evaluate_served(client, recipe, model=recipe.name)
    manifest = read_manifest(built.repository, recipe.name, version)
    assert (score.examples, score.failures) == (120, 0)
    assert score.evaluation_digest == manifest["data"]["evaluation_digest"]
    # A rounding error may swap neighbours of a few of the 120 rankings.
    assert score.metrics["ndcg_at_10"] == pytest.approx(manifest["metrics"]["ndcg_at_10"], abs=0.003)


def test_a_new_item_is_recommended_after_a_publish_without_training(built: Built, tmp_path: Path) -> None:
    known = list(read_items(built.recipes["onnx"]))
    catalogue = Path(shutil.copy(built.catalogue, tmp_path / "items.csv"))
    with catalogue.open("a", encoding="utf-8") as file:
        file.write(f"{NEW_ITEM},The river is wide. Who works in Porto and Lisbon now?\n")
    repository = shutil.copytree(built.repository, tmp_path / "repository")
    recipe = built.recipe("onnx", 'catalogue.unknown_items="skip"', f"catalogue.file={catalogue}")
    lines: list[str] = []
    assert build(recipe, repository=repository, artifacts=built.artifacts, say=lines.append) == 2
    assert "(up to date)" in next(line for line in lines if line.startswith("trained"))
    assert any("81 items, 1 by text alone" in line for line in lines)
    with TritonServer(repository, log_file=tmp_path / "log") as server, Client(server.grpc_url) as client:
        task = client.task("onnx_recommender")
        # All that is left after this history is the new item.
        (ranked,) = task(known)
        assert ranked.item == NEW_ITEM
        assert np.isfinite(ranked.score)
        # It may stand in histories too, and this release skips what it does not know.
        assert NEW_ITEM not in [ranked.item for ranked in task([NEW_ITEM])]
        assert task(["no-such-article", "rain-barrel"]) == task(["rain-barrel"])
