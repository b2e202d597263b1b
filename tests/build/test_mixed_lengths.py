"""A text's answer depends on the text alone, whichever way texts of mixed lengths share a batch.

Engines run in this process, on batches as Triton makes them of requests: those of equal shape joined row by
row, ragged ones packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from mooring import CheckpointError, RecipeError, VerificationError
from mooring_build.engines import Engine, open_engine
from mooring_build.export import export_engine
from mooring_build.layouts.text import padded_lengths
from mooring_build.learners import Exportable, learner_of
from mooring_build.learners.text import text_cases
from mooring_build.packing import packed_exportable
from mooring_build.ragged_engine import RaggedEngine
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.recipe_tables import ExportFormat
from mooring_build.triton_config import engine_name, model_configs
from mooring_build.verification import verify_engine
from tiny_checkpoint import make_tiny_checkpoint
from tiny_release import padded_recipe

LABELS = {
    "token-classification": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "text-classification": ["ask", "complain", "pay"],
}
MAX_LENGTH = 48
# Of the text's largest logit, in FP32: rounding, which differs with the shapes that are multiplied.
BOUND = 1e-5

#: One request: the token ids of its texts.
Request = list[list[int]]


@dataclass(frozen=True)
class Served:
    """One recipe's engine, and the PyTorch model that it was made of."""

    recipe: Recipe
    exportable: Exportable
    engine: Engine
    config: pb.ModelConfig

    @property
    def per_token(self) -> bool:
        return self.recipe.task == "token-classification"

    def alone(self, ids: list[int]) -> np.ndarray:
        """What the PyTorch model says of one text."""
        row = torch.tensor([ids])
        with torch.inference_mode():
            return self.exportable.module(row, torch.ones_like(row))[0].numpy()

    def answers(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """One answer a text, of requests that came at the same time."""
        rows = [_padded(request, padded_lengths(self.recipe)) for request in requests]
        texts = [ids for request in requests for ids in request]
        if self.recipe.serving.mixed_lengths == "ragged":
            answers = self._run_packed(rows)
        else:
            answers = self._run_equal(rows)
        return [
            answer[: len(ids)] if self.per_token else answer
            for answer, ids in zip(answers, texts, strict=True)
        ]

    def _run_packed(self, rows: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        ids, mask = (
            np.concatenate([part.reshape(-1) for part in parts]) for parts in zip(*rows, strict=True)
        )
        widths = [ids.shape[1] for ids, _ in rows for _ in ids]
        output = self.engine(ids, mask, np.array(widths, np.int32)[:, None])
        if not self.per_token:
            return list(output)
        return list(np.split(output, np.cumsum(widths)[:-1]))

    def _run_equal(self, rows: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        answers: dict[int, np.ndarray] = {}
        for width in {ids.shape[1] for ids, _ in rows}:
            places = [place for place, (ids, _) in enumerate(rows) if ids.shape[1] == width]
            batch = [np.concatenate([rows[place][part] for place in places]) for part in (0, 1)]
            output = self.engine(*batch)
            for place in places:
                count = len(rows[place][0])
                answers[place], output = output[:count], output[count:]
        return [answer for place in range(len(rows)) for answer in answers[place]]


def _padded(request: Request, lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """A request's ids and mask ``[B, L]``, as the tokenizer makes them."""
    longest = max(map(len, request))
    width = next((length for length in lengths if length >= longest), longest)
    ids = np.zeros((len(request), width), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(request):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return ids, mask


class Exports:
    """Engines of two tiny checkpoints, each exported once: ``none`` and ``padded`` share theirs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: dict[str, Path] = {}

    def load(self, task: str, mixed_lengths: str) -> tuple[Recipe, Exportable]:
        checkpoint = self._folder / task
        if not checkpoint.exists():
            make_tiny_checkpoint(checkpoint, task, LABELS[task], initializer_range=0.1)
        shipped = "ner" if task == "token-classification" else "intent"
        overrides = [f"text.max_length={MAX_LENGTH}", f"serving.mixed_lengths={mixed_lengths}"]
        recipe = load_recipe(shipped, [*overrides, "serving.padded_lengths=[6, 16]"], fine_tuned=checkpoint)
        return recipe, learner_of(recipe.task).exportable(recipe, checkpoint)

    def serve(self, task: str, mixed_lengths: str, export_format: ExportFormat) -> Served:
        recipe, exportable = self.load(task, mixed_lengths)
        name = engine_name(recipe, export_format)
        if name not in self._paths:
            exported = packed_exportable(exportable, recipe) if mixed_lengths == "ragged" else exportable
            self._paths[name] = export_engine(exported, recipe, export_format, self._folder / name)
        config = model_configs(recipe, LABELS[task], 1)[name]
        return Served(recipe, exportable, open_engine(self._paths[name], export_format), config)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="module", params=sorted(LABELS))
def task(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=["none", "padded", "ragged"])
def mixed_lengths(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=["onnx", "torchscript"])
def served(request: pytest.FixtureRequest, exports: Exports, task: str, mixed_lengths: str) -> Served:
    return exports.serve(task, mixed_lengths, request.param)


_TEXTS = st.lists(st.integers(5, 95), min_size=1, max_size=MAX_LENGTH)
_REQUESTS = st.lists(st.lists(_TEXTS, min_size=1, max_size=3), min_size=1, max_size=5)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(requests=_REQUESTS, data=st.data())
def test_a_texts_answer_depends_on_the_text_alone(
    served: Served, requests: list[Request], data: st.DataObject
) -> None:
    texts = [ids for request in requests for ids in request]
    order = data.draw(st.permutations(range(len(texts))))
    together = served.answers(requests)
    reordered = dict(zip(order, served.answers([[texts[place]] for place in order]), strict=True))
    for place, ids in enumerate(texts):
        (alone,) = served.answers([[ids]])
        bound = BOUND * max(1.0, float(np.abs(alone).max()))
        assert together[place].shape == alone.shape
        np.testing.assert_allclose(together[place], alone, rtol=0, atol=bound)
        np.testing.assert_allclose(reordered[place], alone, rtol=0, atol=bound)
        np.testing.assert_allclose(alone, served.alone(ids), rtol=0, atol=served.recipe.verify.tolerance)


@pytest.mark.parametrize("export_format", ["onnx", "torchscript"])
@pytest.mark.parametrize("surplus", [-2, 3])
def test_a_mask_of_another_length_than_its_ids_is_an_error_and_shifts_no_other_text(
    exports: Exports, task: str, export_format: ExportFormat, surplus: int
) -> None:
    # Triton looks at each input by itself, so that it lets such a request join a batch.
    engine = exports.serve(task, "ragged", export_format).engine
    ids, lengths = np.arange(11) + 5, np.array([[4], [7]], np.int32)
    engine(ids, np.ones(11, np.int64), lengths)
    with pytest.raises(
        Exception, match=r"must match the size|[Bb]roadcast|invalid index|[Ii]ncompatible dim"
    ):
        engine(ids, np.ones(11 + surplus, np.int64), lengths)


def test_what_is_published_is_verified_as_triton_runs_it(served: Served) -> None:
    recipe, exportable = served.recipe, served.exportable
    engine = served.engine
    if recipe.serving.mixed_lengths == "ragged":
        engine = RaggedEngine(engine, served.config)
    parity = verify_engine(engine, exportable, recipe, text_cases(recipe, exportable, []))
    assert parity.passed
    assert parity.cases > 40


@pytest.fixture(scope="module")
def ragged(exports: Exports) -> Served:
    return exports.serve("token-classification", "ragged", "torchscript")


def test_the_longest_text_is_one_of_the_cases_however_long(ragged: Served) -> None:
    text = ragged.recipe.text.model_copy(update={"max_length": 4096})
    recipe = ragged.recipe.model_copy(update={"text": text})
    shapes = {case.inputs[0].shape for case in text_cases(recipe, ragged.exportable, [])}
    assert (1, 4096) in shapes
    assert max(batch * length for batch, length in shapes if batch > 1) <= 2048


def _verify(ragged: Served, engine: Engine, config: pb.ModelConfig | None = None) -> None:
    fed = RaggedEngine(engine, config or ragged.config)
    verify_engine(fed, ragged.exportable, ragged.recipe, text_cases(ragged.recipe, ragged.exportable, []))


def test_a_scatter_of_another_width_is_found(ragged: Served) -> None:
    # Triton loads this, and gives every text but the first another one's logits.
    narrow = pb.ModelConfig()
    narrow.CopyFrom(ragged.config)
    narrow.output[0].dims[-1] = 4
    with pytest.raises(VerificationError, match=r"\[2, 5\] holds 10 values .* dims \[-1, 4\] make 8"):
        _verify(ragged, ragged.engine, narrow)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda ids, mask, lengths: (ids, mask, np.full_like(lengths, lengths.max())),
        lambda ids, mask, lengths: (ids, np.ones_like(mask), lengths),
        lambda ids, mask, lengths: (ids, mask, lengths[::-1].copy()),
    ],
    ids=["longest length for all", "padding as tokens", "lengths in another order"],
)
def test_an_engine_that_mixes_texts_up_is_found(ragged: Served, mistake: object) -> None:
    def mixed_up(*inputs: np.ndarray) -> np.ndarray:
        return ragged.engine(*mistake(*inputs))

    with pytest.raises(
        VerificationError, match=r"differs from the PyTorch model by|holds \d+ values|fails on"
    ):
        _verify(ragged, mixed_up)


def test_a_model_that_can_not_be_packed_is_named(exports: Exports) -> None:
    recipe, exportable = exports.load("text-classification", "ragged")
    with pytest.raises(CheckpointError, match="'Linear' models have no exchangeable attention"):
        packed_exportable(replace(exportable, module=torch.nn.Linear(2, 2)), recipe)


@pytest.mark.parametrize(
    ("shipped", "overrides", "complaint"),
    [
        ("tabular", ["serving.max_batch_tokens=64"], "64: the engine of task 'tabular-classification'"),
        ("tabular", ["serving.mixed_lengths=ragged"], "'ragged' is for texts, .* 'tabular-classification'"),
        (
            "ner",
            ["serving.mixed_lengths=packed"],
            "serving.mixed_lengths: Input should be 'none', 'padded' or",
        ),
        ("ner", ["serving.padded_lengths=[8, 200]"], "200 is more than text.max_length 128"),
        ("ner", ["serving.padded_lengths=0"], "serving.padded_lengths"),
        ("ner", ["text.pad_to_multiple_of=8"], "text.pad_to_multiple_of: unknown key"),
    ],
)
def test_recipes_that_are_refused(shipped: str, overrides: list[str], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(shipped, overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["serving.padded_lengths=50"], [50, 100, 128]),
        (["serving.padded_lengths=64"], [64, 128]),
        (["serving.padded_lengths=[100, 30]"], [30, 100, 128]),
        (["serving.padded_lengths=500"], [128]),
        (["serving.mixed_lengths=ragged"], []),
        (["serving.mixed_lengths=none"], []),
    ],
)
def test_the_longest_text_is_always_one_of_the_padded_lengths(
    overrides: list[str], expected: list[int]
) -> None:
    assert padded_lengths(padded_recipe("ner", overrides)) == expected
