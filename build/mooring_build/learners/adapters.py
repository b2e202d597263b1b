"""Low-rank adapters (LoRA): few weights are trained, and none is left in what is served."""

from __future__ import annotations

import warnings

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from mooring import RecipeError
from mooring_build.recipe import Recipe, Task

_TASK_TYPES: dict[Task, TaskType] = {
    "text-classification": TaskType.SEQ_CLS,
    "token-classification": TaskType.TOKEN_CLS,
}


def add_adapter(model: PreTrainedModel, recipe: Recipe, *, new_pooler: bool) -> PeftModel:
    """Freeze the encoder and put the recipe's ``[adapter]`` beside its layers; the head is trained whole, and
    so is a new pooler.

    Raises:
        RecipeError: the model has no layers of these names.
    """
    adapter = recipe.adapter
    config = LoraConfig(
        task_type=_TASK_TYPES[recipe.task],
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        modules_to_save=["pooler"] if new_pooler else None,
    )
    try:
        with warnings.catch_warnings():
            # peft 0.21 asks for an attribute that transformers 5.23 has renamed.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            return get_peft_model(model, config)
    except ValueError as exc:
        raise RecipeError(f"adapter.target_modules {adapter.target_modules}: {exc}") from exc


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Add the adapters to the weights that they stand beside."""
    merged: PreTrainedModel = model.merge_and_unload()
    return merged
