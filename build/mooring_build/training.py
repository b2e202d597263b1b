"""Fine-tune a base checkpoint with transformers' Trainer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedTokenizerFast,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import EvalPrediction, get_last_checkpoint

from mooring import RecipeError
from mooring_build.datasets import Dataset, Example, LabelledText, TaggedSentence
from mooring_build.metrics import text_metrics, token_metrics
from mooring_build.models import load_base_model, load_fine_tuned_model, load_tokenizer, quiet_transformers
from mooring_build.recipe import Recipe, Training

#: Label id that the loss leaves out (PyTorch's cross entropy default).
IGNORED = -100

#: The figure of each task that picks the best epoch.
HEADLINE_METRIC = {"token-classification": "entity_f1", "text-classification": "accuracy"}


def fine_tune(recipe: Recipe, base: Path, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Train, keep the best epoch, and save it as a checkpoint.

    An interrupted run goes on from its last epoch when it is started again with the same ``folder``.

    Args:
        recipe: ``recipe.training`` must be set.
        base: folder of the base checkpoint.
        dataset: both splits and the labels.
        folder: receives ``model.safetensors``, ``config.json``, the tokenizer, ``metrics.json`` and
            TensorBoard logs under ``logs/``.

    Returns:
        Metrics of the best epoch on the evaluation split.
    """
    training = recipe.training
    if training is None:
        raise RecipeError("training: is missing, there is nothing to train")
    set_seed(training.seed)
    tokenizer = load_tokenizer(base)
    model = load_base_model(base, recipe.task, dataset.labels)
    states = folder / "epochs"
    headline = HEADLINE_METRIC[recipe.task]
    callbacks: list[TrainerCallback] = [TensorBoardCallback(SummaryWriter(log_dir=str(folder / "logs")))]
    if training.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(training.early_stopping_patience))
    trainer = Trainer(
        model=model,
        args=_arguments(training, headline, states),
        train_dataset=encode_examples(dataset.train, tokenizer, recipe, dataset.labels),
        eval_dataset=encode_examples(
            dataset.evaluation, tokenizer, recipe, dataset.labels, first_pieces_only=True
        ),
        data_collator=_collator(recipe, tokenizer),
        processing_class=tokenizer,
        compute_metrics=_metrics_function(recipe, dataset.labels),
        callbacks=callbacks,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(EpochProgress(headline))
    with quiet_transformers():
        trainer.train(resume_from_checkpoint=_last_whole_epoch(states))
        metrics = _plain(trainer.evaluate())
        trainer.save_model(str(folder))
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    shutil.rmtree(states)
    return metrics


def _arguments(training: Training, headline: str, states: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(states),
        num_train_epochs=training.epochs,
        learning_rate=training.learning_rate,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=32,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup_ratio,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=headline,
        greater_is_better=True,
        seed=training.seed,
        restore_callback_states_from_checkpoint=True,
        report_to="none",
        dataloader_pin_memory=False,
    )


def _last_whole_epoch(states: Path) -> str | None:
    """The newest epoch that was saved to its end (its state comes last); half a one is removed."""
    for folder in states.glob("checkpoint-*"):
        if not (folder / "trainer_state.json").is_file():
            shutil.rmtree(folder)
    return get_last_checkpoint(str(states)) if states.is_dir() else None


class EpochProgress(ProgressCallback):
    """One bar over all steps and one line an epoch, instead of a bar and two dictionaries an epoch."""

    def __init__(self, headline: str) -> None:
        super().__init__()
        self._headline = headline

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # No bar where there is no terminal.
        self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True, disable=None)
        self.current_step = 0

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """No second bar."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        key = f"eval_{self._headline}"
        if logs is not None and key in logs and self.training_bar is not None:
            self.training_bar.write(
                f"  epoch {state.epoch:>4g}  {self._headline} {logs[key]:.3f}, loss {logs['eval_loss']:.3f}"
            )


def evaluate_checkpoint(recipe: Recipe, checkpoint: Path, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Score a fine-tuned checkpoint on the evaluation split; ``folder`` is scratch space."""
    tokenizer = load_tokenizer(checkpoint)
    trainer = Trainer(
        model=load_fine_tuned_model(checkpoint, recipe.task),
        args=TrainingArguments(output_dir=str(folder), report_to="none", dataloader_pin_memory=False),
        eval_dataset=encode_examples(
            dataset.evaluation, tokenizer, recipe, dataset.labels, first_pieces_only=True
        ),
        data_collator=_collator(recipe, tokenizer),
        processing_class=tokenizer,
        compute_metrics=_metrics_function(recipe, dataset.labels),
    )
    return _plain(trainer.evaluate())


