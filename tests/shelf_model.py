"""A release of the smallest recommender: items of one shelf go together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from mooring_build.publish import EngineFiles, Release, publish_release
from mooring_build.recipe import load_recipe

#: Drinks, then food.
ITEMS = ("tea", "coffee", "bread", "cheese")
BIASES = (0.1, 0.4, 0.2, 0.3)


def publish_shelf_model(repository: Path, scratch: Path) -> None:
    """Publish it as ``recommender``, with the shipped recipe's steps; ``scratch`` gets its files."""
    recipe = load_recipe("recommender", ["serving.instance_count=1", 'export.formats=["onnx"]'])
    scratch.mkdir(parents=True, exist_ok=True)
    vectors = np.zeros((len(ITEMS), recipe.catalogue.dimension), np.float32)
    vectors[:2, 0] = 1
    vectors[2:, 1] = 1
    np.savez(scratch / "items.npz", vectors=vectors, biases=np.array(BIASES, np.float32))
    (scratch / "items.json").write_text(json.dumps(ITEMS), encoding="utf-8")
    settings = recipe.catalogue.model_dump(include={"max_history", "top_k", "unknown_items"})
    files: dict[str, Path | str] = {name: scratch / name for name in ("items.json", "items.npz")}
    files["settings.json"] = json.dumps(settings)
    release = Release(
        labels=[],
        engines={"onnx": _sum_of_history(scratch / "sum.onnx", recipe.catalogue.dimension)},
        step_files={"lookup": files, "ranker": files},
        inputs_digest="a",
        facts={},
    )
    publish_release(repository, recipe, release)


def _sum_of_history(path: Path, dimension: int) -> EngineFiles:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["mask"], ["weights"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["weights", "last"], ["column"]),
            helper.make_node("Mul", ["vectors", "column"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "second"], ["user"], keepdims=0),
        ],
        "sum",
        [
            helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", "history", dimension]),
            helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", "history"]),
        ],
        [helper.make_tensor_value_info("user", TensorProto.FLOAT, ["batch", dimension])],
        [
            helper.make_tensor("last", TensorProto.INT64, [1], [2]),
            helper.make_tensor("second", TensorProto.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return EngineFiles(path=path, parity={"passed": True}, key="a")
