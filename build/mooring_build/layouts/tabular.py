"""Pipelines that begin with a row of numbers."""

from __future__ import annotations

from collections.abc import Sequence

from tritonclient.grpc import model_config_pb2 as pb

from mooring_build.layouts._layout import EngineStep, Layout, Tensors
from mooring_build.layouts.text import classifier, ranked_labels
from mooring_build.recipe import Recipe


def tabular_classification(recipe: Recipe, labels: Sequence[str]) -> Layout:
    """Row of numbers to ranked labels."""
    table = recipe.features
    features: Tensors = {"features": (pb.TYPE_FP32, (table.count,))}
    engine = EngineStep(inputs=features, output="logits", data_type=pb.TYPE_FP32, dims=(len(labels),))
    return Layout(
        inputs=features,
        steps=(engine, classifier()),
        answers=ranked_labels(min(table.top_k, len(labels))),
    )