def count_cut(examples: Sequence[Example], folder: Path, recipe: Recipe) -> int:
    """How many examples are longer than ``text.max_length``; training and evaluation see only their start."""
    tokenizer = load_tokenizer(folder)
    lengths = tokenizer([example.text for example in examples], return_length=True)["length"]
    return sum(length > recipe.text.max_length for length in lengths)


def encode_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    labels: list[str],
    *,
    first_pieces_only: bool = False,
) -> list[dict[str, Any]]:
    """Turn examples into token ids and label ids, cut at ``text.max_length``.

    For training every piece of a word is labelled: the first carries the word's tag, the rest continue
    it (``B-X`` becomes ``I-X``). So the server may split words more finely than CoNLL does and still
    meets only positions that were trained. Evaluation counts words as CoNLL does: first pieces only.
    """
    ids = {label: index for index, label in enumerate(labels)}
    encoded = []
    for example in examples:
        words = list(example.tokens) if isinstance(example, TaggedSentence) else example.text
        item = tokenizer(
            words,
            is_split_into_words=isinstance(example, TaggedSentence),
            truncation=True,
            max_length=recipe.text.max_length,
        )
        features: dict[str, Any] = {key: item[key] for key in ("input_ids", "attention_mask")}
        if isinstance(example, LabelledText):
            features["labels"] = ids[example.label]
        else:
            features["labels"] = _piece_labels(
                item.word_ids(), example.tags, ids, first_pieces_only=first_pieces_only
            )
        encoded.append(features)
    return encoded


def _piece_labels(
    word_ids: Sequence[int | None], tags: Sequence[str], ids: dict[str, int], *, first_pieces_only: bool
) -> list[int]:
    labels, previous = [], None
    for word in word_ids:
        if word is None or (first_pieces_only and word == previous):
            labels.append(IGNORED)
            continue
        tag = tags[word]
        if word == previous and tag.startswith("B-"):
            tag = "I-" + tag[2:]
        # A label list without I-X (all entities are one word) continues with B-X.
        labels.append(ids.get(tag, ids[tags[word]]))
        previous = word
    return labels


def _collator(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Any:
    if recipe.task == "token-classification":
        return DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED)
    return DataCollatorWithPadding(tokenizer)


def _metrics_function(recipe: Recipe, labels: list[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute(prediction: EvalPrediction) -> dict[str, float]:
        chosen = np.asarray(prediction.predictions).argmax(-1)
        truth = np.asarray(prediction.label_ids)
        if recipe.task == "text-classification":
            return text_metrics(truth, chosen)
        rows = [row != IGNORED for row in truth]
        return token_metrics(
            [[labels[i] for i in row[keep]] for row, keep in zip(truth, rows, strict=True)],
            [[labels[i] for i in row[keep]] for row, keep in zip(chosen, rows, strict=True)],
        )

    return compute


def _plain(metrics: dict[str, float]) -> dict[str, Any]:
    quality = {
        key.removeprefix("eval_"): round(float(value), 6)
        for key, value in metrics.items()
        if key.startswith("eval_") and not key.endswith(("_per_second", "_runtime"))
    }
    return quality | ({"epochs": metrics["epoch"]} if "epoch" in metrics else {})
