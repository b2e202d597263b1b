"""Configs and version folders of pipelines whose input is an image or a row of numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from mooring import RecipeError
from mooring._served.images import ImageSettings
from mooring_build.recipe import load_recipe
from mooring_build.release import version_files
from mooring_build.triton_config import model_configs
from tiny_release import make_release

LABELS = ["bright", "dark", "grey"]


def _tensors(tensors: Any) -> dict[str, tuple[str, list[int]]]:
    return {tensor.name: (pb.DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in tensors}


def _signatures(configs: dict[str, pb.ModelConfig]) -> dict[str, tuple[Any, Any]]:
    return {name: (_tensors(config.input), _tensors(config.output)) for name, config in configs.items()}


def test_signatures_of_image_classification() -> None:
    configs = model_configs(
        load_recipe("image", ["image.size=32", "image.channels=3", "image.top_k=2"]), LABELS, 1
    )
    image = {"image": ("TYPE_STRING", [1])}
    pixels = {"pixel_values": ("TYPE_FP32", [3, 32, 32])}
    assert _signatures(configs) == {
        "image_decoder": (image, pixels),
        "image_onnx": (pixels, {"logits": ("TYPE_FP32", [3])}),
        "image_torchscript": (pixels, {"logits__0": ("TYPE_FP32", [3])}),
        "image_postprocessor": (
            {"logits": ("TYPE_FP32", [-1])},
            {"label": ("TYPE_STRING", [-1]), "score": ("TYPE_FP32", [-1])},
        ),
        "image": (image, {"label": ("TYPE_STRING", [2]), "score": ("TYPE_FP32", [2])}),
    }


def test_signatures_of_tabular_classification() -> None:
    configs = model_configs(load_recipe("tabular", ["features.count=5", "features.top_k=9"]), LABELS, 1)
    features = {"features": ("TYPE_FP32", [5])}
    assert _signatures(configs) == {
        "tabular_onnx": (features, {"logits": ("TYPE_FP32", [3])}),
        "tabular_torchscript": (features, {"logits__0": ("TYPE_FP32", [3])}),
        "tabular_postprocessor": (
            {"logits": ("TYPE_FP32", [-1])},
            {"label": ("TYPE_STRING", [-1]), "score": ("TYPE_FP32", [-1])},
        ),
        "tabular": (features, {"label": ("TYPE_STRING", [3]), "score": ("TYPE_FP32", [3])}),
    }


@pytest.mark.parametrize(("shipped", "dims"), [("image", [1, 28, 28]), ("tabular", [64])])
def test_engines_warm_up_on_the_one_shape_that_they_take(shipped: str, dims: list[int]) -> None:
    recipe = load_recipe(shipped)
    for name, config in model_configs(recipe, LABELS, 1).items():
        if name.endswith(("onnx", "torchscript")):
            found = [
                (one.batch_size, [list(tensor.dims) for tensor in one.inputs.values()])
                for one in config.model_warmup
            ]
            assert found == [(size, [dims]) for size in (1, *recipe.serving.preferred_batch_size)]


def test_clients_are_told_the_limits_of_an_image() -> None:
    ensemble = model_configs(load_recipe("image"), LABELS, 1)["image"]
    parameters = {key: value.string_value for key, value in ensemble.parameters.items()}
    assert parameters == {
        "task": "image-classification",
        "labels": json.dumps(LABELS),
        "max_bytes": "10485760",
        "max_pixels": "25000000",
    }


def test_the_decoder_gets_the_recipes_settings(tmp_path: Path) -> None:
    recipe = load_recipe("image", ["image.max_pixels=1000", "image.mean=[0.125]"])
    files = version_files(recipe, make_release(tmp_path / "files", recipe))["image_decoder"]
    settings = files["settings.json"]
    assert isinstance(settings, str)
    assert ImageSettings.loads(settings) == ImageSettings(
        size=28, channels=1, mean=[0.125], std=[0.35], max_pixels=1000, max_bytes=10_485_760
    )
    assert set(files) == {"model.py", "images.py", "settings.json"}


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("image.mean=[0.1, 0.2, 0.3]", r"image: mean \[0.1, 0.2, 0.3\] does not fit 1 channel\(s\)"),
        ("image.std=[]", r"image: std \[\] does not fit 1 channel\(s\)"),
        ("image.std=[0.0]", r"image.std.0: Input should be greater than 0"),
        ("image.shift=28", "image: shift 28 moves all of an image of size 28 away"),
        ("image.channels=4", "image.channels: Input should be 1 or 3"),
    ],
)
def test_an_image_table_that_can_not_be(override: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        load_recipe("image", [override])
