"""Checkpoints that are loaded for what they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from mooring import CheckpointError
from mooring_build.learners.text import LogitsOnly
from mooring_build.models import (
    check_padding,
    check_served_tokens,
    load_base_model,
    load_fine_tuned_model,
    load_tokenizer,
)
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
    check_padding(LogitsOnly(load_fine_tuned_model(folder, "text-classification")), sample, 0, "tiny")
    # Its mixing over all positions knows no mask.
    config = AutoConfig.for_model(
        "fnet", vocab_size=60, hidden_size=32, num_hidden_layers=1, intermediate_size=64, num_labels=3
    )
    fnet = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        fnet.classifier.weight.normal_()
    with pytest.raises(CheckpointError, match=r"fnet answers a text otherwise when padding follows it \(by"):
        check_padding(LogitsOnly(fnet), sample, 3, "fnet")
