"""Fine-tune a base checkpoint with transformers' Trainer."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import TensorBoardCallback, get_reporting_integration_callbacks
from transformers.trainer_utils import get_last_checkpoint

from mooring import RecipeError
from mooring_build.datasets import Dataset
from mooring_build.learners import Lesson, learner_of
from mooring_build.models import quiet_transformers
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import Training


def check_smoothing(training: Training, lesson: Lesson) -> None:
    """Refuse label smoothing where the loss knows none.

    Raises:
        RecipeError: the lesson has a loss of its own.
    """
    if training.label_smoothing and lesson.loss is not None:
        raise RecipeError("training.label_smoothing: this task, or out_of_scope_train, has a loss of its own")


def fine_tune(recipe: Recipe, base: Path | None, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Train, keep the best epoch, and save it as a checkpoint.

    An interrupted run goes on from its last epoch when it is started again with the same ``folder``.

    Args:
        recipe: ``recipe.training`` must be set.
        base: folder of the base checkpoint; ``None`` where the recipe describes a new model.
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
    learner = learner_of(recipe.task)
    lesson = learner.lesson(recipe, base, dataset)
    check_smoothing(training, lesson)
    states = folder / "epochs"
    last = _last_whole_epoch(states)
    arguments = _arguments(training, learner.headline, states, lesson.arguments)
    if last is not None:
        state = TrainerState.load_from_json(str(Path(last) / "trainer_state.json"))
        if state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
            # Early stopping had ended it, which the Trainer forgets: it would train on.
            arguments.num_train_epochs = state.epoch
    callbacks: list[TrainerCallback] = trackers(recipe, folder)
    if training.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(training.early_stopping_patience))
    trainer = Trainer(model=lesson.model, args=arguments, callbacks=callbacks, **trainer_arguments(lesson))
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(EpochProgress(learner.headline))
    with quiet_transformers():
        trainer.train(resume_from_checkpoint=last)
        metrics = _score(trainer, lesson) | {"epochs": trainer.state.epoch}
        if lesson.finish is not None:
            trainer.model = lesson.finish(trainer.model)
        trainer.save_model(str(folder))
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    return metrics


def trainer_arguments(lesson: Lesson) -> dict[str, Any]:
    """What transformers' Trainer takes of a lesson as it is."""
    return {
        "train_dataset": lesson.train,
        "eval_dataset": lesson.evaluation,
        "data_collator": lesson.collator,
        "processing_class": lesson.processor,
        "compute_metrics": lesson.metrics,
        "compute_loss_func": lesson.loss,
    }


def trackers(recipe: Recipe, folder: Path) -> list[TrainerCallback]:
    """transformers' callbacks for the recipe's trackers.

    Raises:
        RecipeError: a tracker's package is not installed.
    """
    found: list[TrainerCallback] = []
    for name in recipe.tracking.report_to:
        if name == "tensorboard":
            found.append(TensorBoardCallback(SummaryWriter(log_dir=str(folder / "logs"))))
        elif importlib.util.find_spec(name) is None:
            raise RecipeError(f"tracking.report_to {name!r}: its package is missing; pip install {name}")
        else:
            found += [callback() for callback in get_reporting_integration_callbacks([name])]
    return found


def _arguments(training: Training, headline: str, states: Path, more: Mapping[str, Any]) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(states),
        num_train_epochs=training.epochs,
        learning_rate=training.learning_rate,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=32,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup_ratio,
        label_smoothing_factor=training.label_smoothing,
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
        **more,
    )


def _last_whole_epoch(states: Path) -> str | None:
    """The newest epoch that is whole; one that was half saved, or half removed, is removed."""
    whole = {"optimizer.pt", "scheduler.pt", "trainer_state.json"}
    for folder in states.glob("checkpoint-*"):
        names = {path.name for path in folder.iterdir()}
        if not names >= whole or not any(name.endswith(".safetensors") for name in names):
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
    lesson = learner_of(recipe.task).lesson(recipe, checkpoint, dataset, fine_tuned=True)
    trainer = Trainer(
        model=lesson.model,
        args=TrainingArguments(
            output_dir=str(folder), report_to="none", dataloader_pin_memory=False, disable_tqdm=True
        ),
        **trainer_arguments(lesson),
    )
    return _score(trainer, lesson)


def _score(trainer: Trainer, lesson: Lesson) -> dict[str, Any]:
    """Metrics on the evaluation split, and the report where the task has one."""
    output = trainer.predict(lesson.evaluation, metric_key_prefix="eval")
    metrics: dict[str, Any] = {
        key.removeprefix("eval_"): round(float(value), 6)
        for key, value in (output.metrics or {}).items()
        if not key.endswith(("_per_second", "_runtime", "_time"))
    }
    if lesson.report is not None:
        prediction = EvalPrediction(predictions=output.predictions, label_ids=output.label_ids)
        metrics["report"] = lesson.report(prediction)
    return metrics
