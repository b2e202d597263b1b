"""Pipelines that turn a text into a vector, and those that look for its nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence

from tritonclient.grpc import model_config_pb2 as pb

from mooring_build.layouts._layout import Layout, PythonStep, Tensors
from mooring_build.layouts.text import TEXT, TOKENS, text_engine, text_parameters, tokenizer
from mooring_build.recipe import Recipe

_ANSWERS: Tensors = {
    "item": (pb.TYPE_STRING, (-1,)),
    "score": (pb.TYPE_FP32, (-1,)),
    "answer": (pb.TYPE_STRING, (-1,)),
}


def text_ranking(recipe: Recipe, labels: Sequence[str]) -> Layout:
    """Text to the items that suit it, with the answer that each item gives."""
    dimension = recipe.catalogue.dimension
    return Layout(
        inputs=TEXT,
        steps=(
            tokenizer(TOKENS),
            text_engine(recipe, "embedding", (dimension,)),
            PythonStep(
                suffix="catalogue",
                entry_point="catalogue_model.py",
                shared=("ranking.py",),
                inputs={"embedding": (pb.TYPE_FP32, (dimension,))},
                outputs=_ANSWERS,
            ),
        ),
        answers=_ANSWERS,
        parameters=text_parameters(recipe),
    )


def feature_extraction(recipe: Recipe, labels: Sequence[str]) -> Layout:
    """Text to its embedding."""
    dims = (recipe.text.dimension,)
    return Layout(
        inputs=TEXT,
        steps=(tokenizer(TOKENS), text_engine(recipe, "embedding", dims)),
        answers={"embedding": (pb.TYPE_FP32, dims)},
        parameters=text_parameters(recipe),
    )
