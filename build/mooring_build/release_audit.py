"""The audit that a build makes of the engine it is about to publish; its summary goes into the model card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mooring import VerificationError
from mooring_build.audit_texts import Axis, template_axes
from mooring_build.digests import digest_of
from mooring_build.recipe import Recipe
from mooring_build.release import EngineFiles, open_engine_and_tokenizer
from mooring_build.stages import Stage, shared_digest, source_digest

_SOURCES = (
    "audit.py",
    "audit_engine.py",
    "audit_statistics.py",
    "audit_texts.py",
    "engines.py",
    "ragged_engine.py",
    "release_audit.py",
)


def audit_release(
    recipe: Recipe,
    engine: EngineFiles,
    labels: Sequence[str],
    checkpoint: Path,
    artifacts: Path,
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """Audit the engine that the pipeline will call, as the recipe's ``[audit]`` says.

    Args:
        recipe: without an ``[audit]`` table nothing is asked.
        engine: of ``export.engine``.
        labels: in the order of the logits.
        checkpoint: has ``tokenizer.json`` and its configuration.
        artifacts: working folder; an audit that is up to date is not made again.
        say: receives one line.

    Returns:
        The summary for the model card, or ``None``.

    Raises:
        VerificationError: ``audit.required``, and an interval shows that a limit is broken.
    """
    if recipe.audit is None:
        return None
    if recipe.task == "token-classification" and not any(label.endswith("-PER") for label in labels):
        say("audited     not: the names of people are compared, and no label is PER")
        return None
    axes = template_axes(recipe.task, recipe.audit.templates, recipe.path)
    stage = Stage(
        artifacts,
        recipe.name,
        "audited",
        {
            "engine": engine.key,
            "labels": list(labels),
            "text": recipe.text.model_dump(),
            "audit": recipe.audit.model_dump(exclude={"required"}),
            "axes": digest_of([asdict(axis) for axis in axes]),
            "sources": source_digest(*_SOURCES),
            "shared_sources": shared_digest(),
        },
    )
    summary = stage.result()
    if summary is None:
        summary = _audit(recipe, axes, engine, labels, checkpoint)
        stage.finish(summary)
    broken = [name for name, axis in summary["axes"].items() if axis["verdict"] == "broken"]
    say(f"audited     {summary['texts']} texts, limits broken for: {', '.join(broken) or 'none'}")
    if broken and recipe.audit.required:
        raise VerificationError(
            f"{recipe.name} is not published: its answers differ between groups by more than the recipe's "
            f"[audit] allows, for {', '.join(broken)}; 'mooring audit' shows the figures of a served model"
        )
    return summary


def _audit(
    recipe: Recipe, axes: Sequence[Axis], engine: EngineFiles, labels: Sequence[str], checkpoint: Path
) -> dict[str, Any]:
    from mooring_build.audit import AuditLimits, audit
    from mooring_build.audit_engine import ask_engine

    # Only the start of a text that is too long for the model is compared, instead of no text at all.
    opened, encoder = open_engine_and_tokenizer(recipe, engine, labels, checkpoint)
    ask = ask_engine(opened, encoder, labels, recipe.task)
    limits = AuditLimits(max_gap=recipe.audit.max_gap, max_flips=recipe.audit.max_flips)
    return audit(ask, recipe.task, axes, limits=limits).summary()
