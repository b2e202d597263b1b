"""Write tiny ONNX and TorchScript models with their configurations into a repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

import onnx
from onnx import TensorProto, helper

#: Type and shape of an ONNX input or output; a name in place of a size makes it variable.
Declared = tuple[str, int, Sequence[int | str]]

ONE_CPU_INSTANCE = "instance_group { kind: KIND_CPU count: 1 }"


def write_config(repository: Path, name: str, config: str) -> Path:
    """Write the configuration of a model.

    Returns:
        The folder of its version 1, created.
    """
    version = repository / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (repository / name / "config.pbtxt").write_text(dedent(config), encoding="utf-8")
    return version


def onnx_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Declared],
    outputs: Sequence[Declared],
    initializers: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """Make an ONNX model that every ONNX Runtime since 1.15 loads."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(*entry) for entry in outputs],
        list(initializers),
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model, full_check=True)
    return model


def lookup_model() -> onnx.ModelProto:
    """Make a model that looks up ``ids`` [b, L] in a table of 0, 10, 20, 30; other ids are its error."""
    return onnx_model(
        [helper.make_node("Gather", ["table", "ids"], ["values"])],
        [("ids", TensorProto.INT64, ["b", "l"])],
        [("values", TensorProto.FLOAT, ["b", "l"])],
        [helper.make_tensor("table", TensorProto.FLOAT, [4], [0, 10, 20, 30])],
    )


LOOKUP_CONFIG = f"""
    backend: "onnxruntime"
    max_batch_size: 8
    input {{ name: "ids" data_type: TYPE_INT64 dims: [-1] }}
    output {{ name: "values" data_type: TYPE_FP32 dims: [-1] }}
    {ONE_CPU_INSTANCE}
"""
