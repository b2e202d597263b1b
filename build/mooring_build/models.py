"""Load models and tokenizers through transformers, from safetensors, without its chatter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    pipeline,
)
from transformers.utils import logging as transformers_logging

from mooring import CheckpointError
from mooring_build.recipe import Task

_MODEL_CLASSES = {
    "token-classification": AutoModelForTokenClassification,
    "text-classification": AutoModelForSequenceClassification,
    "image-classification": AutoModelForImageClassification,
    "tabular-classification": AutoModel,
    "text-multi-classification": AutoModel,
    "text-ranking": AutoModel,
    "feature-extraction": AutoModel,
    "recommendation": AutoModel,
}
#: Case, accents, white space, full width, other scripts, marks: what normalisers differ in.
_PROBES = (
    "Hello, World! it's  ALL fine",
    "\u00c0 la Caf\u00e9 na\u00efve",
    "\uff21\uff22\uff11\uff12 \u4e2d\u6587\u5b57",
    "e-mail: a.b@c.de (\u20ac3.50) \u2014 #1",
)
#: Tasks whose served answer is one label of several, and what transformers calls that.
_ONE_LABEL_TASKS = ("text-classification", "image-classification")
#: How transformers calls the heads that these tasks need.
_HEADS: dict[Task, str] = {
    "token-classification": "ForTokenClassification",
    "text-classification": "ForSequenceClassification",
    "image-classification": "ForImageClassification",
}
_PROBLEM = "single_label_classification"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' load report: a new head is expected to be missing from a base checkpoint."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def load_base_model(folder: Path, task: Task, labels: list[str]) -> tuple[PreTrainedModel, bool]:
    """Load the encoder of a base checkpoint with a new head for ``labels``.

    Returns:
        The model, and whether the head includes a new pooler.

    Raises:
        CheckpointError: the weights lack a part of the encoder, hold NaN or infinity, or don't fit the
            config.
    """
    # Or a checkpoint that was made for several labels a text, or for a number, would be trained as that.
    options = {"problem_type": _PROBLEM} if task in _ONE_LABEL_TASKS else {}
    model, missing = _load(
        folder,
        task,
        **options,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        new_head=True,
    )
    poolers = [key for key in missing if _is_pooler(model, key)]
    encoder = [key for key in missing if key.startswith(f"{model.base_model_prefix}.") and key not in poolers]
    if encoder:
        raise CheckpointError(
            f"{folder}: its weights lack {_some(encoder)} of the {model.config.model_type} encoder"
        )
    return model, bool(poolers)


def load_fine_tuned_model(folder: Path, task: Task) -> PreTrainedModel:
    """Load a fine-tuned checkpoint as it is, ready to answer.

    Raises:
        CheckpointError: the weights lack the head or anything else, hold NaN or infinity, or don't fit the
            config; or it gives several labels a text, or a number.
    """
    model, missing = _load(folder, task)
    if task not in _ONE_LABEL_TASKS:
        # These answers are made of the tokens' own vectors.
        missing = [key for key in missing if not _is_pooler(model, key)]
    problem = getattr(model.config, "problem_type", None)
    if task in _ONE_LABEL_TASKS and problem not in (None, _PROBLEM):
        raise CheckpointError(
            f"{folder} is for {problem!r} (problem_type in its config.json): task {task!r} serves one label "
            "of several, by their softmax, which are other answers"
        )
    if missing:
        raise CheckpointError(
            f"{folder} is not fine-tuned for {task}: its weights lack {_some(missing)}. Give the recipe a "
            "[training] table, or name a fine-tuned checkpoint"
        )
    _check_head(model, folder, task)
    return model.eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the fast tokenizer of a checkpoint."""
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as exc:
        # As for weights: a malformed file surfaces as whatever its parser raises.
        raise CheckpointError(f"{folder}: its tokenizer can't be loaded: {exc!r}") from exc
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{folder}: its tokenizer has no padding token; set one and save it again")
    if not tokenizer.is_fast:
        raise CheckpointError(f"{folder}: its tokenizer is not a fast one (no tokenizer.json)")
    return tokenizer


def check_served_tokens(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Compare the tokenizer that a model was verified with to the ``tokenizer.json`` that is served.

    transformers makes some tokenizers anew from the vocabulary and takes not all else from the file.

    Raises:
        CheckpointError: a text has other tokens.
    """
    served = Tokenizer.from_file(str(folder / "tokenizer.json"))
    served.no_padding()
    served.no_truncation()
    for text in _PROBES:
        if tokenizer(text)["input_ids"] != served.encode(text).ids:
            raise CheckpointError(
                f"{folder / 'tokenizer.json'} makes other tokens of {text!r} than transformers' "
                f"{type(tokenizer).__name__}, loaded from there: find out which is right, and save that one "
                "with save_pretrained()"
            )


def check_vocabulary(module: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Refuse token ids that the model has no embedding for: a text with one would fail its whole batch.

    Raises:
        CheckpointError: the tokenizer has such ids.
    """
    rows = next(
        model.get_input_embeddings().weight.shape[0]
        for model in module.modules()
        if isinstance(model, PreTrainedModel)
    )
    over = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= rows)
    if over:
        raise CheckpointError(
            f"{name}: token {over[0][1]!r} has the id {over[0][0]}, and the model embeds {rows} tokens: "
            "train it after resize_token_embeddings(len(tokenizer)), or save the tokenizer of its training"
        )


