"""Score what a served model answers on an evaluation set, with the metrics that its build recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from mooring import ConfigError, CustomerServiceAnswer, Entity, Label, Outcome, RankedItem
from mooring_build.customer_service import messages_digest, read_messages
from mooring_build.datasets import Dataset, load_dataset
from mooring_build.examples import HeadText, LabelledText, Message, TaggedSentence
from mooring_build.knowledge_base import known_examples
from mooring_build.metrics import (
    heads_metrics,
    heads_report,
    label_metrics,
    label_report,
    ranking_metrics,
    token_metrics,
)
from mooring_build.recipe import Recipe, Task

#: The figure of each task that is held against the manifest's.
HEADLINES: dict[Task, str] = {
    "customer-service": "intent_accuracy",
    "image-classification": "accuracy",
    "recommendation": "ndcg_at_10",
    "tabular-classification": "accuracy",
    "text-classification": "accuracy",
    "text-multi-classification": "accuracy",
    "text-ranking": "hit_at_1",
    "token-classification": "entity_f1",
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a model's answers are worth."""

    #: Under the names of the manifest's metrics.
    metrics: Mapping[str, float]
    #: By label: precision, recall, F1 and support, and their averages; empty for rankings.
    report: Mapping[str, Mapping[str, float]]
    examples: int
    #: Of the evaluation split that was asked.
    evaluation_digest: str
    #: Items that the server refused or that got no answer; each counts as a wrong answer.
    failures: int
    #: The first of their errors, in its own words.
    first_failure: str = ""


def evaluation_set(recipe: Recipe, labels: list[str] | None) -> Dataset:
    """The examples that a served model is asked about.

    Args:
        recipe: names them.
        labels: those of the served model; ``None`` where its task has none.

    Raises:
        DataError: they can't be read.
    """
    if recipe.task != "customer-service":
        dataset = load_dataset(recipe, labels=labels, evaluation_only=True)
        if recipe.task != "text-ranking":
            return dataset
        return known_examples(recipe, dataset)
    messages = read_messages(recipe)
    digest = messages_digest(messages)
    return Dataset(train=[], evaluation=messages, labels=[], digest=digest, evaluation_digest=digest)


def score_served(
    recipe: Recipe, dataset: Dataset, ask: Callable[[Sequence[Any]], Sequence[Outcome[Any]]]
) -> Score:
    """Ask for every evaluation example and score the answers.

    Args:
        recipe: names the task.
        dataset: its evaluation split and labels.
        ask: sends the items of the examples and returns one outcome each, in their order.

    Raises:
        ConfigError: the task has no metrics, or there are no examples.
    """
    if recipe.task not in _SCORERS:
        parts = f"; evaluate its parts: {', '.join(recipe.parts.values())}" if recipe.parts else ""
        raise ConfigError(
            f"task {recipe.task!r} has no evaluation of its own{parts}; tasks that have one: "
            f"{', '.join(sorted(_SCORERS))}"
        )
    if not dataset.evaluation:
        raise ConfigError(f"recipe {recipe.name!r} names no evaluation data (data.evaluation)")
    _, score = _SCORERS[recipe.task]
    examples = list(dataset.evaluation)
    outcomes = ask([item_of(recipe.task, example) for example in examples])
    heads = {name: head.labels for name, head in (recipe.heads or {}).items()}
    metrics, report = score(examples, [outcome.value for outcome in outcomes], heads or dataset.labels)
    if recipe.catalogue is not None:
        # What looks deeper than the served ranking goes would be lower than it is.
        metrics = {name: value for name, value in metrics.items() if _depth(name) <= recipe.top_k}
    errors = [str(outcome.error) for outcome in outcomes if outcome.error is not None]
    return Score(
        metrics=metrics,
        report=report,
        examples=len(examples),
        evaluation_digest=dataset.evaluation_digest,
        failures=len(errors),
        first_failure=errors[0] if errors else "",
    )


def item_of(task: Task, example: Any) -> Any:
    """The item that a client's task takes for an example of its evaluation set."""
    return _SCORERS[task][0](example)


def word_tags(sentence: TaggedSentence, entities: Sequence[Entity], labels: Sequence[str]) -> list[str]:
    """Tags of a sentence's words, from entities found in its text.

    A word with the start of an entity in it gets ``B-``, one that an earlier word's entity reaches ``I-``.
    """
    tags, start = [], 0
    known = set(labels)
    for token in sentence.tokens:
        end = start + len(token)
        entity = next((found for found in entities if found.start < end and found.end > start), None)
        tag = "O"
        if entity is not None:
            tag = f"{'B' if entity.start >= start else 'I'}-{entity.label}"
            # A label list without I-X (all entities are one word) continues with B-X.
            tag = tag if tag in known else f"B-{entity.label}"
        tags.append(tag)
        start = end + len(sentence.separator)
    return tags


