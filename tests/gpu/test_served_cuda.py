"""Engines that a build published for GPUs answer on one as PyTorch does in fp32 on the CPU."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from cuda_device import NO_DEVICE, compute_capability
from mooring import AsyncClient
from mooring_build.building import build
from mooring_build.learners import learner_of
from mooring_build.models import load_tokenizer
from mooring_build.recipe import load_recipe
from mooring_build.triton_config import engine_name
from mooring_serve import TritonServer
from tiny_checkpoint import WORDS, make_tiny_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(compute_capability() == (0, 0), reason=NO_DEVICE),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]

LABELS = ["ask", "complain", "pay"]
_PROVIDERS = onnxruntime.get_available_providers()
_ONNX = pytest.mark.skipif(
    "CUDAExecutionProvider" not in _PROVIDERS,
    reason=f"needs onnxruntime-gpu: this ONNX Runtime has only {_PROVIDERS}",
)


def check_served(
    folder: Path, engine: str, precision: str, mixed_lengths: str, *, kind: str, bound: float
) -> None:
    """Build, serve, and ask for texts of many lengths at once; answers differ by ``bound`` of the largest."""
    checkpoint = make_tiny_checkpoint(
        folder / "checkpoint", "text-classification", LABELS, initializer_range=0.1
    )
    random = np.random.default_rng(3)
    texts = [" ".join(random.choice(WORDS, length)) for length in random.integers(1, 40, 64)]
    rows = [f"{text},{LABELS[place % len(LABELS)]}" for place, text in enumerate(texts)]
    (folder / "eval.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    overrides = [f"serving.kind={kind}", f"serving.mixed_lengths={mixed_lengths}", "text.max_length=48"]
    overrides += [f"export.precision={precision}", f'export.formats=["{engine}"]', f"export.engine={engine}"]
    overrides += ["data.format=csv", f"data.evaluation={folder / 'eval.csv'}"]
    overrides += ["quality.max_drop=1.0", "quality.max_label_flips=1.0", "verify.lowered_tolerance=1"]
    recipe = load_recipe("intent", overrides, fine_tuned=checkpoint)
    build(recipe, repository=folder / "models", artifacts=folder / "artifacts")

    tokenizer = load_tokenizer(checkpoint)
    encoded = [tokenizer([text], return_tensors="np") for text in texts]
    inputs = [
        {name: one[name].astype(np.int64) for name in ("input_ids", "attention_mask")} for one in encoded
    ]
    module = learner_of(recipe.task).exportable(recipe, checkpoint).module
    with torch.inference_mode():
        expected = [
            module(torch.from_numpy(one["input_ids"]), torch.from_numpy(one["attention_mask"])).numpy()
            for one in inputs
        ]

    async def ask(url: str) -> list[np.ndarray]:
        async with AsyncClient(url, timeout_s=60.0) as client:
            asked = (client.infer(engine_name(recipe, recipe.export.engine), one) for one in inputs)
            return [next(iter(answer.values())) for answer in await asyncio.gather(*asked)]

    with TritonServer(folder / "models", log_file=folder / "tritonserver.log") as server:
        answers = np.concatenate(asyncio.run(ask(server.grpc_url)))
    wanted = np.concatenate(expected)
    assert float(np.abs(answers - wanted).max()) <= bound * max(1.0, float(np.abs(wanted).max()))
    assert (answers.argmax(-1) == wanted.argmax(-1)).mean() > 0.9


@pytest.mark.parametrize("mixed_lengths", ["padded", "ragged"])
@pytest.mark.parametrize(
    ("engine", "precision", "bound"),
    [
        pytest.param("onnx", "fp32", 1e-3, marks=_ONNX),
        pytest.param("onnx", "fp16", 0.05, marks=_ONNX),
        ("torchscript", "fp32", 1e-3),
        ("torchscript", "fp16", 0.05),
        ("torchscript", "bf16", 0.2),
    ],
)
def test_a_served_engine_answers_as_pytorch_does(
    engine: str, precision: str, bound: float, mixed_lengths: str, tmp_path: Path
) -> None:
    check_served(tmp_path, engine, precision, mixed_lengths, kind="gpu", bound=bound)
