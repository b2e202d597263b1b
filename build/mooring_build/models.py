"""Load models and tokenizers through transformers, from safetensors, without its chatter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from mooring._errors import CheckpointError
from mooring_build.recipe import Task

_MODEL_CLASSES = {
    "token-classification": AutoModelForTokenClassification,
    "text-classification": AutoModelForSequenceClassification,
}


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


def load_base_model(folder: Path, task: Task, labels: list[str]) -> PreTrainedModel:
    """Load the encoder of a base checkpoint with a new head for ``labels``."""
    return _load(
        folder,
        task,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        ignore_mismatched_sizes=True,
    )


def load_fine_tuned_model(folder: Path, task: Task) -> PreTrainedModel:
    """Load a fine-tuned checkpoint as it is, ready to answer.

    Raises:
        CheckpointError: the weights lack the head, hold NaN or infinity, or don't fit the config.
    """
    with quiet_transformers():
        try:
            model, report = _MODEL_CLASSES[task].from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as exc:
            raise CheckpointError(f"{folder} can't be loaded for {task}: {exc}") from exc
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler"))
    if missing:
        raise CheckpointError(
            f"{folder} is not fine-tuned for {task}: its weights lack {missing}. Give the recipe a "
            "[training] table, or name a fine-tuned checkpoint"
        )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise CheckpointError(f"{folder}: weight {name!r} holds NaN or infinity")
    return model.eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the fast tokenizer of a checkpoint."""
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"{folder}: its tokenizer can't be loaded: {exc}") from exc
    if not tokenizer.is_fast:
        raise CheckpointError(f"{folder}: its tokenizer is not a fast one (no tokenizer.json)")
    return tokenizer


def _load(folder: Path, task: Task, **options: object) -> PreTrainedModel:
    with quiet_transformers():
        try:
            return _MODEL_CLASSES[task].from_pretrained(
                folder, use_safetensors=True, local_files_only=True, **options
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as exc:
            raise CheckpointError(f"{folder} can't be loaded for {task}: {exc}") from exc
