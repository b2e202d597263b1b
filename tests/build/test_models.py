"""Checkpoints that are loaded for what they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

from mooring import CheckpointError
from mooring_build.datasets import load_dataset
from mooring_build.learners import learner_of
from mooring_build.learners.text import OneOutput, tokenizer_of
from mooring_build.models import (
    check_padding,
    check_served_tokens,
    check_vocabulary,
    load_base_model,
    load_fine_tuned_model,
    load_tokenizer,
)
from mooring_build.recipe import load_recipe
from tiny_checkpoint import make_tiny_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_checkpoint(tmp_path / "tiny", "text-classification", ["a", "b"])


def _change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_several_labels_or_a_number_are_not_served_as_one_label(folder: Path, problem: str) -> None:
    _change_config(folder, problem_type=problem)
    with pytest.raises(CheckpointError, match=f"is for '{problem}'.*one label of several"):
        load_fine_tuned_model(folder, "text-classification")
    # A new head is one for one label.
    model, _ = load_base_model(folder, "text-classification", ["x", "y", "z"])
    assert (model.config.problem_type, model.config.num_labels) == ("single_label_classification", 3)


def test_weights_of_another_shape_are_not_drawn_anew(folder: Path) -> None:
    positions = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    _change_config(folder, max_position_embeddings=2 * positions)
    with pytest.raises(CheckpointError, match=r"its weights lack bert\.embeddings\.position_embeddings"):
        load_base_model(folder, "text-classification", ["x", "y", "z"])


def test_a_classifier_without_its_pooler_is_not_fine_tuned(tmp_path: Path) -> None:
    tags = make_tiny_checkpoint(tmp_path / "tags", "token-classification", ["O", "B-PER"])
    with pytest.raises(CheckpointError, match=r"its weights lack .*bert\.pooler\.dense\.weight"):
        load_fine_tuned_model(tags, "text-classification")
    load_fine_tuned_model(tags, "token-classification")
    load_fine_tuned_model(tags, "text-ranking")
    _, new_pooler = load_base_model(tags, "text-classification", ["x", "y"])
    assert new_pooler


def test_served_tokens_are_those_that_the_model_was_verified_with(folder: Path) -> None:
    check_served_tokens(load_tokenizer(folder), folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
    path.write_text(json.dumps(content))
    tokenizer = load_tokenizer(folder)
    tokenizer.backend_tokenizer.normalizer = None
    with pytest.raises(CheckpointError, match=r"tokenizer.json makes other tokens of \"Hello, World"):
        check_served_tokens(tokenizer, folder)


def test_an_answer_that_depends_on_padding_is_refused(folder: Path) -> None:
    sample = torch.arange(11)[None] + 5
    check_padding(OneOutput(load_fine_tuned_model(folder, "text-classification")), sample, 0, "tiny")
    # Its mixing over all positions knows no mask.
    config = AutoConfig.for_model(
        "fnet", vocab_size=60, hidden_size=32, num_hidden_layers=1, intermediate_size=64, num_labels=3
    )
    fnet = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        fnet.classifier.weight.normal_()
    with pytest.raises(CheckpointError, match=r"fnet answers a text otherwise when padding follows it \(by"):
        check_padding(OneOutput(fnet), sample, 3, "fnet")


def test_a_decoder_that_does_not_know_its_padding_is_told(folder: Path) -> None:
    config = AutoConfig.for_model(
        "gpt2", vocab_size=60, n_embd=32, n_layer=1, n_head=2, initializer_range=0.5, pad_token_id=3
    )
    gpt = OneOutput(AutoModelForSequenceClassification.from_config(config).eval())
    sample = torch.arange(11)[None] + 5
    check_padding(gpt, sample, 3, "gpt")
    gpt.model.config.pad_token_id = None
    with pytest.raises(
        CheckpointError, match=r"gpt answers .*: write pad_token_id 3, .* in place of None, or take"
    ):
        check_padding(gpt, sample, 3, "gpt")


def test_a_model_that_needs_more_than_ids_and_mask_is_refused() -> None:
    config = AutoConfig.for_model(
        "bart",
        vocab_size=60,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
    )
    bart = OneOutput(AutoModelForSequenceClassification.from_config(config).eval())
    with pytest.raises(
        CheckpointError, match=r"bart does not answer any token ids .*<eos> token.*take an en"
    ):
        check_padding(bart, torch.arange(11)[None] + 5, 1, "bart")


def test_attention_that_depends_on_what_was_asked_before_is_refused(folder: Path) -> None:
    config = AutoConfig.for_model(
        "big_bird",
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        block_size=4,
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    tokenizer_of(model, folder, load_recipe("intent", ["text.max_length=44"]))
    with pytest.raises(CheckpointError, match=r"texts of more than 44 tokens.*add --set text\.max_length=44"):
        tokenizer_of(model, folder, load_recipe("intent", ["text.max_length=45"]))
    config.attention_type = "original_full"
    tokenizer_of(model, folder, load_recipe("intent", ["text.max_length=45"]))


def test_a_tokenizer_that_cuts_off_the_beginning_is_refused(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation_side": "left"}))
    model = load_fine_tuned_model(folder, "text-classification")
    tokenizer_of(model, folder, load_recipe("intent", ["text.max_length=48"]))
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: truncation_side is 'left'.*=false"):
        tokenizer_of(model, folder, load_recipe("intent", ["text.max_length=48", "text.truncation=true"]))


def test_tokens_without_an_embedding_are_refused(folder: Path) -> None:
    model, tokenizer = load_fine_tuned_model(folder, "text-classification"), load_tokenizer(folder)
    check_vocabulary(OneOutput(model), tokenizer, "tiny")
    tokenizer.add_tokens(["parcel"])
    count = len(tokenizer) - 1
    with pytest.raises(
        CheckpointError, match=f"token 'parcel' has the id {count}, and .* embeds {count} tok"
    ):
        check_vocabulary(OneOutput(model), tokenizer, "tiny")


@pytest.mark.parametrize(
    ("name", "fine_tuned"),
    [("intent", True), ("intent", False), ("opinion_heads", False), ("faq", False), ("recommender", False)],
)
def test_such_tokens_are_refused_before_anything_is_trained_or_scored(
    folder: Path, name: str, fine_tuned: bool
) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["parcel"])
    tokenizer.save_pretrained(folder)
    dimension = ["catalogue.dimension=32"] if name == "faq" else []
    recipe = load_recipe(name, ["text.max_length=48", *dimension])
    with pytest.raises(CheckpointError, match="token 'parcel' has the id"):
        learner_of(recipe.task).lesson(recipe, folder, load_dataset(recipe), fine_tuned=fine_tuned)


def test_labels_that_are_not_as_many_as_the_weights_say(folder: Path) -> None:
    _change_config(folder, id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})
    with pytest.raises(
        CheckpointError, match=r"classifier.bias is \[2\] in its weights and \[3\] by its con"
    ):
        load_fine_tuned_model(folder, "text-classification")


def test_a_head_of_another_task_is_not_taken_for_one_of_this(tmp_path: Path) -> None:
    # Both heads of ModernBERT have weights of the same names and shapes.
    config = AutoConfig.for_model(
        "modernbert",
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        pad_token_id=0,
        num_labels=3,
    )
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path)
    load_fine_tuned_model(tmp_path, "token-classification")
    with pytest.raises(
        CheckpointError, match=r"not fine-tuned for text-.* a ModernBertForTokenClassification"
    ):
        load_fine_tuned_model(tmp_path, "text-classification")
