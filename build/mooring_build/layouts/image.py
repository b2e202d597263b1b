"""Pipelines that begin with an image."""

from __future__ import annotations

from collections.abc import Sequence

from tritonclient.grpc import model_config_pb2 as pb

from mooring_build.layouts._layout import EngineStep, Layout, PythonStep, Tensors
from mooring_build.layouts.text import classifier, ranked_labels
from mooring_build.recipe import Recipe

_IMAGE: Tensors = {"image": (pb.TYPE_STRING, (1,))}


def image_classification(recipe: Recipe, labels: Sequence[str]) -> Layout:
    """Image to ranked labels."""
    image = recipe.image
    pixel_values: Tensors = {"pixel_values": (pb.TYPE_FP32, (image.channels, image.size, image.size))}
    decoder = PythonStep(
        suffix="decoder",
        entry_point="image_decoder_model.py",
        shared=("images.py",),
        inputs=_IMAGE,
        outputs=pixel_values,
    )
    engine = EngineStep(inputs=pixel_values, output="logits", data_type=pb.TYPE_FP32, dims=(len(labels),))
    return Layout(
        inputs=_IMAGE,
        steps=(decoder, engine, classifier()),
        answers=ranked_labels(min(image.top_k, len(labels))),
        parameters={"max_bytes": str(image.max_bytes), "max_pixels": str(image.max_pixels)},
    )
