"""The contrastive lesson: its loss and its metrics, on vectors that are worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, EvalPrediction

from mooring_build.learners.embedding import EmbeddingModel, _mark, _score


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
