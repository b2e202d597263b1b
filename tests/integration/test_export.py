"""Real exports of a tiny model, and exports that are broken on purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from mooring import CheckpointError, VerificationError
from mooring_build.engines import Engine, open_engine
from mooring_build.export import MAX_IR_VERSION, export_engine
from mooring_build.learners import Exportable
from mooring_build.learners.text import OneOutput, text_cases, text_exportable
from mooring_build.models import load_base_model, load_fine_tuned_model
from mooring_build.packing import packed_exportable
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.recipe_tables import ExportFormat
from mooring_build.verification import Parity, verify_engine
from tiny_checkpoint import make_tiny_checkpoint

pytestmark = pytest.mark.integration

LABELS = {
    "token-classification": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "text-classification": ["ask", "complain", "pay"],
}
TEXTS = ["anna works for brightwater in porto", "who pays my refund now ?", "the river", "?" * 80]
FORMATS: list[ExportFormat] = ["onnx", "torchscript"]


@pytest.fixture(scope="module", params=sorted(LABELS))
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    task = request.param
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), task, LABELS[task])
    shipped = "ner" if task == "token-classification" else "intent"
    return load_recipe(shipped, ["text.max_length=48", "serving.max_batch_size=12"], fine_tuned=folder)


@pytest.fixture(scope="module")
def model(recipe: Recipe) -> torch.nn.Module:
    return load_fine_tuned_model(Path(recipe.base.checkpoint), recipe.task)


@pytest.fixture(scope="module", params=FORMATS)
def exported(
    request: pytest.FixtureRequest,
    recipe: Recipe,
    model: torch.nn.Module,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, ExportFormat]:
    folder = tmp_path_factory.mktemp("engine")
    return export_engine(as_engine(recipe, model), recipe, request.param, folder), request.param


def as_engine(recipe: Recipe, model: torch.nn.Module) -> Exportable:
    return text_exportable(model, Path(recipe.base.checkpoint), recipe)


def verify_function(engine: Engine, recipe: Recipe, model: torch.nn.Module) -> Parity:
    exportable = as_engine(recipe, model)
    return verify_engine(engine, exportable, recipe, text_cases(recipe, exportable, TEXTS))


def verify(path: Path, export_format: ExportFormat, recipe: Recipe, model: torch.nn.Module) -> Parity:
    return verify_function(open_engine(path, export_format), recipe, model)


def test_a_sound_export_is_verified(
    exported: tuple[Path, ExportFormat], recipe: Recipe, model: torch.nn.Module
) -> None:
    parity = verify(*exported, recipe, model)
    assert parity.passed
    assert parity.label_agreement == 1.0
    assert parity.max_abs_difference <= 1e-4
    assert parity.cases >= 50


def test_onnx_file_is_one_that_triton_reads(exported: tuple[Path, ExportFormat], recipe: Recipe) -> None:
    path, export_format = exported
    if export_format != "onnx":
        assert path.name == "model.pt"
        return
    graph = onnx.load(path)
    assert graph.ir_version <= MAX_IR_VERSION
    assert {item.domain: item.version for item in graph.opset_import} == {"": recipe.export.opset}
    assert [item.name for item in graph.graph.input] == ["input_ids", "attention_mask"]
    assert [item.name for item in graph.graph.output] == ["logits"]


def test_what_a_decoder_gives_besides_logits_is_left_out(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path, "text-classification", LABELS["text-classification"])
    recipe = load_recipe("intent", ["text.max_length=48", "serving.mixed_lengths=padded"], fine_tuned=folder)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=200, n_embd=32, n_layer=1, n_head=2, n_positions=48, pad_token_id=0, num_labels=3
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    path = export_engine(as_engine(recipe, model), recipe, "onnx", tmp_path)
    assert [item.name for item in onnx.load(path).graph.output] == ["logits"]
    assert verify(path, "onnx", recipe, model).passed


@pytest.mark.parametrize(("kind", "joined"), [("auto", False), ("cpu", False), ("gpu", True)])
def test_a_cpu_is_spared_what_it_is_slow_at(
    kind: str, joined: bool, recipe: Recipe, model: torch.nn.Module, tmp_path: Path
) -> None:
    serving = recipe.serving.model_copy(update={"kind": kind})
    recipe = recipe.model_copy(update={"serving": serving})
    path = export_engine(packed_exportable(as_engine(recipe, model), recipe), recipe, "onnx", tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert "BiasGelu" in operators
    assert operators.isdisjoint({"Erf", "IsNaN"})
    assert ("SkipLayerNormalization" in operators) is joined


@pytest.mark.filterwarnings("ignore:.*torch.jit.load:DeprecationWarning")
def test_torchscript_runs_on_whatever_device_its_inputs_are_on(exported: tuple[Path, ExportFormat]) -> None:
    path, export_format = exported
    if export_format == "onnx":
        return
    # The only place where the absence of a GPU can be made up for: no device may be written into the graph.
    module = torch.jit.load(path)
    constants = module.graph.findAllNodes("prim::Constant")
    assert constants
    assert "DeviceObjType" not in {node.output().type().kind() for node in constants}


def test_wrong_label_order_is_found(
    exported: tuple[Path, ExportFormat], recipe: Recipe, model: torch.nn.Module
) -> None:
    engine = open_engine(*exported)
    with pytest.raises(
        VerificationError, match=r"'logits' differs from the PyTorch model by [\d.]+ in case \["
    ):
        verify_function(lambda *inputs: engine(*inputs)[..., ::-1], recipe, model)


def test_a_small_error_in_padded_batches_only_is_found(
    exported: tuple[Path, ExportFormat], recipe: Recipe, model: torch.nn.Module
) -> None:
    engine = open_engine(*exported)

    def mask_forgotten(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return engine(input_ids, np.ones_like(attention_mask))

    with pytest.raises(VerificationError, match="mixed lengths"):
        verify_function(mask_forgotten, recipe, model)


# torch.jit is deprecated as a whole, and tracing touches deprecated attributes of the model.
@pytest.mark.filterwarnings("ignore")
def test_baked_in_batch_size_is_found(recipe: Recipe, model: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    inputs = torch.ones(2, 8, dtype=torch.int64)

    class Baked(OneOutput):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return super().forward(input_ids.view(2, -1), attention_mask.view(2, -1))

    with torch.no_grad():
        traced = torch.jit.trace(Baked(model), (inputs, inputs), check_trace=False)
    torch.jit.save(traced, str(path))
    with pytest.raises(VerificationError, match=r"case \[1, 2\] random ids.* has shape \(2,"):
        verify(path, "torchscript", recipe, model)


@pytest.mark.parametrize("export_format", FORMATS)
def test_nan_weights_are_found(
    export_format: ExportFormat, recipe: Recipe, model: torch.nn.Module, tmp_path: Path
) -> None:
    broken = load_fine_tuned_model(Path(recipe.base.checkpoint), recipe.task)
    with torch.no_grad():
        broken.classifier.weight[0, 0] = float("nan")
    path = export_engine(as_engine(recipe, broken), recipe, export_format, tmp_path)
    with pytest.raises(VerificationError, match=r"'logits' of case .* holds NaN or infinity"):
        verify(path, export_format, recipe, model)


def test_nan_of_the_pytorch_model_is_no_agreement(recipe: Recipe) -> None:
    broken = load_fine_tuned_model(Path(recipe.base.checkpoint), recipe.task)
    with torch.no_grad():
        broken.classifier.bias.fill_(float("nan"))

    def same(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        inputs = (torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
        return broken(*inputs).logits.detach().numpy()

    with pytest.raises(VerificationError, match="the PyTorch model itself gives NaN"):
        verify_function(same, recipe, broken)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_half_precision_is_served_in_fp32(
    dtype: torch.dtype, recipe: Recipe, tmp_path: Path
) -> None:
    half = load_fine_tuned_model(Path(recipe.base.checkpoint), recipe.task).to(dtype)
    half.save_pretrained(tmp_path)
    model = load_fine_tuned_model(tmp_path, recipe.task)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    path = export_engine(as_engine(recipe, model), recipe, "torchscript", tmp_path)
    assert verify(path, "torchscript", recipe, model).passed


def test_a_base_without_some_of_its_layers_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    model = load_fine_tuned_model(Path(recipe.base.checkpoint), recipe.task)
    weights = {name: value for name, value in model.state_dict().items() if "layer.1." not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(CheckpointError, match=r"its weights lack bert\.encoder\.layer\.1\."):
        load_base_model(tmp_path, recipe.task, LABELS[recipe.task])


def test_nan_weights_in_the_checkpoint_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    model = load_fine_tuned_model(Path(recipe.base.checkpoint), recipe.task)
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'classifier\.weight' holds NaN or infinity"):
        load_fine_tuned_model(tmp_path, recipe.task)


def test_a_checkpoint_without_its_head_is_refused(
    recipe: Recipe, model: torch.nn.Module, tmp_path: Path
) -> None:
    model.bert.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"not fine-tuned for .*classifier.weight"):
        load_fine_tuned_model(tmp_path, recipe.task)
