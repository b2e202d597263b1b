"""Several heads on one frozen encoder: recipe, data, model, layout and scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from mooring import CheckpointError, DataError, Label, RecipeError
from mooring_build.datasets import load_dataset
from mooring_build.examples import HeadText
from mooring_build.learners import learner_of
from mooring_build.learners.heads import HeadsLearner, HeadsModel, load_heads_model
from mooring_build.learners.text import IGNORED
from mooring_build.models import load_fine_tuned_model
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.scoring import score_served
from mooring_build.triton_config import model_configs
from tiny_checkpoint import make_tiny_checkpoint
from tiny_release import padded_recipe

TOPICS = ["money", "places", "rivers"]
MOODS = ["bad", "good"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "text-classification", MOODS)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Overrides that make the shipped recipe a tiny one."""
    (tmp_path / "topic.csv").write_text("text,label\nwho pays,money\nin porto,places\nthe river,rivers\n")
    (tmp_path / "mood.csv").write_text("text,label\nmy refund now,bad\nthe river is wide,good\n")
    words = ["text.max_length=48", "heads.topic.labels=" + json.dumps(TOPICS)]
    words += ["heads.sentiment.labels=" + json.dumps(MOODS)]
    for head, file in (("topic", "topic.csv"), ("sentiment", "mood.csv")):
        words += [f"heads.{head}.{split}={tmp_path / file}" for split in ("train", "evaluation")]
    return words


@pytest.fixture
def recipe(words: list[str]) -> Recipe:
    return padded_recipe("opinion_heads", words)


def test_the_shipped_heads_are_those_of_the_separate_recipes() -> None:
    heads = padded_recipe("opinion_heads")
    assert heads.heads is not None
    for name, head in heads.heads.items():
        separate = padded_recipe(name)
        assert separate.data is not None
        assert head.labels == load_dataset(separate).labels
        assert (head.train, head.evaluation) == (separate.data.train, separate.data.evaluation)


