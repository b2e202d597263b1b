"""TorchScript engines with ragged inputs on a CUDA device: attention runs without padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cuda_device import NO_DEVICE, compute_capability
from mooring_build.export import export_engine
from mooring_build.learners import learner_of
from mooring_build.packing import packed_exportable
from mooring_build.recipe import load_recipe
from tiny_checkpoint import make_tiny_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(compute_capability() == (0, 0), reason=NO_DEVICE),
]

LENGTHS = [5, 1, 30, 7, 48]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_engine_runs_flash_attention_and_answers_as_fp32_does(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = make_tiny_checkpoint(tmp_path / "tiny", "token-classification", ["O", "B-PER", "I-PER"])
    recipe = load_recipe("ner", ["text.max_length=48", "serving.mixed_lengths=ragged"], fine_tuned=folder)
    exportable = learner_of(recipe.task).exportable(recipe, folder)
    packed = packed_exportable(exportable, recipe)
    half = replace(packed, module=packed.module.to(dtype))
    path = export_engine(half, recipe, "torchscript", tmp_path / "engine")
    module = torch.jit.load(path, map_location="cuda")

    random = np.random.default_rng(1)
    texts = [torch.from_numpy(random.integers(5, 100, length)) for length in LENGTHS]
    ids, lengths = torch.cat(texts), torch.tensor(LENGTHS, dtype=torch.int32)[:, None]
    with torch.inference_mode(), torch.profiler.profile() as profile:
        answer = module(ids.cuda(), torch.ones_like(ids).cuda(), lengths.cuda()).float().cpu()
    assert "aten::_flash_attention_forward" in {event.key for event in profile.key_averages()}
    with torch.inference_mode():
        expected = torch.cat([exportable.module(ids[None], torch.ones_like(ids[None]))[0] for ids in texts])
    assert (answer.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9
    scale = float(expected.abs().max())
    assert float((answer - expected).abs().max()) < 0.1 * scale
