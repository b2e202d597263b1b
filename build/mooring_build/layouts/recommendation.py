"""Pipelines that begin with a history of items."""

from __future__ import annotations

from collections.abc import Sequence

from tritonclient.grpc import model_config_pb2 as pb

from mooring_build.layouts._layout import EngineStep, Layout, PythonStep, Tensors
from mooring_build.recipe import Recipe

_HISTORY: Tensors = {"history": (pb.TYPE_STRING, (-1,))}


def recommendation(recipe: Recipe, labels: Sequence[str]) -> Layout:
    """History to the items that suit it; those of the history are left out."""
    catalogue = recipe.catalogue
    vectors: Tensors = {
        "vectors": (pb.TYPE_FP32, (-1, catalogue.dimension)),
        "mask": (pb.TYPE_INT64, (-1,)),
    }
    return Layout(
        inputs=_HISTORY,
        steps=(
            PythonStep(
                suffix="lookup",
                entry_point="history_model.py",
                shared=("recommendation.py",),
                inputs=_HISTORY,
                outputs=vectors,
            ),
            EngineStep(
                inputs=vectors,
                output="user",
                data_type=pb.TYPE_FP32,
                dims=(catalogue.dimension,),
                warm_up_lengths=(catalogue.max_history,),
            ),
            PythonStep(
                suffix="ranker",
                entry_point="recommender_model.py",
                shared=("recommendation.py",),
                inputs=_HISTORY | {"user": (pb.TYPE_FP32, (catalogue.dimension,))},
                outputs=_ranking(-1),
            ),
        ),
        answers=_ranking(catalogue.top_k),
        parameters={
            "max_history": str(catalogue.max_history),
            "unknown_items": catalogue.unknown_items,
        },
    )


def _ranking(count: int) -> Tensors:
    return {"item": (pb.TYPE_STRING, (count,)), "score": (pb.TYPE_FP32, (count,))}
