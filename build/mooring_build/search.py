"""Hyper-parameter search: Optuna draws values, transformers' Trainer tries them, the best are built.

A search is kept in ``<artifacts>/<recipe>/search-<key>/`` as Optuna's journal, so that one that was
interrupted goes on, and more trials can be added later. The key covers what the trials have in common: data,
checkpoint, the recipe and its ranges. The first trial takes the recipe's own values, and one more does when
these have changed.
"""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from matplotlib.figure import Figure
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from transformers import (
    EarlyStoppingCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from mooring import RecipeError
from mooring_build.datasets import Dataset
from mooring_build.learners import learner_of
from mooring_build.models import quiet_transformers
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import Search, Training
from mooring_build.training import check_smoothing, trainer_arguments

# Names of the recipe's training values in TrainingArguments.
_ARGUMENTS = {
    "learning_rate": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "weight_decay": "weight_decay",
    "warmup_ratio": "warmup_steps",
}


def search(
    recipe: Recipe,
    base: Path | None,
    dataset: Dataset,
    folder: Path,
    *,
    trials: int,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Recipe, dict[str, Any]]:
    """Try hyper-parameters and take the best.

    Args:
        recipe: its ``[search]`` table says what is tried.
        base: folder of the base checkpoint, or ``None``.
        dataset: both splits; a trial is worth its best epoch's headline metric on the evaluation split.
        folder: keeps the study, ``trials.csv`` and ``trials.png``.
        trials: finished trials that there shall be, earlier ones counted; there is one more where these
            have not tried the recipe's own values.
        say: receives one line a trial.

    Returns:
        The recipe with the best trial's values, and what the manifest says of the search.

    Raises:
        RecipeError: the recipe does not train.
    """
    if recipe.training is None:
        raise RecipeError("training: is missing, there is nothing to search for")
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    finished = _finished(_open(storage, recipe.training.seed))
    done = len(finished)
    if done < trials or _own_values(recipe) not in _fixed(finished):
        _run(recipe, base, dataset, folder, storage, done=done, trials=trials, say=say)
    study = _open(storage, recipe.training.seed)
    _write_table(study, folder / "trials.csv")
    _draw(study, learner_of(recipe.task).headline, folder / "trials.png")
    best = study.best_trial
    training = Training.model_validate(recipe.training.model_dump() | best.params)
    found = recipe.model_copy(update={"training": training})
    return found, {
        "trials": len(_finished(study)),
        "best_trial": best.number,
        "best_value": best.value,
        "metric": learner_of(recipe.task).headline,
        "values": best.params,
    }


def _open(storage: JournalStorage, seed: int) -> optuna.Study:
    return optuna.create_study(
        storage=storage,
        study_name="search",
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=seed),
    )


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=[optuna.trial.TrialState.COMPLETE])


def _fixed(trials: Sequence[optuna.trial.FrozenTrial]) -> list[dict[str, Any] | None]:
    """The values that each trial was told to try, where it was."""
    return [trial.system_attrs.get("fixed_params") for trial in trials]


def _run(
    recipe: Recipe,
    base: Path | None,
    dataset: Dataset,
    folder: Path,
    storage: JournalStorage,
    *,
    done: int,
    trials: int,
    say: Callable[[str], None],
) -> None:
    training = recipe.training
    assert training is not None
    learner = learner_of(recipe.task)
    set_seed(training.seed)
    lesson = learner.lesson(recipe, base, dataset)
    check_smoothing(training, lesson)
    study, own = _open(storage, training.seed), _own_values(recipe)
    # One that was broken off counts for nothing.
    tried = study.get_trials(states=[optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.WAITING])
    if own not in _fixed(tried):
        study.enqueue_trial(own)
    current = _Trial(learner.headline, say)

    def space(trial: optuna.Trial) -> dict[str, Any]:
        current.begin(trial)
        return {_ARGUMENTS[name]: value for name, value in suggest(recipe, trial).items()}

    def objective(metrics: dict[str, float]) -> float:
        # The Trainer asks after every epoch, and the last answer is the trial's.
        current.best = max(current.best, metrics[f"eval_{learner.headline}"])
        return current.best

    trainer = Trainer(
        # Every trial starts from the same weights, the new head's among them.
        model_init=lambda: copy.deepcopy(lesson.model),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_eval_batch_size=32,
            # The Trainer turns what is tried into the type of what is here: a whole number cuts a share to 0.
            warmup_steps=0.0,
            metric_for_best_model=learner.headline,
            greater_is_better=True,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            seed=training.seed,
            label_smoothing_factor=training.label_smoothing,
            report_to="none",
            dataloader_pin_memory=False,
            **lesson.arguments,
        ),
        **trainer_arguments(lesson),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(current)
    if training.early_stopping_patience:
        # It counts anew from the first evaluation of each trial.
        trainer.add_callback(EarlyStoppingCallback(training.early_stopping_patience))
    with quiet_transformers():
        trainer.hyperparameter_search(
            hp_space=space,
            compute_objective=objective,
            n_trials=max(1, trials - done),
            direction="maximize",
            backend="optuna",
            storage=storage,
            study_name="search",
            load_if_exists=True,
            # A sampler that begins with the same seed again would draw the same values again.
            sampler=optuna.samplers.TPESampler(seed=training.seed + done),
            pruner=optuna.pruners.NopPruner(),
        )


