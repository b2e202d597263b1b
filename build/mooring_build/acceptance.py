"""How a text classifier tells texts that fit none of its labels: calibration and what it is worth.

The served step compares a text's confidence with those of the evaluation texts, all of them in scope, and
answers the share of these that is no higher. So the threshold that accepts 95 % of what is in scope is the
same 0.05 for every release and every data set, and the recipe alone says it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mooring._served.classification import Acceptance, confidence
from mooring_build.checkpoints import read_labels_of
from mooring_build.datasets import load_dataset, read_texts
from mooring_build.digests import digest_of
from mooring_build.layouts.text import acceptance_threshold
from mooring_build.recipe import Recipe
from mooring_build.stages import Stage, StepFiles, library_versions, source_digest

# As many steps as a release keeps of the evaluation texts' confidences.
_STEPS = 1000


def step_files(
    recipe: Recipe, folder: Path, key: str, artifacts: Path, say: Callable[[str], None]
) -> StepFiles:
    """The calibration of a fine-tuned classifier, and how many texts out of scope it recalls.

    Args:
        recipe: names the texts.
        folder: the checkpoint.
        key: its digest.
        artifacts: working folder; a calibration that is up to date there is used again.
        say: receives a line.
    """
    if recipe.data is None or recipe.data.out_of_scope is None:
        return StepFiles(key=None, files={})
    labels = read_labels_of(folder) or recipe.labels
    inside = [
        example.text for example in load_dataset(recipe, labels=labels, evaluation_only=True).evaluation
    ]
    outside = read_texts(recipe, recipe.data.out_of_scope)
    stage = Stage(
        artifacts,
        recipe.name,
        "acceptance",
        {
            "checkpoint": key,
            "texts": digest_of([inside, outside]),
            "accepted": recipe.data.accepted,
            "max_length": recipe.text.max_length,
            "libraries": library_versions("numpy", "torch", "transformers"),
            "sources": source_digest("acceptance.py", "models.py"),
        },
    )
    metrics = stage.result()
    if metrics is None:
        metrics = _calibrate(recipe, folder, inside, outside, stage.folder)
        stage.finish(metrics)
    say(
        f"acceptance  recalls {metrics['oos_recall']:.1%} of {len(outside)} texts out of scope, "
        f"{recipe.data.accepted:.0%} of those in scope accepted"
    )
    files = {"postprocessor": {"acceptance.json": stage.folder / "acceptance.json"}}
    return StepFiles(key=stage.key, files=files, metrics=metrics)


def _calibrate(
    recipe: Recipe, folder: Path, inside: Sequence[str], outside: Sequence[str], target: Path
) -> dict[str, float]:
    known, foreign = (_logits(recipe, folder, texts) for texts in (inside, outside))
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


def _logits(recipe: Recipe, folder: Path, texts: Sequence[str]) -> np.ndarray:
    """``[N, labels]`` of as many texts as there are."""
    import torch

    from mooring_build.models import load_fine_tuned_model, load_tokenizer

    model, tokenizer = load_fine_tuned_model(folder, recipe.task), load_tokenizer(folder)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(texts), 32):
            batch = tokenizer(
                list(texts[start : start + 32]),
                padding=True,
                truncation=True,
                max_length=recipe.text.max_length,
                return_tensors="pt",
            )
            rows.append(
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.numpy()
            )
    return np.concatenate(rows)
