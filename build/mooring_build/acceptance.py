"""How a text classifier tells texts that fit none of its labels: calibration and what it is worth.

The served step compares a text's confidence with those of the evaluation texts, all of them in scope, and
answers the share of these that is no higher. So the threshold that accepts 95 % of what is in scope is the
same 0.05 for every release and every data set, and the recipe alone says it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mooring._served.classification import Acceptance, confidence
from mooring_build.datasets import Dataset, read_texts
from mooring_build.digests import digest_of
from mooring_build.engines import run_texts
from mooring_build.exports import LIBRARIES
from mooring_build.layouts.text import acceptance_threshold
from mooring_build.recipe import Recipe
from mooring_build.release import EngineFiles, open_engine_and_tokenizer
from mooring_build.stages import Stage, StepFiles, library_versions, shared_digest, source_digest

# As many steps as a release keeps of the evaluation texts' confidences.
_STEPS = 1000


def step_files(
    recipe: Recipe,
    engine: EngineFiles,
    folder: Path,
    dataset: Dataset,
    artifacts: Path,
    say: Callable[[str], None],
) -> StepFiles:
    """The calibration of a classifier as it is served, and how many texts out of scope it recalls.

    Args:
        recipe: names the texts out of scope.
        engine: of ``export.engine``; a lower precision has logits of its own.
        folder: the checkpoint.
        dataset: its evaluation split is in scope.
        artifacts: working folder; a calibration that is up to date there is used again.
        say: receives a line.
    """
    if recipe.data is None or recipe.data.out_of_scope is None:
        return StepFiles(key=None, files={})
    inside = [example.text for example in dataset.evaluation]
    outside = read_texts(recipe, recipe.data, "out_of_scope")
    stage = Stage(
        artifacts,
        recipe.name,
        "acceptance",
        {
            "engine": engine.key,
            "texts": digest_of([inside, outside]),
            "accepted": recipe.data.accepted,
            "max_length": recipe.text.max_length,
            "libraries": library_versions(*LIBRARIES),
            "sources": source_digest("acceptance.py", "engines.py", "ragged_engine.py"),
            "shared_sources": shared_digest(),
        },
    )
    metrics = stage.result()
    if metrics is None:
        opened, encoder = open_engine_and_tokenizer(recipe, engine, dataset.labels, folder)
        logits = (
            np.concatenate([rows for _, _, rows in run_texts(opened, encoder, texts, f"data.{key}")])
            for texts, key in ((inside, "evaluation"), (outside, "out_of_scope"))
        )
        metrics = _calibrate(recipe, *logits, stage.folder)
        stage.finish(metrics)
    say(
        f"acceptance  recalls {metrics['oos_recall']:.1%} of {len(outside)} texts out of scope, "
        f"{recipe.data.accepted:.0%} of those in scope accepted"
    )
    files = {"postprocessor": {"acceptance.json": stage.folder / "acceptance.json"}}
    return StepFiles(key=stage.key, files=files, metrics=metrics)


def _calibrate(recipe: Recipe, known: np.ndarray, foreign: np.ndarray, target: Path) -> dict[str, float]:
    confidences = np.sort(confidence(known))
    if len(confidences) > _STEPS:
        confidences = np.quantile(confidences, np.linspace(1 / _STEPS, 1, _STEPS), method="inverted_cdf")
    target.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"confidences": [float(value) for value in confidences]})
    (target / "acceptance.json").write_text(content, encoding="utf-8")
    acceptance, threshold = Acceptance(confidences), acceptance_threshold(recipe)
    return {
        "oos_recall": float((acceptance(foreign) < threshold).mean()),
        "oos_threshold": threshold,
        "in_scope_accepted": float((acceptance(known) >= threshold).mean()),
    }
