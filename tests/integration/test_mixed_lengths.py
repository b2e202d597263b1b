"""Texts of mixed lengths on a real server: what shares a batch, and that nobody's answer shows it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mooring import Client
from mooring_build.building import build
from mooring_build.models import load_tokenizer
from mooring_build.recipe import load_recipe
from mooring_build.released import ReleasedPipeline
from mooring_serve import TritonServer
from processes import settled
from tiny_checkpoint import make_tiny_checkpoint
from triton_calls import connect, infer_together

pytestmark = pytest.mark.integration

LABELS = {
    "ner": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "intent": ["ask", "complain", "pay"],
}
TASKS = {"ner": "token-classification", "intent": "text-classification"}
MODES = {"ner": ["none", "padded", "ragged"], "intent": ["none", "ragged"]}
# Only ragged engines are made for this; others of ONNX are served elsewhere, and take long to export.
FORMATS = {"none": ["torchscript"], "padded": ["torchscript"], "ragged": ["onnx", "torchscript"]}
ENGINES = [
    (shipped, mode, export_format)
    for shipped, modes in MODES.items()
    for mode in modes
    for export_format in FORMATS[mode]
]
# Eight texts of eight lengths, all above 16 tokens: one bucket of two.
TEXTS = [" ".join(["anna works in porto and lisbon"] * 3 + ["refund"] * extra) for extra in range(8)]
LENGTHS = [20 + extra for extra in range(8)]
#: Of a logit, against one text alone in the same engine.
BOUND = 1e-5
#: Of a score, against the engine of another format.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Built:
    repository: Path
    #: Token ids of :data:`TEXTS`.
    tokens: list[np.ndarray]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    for shipped, labels in LABELS.items():
        checkpoint = make_tiny_checkpoint(folder / shipped, TASKS[shipped], labels)
        for mode in MODES[shipped]:
            overrides = [
                f"name={shipped}_{mode}",
                f"serving.mixed_lengths={mode}",
                f"export.formats={FORMATS[mode]}",
                f"export.engine={FORMATS[mode][0]}",
                "serving.padded_lengths=[16, 32]",
                "text.max_length=48",
                # The batcher waits until all texts are there, on a busy machine for most of them.
                f"serving.preferred_batch_size=[{len(TEXTS)}]",
                "serving.max_queue_delay_microseconds=400000",
                "serving.instance_count=1",
            ]
            build(
                load_recipe(shipped, overrides, fine_tuned=checkpoint),
                repository=folder / "models",
                artifacts=folder / "artifacts",
            )
    encoded = load_tokenizer(folder / "ner")(TEXTS)["input_ids"]
    assert [len(ids) for ids in encoded] == LENGTHS
    return Built(folder / "models", [np.array([ids]) for ids in encoded])


@pytest.fixture(scope="module")
def server(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    log_file = tmp_path_factory.mktemp("logs") / "tritonserver.log"
    with TritonServer(built.repository, log_file=log_file) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_url, timeout_s=30.0) as connected:
        yield connected


def _engine(shipped: str, mode: str, export_format: str) -> str:
    return f"{shipped}_{mode}_{export_format}" + ("_ragged" if mode == "ragged" else "")


def _batches(client: Client, model: str) -> dict[int, int]:
    """Executions by batch size."""
    (statistics,) = settled(lambda: client.statistics(model))
    return {batch.batch_size: batch.compute_infer.count for batch in statistics.batches}


def _since(before: dict[int, int], after: dict[int, int]) -> dict[int, int]:
    counts = {size: count - before.get(size, 0) for size, count in after.items()}
    return {size: count for size, count in counts.items() if count}


def _padded(ids: np.ndarray, mode: str) -> dict[str, np.ndarray]:
    width = 32 if mode == "padded" else ids.shape[1]
    mask = (np.arange(width) < ids.shape[1])[None].astype(np.int64)
    return {"input_ids": np.pad(ids, [(0, 0), (0, width - ids.shape[1])]), "attention_mask": mask}


@pytest.mark.parametrize(("shipped", "mode", "export_format"), ENGINES)
def test_engines_answer_a_batch_of_mixed_lengths_as_one_text(
    shipped: str, mode: str, export_format: str, built: Built, server: TritonServer, client: Client
) -> None:
    model = _engine(shipped, mode, export_format)
    output = "logits__0" if export_format == "torchscript" else "logits"
    inputs = [_padded(ids, mode) for ids in built.tokens]
    alone = [client.infer(model, one)[output] for one in inputs]
    before = _batches(client, model)
    raw = connect(server)
    try:
        together = [answer.as_numpy(output) for answer in infer_together(raw, model, inputs)]
    finally:
        raw.close()
    batches = _since(before, _batches(client, model))
    assert sum(size * count for size, count in batches.items()) == len(TEXTS)
    # No two texts have the same length: a batch of two is one of mixed lengths.
    assert (max(batches) > 1) == (mode != "none"), batches
    for answer, expected, length in zip(together, alone, LENGTHS, strict=True):
        assert answer.shape == expected.shape
        real = slice(length) if shipped == "ner" else slice(None)
        limit = BOUND * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(answer[0, real], expected[0, real], rtol=0, atol=limit)


def _plain(answer: Any) -> list[tuple[Any, ...]]:
    return [tuple(vars(part).values()) for part in answer]


def _without_scores(answer: Any) -> list[tuple[Any, ...]]:
    return [tuple(value for value in part if not isinstance(value, float)) for part in _plain(answer)]


def _scores(answers: list[Any]) -> np.ndarray:
    return np.array([part.score for answer in answers for part in answer])


@pytest.mark.parametrize("shipped", sorted(LABELS))
def test_pipelines_give_the_same_answers_whichever_way(shipped: str, client: Client) -> None:
    answers = {}
    for mode in MODES[shipped]:
        task = client.task(f"{shipped}_{mode}")
        engine = _engine(shipped, mode, FORMATS[mode][0])
        postprocessor = f"{shipped}_{mode}_postprocessor"
        before = {model: _batches(client, model) for model in (engine, postprocessor)}
        with ThreadPoolExecutor(len(TEXTS)) as pool:
            together = list(pool.map(task, TEXTS))
        batches = {model: _since(counts, _batches(client, model)) for model, counts in before.items()}
        assert (max(batches[engine]) > 1) == (mode != "none"), batches
        # What the engine answers at once, the next step takes together, of unlike shapes too.
        assert mode == "none" or max(batches[postprocessor]) > 1, batches
        # A request of several texts holds padding of its own, whatever the mode.
        answers[mode] = [*together, *task(TEXTS[::-3])]
        assert any(answers[mode])
    for mode in MODES[shipped]:
        for ours, theirs in zip(answers[mode], answers["none"], strict=True):
            assert _without_scores(ours) == _without_scores(theirs)
        np.testing.assert_allclose(_scores(answers[mode]), _scores(answers["none"]), rtol=0, atol=TOLERANCE)


def test_a_bad_text_fails_alone_in_a_ragged_batch(built: Built, server: TritonServer, client: Client) -> None:
    model = "ner_ragged_onnx_ragged"
    inputs = [_padded(ids, "ragged") for ids in built.tokens]
    inputs[3]["input_ids"][0, 2] = 10_000
    raw = connect(server)
    try:
        answers = infer_together(raw, model, inputs)
    finally:
        raw.close()
    assert "indices element out of data bounds" in str(answers[3])
    for place, answer in enumerate(answers):
        if place != 3:
            assert answer.as_numpy("logits").shape == (1, LENGTHS[place], len(LABELS["ner"]))


def test_a_released_ragged_pipeline_runs_in_this_process_too(built: Built, client: Client) -> None:
    rows = ReleasedPipeline(built.repository, "intent_ragged").run(TEXTS)
    inputs = [_padded(ids, "ragged") for ids in built.tokens]
    served = [client.infer("intent_ragged_onnx_ragged", one)["logits"][0] for one in inputs]
    np.testing.assert_allclose(rows, np.stack(served), rtol=0, atol=BOUND * float(np.abs(rows).max()))
