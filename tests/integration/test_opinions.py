"""Topic and sentiment as two joined pipelines and as two heads on one encoder, with tiny models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from mooring import (
    BuildError,
    CheckpointError,
    Client,
    ConfigError,
    InvalidInput,
    Opinion,
    OpinionClassifier,
    TextMultiClassifier,
)
from mooring_build.building import build
from mooring_build.learners import learner_of
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.repository import read_manifest, released_version
from mooring_loadtests.heads_bench import main as bench
from mooring_serve import TritonServer
from tiny_checkpoint import make_tiny_checkpoint

pytestmark = pytest.mark.integration

TOPICS = ["money", "places", "rivers"]
SENTIMENTS = ["bad", "good"]
TEXTS = ["who pays my refund", "anna works in porto", "the river is wide and the river is now"]


@dataclass(frozen=True)
class Built:
    repository: Path
    artifacts: Path
    base: Path
    recipes: dict[str, Recipe]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """``topic`` and ``sentiment``, joined as ``opinion_monitor``, and ``opinion_heads``, all tiny."""
    folder = tmp_path_factory.mktemp("opinions")
    base = make_tiny_checkpoint(folder / "base", "text-classification", ["a", "b"])
    topics, sentiments = folder / "topics.csv", folder / "sentiments.csv"
    rows = [(text, topic) for text, topic in zip(TEXTS, TOPICS, strict=True) for _ in range(4)]
    topics.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    sentiments.write_text(
        "text,label\n" + "".join(f"{text},{SENTIMENTS[i % 2]}\n" for i, text in enumerate(TEXTS * 4))
    )
    small = [f"base.checkpoint={base}", "text.max_length=48", "training.epochs=1", "training.batch_size=4"]
    # The engine of one is an ONNX file, the other's is TorchScript.
    recipes = {
        "topic": load_recipe("topic", [*small, *_data("data", topics), 'export.formats=["onnx"]']),
        "sentiment": load_recipe(
            "sentiment",
            [
                *small,
                *_data("data", sentiments),
                'export.formats=["torchscript"]',
                "export.engine=torchscript",
            ],
        ),
        "opinion_monitor": load_recipe("opinion_monitor"),
        "opinion_heads": load_recipe(
            "opinion_heads",
            [
                *small,
                *_data("heads.topic", topics),
                *_data("heads.sentiment", sentiments),
                f"heads.topic.labels={json.dumps(TOPICS)}",
                f"heads.sentiment.labels={json.dumps(SENTIMENTS)}",
            ],
        ),
    }
    found = Built(folder / "models", folder / "artifacts", base, recipes)
    for recipe in recipes.values():
        build(recipe, repository=found.repository, artifacts=found.artifacts)
    return found


def _data(table: str, path: Path) -> list[str]:
    return [f"{table}.train={path}", f"{table}.evaluation={path}"]


@pytest.fixture(scope="module")
def server(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("server") / "log"
    with TritonServer(built.repository, log_file=log) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Client]:
    with Client(str(getattr(server, f"{request.param}_url"))) as opened:
        yield opened


def test_one_call_answers_what_both_parts_say(client: Client) -> None:
    monitor, topic, sentiment = (client.task(name) for name in ("opinion_monitor", "topic", "sentiment"))
    assert isinstance(monitor, OpinionClassifier)
    answers = monitor(TEXTS)
    best = [
        Opinion(topic=topics[0], sentiment=sentiments[0])
        for topics, sentiments in zip(topic(TEXTS), sentiment(TEXTS), strict=True)
    ]
    assert [(answer.topic.label, answer.sentiment.label) for answer in answers] == [
        (opinion.topic.label, opinion.sentiment.label) for opinion in best
    ]
    for answer, opinion in zip(answers, best, strict=True):
        assert answer.topic.score == pytest.approx(opinion.topic.score, abs=1e-5)
        assert answer.sentiment.score == pytest.approx(opinion.sentiment.score, abs=1e-5)
    assert {answer.topic.label for answer in answers} <= set(TOPICS)


@pytest.mark.parametrize("model", ["opinion_monitor", "opinion_heads"])
def test_an_empty_text_is_refused_in_the_tokenizers_words(client: Client, model: str) -> None:
    task = client.task(model)
    for _ in range(3):
        with pytest.raises(InvalidInput, match="text 1 is empty: it has only white space"):
            task(["who pays", "  "], timeout_s=20.0)
        # A refusal leaves nothing behind that later requests would wait for.
        assert task("who pays", timeout_s=20.0)


def test_the_manifest_of_a_joined_pipeline_names_its_parts(built: Built) -> None:
    manifest = read_manifest(built.repository, "opinion_monitor", 1)
    assert manifest["composed_of"] == {
        "topic": {"model": "topic", "version": 1},
        "sentiment": {"model": "sentiment", "version": 1},
    }
    assert manifest["parity"] == {}


def test_a_joined_pipeline_is_not_published_twice(built: Built) -> None:
    lines: list[str] = []
    recipe = built.recipes["opinion_monitor"]
    assert build(recipe, repository=built.repository, artifacts=built.artifacts, say=lines.append) == 1
    assert "up to date" in lines[-1]
    assert released_version(built.repository, "opinion_monitor") == 1


def test_parts_that_are_missing_or_others_are_refused(built: Built, tmp_path: Path) -> None:
    recipe = built.recipes["opinion_monitor"]
    with pytest.raises(BuildError, match=r"joins 'topic' \(parts.topic\).* run 'mooring build topic' first"):
        build(recipe, repository=tmp_path / "models", artifacts=tmp_path / "artifacts")
    other = load_recipe("opinion_monitor", ["name=other", "parts.topic=opinion_heads"])
    with pytest.raises(BuildError, match="'opinion_heads' is a model for text-multi-classification"):
        build(other, repository=built.repository, artifacts=tmp_path / "artifacts")
    larger = load_recipe("opinion_monitor", ["name=larger", "serving.max_batch_size=64"])
    with pytest.raises(BuildError, match=r"max_batch_size 64 is more than the 32 of parts\.topic 'topic'"):
        build(larger, repository=built.repository, artifacts=tmp_path / "artifacts")
    assert released_version(built.repository, "larger") is None


def test_heads_answer_as_the_pytorch_model_does(built: Built, client: Client) -> None:
    heads = client.task("opinion_heads")
    assert isinstance(heads, TextMultiClassifier)
    assert heads.heads == ("topic", "sentiment")
    (folder,) = built.artifacts.glob("opinion_heads/trained-*")
    exportable = learner_of("text-multi-classification").exportable(built.recipes["opinion_heads"], folder)
    encoded = exportable.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = exportable.module(encoded["input_ids"], encoded["attention_mask"])
    expected = {"topic": logits[:, :3].softmax(-1).numpy(), "sentiment": logits[:, 3:].softmax(-1).numpy()}
    labels = {"topic": TOPICS, "sentiment": SENTIMENTS}
    for row, answer in enumerate(heads(TEXTS)):
        assert list(answer) == ["topic", "sentiment"]
        for head, ranked in answer.items():
            assert len(ranked) == len(labels[head])
            scores = {label.label: label.score for label in ranked}
            assert [scores[name] for name in labels[head]] == pytest.approx(expected[head][row], abs=1e-4)
            assert sorted(scores.values(), reverse=True) == [label.score for label in ranked]


def test_both_engines_of_the_heads_give_the_same_logits(client: Client) -> None:
    ids = np.array([[5, 6, 7, 8]])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    onnx = client.infer("opinion_heads_onnx_ragged", inputs)["logits"]
    torchscript = client.infer("opinion_heads_torchscript_ragged", inputs)["logits__0"]
    assert onnx.shape == (1, 5)
    np.testing.assert_allclose(onnx, torchscript, atol=1e-4)


def test_a_request_gets_the_heads_that_it_asks_for(client: Client) -> None:
    heads = client.task("opinion_heads")
    alone = heads.only("sentiment")
    whole = heads(TEXTS)
    assert [list(answer) for answer in alone(TEXTS)] == [["sentiment"]] * len(TEXTS)
    for answer, both in zip(alone(TEXTS), whole, strict=True):
        assert [label.label for label in answer["sentiment"]] == [label.label for label in both["sentiment"]]
    text = np.array([[b"who pays my refund"]], dtype=object)
    assert client.infer("opinion_heads", {"text": text}, outputs=["topic"]).keys() == {"topic"}
    with pytest.raises(ConfigError, match="no head 'colour'; it has topic, sentiment"):
        heads.only("colour")


def test_the_encoder_of_the_heads_is_the_bases_own(built: Built) -> None:
    from safetensors.torch import load_file

    (folder,) = built.artifacts.glob("opinion_heads/trained-*")
    trained, base = (load_file(path / "model.safetensors") for path in (folder, built.base))
    name = "encoder.layer.1.attention.self.query.weight"
    assert torch.equal(trained[f"encoder.{name}"], base[f"bert.{name}"])
    manifest = read_manifest(built.repository, "opinion_heads", 1)
    metrics = manifest["metrics"]
    assert metrics["accuracy"] == pytest.approx(
        (metrics["topic_accuracy"] + metrics["sentiment_accuracy"]) / 2, abs=1e-5
    )


def test_a_checkpoint_with_other_heads_is_refused(built: Built, tmp_path: Path) -> None:
    (folder,) = built.artifacts.glob("opinion_heads/trained-*")
    recipe = load_recipe("opinion_heads", ["text.max_length=48"], fine_tuned=folder)
    with pytest.raises(CheckpointError, match=r"has the heads .*money.*, the recipe says .*analyst_view"):
        build(recipe, repository=tmp_path / "models", artifacts=tmp_path / "artifacts")


def test_the_benchmark_measures_both_sides(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--repository", str(built.repository), "--pairs", "2", "--slice-ms", "20", "--workers", "2"]
    assert bench(command) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures) == {"heads_texts_per_s", "separate_texts_per_s", "heads_over_separate", "quartiles"}
    assert min(figures["heads_texts_per_s"], figures["separate_texts_per_s"]) > 0
    assert figures["quartiles"][0] <= figures["heads_over_separate"] <= figures["quartiles"][1]


def test_the_benchmark_names_the_build_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["--repository", str(tmp_path)]) == 2
    assert "run 'mooring build opinion_heads topic sentiment' first" in capsys.readouterr().err