class _Trial(TrainerCallback):
    """The trial under way: keeps its best epoch and tells of it at its end."""

    def __init__(self, headline: str, say: Callable[[str], None]) -> None:
        self._headline = headline
        self._say = say
        self._trial: optuna.Trial | None = None
        self.best = float("-inf")

    def begin(self, trial: optuna.Trial) -> None:
        self._trial = trial
        self.best = float("-inf")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._trial is not None:
            values = ", ".join(f"{name} {value:.3g}" for name, value in self._trial.params.items())
            self._say(f"trial {self._trial.number:>3}   {self._headline} {self.best:.3f}  {values}")


def ranges_of(recipe: Recipe) -> Search:
    """What is tried: the recipe's ``[search]``, and of what it leaves out the recipe's own values too."""
    training, wider = recipe.training, {}
    assert training is not None
    for name in Search.model_fields.keys() - recipe.search.model_fields_set:
        tried, own = getattr(recipe.search, name), getattr(training, name)
        if name == "batch_size":
            wider[name] = sorted({*tried, own})
        elif name == "epochs":
            wider[name] = [max(1, min(tried[0], math.floor(own))), max(tried[1], math.ceil(own))]
        else:
            wider[name] = [min(tried[0], own), max(tried[1], own)]
    return recipe.search.model_copy(update=wider)


def _own_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe's own values, as far as they may be tried: what is found shall not be worse."""
    ranges, training = ranges_of(recipe), recipe.training
    own = {name: getattr(training, name) for name in Search.model_fields}
    if own["epochs"] != int(own["epochs"]):
        # Whole ones are tried.
        del own["epochs"]
    return {
        name: value
        for name, value in own.items()
        if (value in ranges.batch_size if name == "batch_size" else _within(value, getattr(ranges, name)))
    }


def _within(value: float, ends: Sequence[float]) -> bool:
    return ends[0] <= value <= ends[1]


def suggest(recipe: Recipe, trial: optuna.Trial) -> dict[str, Any]:
    """Draw one value of each hyper-parameter of :func:`ranges_of`."""
    ranges = ranges_of(recipe)
    return {
        "learning_rate": trial.suggest_float("learning_rate", *ranges.learning_rate, log=True),
        "epochs": trial.suggest_int("epochs", *ranges.epochs),
        "batch_size": trial.suggest_categorical("batch_size", ranges.batch_size),
        "weight_decay": trial.suggest_float("weight_decay", *ranges.weight_decay),
        "warmup_ratio": trial.suggest_float("warmup_ratio", *ranges.warmup_ratio),
    }


def _write_table(study: optuna.Study, path: Path) -> None:
    """One row a trial, best first."""
    ranked = sorted(_finished(study), key=lambda trial: -(trial.value or 0.0))
    names = list(ranked[0].params)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["trial", "value", *names, "seconds"])
        for trial in ranked:
            seconds = trial.duration.total_seconds() if trial.duration else 0.0
            values = [trial.params[name] for name in names]
            rows.writerow([trial.number, f"{trial.value:.6f}", *values, f"{seconds:.1f}"])


def _draw(study: optuna.Study, headline: str, path: Path) -> None:
    """Every trial's value in order, the best so far, and each hyper-parameter against the value."""
    trials = _finished(study)
    values = [trial.value or 0.0 for trial in trials]
    names = list(trials[0].params)
    figure = Figure(figsize=(3 * (len(names) + 1), 3), layout="constrained")
    first, *others = figure.subplots(1, len(names) + 1, sharey=True)
    first.plot([trial.number for trial in trials], values, "o", markersize=4)
    best = [max(values[: count + 1]) for count in range(len(values))]
    first.step([trial.number for trial in trials], best, where="post", linewidth=1)
    first.set(xlabel="trial", ylabel=headline)
    for axes, name in zip(others, names, strict=True):
        axes.plot([trial.params[name] for trial in trials], values, "o", markersize=4)
        axes.set_xlabel(name)
        if name == "learning_rate":
            axes.set_xscale("log")
    figure.savefig(path, dpi=120)
