"""A release of the smallest image classifier: it says whether a picture is bright or dark."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from mooring_build.publish import EngineFiles, Release, publish_release
from mooring_build.recipe import Recipe, load_recipe

LABELS = ["bright", "dark"]


def publish_brightness_model(repository: Path, scratch: Path) -> None:
    """Publish it as ``image``, with the shipped recipe's decoder; ``scratch`` gets the engine's file."""
    publish_release(repository, *brightness_release(scratch))


def brightness_release(scratch: Path, *, size: int = 28) -> tuple[Recipe, Release]:
    """Recipe and release of pictures of ``size`` by ``size`` pixels; ``scratch`` gets the engine's file."""
    overrides = ["serving.instance_count=1", 'export.formats=["onnx"]', f"image.size={size}"]
    recipe = load_recipe("image", overrides)
    shape = ["batch", recipe.image.channels, recipe.image.size, recipe.image.size]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["pixel_values", "axes"], ["bright"], keepdims=0),
            helper.make_node("Unsqueeze", ["bright", "last"], ["column"]),
            helper.make_node("Neg", ["column"], ["dark"]),
            helper.make_node("Concat", ["column", "dark"], ["logits"], axis=1),
        ],
        "brightness",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
            helper.make_tensor("last", TensorProto.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    scratch.mkdir(parents=True, exist_ok=True)
    onnx.save(model, scratch / "brightness.onnx")
    engine = EngineFiles(path=scratch / "brightness.onnx", parity={"passed": True}, key=f"{size}")
    return recipe, Release(labels=LABELS, engines={"onnx": engine}, inputs_digest=f"{size}", facts={})
