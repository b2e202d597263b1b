"""The pipeline of several classifications on one encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tritonclient.grpc import model_config_pb2 as pb

from mooring_build.layouts._layout import Layout, PythonStep, Tensors
from mooring_build.layouts.text import TEXT, TOKENS, text_engine, text_parameters, tokenizer
from mooring_build.recipe import Recipe


def text_multi_classification(recipe: Recipe, labels: Sequence[str]) -> Layout:
    """Text to ranked labels of each head; a request gets those of the heads whose outputs it asks for."""
    heads = {name: head.labels for name, head in (recipe.heads or {}).items()}
    # One output for all heads: the engine runs once for them, whichever of them are asked for.
    engine = text_engine(recipe, "logits", (sum(map(len, heads.values())),))
    ranking = PythonStep(
        suffix="postprocessor",
        entry_point="heads_model.py",
        shared=("classification.py", "softmax.py"),
        inputs={"logits": (pb.TYPE_FP32, (-1,))},
        outputs=_ranked(dict.fromkeys(heads, -1)),
    )
    return Layout(
        inputs=TEXT,
        steps=(tokenizer(TOKENS), engine, ranking),
        answers=_ranked({name: min(recipe.text.top_k, len(heads[name])) for name in heads}),
        parameters=text_parameters(recipe) | {"heads": json.dumps(heads, ensure_ascii=False)},
    )


def _ranked(counts: dict[str, int]) -> Tensors:
    """Labels with their scores by head, best first; -1 leaves their number open."""
    tensors: Tensors = {}
    for name, count in counts.items():
        tensors |= {name: (pb.TYPE_STRING, (count,)), f"{name}_score": (pb.TYPE_FP32, (count,))}
    return tensors
