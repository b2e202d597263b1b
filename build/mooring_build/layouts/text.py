"""Pipelines that begin with a text."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tritonclient.grpc import model_config_pb2 as pb

from mooring_build.layouts._layout import EngineStep, Layout, PythonStep, Tensors
from mooring_build.recipe import Recipe

TEXT: Tensors = {"text": (pb.TYPE_STRING, (1,))}
TOKENS: Tensors = {"input_ids": (pb.TYPE_INT64, (-1,)), "attention_mask": (pb.TYPE_INT64, (-1,))}
#: Further input of an engine that takes texts packed.
LENGTHS = "lengths"
# Content of the tokenizer's files, for clients that tokenize themselves.
_TOKENIZER_FILES: Tensors = {"tokenizer": (pb.TYPE_STRING, (1,)), "settings": (pb.TYPE_STRING, (1,))}
_WORDS: Tensors = {"words": (pb.TYPE_INT32, (-1, 2))}
_ENTITIES: Tensors = {
    "label": (pb.TYPE_STRING, (-1,)),
    "score": (pb.TYPE_FP32, (-1,)),
    "start": (pb.TYPE_INT32, (-1,)),
    "end": (pb.TYPE_INT32, (-1,)),
    "entity": (pb.TYPE_STRING, (-1,)),
}
# Longest row of the warm-up that every batch size gets, in tokens.
_SHORT_LENGTH = 16


def token_classification(recipe: Recipe, labels: Sequence[str]) -> Layout:
    """Text to entities."""
    logits: Tensors = {"logits": (pb.TYPE_FP32, (-1, -1))}
    return Layout(
        inputs=TEXT,
        steps=(
            tokenizer(TOKENS | _WORDS),
            text_engine(recipe, "logits", (-1, len(labels))),
            PythonStep(
                suffix="postprocessor",
                entry_point="entities_model.py",
                shared=("entities.py", "softmax.py", "texts.py"),
                inputs=TEXT | logits | _WORDS,
                outputs=_ENTITIES,
            ),
        ),
        answers=_ENTITIES,
        parameters=text_parameters(recipe),
    )


def text_classification(recipe: Recipe, labels: Sequence[str]) -> Layout:
    """Text to ranked labels and, where the recipe knows texts out of scope, how surely it is in scope."""
    parameters = text_parameters(recipe)
    extra: Tensors = {}
    if recipe.data is not None and recipe.data.out_of_scope is not None:
        extra = {"acceptance": (pb.TYPE_FP32, (1,))}
        parameters["acceptance_threshold"] = f"{acceptance_threshold(recipe):g}"
    return Layout(
        inputs=TEXT,
        steps=(tokenizer(TOKENS), text_engine(recipe, "logits", (len(labels),)), classifier(extra)),
        answers=ranked_labels(min(recipe.text.top_k, len(labels))) | extra,
        parameters=parameters,
    )


def acceptance_threshold(recipe: Recipe) -> float:
    """Least acceptance of a text in scope: the same for every release, as acceptance is calibrated."""
    return round(1 - recipe.data.accepted, 6)


def tokenizer(outputs: Tensors) -> PythonStep:
    """Text to token ids."""
    return PythonStep(
        suffix="tokenizer",
        entry_point="tokenizer_model.py",
        shared=("encoding.py", "texts.py"),
        inputs=TEXT,
        outputs=outputs,
        asides=_TOKENIZER_FILES,
    )


def text_engine(recipe: Recipe, output: str, dims: tuple[int, ...]) -> EngineStep:
    """Token ids to one FP32 tensor."""
    longest = recipe.text.max_length
    short = next((length for length in padded_lengths(recipe) if length >= _SHORT_LENGTH), _SHORT_LENGTH)
    return EngineStep(
        inputs=TOKENS,
        output=output,
        data_type=pb.TYPE_FP32,
        dims=dims,
        warm_up_lengths=tuple(dict.fromkeys([min(short, longest), longest])),
        lengths=LENGTHS if recipe.serving.mixed_lengths == "ragged" else None,
    )


def padded_lengths(recipe: Recipe) -> list[int]:
    """Lengths that texts are padded to, the shortest first; none where they are left as they are."""
    lengths, longest = recipe.serving.padded_lengths, recipe.text.max_length
    if recipe.serving.mixed_lengths != "padded":
        return []
    if isinstance(lengths, int):
        lengths = range(lengths, longest, lengths)
    # Position embeddings may end at max_length.
    return sorted({length for length in lengths if length < longest} | {longest})


def classifier(extra: Tensors | None = None) -> PythonStep:
    """Logits to ranked labels, whatever the logits came from, and what else the release's files allow."""
    return PythonStep(
        suffix="postprocessor",
        entry_point="classifier_model.py",
        shared=("classification.py", "softmax.py"),
        inputs={"logits": (pb.TYPE_FP32, (-1,))},
        outputs=ranked_labels(-1) | (extra or {}),
    )


def ranked_labels(count: int) -> Tensors:
    """Labels with their scores, best first; -1 leaves their number open."""
    return {"label": (pb.TYPE_STRING, (count,)), "score": (pb.TYPE_FP32, (count,))}


def text_parameters(recipe: Recipe) -> dict[str, str]:
    """What clients may know of how texts are taken."""
    return {"max_length": str(recipe.text.max_length), "truncation": json.dumps(recipe.text.truncation)}