def check_padding(module: torch.nn.Module, sample: torch.Tensor, pad_token_id: int, name: str) -> None:
    """Compare what a model says of a text alone and of the same text with padding after it.

    Args:
        module: takes ids and mask ``[B, L]``; gives ``[B, L, …]`` or ``[B, …]``.
        sample: ids ``[B, L]`` of at least two tokens.
        pad_token_id: what requests of several texts are padded with.
        name: of the model, for the message.

    Raises:
        CheckpointError: the answers differ, so they would depend on the texts that are asked with it, or it
            needs more than ids and mask.
    """
    width = sample.shape[1]
    length = width // 2 + 1
    mask = (torch.arange(width) < length).long()[None]
    padded = torch.where(mask.bool(), sample[:1], pad_token_id)
    try:
        with torch.inference_mode():
            alone = module(sample[:1, :length], mask[:, :length])
            beside = module(padded, mask)
    except Exception as exc:
        # Each model complains in its own way.
        raise CheckpointError(
            f"{name} does not answer any token ids and their mask alone, as Mooring asks ({exc}): take an "
            "encoder, as BERT's, RoBERTa's and DeBERTa's kinds are"
        ) from exc
    if beside.shape != alone.shape:
        beside = beside[:, :length]
    distance = (beside - alone).abs().max().item()
    if distance > 1e-3 * max(1.0, alone.abs().max().item()):
        # A decoder's classifier finds the end of a text by it.
        config = next(model.config for model in module.modules() if isinstance(model, PreTrainedModel))
        known = getattr(config, "pad_token_id", None)
        raise CheckpointError(
            f"{name} answers a text otherwise when padding follows it (by {distance:.2g}), so that what it "
            "says would depend on the texts in the same request: "
            + (
                f"write pad_token_id {pad_token_id}, with which its tokenizer pads, into its config.json in "
                f"place of {known}, or "
                if known != pad_token_id
                else ""
            )
            + "take an encoder that leaves padding out, as BERT's, RoBERTa's and DeBERTa's kinds do"
        )


def load_pipeline(folder: Path, task: Task) -> Any:
    """transformers' own pipeline of a fine-tuned checkpoint, on the CPU; entities are groups of tokens."""
    grouped = {"aggregation_strategy": "simple"} if task == "token-classification" else {}
    return pipeline(task, str(folder), device="cpu", **grouped)


def _check_head(model: PreTrainedModel, folder: Path, task: Task) -> None:
    """Refuse a head of another task: with some encoders (ModernBERT's) it has the same weights."""
    wanted = _HEADS.get(task)
    named = [name for name in model.config.architectures or [] if name.endswith(tuple(_HEADS.values()))]
    if wanted is not None and named and not any(name.endswith(wanted) for name in named):
        raise CheckpointError(
            f"{folder} is not fine-tuned for {task}: it is a {named[0]} (architectures in its config.json)"
        )


def _load(
    folder: Path, task: Task, *, new_head: bool = False, **options: object
) -> tuple[PreTrainedModel, list[str]]:
    """The model in fp32, and the keys that its weights lack; of a new head other shapes are lacking."""
    with quiet_transformers():
        try:
            model, report = _MODEL_CLASSES[task].from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                # transformers keeps the checkpoint's own type otherwise, and the engines promise FP32.
                dtype=torch.float32,
                # Its own message about them points to a report that was silenced.
                ignore_mismatched_sizes=True,
                **options,
            )
        except Exception as exc:
            # transformers lets through whatever a malformed file makes its parsers raise.
            raise CheckpointError(f"{folder} can't be loaded for {task}: {exc}") from exc
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{folder}: weight {name!r} holds NaN or infinity")
    if report["mismatched_keys"] and not new_head:
        key, has, wanted = sorted(report["mismatched_keys"])[0]
        raise CheckpointError(
            f"{folder} can't be loaded for {task}: {key} is {list(has)} in its weights and {list(wanted)} by "
            f"its config.json, which names {model.config.num_labels} labels (id2label)"
        )
    # What has another shape than the config says is drawn anew, as what is missing is.
    lacking = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    return model, sorted(lacking)


def _is_pooler(model: PreTrainedModel, key: str) -> bool:
    # A bare encoder's own keys have no prefix.
    return key.startswith((f"{model.base_model_prefix}.pooler.", "pooler."))


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
