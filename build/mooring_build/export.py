"""Export a fine-tuned model as ONNX and as TorchScript.

Both engines take the same tensors, the batch first, and give one FP32 tensor; a task's learner says which
(:class:`~mooring_build.learners.Exportable`).
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
from onnx_ir.passes.common import RemoveUnusedNodesPass
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

from mooring import VerificationError
from mooring_build.engines import ENGINE_FILES
from mooring_build.learners import Exportable
from mooring_build.models import quiet_transformers
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import ExportFormat

#: Triton 24.10's ONNX Runtime reads no newer file format.
MAX_IR_VERSION = 10


def export_engine(exportable: Exportable, recipe: Recipe, export_format: ExportFormat, folder: Path) -> Path:
    """Write one engine into ``folder`` and return its file; nothing is verified yet."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ENGINE_FILES[export_format]
    _EXPORTERS[export_format](exportable, recipe, path)
    return path


def export_onnx(exportable: Exportable, recipe: Recipe, path: Path) -> None:
    """Export with the batch, and what else is open, as dynamic axes: transformers' own models through its
    exporter, others through PyTorch's."""
    axes = dict(zip(exportable.inputs, map(dict, exportable.axes), strict=True))
    with _quiet_exporters():
        if exportable.hub_model is not None:
            exported = OnnxExporter().export(
                exportable.hub_model,
                dict(zip(exportable.inputs, exportable.sample, strict=True)),
                config=OnnxConfig(dynamic_shapes=axes, opset_version=recipe.export.opset),
            )
        else:
            exported = torch.onnx.export(
                exportable.module,
                exportable.sample,
                dynamo=True,
                dynamic_shapes=tuple(axes.values()),
                input_names=list(exportable.inputs),
                output_names=[exportable.output],
                opset_version=recipe.export.opset,
            )
    program = exported.program if exportable.hub_model is not None else exported.model
    _leave_one_output(program, exportable.output)
    names = [item.name for item in program.graph.inputs], [item.name for item in program.graph.outputs]
    if names != (list(exportable.inputs), [exportable.output]):
        raise VerificationError(
            f"the ONNX file takes {names[0]} and gives {names[1]}; "
            f"{list(exportable.inputs)} and {[exportable.output]} are served"
        )
    _keep_name_for_output(program.graph, exportable.output)
    if recipe.serving.kind != "gpu":
        _keep_sums_before_normalizations(program.graph)
    program.ir_version = min(program.ir_version, MAX_IR_VERSION)
    onnx_ir.save(program, str(path))


def _leave_one_output(program: onnx_ir.Model, name: str) -> None:
    """Take out what else a model gives, such as a decoder's keys and values, and what only that needs."""
    outputs = program.graph.outputs
    if len(outputs) > 1 and name in [value.name for value in outputs]:
        outputs[:] = [value for value in outputs if value.name == name]
        RemoveUnusedNodesPass()(program)


def _keep_name_for_output(graph: onnx_ir.Graph, name: str) -> None:
    """Rename other values of the output's name: exporters name values after operators, such as ``embedding``,
    and do not look whether an output is called so too."""
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name == name and value is not graph.outputs[0]:
                value.name = f"{name}_of_{node.name}"


def _keep_sums_before_normalizations(graph: onnx_ir.Graph) -> None:
    """Write ``Sum`` where a residual is added before a layer is normalized, which means the same.

    ONNX Runtime joins ``Add`` and ``LayerNormalization`` to one operator, which takes a CPU longer than the
    two: a twentieth of an fp32 engine's time and a tenth of an int8 one's, as measured with 1.31.
    """
    for node in graph.all_nodes():
        added = node.inputs[0].producer() if node.op_type == "LayerNormalization" and node.inputs[0] else None
        if added is not None and added.op_type == "Add":
            added.op_type = "Sum"


def export_torchscript(exportable: Exportable, recipe: Recipe, path: Path) -> None:
    """Export by tracing: still the only format that Triton's PyTorch backend batches."""
    with _quiet_exporters(), torch.no_grad():
        traced = torch.jit.trace(exportable.module.eval(), exportable.sample, check_trace=False)
        frozen = torch.jit.freeze(traced)
        _follow_the_inputs_device(frozen.graph)
        # Given a path, PyTorch ends the whole process where the disk is full.
        with path.open("wb") as file:
            torch.jit.save(frozen, file)


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
    first = list(graph.inputs())[1]  # before it comes the module
    device = graph.create("prim::device", [first], 1)
    device.output().setType(torch._C.DeviceObjType.get())
    graph.prependNode(device)
    for value in baked_in:
        value.replaceAllUsesWith(device.output())
        value.node().destroy()


_EXPORTERS: dict[ExportFormat, Callable[[Exportable, Recipe, Path], None]] = {
    "onnx": export_onnx,
    "torchscript": export_torchscript,
}


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