_Scored = tuple[dict[str, float], dict[str, dict[str, float]]]


def _score_entities(
    examples: Sequence[TaggedSentence], answers: Sequence[list[Entity] | None], labels: Sequence[str]
) -> _Scored:
    truth = [list(example.tags) for example in examples]
    chosen = [
        word_tags(example, answer or [], labels) for example, answer in zip(examples, answers, strict=True)
    ]
    report = label_report(list(chain(*truth)), list(chain(*chosen)), labels)
    return token_metrics(truth, chosen), report


def _score_labels(
    examples: Sequence[Any], answers: Sequence[list[Label] | None], labels: Sequence[str]
) -> _Scored:
    truth = [example.label for example in examples]
    # No label is called "": an example without an answer is a wrong one.
    chosen = [answer[0].label if answer else "" for answer in answers]
    return label_metrics(truth, chosen, labels), label_report(truth, chosen, labels)


def _score_heads(
    examples: Sequence[HeadText],
    answers: Sequence[Mapping[str, list[Label]] | None],
    labels: Mapping[str, Sequence[str]],
) -> _Scored:
    truth: dict[str, list[str]] = {}
    chosen: dict[str, list[str]] = {}
    for example, answer in zip(examples, answers, strict=True):
        truth.setdefault(example.head, []).append(example.label)
        chosen.setdefault(example.head, []).append(answer[example.head][0].label if answer else "")
    return heads_metrics(truth, chosen, labels), heads_report(truth, chosen, labels)


def _score_ranking(
    examples: Sequence[Any], answers: Sequence[list[RankedItem] | None], labels: Sequence[str]
) -> _Scored:
    ranks = []
    for example, answer in zip(examples, answers, strict=True):
        right = _right_item(example)
        places = (place for place, ranked in enumerate(answer or []) if ranked.item == right)
        ranks.append(next(places, None))
    return ranking_metrics(ranks), {}


def _depth(metric: str) -> int:
    """How many places of a ranking a metric looks at."""
    _, _, places = metric.rpartition("_at_")
    # MRR looks at all; an item beyond fifty places adds less than 0.02 to its own query.
    return int(places) if places.isdecimal() else 50


def _score_service(
    examples: Sequence[Message], answers: Sequence[CustomerServiceAnswer | None], labels: Sequence[str]
) -> _Scored:
    """What the parts answer, as the manifest has it, and the hand-overs.

    The manifest's figures of hand-overs are cross-validated. Here all messages had their say in the
    thresholds, so the names differ and nothing is compared.
    """
    pairs = list(zip(examples, answers, strict=True))
    intents = [
        answer is not None and answer.intent.label == one.intent for one, answer in pairs if one.intent
    ]
    items = [
        answer is not None and bool(answer.answers) and answer.answers[0].item == one.item
        for one, answer in pairs
        if one.item
    ]
    handed = [one.handover for one, answer in pairs if answer is not None and answer.handover]
    needed = [answer is not None and answer.handover for one, answer in pairs if one.handover]
    shares = {
        "intent_accuracy": intents,
        "item_hit_at_1": items,
        "handover_precision_in_sample": handed,
        "handover_recall_in_sample": needed,
    }
    return {name: sum(hits) / max(1, len(hits)) for name, hits in shares.items()}, {}


def _right_item(example: Any) -> str:
    """A query is labelled with its item, a history has the one that came next."""
    item: str = example.label if isinstance(example, LabelledText) else example.item
    return item


# By task: the item that an example asks about, and what the answers are worth.
_SCORERS: dict[Task, tuple[Callable[[Any], Any], Callable[..., _Scored]]] = {
    "customer-service": (lambda example: example.text, _score_service),
    "image-classification": (lambda example: example.image, _score_labels),
    "recommendation": (lambda example: example.history, _score_ranking),
    "tabular-classification": (lambda example: example.features, _score_labels),
    "text-classification": (lambda example: example.text, _score_labels),
    "text-multi-classification": (lambda example: example.text, _score_heads),
    "text-ranking": (lambda example: example.text, _score_ranking),
    "token-classification": (lambda example: example.text, _score_entities),
}
