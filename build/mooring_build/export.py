"""Export a fine-tuned classifier as ONNX and as TorchScript.

Both engines take ``input_ids`` and ``attention_mask`` (INT64 ``[B, L]``) and give ``logits`` (FP32
``[B, L, labels]`` for token, ``[B, labels]`` for text classification).
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import onnx_ir
import torch
from transformers import PreTrainedModel
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

from mooring_build.engines import ENGINE_FILES
from mooring_build.models import quiet_transformers
from mooring_build.recipe import ExportFormat, Recipe

#: Triton 24.10's ONNX Runtime reads no newer file format.
MAX_IR_VERSION = 10


class LogitsOnly(torch.nn.Module):
    """A classifier whose ``forward`` takes two tensors by position and returns the logits alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def export_engine(model: PreTrainedModel, recipe: Recipe, export_format: ExportFormat, folder: Path) -> Path:
    """Write one engine into ``folder`` and return its file; nothing is verified yet."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ENGINE_FILES[export_format]
    _EXPORTERS[export_format](model, recipe, path)
    return path


def export_onnx(model: PreTrainedModel, recipe: Recipe, path: Path) -> None:
    """Export through transformers' ONNX exporter, with batch and sequence as dynamic axes."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    sequence = torch.export.Dim("sequence", min=2, max=recipe.text.max_length)
    axes = {0: batch, 1: sequence}
    with _quiet_exporters():
        exported = OnnxExporter().export(
            model,
            _sample_inputs(recipe),
            config=OnnxConfig(
                dynamic_shapes={"input_ids": axes, "attention_mask": axes}, opset_version=recipe.export.opset
            ),
        )
    program = exported.program
    program.ir_version = min(program.ir_version, MAX_IR_VERSION)
    onnx_ir.save(program, str(path))


def export_torchscript(model: PreTrainedModel, recipe: Recipe, path: Path) -> None:
    """Export by tracing: still the only format that Triton's PyTorch backend batches."""
    inputs = _sample_inputs(recipe)
    with _quiet_exporters(), torch.no_grad():
        traced = torch.jit.trace(LogitsOnly(model).eval(), tuple(inputs.values()), check_trace=False)
        frozen = torch.jit.freeze(traced)
        _follow_the_inputs_device(frozen.graph)
        torch.jit.save(frozen, str(path))


def _follow_the_inputs_device(graph: torch.Graph) -> None:
    """Replace the devices that tracing wrote into the graph by that of the first input.

    Masks and positions are made on the device that was traced on, so a graph traced on the CPU would mix
    devices on a GPU.
    """
    baked_in = [
        node.output()
        for node in graph.findAllNodes("prim::Constant")
        if node.output().type().kind() == "DeviceObjType"
    ]
    if not baked_in:
        return
    input_ids = list(graph.inputs())[1]  # the first is the module
    device = graph.create("prim::device", [input_ids], 1)
    device.output().setType(torch._C.DeviceObjType.get())
    graph.prependNode(device)
    for value in baked_in:
        value.replaceAllUsesWith(device.output())
        value.node().destroy()


_EXPORTERS: dict[ExportFormat, Callable[[PreTrainedModel, Recipe, Path], None]] = {
    "onnx": export_onnx,
    "torchscript": export_torchscript,
}


def _sample_inputs(recipe: Recipe) -> dict[str, torch.Tensor]:
    """A batch of two of unequal length, so that tracing meets a real padding mask."""
    length = min(11, recipe.text.max_length)
    input_ids = torch.arange(2 * length).reshape(2, length) % 90 + 5
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, length - 3 :] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Leave out what the exporters say of their own internals; verification judges the result."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), quiet_transformers(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        registry.setLevel(level)