_SCORE_HEAD = 'heads.topic_score={labels=["a", "b"], train="a.csv", evaluation="a.csv"}'


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("heads={}", "heads: Dictionary should have at least 1 item"),
        ('heads.topic.labels=["a"]', "heads.topic.labels: List should have at least 2 items"),
        ('heads.topic.labels=["a", "a"]', "heads.topic: labels names a label twice"),
        ("heads.topic.format=conll", "heads.topic.format: Input should be 'csv' or 'hub'"),
        (_SCORE_HEAD, "heads: ['topic_score'] are what the scores of other heads"),
        (
            'heads.logits={labels=["a", "b"], train="a.csv", evaluation="a.csv"}',
            "heads: ['logits'] are what the pipeline's own tensors are called",
        ),
        ('heads.sentiment={labels=["a", "b"]}', "training needs train and evaluation of each head"),
    ],
)
def test_mistakes_in_heads(override: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        padded_recipe("opinion_heads", [override])
    assert said in str(caught.value)


def test_heads_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ntask = "text-multi-classification"\n[base]\ncheckpoint = "a"\n')
    with pytest.raises(RecipeError, match=r"task 'text-multi-classification' needs the table \[heads\]"):
        load_recipe(path)


def test_examples_know_their_head(recipe: Recipe, words: list[str]) -> None:
    dataset = load_dataset(recipe)
    assert dataset.train == dataset.evaluation
    assert dataset.train[0] == HeadText("who pays", "topic", "money")
    assert [example.head for example in dataset.train] == ["topic"] * 3 + ["sentiment"] * 2
    assert dataset.labels == []
    assert load_dataset(recipe, evaluation_only=True).train == []
    # The order of the labels is part of what a model is trained on.
    swapped = padded_recipe("opinion_heads", [*words, 'heads.sentiment.labels=["good", "bad"]'])
    assert load_dataset(swapped).digest != dataset.digest


def test_the_order_of_the_heads_is_that_of_the_logits(recipe: Recipe) -> None:
    # Also where nothing is trained or evaluated.
    bare = [
        {name: head.model_copy(update={"train": None, "evaluation": None}) for name, head in heads}
        for heads in (list(recipe.heads.items()), reversed(recipe.heads.items()))
    ]
    one, other = (
        load_dataset(recipe.model_copy(update={"training": None, "heads": heads})).digest for heads in bare
    )
    assert one != other


def test_a_head_that_is_not_evaluated_has_no_figures(recipe: Recipe, base: Path) -> None:
    dataset = load_dataset(recipe)
    lesson = HeadsLearner().lesson(recipe, base, dataset)
    some = lesson.collator(lesson.evaluation[:3])
    with torch.no_grad():
        logits = lesson.model(**some).logits
    prediction = EvalPrediction(logits.numpy(), some["labels"].numpy())
    metrics = lesson.metrics(prediction)
    assert metrics["topic_accuracy"] == metrics["accuracy"]
    assert "sentiment_accuracy" not in metrics
    assert {row.split(":")[0] for row in lesson.report(prediction)} == {"topic"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train=/none.csv", r"^heads\.topic\.train '/none\.csv': no file /none\.csv"),
        ("text_column=words", r"heads\.topic\.text_column 'words' is not among its columns"),
    ],
)
def test_a_mistake_in_data_names_the_heads_key(words: list[str], change: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_dataset(padded_recipe("opinion_heads", [*words, f"heads.topic.{change}"]))


def test_a_label_that_the_head_does_not_have(words: list[str]) -> None:
    recipe = padded_recipe("opinion_heads", [*words, 'heads.topic.labels=["money", "places"]'])
    with pytest.raises(DataError, match=r"topic\.csv has labels \['rivers'\] that are not among"):
        load_dataset(recipe)


def test_training_gets_what_the_encoder_makes_of_each_text(recipe: Recipe, base: Path) -> None:
    dataset = load_dataset(recipe)
    lesson = HeadsLearner().lesson(recipe, base, dataset)
    assert isinstance(lesson.model, HeadsModel)
    assert [item["labels"] for item in lesson.train] == [
        [0, IGNORED],
        [1, IGNORED],
        [2, IGNORED],
        [IGNORED, 0],
        [IGNORED, 1],
    ]
    tokens = lesson.processor([example.text for example in dataset.train], padding=True, return_tensors="pt")
    with torch.no_grad():
        from_tokens = lesson.model(tokens["input_ids"], tokens["attention_mask"])
        from_features = lesson.model(**lesson.collator(lesson.train))
    # Padding is no part of the mean.
    np.testing.assert_allclose(from_features.logits, from_tokens.logits, atol=1e-5)
    assert from_tokens.loss is None
    assert from_features.loss > 0


def test_the_encoder_is_frozen_and_a_head_without_examples_is_left_alone(recipe: Recipe, base: Path) -> None:
    dataset = load_dataset(recipe)
    lesson = HeadsLearner().lesson(recipe, base, dataset)
    lesson.model(**lesson.collator(lesson.train[:3])).loss.backward()
    assert not any(parameter.requires_grad for parameter in lesson.model.encoder.parameters())
    gradients = {name: p.grad for name, p in lesson.model.heads.named_parameters()}
    assert all(gradients[f"head_topic.{name}"].abs().sum() > 0 for name in ("0.weight", "3.weight"))
    assert all(gradients[f"head_sentiment.{name}"].abs().sum() == 0 for name in ("0.weight", "3.weight"))


def test_a_saved_model_answers_in_the_order_of_the_recipe(recipe: Recipe, base: Path, tmp_path: Path) -> None:
    # The recipe's order is not the alphabet's, in which a config is saved.
    assert list(recipe.heads or {}) == ["topic", "sentiment"]
    lesson = HeadsLearner().lesson(recipe, base, load_dataset(recipe))
    features = torch.randn(4, lesson.model.config.hidden_size)
    lesson.model.eval().save_pretrained(tmp_path / "saved")
    lesson.processor.save_pretrained(tmp_path / "saved")
    again = load_heads_model(tmp_path / "saved", recipe)
    with torch.inference_mode():
        before, after = lesson.model(features=features).logits, again.eval()(features=features).logits
    assert list(again.config.heads) == ["topic", "sentiment"]
    torch.testing.assert_close(after, before)


def test_a_checkpoint_without_heads_is_refused(recipe: Recipe, base: Path) -> None:
    with pytest.raises(CheckpointError, match="has the heads none, the recipe says"):
        learner_of(recipe.task).exportable(recipe, base)


def test_configs_declare_the_outputs_of_each_head(words: list[str]) -> None:
    recipe = padded_recipe("opinion_heads", [*words, "text.top_k=2"])
    configs = model_configs(recipe, [], 1)
    assert list(configs) == [
        "opinion_heads_tokenizer",
        "opinion_heads_onnx",
        "opinion_heads_torchscript",
        "opinion_heads_postprocessor",
        "opinion_heads",
    ]
    assert list(configs["opinion_heads_onnx"].output[0].dims) == [5]
    whole = configs["opinion_heads"]
    assert {output.name: list(output.dims) for output in whole.output} == {
        "topic": [2],
        "topic_score": [2],
        "sentiment": [2],
        "sentiment_score": [2],
    }
    assert json.loads(whole.parameters["heads"].string_value) == {"topic": TOPICS, "sentiment": MOODS}
    assert "labels" not in whole.parameters


def test_served_answers_are_scored_by_head(recipe: Recipe) -> None:
    from mooring import Outcome

    dataset = load_dataset(recipe, evaluation_only=True)

    def ask(texts: list[str]) -> list[Outcome[dict[str, list[Label]]]]:
        answer = {"topic": [Label(label="money", score=1.0)], "sentiment": [Label(label="good", score=1.0)]}
        return [Outcome(index=index, value=answer) for index, _ in enumerate(texts)]

    score = score_served(recipe, dataset, ask)
    assert score.metrics["topic_accuracy"] == pytest.approx(1 / 3)
    assert score.metrics["sentiment_accuracy"] == pytest.approx(1 / 2)
    assert score.metrics["accuracy"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert score.report["topic: money"]["recall"] == 1.0
    # Without the example of money, its label was chosen all the same.
    fewer = score_served(recipe, replace(dataset, evaluation=dataset.evaluation[1:]), ask)
    assert fewer.report["topic: money"] == {"precision": 0.0, "recall": 0.0, "f1-score": 0.0, "support": 0.0}


@pytest.mark.parametrize("name", ["type", "keys", "train"])
def test_a_head_may_be_called_as_a_module_has_attributes(name: str, base: Path) -> None:
    encoder = load_fine_tuned_model(base, "text-multi-classification")
    model = HeadsModel.around(encoder, {name: ["a", "b"], "other": ["c", "d", "e"]}).eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert model(ids, torch.ones_like(ids)).logits.shape == (1, 5)
