"""A short model card: what a release was made of, how good it is, and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mooring_build.recipe import Recipe, Task

#: What every model of a task has in common, whatever it was trained on.
LIMITS: dict[Task, str] = {
    "token-classification": (
        "Finds what resembles the entities of its training data; names of other languages, regions or "
        "domains are found less often (see audit). Not sufficient alone to anonymise texts. A score is no "
        "probability of being right unless it was calibrated."
    ),
    "text-classification": (
        "Gives one of its labels to every text, also where none fits, unless the recipe trained it on "
        "out-of-scope texts. Answers depend on wording, and may depend on whom a text is about (see audit). "
        "Not for decisions about people without a person's review."
    ),
    "text-multi-classification": (
        "Heads share one frozen encoder: none is as good as a model trained for it alone might be. Every "
        "head gives a label to every text, also where none fits. Not for decisions about people without a "
        "person's review."
    ),
    "feature-extraction": (
        "Similarity of embeddings is similarity in the eyes of the training data, biases included; distances "
        "of different models or versions can't be compared."
    ),
    "text-ranking": (
        "Ranks what is in its catalogue, and always something first: a low score, not a missing answer, "
        "means that nothing fits. Texts of other domains or languages are ranked without warning."
    ),
    "recommendation": (
        "Repeats what people did before: popular items and the tastes of frequent users are preferred, new "
        "items and small groups are served worse. Histories are personal data."
    ),
    "image-classification": (
        "Gives one of its labels to every image, also to one of something else. Other cameras, crops or "
        "backgrounds than those of the training data lower its quality without warning."
    ),
    "tabular-classification": (
        "Valid within the ranges of its training data; rows beyond them get an answer too, without warning."
    ),
    "customer-service": (
        "Errors of its parts add up. Replies are templates, not advice; what it is unsure of has to go to a "
        "person, and a person has to be there. Texts of customers are personal data: redact before storing."
    ),
    "opinion-monitoring": (
        "Shares of many texts are more reliable than the sentiment of one. Says what texts say, not what is "
        "true, and can be misled by many copies of one text. Not investment advice."
    ),
}


def model_card(
    recipe: Recipe, facts: Mapping[str, Any], *, audit: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Make the card of a release.

    Args:
        recipe: names the task; its table ``[card]`` has the words that only its author knows.
        facts: of the manifest: ``data``, ``metrics``, ``base_checkpoint`` and, for a pipeline that joins
            others, ``composed_of``; what is missing there is left out here.
        audit: :meth:`mooring_build.audit.AuditReport.summary`; ``None`` where the release was not audited.

    Returns:
        JSON values. A licence or source that the recipe does not state is ``None``: unknown, not free.
    """
    own = recipe.card
    data = {"source": own.data_source, "licence": own.data_licence, **facts.get("data", {})}
    card: dict[str, Any] = {
        "model": recipe.name,
        "task": recipe.task,
        "intended_use": own.intended_use,
        "data": data,
        "metrics": dict(facts.get("metrics", {})),
        "audit": dict(audit) if audit is not None else None,
        # The recipe's own words first: they know the data.
        "limits": [text for text in (own.limits, LIMITS[recipe.task]) if text],
    }
    for name in ("base_checkpoint", "composed_of"):
        if name in facts:
            card[name] = facts[name]
    return card
