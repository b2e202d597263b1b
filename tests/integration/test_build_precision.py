"""Engines in a lower precision: what they cost is measured, recorded and bounded."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime import InferenceSession, SessionOptions
from transformers import AutoConfig, AutoModelForSequenceClassification

from mooring import RecipeError, VerificationError
from mooring_build.building import build
from mooring_build.engines import open_engine
from mooring_build.export import export_engine
from mooring_build.learners import learner_of
from mooring_build.packing import packed_exportable
from mooring_build.precision import Cost, check_cost, lower_engine
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.repository import read_manifest
from tiny_checkpoint import make_tiny_checkpoint

pytestmark = pytest.mark.integration

TEXTS = ["anna works for brightwater", "who pays my refund now ?", "the river is wide", "lisbon and porto"]


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    data = tmp_path / "data.csv"
    with data.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, "pay") for text in TEXTS * 6)])
    return ["text.max_length=48", "data.format=csv", f"data.evaluation={data}", "export.precision=int8"]


def recipe_with(tmp_path: Path, overrides: list[str], *, initializer_range: float = 0.5) -> Recipe:
    labels = ["ask", "complain", "pay"]
    folder = make_tiny_checkpoint(
        tmp_path / "tiny", "text-classification", labels, initializer_range=initializer_range
    )
    return load_recipe("intent", overrides, fine_tuned=folder)


def test_int8_is_published_with_what_it_costs(tmp_path: Path, overrides: list[str]) -> None:
    generous = [*overrides, "quality.max_drop=1.0", "quality.max_label_flips=1.0"]
    recipe = recipe_with(tmp_path, generous, initializer_range=0.1)
    said: list[str] = []
    version = build(recipe, repository=tmp_path / "models", artifacts=tmp_path / "artifacts", say=said.append)
    parity = read_manifest(tmp_path / "models", "intent", version)["parity"]
    cost = parity["onnx"]["precision"]
    assert (cost["precision"], cost["metric"], cost["examples"]) == ("int8", "accuracy", 24)
    assert 0 <= cost["label_flips"] <= 1
    # TorchScript has no int8 that Triton loads: it stays as it was.
    assert "precision" not in parity["torchscript"]
    assert parity["torchscript"]["max_abs_difference"] <= 1e-4
    graph = onnx.load(tmp_path / "models" / "intent_onnx_ragged" / str(version) / "model.onnx").graph
    assert {"MatMulInteger", "DynamicQuantizeLinear"} <= {node.op_type for node in graph.node}
    assert any(line.startswith("int8 ") for line in said)


def test_a_quantizer_that_warns_does_not_set_up_logging(
    tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_with(tmp_path, overrides)
    exportable = learner_of(recipe.task).exportable(recipe, Path(recipe.base.checkpoint))
    path = export_engine(exportable, recipe, "onnx", tmp_path / "engine")
    # pytest's own handlers away, as in a program that has set up nothing.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    capfd.readouterr()
    lower_engine(path, exportable, recipe, "onnx")
    assert logging.getLogger().handlers == []
    assert "WARNING" not in capfd.readouterr().err


def test_int8_answers_the_same_on_every_processor(tmp_path: Path, overrides: list[str]) -> None:
    # Without VNNI two products are added in 16 bits, which saturate where a weight takes all of its 8 bits.
    recipe = recipe_with(tmp_path, overrides)
    exportable = learner_of(recipe.task).exportable(recipe, Path(recipe.base.checkpoint))
    path = export_engine(exportable, recipe, "onnx", tmp_path / "engine")
    lower_engine(path, exportable, recipe, "onnx")
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(path).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and tensor.dims
    ]
    assert max(int(np.abs(values.astype(int)).max()) for values in weights if values.ndim == 2) == 64
    ids = np.random.default_rng(0).integers(10, 90, (8, 40))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    in_16_bits, exact = (
        session_with(path, {"session.x64quantprecision": setting}).run(None, inputs)[0] for setting in "01"
    )
    np.testing.assert_allclose(in_16_bits, exact, atol=1e-4)


def session_with(path: Path, entries: dict[str, str]) -> InferenceSession:
    options = SessionOptions()
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_a_precision_that_costs_too_much_is_refused(tmp_path: Path, overrides: list[str]) -> None:
    # Random weights: the smallest logits decide, so that some label flips.
    recipe = recipe_with(tmp_path, [*overrides, "verify.lowered_tolerance=1e-6"])
    refused = r"intent_onnx_ragged is not published: output 'logits' differs .* \(verify\.lowered_tolerance\)"
    with pytest.raises(VerificationError, match=refused):
        build(recipe, repository=tmp_path / "models", artifacts=tmp_path / "artifacts")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("lowered", "flips", "complaint"),
    [
        (0.894, 0.0, r"lowers accuracy from 0\.9000 to 0\.8940, the recipe allows 0\.005"),
        (0.9, 0.02, r"changes 2\.00% of the best labels on 50 examples, the recipe allows 1\.00%"),
        (0.896, 0.01, None),
    ],
)
def test_bounds(lowered: float, flips: float, complaint: str | None) -> None:
    cost = Cost(
        precision="int8", metric="accuracy", fp32=0.9, lowered=lowered, label_flips=flips, examples=50
    )
    if complaint is None:
        check_cost(cost, load_recipe("intent"))
        return
    with pytest.raises(VerificationError, match=complaint):
        check_cost(cost, load_recipe("intent"))


@pytest.mark.parametrize(
    ("precision", "export_format"), [("fp16", "onnx"), ("fp16", "torchscript"), ("bf16", "torchscript")]
)
def test_16_bits_answer_close_to_fp32(
    precision: str, export_format: str, tmp_path: Path, overrides: list[str]
) -> None:
    lowered = [f"export.precision={precision}", f"export.engine={export_format}", "serving.kind=gpu"]
    recipe = recipe_with(tmp_path, [*overrides, *lowered])
    exportable = learner_of(recipe.task).exportable(recipe, Path(recipe.base.checkpoint))
    path = export_engine(exportable, recipe, export_format, tmp_path / "engine")
    exact, size = open_engine(path, export_format), path.stat().st_size
    ids = np.arange(10, 22).reshape(2, 6)
    expected = exact(ids, np.ones_like(ids))
    lower_engine(path, exportable, recipe, export_format)
    assert path.stat().st_size < size
    actual = open_engine(path, export_format)(ids, np.ones_like(ids))
    assert actual.dtype == np.float32
    assert 0 < np.abs(actual - expected).max() < (0.1 if precision == "fp16" else 0.8)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_packed_engine_in_16_bits_has_flash_attention_for_gpus(
    precision: str, tmp_path: Path, overrides: list[str]
) -> None:
    lowered = [f"export.precision={precision}", "export.engine=torchscript", "serving.kind=gpu"]
    recipe = recipe_with(tmp_path, [*overrides, *lowered])
    exportable = learner_of(recipe.task).exportable(recipe, Path(recipe.base.checkpoint))
    packed = packed_exportable(exportable, recipe)
    path = export_engine(packed, recipe, "torchscript", tmp_path / "engine")
    lower_engine(path, packed, recipe, "torchscript")
    # Whether it runs shows on a GPU alone (tests/gpu); that freezing on a CPU leaves it in shows here.
    graph = torch.jit.load(path).graph
    layers = AutoConfig.from_pretrained(recipe.base.checkpoint).num_hidden_layers
    assert len(graph.findAllNodes("aten::_flash_attention_forward")) == layers


def beyond_fp16(tmp_path: Path, overrides: list[str], *, shrunk: float = 1.0) -> Recipe:
    """A model that makes more than 65504 of hidden states; what comes next makes it small again."""
    generous = ["verify.lowered_tolerance=1", "quality.max_drop=1.0", "quality.max_label_flips=1.0"]
    settings = [*overrides, *generous, "serving.kind=gpu"]
    recipe = recipe_with(tmp_path, settings, initializer_range=0.1)
    model = AutoModelForSequenceClassification.from_pretrained(recipe.base.checkpoint)
    for layer in model.base_model.encoder.layer:
        # The weights themselves fit.
        layer.intermediate.dense.weight.data *= 1e5
        layer.output.dense.weight.data *= shrunk
    model.save_pretrained(recipe.base.checkpoint)
    return recipe


@pytest.mark.parametrize("shrunk", [1.0, 1e-4])
@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
def test_activations_beyond_fp16_are_refused(
    engine: str, shrunk: float, tmp_path: Path, overrides: list[str]
) -> None:
    fp16 = ["export.precision=fp16", f"export.engine={engine}", f'export.formats=["{engine}"]']
    recipe = beyond_fp16(tmp_path, [*overrides, *fp16], shrunk=shrunk)
    with pytest.raises(VerificationError, match=r"is not published: .* holds NaN or infinity"):
        build(recipe, repository=tmp_path / "models", artifacts=tmp_path / "artifacts")
    assert not (tmp_path / "models").exists()


def test_bf16_takes_activations_beyond_fp16(tmp_path: Path, overrides: list[str]) -> None:
    recipe = beyond_fp16(tmp_path, [*overrides, "export.precision=bf16", "export.engine=torchscript"])
    version = build(recipe, repository=tmp_path / "models", artifacts=tmp_path / "artifacts")
    parity = read_manifest(tmp_path / "models", "intent", version)["parity"]
    assert parity["torchscript"]["precision"]["precision"] == "bf16"
    # ONNX Runtime has no bf16 on a CPU, where engines are verified: its engine stays as it was.
    assert "precision" not in parity["onnx"]
    assert parity["onnx"]["max_abs_difference"] <= 1e-4


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["export.precision=fp16"], "'fp16' needs serving.kind 'gpu'"),
        (["export.precision=bf16", "export.engine=torchscript"], "'bf16' needs serving.kind 'gpu'"),
        (["export.precision=bf16", "serving.kind=gpu"], "'bf16' needs engine 'torchscript', not 'onnx'"),
        (["export.precision=int8", "export.engine=torchscript"], "'int8' needs engine 'onnx'"),
        (["export.precision=int4"], "export.precision: Input should be 'fp32', 'fp16', 'bf16' or 'int8'"),
    ],
)
def test_a_precision_that_cannot_be(overrides: list[str], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        load_recipe("intent", overrides)
