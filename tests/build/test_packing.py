"""Encoders on packed texts, against the same encoders asked for each text alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from mooring import CheckpointError
from mooring_build.learners.embedding import EmbeddingModel
from mooring_build.learners.heads import HeadsModel
from mooring_build.learners.text import OneOutput
from mooring_build.models import load_fine_tuned_model
from mooring_build.packing import PackedTexts, Packing, attend, attend_for_onnx, attend_unpadded
from tiny_checkpoint import make_tiny_checkpoint

# In FP32 the answers of packed and of single texts differ by rounding alone.
BOUND = 1e-5
MAX_LENGTH = 48
_SIZE = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
}
_DISTILBERT = {
    "vocab_size": 120,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 64,
    "max_position_embeddings": 66,
}


def _texts(lengths: list[int]) -> list[torch.Tensor]:
    random = np.random.default_rng(7)
    return [torch.from_numpy(random.integers(5, 100, length)) for length in lengths]


def _alone(module: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(ids[None], torch.ones_like(ids)[None])[0]


def _packed(packed: torch.nn.Module, texts: list[torch.Tensor]) -> torch.Tensor:
    lengths = torch.tensor([[len(ids)] for ids in texts], dtype=torch.int32)
    ids = torch.cat(texts)
    with torch.no_grad():
        return packed(ids, torch.ones_like(ids), lengths)


def _check(module: torch.nn.Module, lengths: list[int], *, per_token: bool = False) -> None:
    packed = PackedTexts(module, max_length=MAX_LENGTH, per_token=per_token).eval()
    texts = _texts(lengths)
    alone = [_alone(module, ids) for ids in texts]
    expected = torch.cat(alone) if per_token else torch.stack(alone)
    actual = _packed(packed, texts)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=BOUND * max(1, float(expected.abs().max())))


LENGTHS = [[5, 1, 30, 7], [1], [1, 1], [48], [2, 48, 2], [9, 9, 9]]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("task", ["token-classification", "text-classification"])
def test_packed_texts_get_the_answers_of_single_ones(task: str, lengths: list[int], tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path, task, ["a", "b", "c"])
    module = OneOutput(load_fine_tuned_model(folder, task)).eval()
    _check(module, lengths, per_token=task == "token-classification")


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "xlm-roberta", "distilbert"])
def test_other_encoders_and_what_is_made_of_one(kind: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(_DISTILBERT if kind == "distilbert" else _SIZE))
    lengths = LENGTHS[0]
    _check(OneOutput(AutoModelForSequenceClassification.from_config(config)).eval(), lengths)
    if kind == "bert":
        encoder = AutoModel.from_config(config)
        for pooling in ("mean", "cls"):
            _check(OneOutput(EmbeddingModel.around(encoder, pooling), "embedding").eval(), lengths)
        _check(OneOutput(HeadsModel.around(encoder, {"x": ["a", "b"], "y": ["c", "d"]})).eval(), lengths)


@pytest.mark.parametrize("kind", ["mpnet", "albert"])
def test_an_encoder_that_can_not_be_packed_is_refused(kind: str) -> None:
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **_SIZE))
    with pytest.raises(CheckpointError, match=f"'ragged': '{kind}' models have no exchangeable attention"):
        PackedTexts(OneOutput(model), max_length=MAX_LENGTH, per_token=False)


def test_the_model_itself_stays_as_it_is(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path, "text-classification", ["a", "b"])
    module = OneOutput(load_fine_tuned_model(folder, "text-classification")).eval()
    before = _alone(module, _texts([9])[0])
    PackedTexts(module, max_length=MAX_LENGTH, per_token=False)
    assert module.model.config._attn_implementation == "sdpa"
    assert torch.equal(_alone(module, _texts([9])[0]), before)


def test_padding_inside_a_request_changes_nothing(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path, "token-classification", ["a", "b", "c"])
    module = OneOutput(load_fine_tuned_model(folder, "token-classification")).eval()
    packed = PackedTexts(module, max_length=MAX_LENGTH, per_token=True).eval()
    short, long = _texts([4, 9])
    ids = torch.cat([short, torch.full((5,), 99), long])
    mask = torch.cat([torch.ones(4), torch.zeros(5), torch.ones(9)]).long()
    with torch.no_grad():
        both = packed(ids, mask, torch.tensor([[9], [9]], dtype=torch.int32))
    torch.testing.assert_close(both[:4], _alone(module, short), rtol=0, atol=BOUND)
    torch.testing.assert_close(both[9:], _alone(module, long), rtol=0, atol=BOUND)


def test_a_mask_that_is_not_as_long_as_its_ids_is_refused(tmp_path: Path) -> None:
    # Triton looks at each input by itself: a surplus of one request would become the next one's mask.
    folder = make_tiny_checkpoint(tmp_path, "text-classification", ["a", "b"])
    module = OneOutput(load_fine_tuned_model(folder, "text-classification")).eval()
    packed = PackedTexts(module, max_length=MAX_LENGTH, per_token=False).eval()
    ids, mask, lengths = torch.arange(11) + 5, torch.ones(15).long(), torch.tensor([[4], [7]])
    with pytest.raises(RuntimeError, match="must match the size"), torch.no_grad():
        packed(ids, mask, lengths.int())


def test_a_warm_up_of_zeros_is_finite(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path, "text-classification", ["a", "b"])
    module = OneOutput(load_fine_tuned_model(folder, "text-classification")).eval()
    packed = PackedTexts(module, max_length=MAX_LENGTH, per_token=False).eval()
    zeros = torch.zeros(12, dtype=torch.int64)
    with torch.no_grad():
        answer = packed(zeros, zeros, torch.tensor([[4], [8]], dtype=torch.int32))
    assert answer.shape == (2, 2)
    assert torch.isfinite(answer).all()


def _attention(
    lengths: list[int], *, dtype: torch.dtype = torch.float32
) -> tuple[list[torch.Tensor], Packing, torch.Tensor]:
    """Queries, keys and values ``[N, 3, 16]``, where they are, and the attention of each text by itself."""
    generator = torch.Generator().manual_seed(3)
    filled = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    rows = [torch.randn(sum(lengths), 3, 16, generator=generator).to(dtype) for _ in range(3)]
    parts = zip(*(row.transpose(0, 1).split(lengths, dim=1) for row in rows), strict=True)
    alone = [functional.scaled_dot_product_attention(*part, scale=0.3) for part in parts]
    return rows, Packing.of(filled), torch.cat(alone, dim=1).transpose(0, 1)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_texts_attend_to_themselves_alone(lengths: list[int]) -> None:
    rows, packing, expected = _attention(lengths)
    torch.testing.assert_close(attend(*rows, *packing, 0.3), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(attend_for_onnx(*rows, packing, 0.3), expected, rtol=0, atol=1e-6)


def _flash_stand_in(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """What PyTorch's kernel means by its arguments, on the CPU."""
    assert (dropout_p, is_causal, return_debug_mask) == (0.0, False, False)
    assert cum_seq_q.dtype == cum_seq_k.dtype == torch.int32
    assert cum_seq_q.diff().max() <= max_q
    assert cum_seq_k.diff().max() <= max_k
    mixed = torch.empty_like(query)
    for start, end in zip(cum_seq_q[:-1].tolist(), cum_seq_q[1:].tolist(), strict=True):
        q, k, v = (part[start:end].transpose(0, 1) for part in (query, key, value))
        mixed[start:end] = functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1)
    nothing = torch.empty(0)
    return mixed, nothing, nothing, nothing, nothing


@pytest.mark.parametrize("lengths", [[5, 1, 30, 7], [1], [48], [9, 9, 9]], ids=str)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_flash_attention_is_told_where_texts_begin(lengths: list[int]) -> None:
    rows, packing, expected = _attention(lengths)
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", _flash_stand_in, "CPU")
        for run in (attend_unpadded, torch.jit.script(attend_unpadded)):
            torch.testing.assert_close(
                run(*rows, packing.starts, max(lengths), 0.3), expected, rtol=0, atol=1e-6
            )
