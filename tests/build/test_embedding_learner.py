"""The contrastive lesson: its loss and its metrics, on vectors that are worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, EvalPrediction

from mooring_build.learners.embedding import EmbeddingModel, _mark, _score, load_embedding_model
from mooring_build.learners.heads import HeadsModel
from tiny_checkpoint import make_tiny_checkpoint


@pytest.fixture
def model() -> EmbeddingModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    return EmbeddingModel.around(BertModel(config)).eval()


def test_vectors_have_unit_length_and_padding_does_not_count(model: EmbeddingModel) -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    alone = model(ids, torch.ones_like(ids)).embedding
    padded = torch.cat([ids, torch.full((2, 2), 7)], dim=1)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 2)
    assert torch.allclose(model(padded, mask).embedding, alone, atol=1e-6)
    assert torch.allclose(alone.norm(dim=1), torch.ones(2))


def test_the_vector_of_the_first_token_is_taken_where_the_checkpoint_says_so(model: EmbeddingModel) -> None:
    first = EmbeddingModel.around(model.encoder, "cls").eval()
    ids = torch.tensor([[1, 2, 3, 9]])
    mask = torch.tensor([[1, 1, 1, 0]])
    hidden = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(first(ids, mask).embedding, torch.nn.functional.normalize(hidden[:, 0], dim=-1))
    assert not torch.allclose(first(ids, mask).embedding, model(ids, mask).embedding, atol=1e-3)


def test_a_checkpoint_of_sentence_transformers_says_how_it_pools(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path, "feature-extraction", ["a"])
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    recipe = SimpleNamespace(task="feature-extraction", catalogue=None, text=SimpleNamespace(dimension=width))
    assert load_embedding_model(folder, recipe).config.pooling == "mean"
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"path": "", "type": "sentence_transformers.models.Transformer"},
                {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    made = load_embedding_model(folder, recipe)
    assert made.config.pooling == "cls"
    # A fine-tuned one keeps it.
    made.save_pretrained(tmp_path / "tuned")
    assert load_embedding_model(tmp_path / "tuned", recipe).config.pooling == "cls"


def test_another_text_of_the_same_item_is_no_negative(model: EmbeddingModel) -> None:
    # Three texts and positives that are the same texts: cosines of 1 on the diagonal.
    ids = torch.tensor([[1, 2], [3, 4], [1, 2]])
    mask = torch.ones_like(ids)

    def loss(*labels: int) -> float:
        return float(model(ids, mask, ids, mask, torch.tensor(labels)).loss.detach())

    vectors = model(ids, mask).embedding.detach()
    far = math.exp(20 * (float(vectors[0] @ vectors[1]) - 1))
    assert loss(0, 1, 0) == pytest.approx((2 * math.log1p(far) + math.log1p(2 * far)) / 3, rel=1e-4)
    # Taken for items of their own, the first and the third are each other's negatives.
    assert loss(0, 1, 2) == pytest.approx((2 * math.log(2 + far) + math.log1p(2 * far)) / 3, rel=1e-4)
    assert loss(0, 1, _mark(0, of_catalogue=True)) == pytest.approx(loss(0, 1, 0))


def test_queries_are_ranked_against_the_catalogue_beside_them() -> None:
    catalogue = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    queries = np.array([[1, 0], [0.8, 0.6], [0, -1]], np.float32)
    # The second item is known by two vectors: it wins the first query's second place, and the second query.
    marks = [_mark(0, of_catalogue=True), _mark(1, of_catalogue=True), _mark(1, of_catalogue=True)]
    prediction = EvalPrediction(
        predictions=np.concatenate([queries, catalogue]), label_ids=np.array([0, 0, 1, *marks])
    )
    found = _score(prediction)
    # Places 0, 1 and 1: -0.8 and -1 of the second item lose against 0 of the first.
    assert found["hit_at_1"] == pytest.approx(1 / 3)
    assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)


def test_equal_scores_are_settled_by_the_catalogue_s_order() -> None:
    vectors = np.array([[1, 0], [1, 0], [1, 0], [1, 0]], np.float32)
    marks = np.array([0, 1, _mark(0, of_catalogue=True), _mark(1, of_catalogue=True)])
    assert _score(EvalPrediction(predictions=vectors, label_ids=marks))["mrr"] == pytest.approx(0.75)


def test_an_encoder_may_call_its_width_otherwise() -> None:
    config = DistilBertConfig(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    model = EmbeddingModel.around(DistilBertModel(config))
    assert (model.config.hidden_size, model.config.vocab_size) == (16, 30)
    heads = HeadsModel.around(DistilBertModel(config), {"x": ["a", "b"]})
    assert heads.config.hidden_size == 16
