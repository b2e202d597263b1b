"""Each alternative whose environment `make bench` has made: it answers as transformers' own pipeline does."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mooring_build.models import load_pipeline
from mooring_loadtests.alternatives import (
    ALTERNATIVES,
    TASKS,
    Alternative,
    ServingSettings,
    ask,
    install,
    is_installed,
    serve,
)
from tiny_checkpoint import make_tiny_checkpoint

pytestmark = pytest.mark.integration

CACHE = Path(__file__).resolve().parents[2] / "artifacts" / "bench" / "alternatives"
TEXTS = ["Who pays my refund now", "Anna works for Brightwater in Porto and Lisbon", "The river is wide"]
LABELS = {
    "text-classification": ["river", "refund", "work"],
    "token-classification": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
}
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=TASKS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """A task, a checkpoint for it and transformers' own answers to the texts."""
    task = request.param
    checkpoint = make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), task, LABELS[task])
    # Some alternatives run transformers 4, which does not know the name that transformers 5 writes.
    tokenizer = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    pipe = load_pipeline(checkpoint, task)
    answers = [pipe(text) for text in TEXTS]
    assert any(answers)
    return (
        task,
        checkpoint,
        [[(each.get("entity_group") or each["label"], each["score"]) for each in found] for found in answers],
    )


@pytest.mark.parametrize("alternative", ALTERNATIVES, ids=lambda each: each.folder)
def test_an_alternative_answers_as_transformers_does(
    alternative: Alternative, case: tuple[str, Path, Any], tmp_path: Path
) -> None:
    task, checkpoint, expected = case
    if not is_installed(alternative.requirements, CACHE):
        where = CACHE / alternative.folder
        pytest.skip(f"{where} is not there, or not of these pins: alternatives.install makes it")
    if task not in alternative.tasks:
        pytest.skip(f"{alternative.name} has no {task}")
    settings = ServingSettings(workers=1, threads=1, max_batch_size=4, max_wait_ms=50.0)
    python = install(alternative.requirements, CACHE)
    with (
        serve(
            alternative,
            python,
            checkpoint=checkpoint,
            task=task,
            settings=settings,
            log_file=tmp_path / "log",
        ) as url,
        ThreadPoolExecutor(4) as askers,
    ):
        # At once, so that batches of several lengths come about.
        answers = list(askers.map(lambda text: ask(alternative, url, text), TEXTS * 4))
    for answer, wanted in zip(answers, expected * 4, strict=True):
        assert [label for label, _ in answer] == [label for label, _ in wanted]
        assert [score for _, score in answer] == pytest.approx([score for _, score in wanted], abs=TOLERANCE)
