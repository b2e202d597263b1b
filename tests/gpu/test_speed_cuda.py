"""What packing gains on a data-centre GPU, and what the server costs a batch; each prints its figure."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification

from cuda_device import NO_DEVICE, compute_capability
from mooring import AsyncClient
from mooring_build.export import export_engine
from mooring_build.learners import learner_of
from mooring_build.packing import packed_exportable
from mooring_build.precision import Halved
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.triton_config import dumps_config, engine_name, model_configs
from mooring_loadtests.bench_clients import drive
from mooring_serve import TritonServer
from mooring_serve._installation import _GPU_SETTINGS
from tiny_checkpoint import make_tiny_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        compute_capability() < (9, 0),
        reason=f"what is wanted is wanted of H100, H200 and newer; {NO_DEVICE}",
    ),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]

LABELS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]
MAX_LENGTH = 256
BATCH = 32
LARGE_BATCH = 256
INSTANCES = 2
CALLERS = 8
TURNS = 5


@dataclass(frozen=True)
class Engines:
    """A BERT-base of random weights in fp16, as a padded and as a packed TorchScript engine."""

    padded: Path
    packed: Path
    recipe: Recipe


def make_engines(folder: Path, **size: int) -> Engines:
    checkpoint = make_tiny_checkpoint(folder / "checkpoint", "token-classification", LABELS)
    # Speed does not depend on what the weights are.
    config = BertConfig.from_pretrained(checkpoint)
    config.update({**BertConfig().to_dict(), "vocab_size": config.vocab_size, **size})
    config.update(
        {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    )
    BertForTokenClassification(config).save_pretrained(checkpoint)
    overrides = [
        f"text.max_length={MAX_LENGTH}",
        "serving.mixed_lengths=ragged",
        f"serving.instance_count={INSTANCES}",
    ]
    overrides += [f"serving.preferred_batch_size=[{BATCH}]", 'export.formats=["torchscript"]']
    overrides += ["export.engine=torchscript", "serving.kind=gpu", "serving.warm_up=false"]
    recipe = load_recipe("ner", overrides, fine_tuned=checkpoint)
    exportable = learner_of(recipe.task).exportable(recipe, checkpoint)
    paths = [
        export_engine(
            replace(one, module=Halved(one.module, torch.float16).eval(), hub_model=None),
            recipe,
            "torchscript",
            target,
        )
        for one, target in (
            (exportable, folder / "padded"),
            (packed_exportable(exportable, recipe), folder / "packed"),
        )
    ]
    return Engines(*paths, recipe)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    with pytest.MonkeyPatch.context() as patch:
        # As in the server: PyTorch reads it when it first attends on the device.
        for name, value in _GPU_SETTINGS.items():
            patch.setenv(name, value)
        yield make_engines(tmp_path_factory.mktemp("engines"))


def texts(count: int) -> list[torch.Tensor]:
    """Token ids of texts whose lengths are lognormal with a mean of 60, 256 at most."""
    random = np.random.default_rng(0)
    lengths = random.lognormal(np.log(60) - 0.6**2 / 2, 0.6, count).round().clip(1, MAX_LENGTH)
    return [torch.from_numpy(random.integers(5, 100, int(length))) for length in lengths]


def batches(rows: Sequence[torch.Tensor], size: int) -> list[Sequence[torch.Tensor]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def packed_inputs(batch: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    ids = torch.cat(list(batch))
    lengths = torch.tensor([[len(row)] for row in batch], dtype=torch.int32)
    return ids, torch.ones_like(ids), lengths


def padded_inputs(batch: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    ids = torch.nn.utils.rnn.pad_sequence(list(batch), batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in batch], batch_first=True)
    return ids, mask


def seconds(
    path: Path, runs: Sequence[tuple[torch.Tensor, ...]], device: str, *, threads: int = 1
) -> Callable[[], float]:
    """Time of all runs, tensors sent to the device and answers brought back; warm."""
    module: Any = torch.jit.load(path, map_location=device).eval()

    def run_some(some: Sequence[tuple[torch.Tensor, ...]]) -> None:
        # As the published config has it.
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            for inputs in some:
                module(*(tensor.to(device) for tensor in inputs)).cpu()

    # The same threads each time: what PyTorch keeps by thread is there.
    pool = ThreadPoolExecutor(threads)

    def run() -> float:
        began_s = time.perf_counter()
        list(pool.map(run_some, [runs[first::threads] for first in range(threads)]))
        return time.perf_counter() - began_s

    run()
    run()
    return run


def ragged_over_padded(
    engines: Engines, rows: Sequence[torch.Tensor], device: str, size: int
) -> tuple[float, float]:
    """How much faster packed texts are, in turns, and how many cells padding takes for each token."""
    parts = batches(rows, size)
    padded = seconds(engines.padded, [padded_inputs(part) for part in parts], device)
    packed = seconds(engines.packed, [packed_inputs(part) for part in parts], device)
    turns = [(padded(), packed()) for _ in range(TURNS)]
    print(f"{size} texts, seconds padded and packed: {turns}")
    ratios = [one / other for one, other in turns]
    cells = sum(len(part) * max(map(len, part)) for part in parts)
    return statistics.median(ratios), cells / sum(map(len, rows))


def served_over_bare(engines: Engines, rows: Sequence[torch.Tensor], device: str, folder: Path) -> float:
    """Speed of the served engine over that of the engine here, which get the same batches."""
    requests = [padded_inputs(part) for part in batches(rows, BATCH)]
    # What Triton makes of such a request: all cells in one row, and how many each text has.
    flat = [
        (ids.flatten(), mask.flatten(), torch.full((len(ids), 1), ids.shape[1], dtype=torch.int32))
        for ids, mask in requests
    ]
    # As many threads as the server has instances: one sends and reads while the other's batch runs.
    bare = seconds(engines.packed, flat, device, threads=INSTANCES)
    name = engine_name(engines.recipe, "torchscript")
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "1" / "model.pt").symlink_to(engines.packed)
    config = model_configs(engines.recipe, LABELS, 1)[name]
    (folder / name / "config.pbtxt").write_text(dumps_config(config), encoding="utf-8")
    inputs = [{"input_ids": ids.numpy(), "attention_mask": mask.numpy()} for ids, mask in requests]

    async def measure(server: TritonServer) -> list[float]:
        async with AsyncClient(server.grpc_url, timeout_s=60.0) as client:

            async def ask(number: int) -> dict[str, np.ndarray]:
                return await client.infer(name, inputs[number])

            await drive(ask, range(len(inputs)), concurrency=CALLERS)
            (answered,) = (await ask(0)).values()
            module: Any = torch.jit.load(engines.packed, map_location=device).eval()
            with torch.inference_mode():
                expected = module(*(tensor.to(device) for tensor in flat[0])).cpu().numpy()
            np.testing.assert_allclose(answered.reshape(expected.shape), expected, atol=0.05)
            ratios = []
            for _ in range(TURNS):
                served_per_s = (await drive(ask, range(len(inputs)), concurrency=CALLERS)).per_s
                bare_per_s = len(inputs) / bare()
                print(f"batches a second, served and bare: {served_per_s:.0f} and {bare_per_s:.0f}")
                ratios.append(served_per_s / bare_per_s)
            return ratios

    with TritonServer(folder, log_file=folder.parent / "tritonserver.log") as server:
        return statistics.median(asyncio.run(measure(server)))


def test_packing_gains_what_padding_costs(engines: Engines) -> None:
    for size in (BATCH, LARGE_BATCH):
        gained, padding = ragged_over_padded(engines, texts(4096), "cuda", size)
        print(f"packed over padded, {size} texts: {gained:.2f}, cells over tokens {padding:.2f}")
    # The larger one counts: of few texts such a GPU is done before the next kernel is launched.
    assert gained >= 0.8 * padding


def test_the_server_keeps_the_engines_speed(engines: Engines, tmp_path: Path) -> None:
    # A single text takes the server, a client and Python longer than such a GPU: whole batches are asked.
    kept = served_over_bare(engines, texts(8192), "cuda", tmp_path / "models")
    print(f"engine over gRPC over the engine in process {kept:.2f}")
    assert kept >= 0.88
