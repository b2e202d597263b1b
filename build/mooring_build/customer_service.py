"""What a customer-service release holds: replies, and the thresholds from which on the parts count as sure.

A right decision gains one, a wrong reply and a hand-over that was missed lose one, and a hand-over that was
not needed neither gains nor loses: thresholds are those with the highest sum over the evaluation data, and
among equals those furthest from the nearest score. The figures of the manifest are cross-validated, each
message decided by thresholds that were found without it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mooring import BuildError, DataError
from mooring._served.ranking import Catalogue
from mooring._served.replies import PLACEHOLDER, Replies, Reply
from mooring_build.data_files import data_file, named_file, read_rows, read_text
from mooring_build.digests import digest_of
from mooring_build.examples import Message
from mooring_build.recipe import Recipe
from mooring_build.released import Classified, Ranked, ReleasedPipeline, classify, rank
from mooring_build.stages import Stage, shared_digest, source_digest

_COLUMNS = ("text", "intent", "item", "handover")
_FOLDS = 5


class _Template(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = Field(min_length=1)
    needs_answer: bool
    handover: bool = False

    @model_validator(mode="after")
    def _reads_well_without_an_answer(self) -> _Template:
        lines = [line for line in self.text.split("\n") if PLACEHOLDER in line]
        if self.handover and (lines or self.needs_answer):
            raise ValueError("a person takes over (handover), so there is no answer to give or to need")
        if self.needs_answer and not lines:
            raise ValueError(f"needs_answer, but the text has no {PLACEHOLDER}")
        if not self.needs_answer and any(line.strip() != PLACEHOLDER for line in lines):
            raise ValueError(f"without needs_answer, {PLACEHOLDER} needs a line of its own in {self.text!r}")
        return self


class _AnswerText(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = Field(min_length=1, pattern=r"\{answer\}")


class _HandoverText(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = Field(min_length=1)


class _ReplyFile(BaseModel):
    """Content of ``service.replies``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    replies: dict[str, _Template]
    answer: _AnswerText
    handover: _HandoverText


class Thresholds(NamedTuple):
    """From which on the parts count as sure."""

    intent: float
    answer: float


def compose_files(
    recipe: Recipe,
    parts: Mapping[str, Mapping[str, Any]],
    repository: Path,
    artifacts: Path,
    say: Callable[[str], None],
) -> tuple[str, dict[str, dict[str, Path | str]], dict[str, Any]]:
    """Make ``replies.json`` of the reply step.

    Args:
        recipe: names replies, evaluation data and parts.
        parts: manifests of the parts' releases, by what they do.
        repository: has the parts' releases, which are asked here.
        artifacts: working folder; what was decided there for the same parts and data is used again.
        say: receives a line.

    Returns:
        A digest of the file, the file, and the manifest's ``metrics`` and ``data``.

    Raises:
        BuildError: a part can't say what is needed.
        DataError: the replies or the evaluation data can't be used.
    """
    intents = parts["intent"]["labels"]
    content = _read_replies(recipe, intents)
    texts = {
        "intents": intents,
        "templates": {intent: template.model_dump() for intent, template in content.replies.items()},
        "answer": content.answer.text,
        "handover": content.handover.text,
    }
    messages = read_messages(recipe)
    stage = Stage(
        artifacts,
        recipe.name,
        "decided",
        {
            "parts": {recipe.parts[name]: part["inputs_digest"] for name, part in parts.items()},
            "replies": texts,
            "messages": messages_digest(messages),
            "service": recipe.service.model_dump(),
            "sources": source_digest("customer_service.py", "engines.py", "ragged_engine.py", "released.py"),
            "shared_sources": shared_digest(),
        },
    )
    result = stage.result()
    if result is None:
        result = _decide(recipe, repository, texts, messages)
        stage.finish(result)
    say(
        f"decided     intent from {result['thresholds']['intent']:.3f}, answer from "
        f"{result['thresholds']['answer']:.3f}: {result['metrics']['right']:.1%} right, "
        f"{result['metrics']['wrong']:.1%} wrong, {result['metrics']['unneeded_handover']:.1%} handed over "
        "without need"
    )
    file = json.dumps(
        texts | {f"{name}_threshold": value for name, value in result["thresholds"].items()},
        ensure_ascii=False,
        indent=1,
    )
    facts = {
        "metrics": result["metrics"],
        "data": {"evaluation_examples": len(messages), "evaluation_digest": messages_digest(messages)},
    }
    return digest_of(file), {"reply": {"replies.json": file}}, facts


def _read_replies(recipe: Recipe, intents: Sequence[str]) -> _ReplyFile:
    path = named_file(recipe, "service.replies", recipe.service.replies)
    try:
        content = _ReplyFile.model_validate(tomllib.loads(read_text(path)))
    except tomllib.TOMLDecodeError as exc:
        raise DataError(f"{path} is not a TOML file: {exc}") from exc
    except ValidationError as exc:
        mistakes = (
            f"  {'.'.join(map(str, error['loc']))}: {error['msg'].removeprefix('Value error, ')}"
            for error in exc.errors()
        )
        raise DataError("\n".join([f"{path} has {exc.error_count()} mistake(s):", *mistakes])) from exc
    unknown = sorted(content.replies.keys() - set(intents))
    if unknown:
        raise DataError(f"{path} replies to {unknown}, which {recipe.parts['intent']!r} does not know")
    return content


def read_messages(recipe: Recipe) -> list[Message]:
    """Read the evaluation data.

    Raises:
        DataError: there are none, or a row is malformed.
    """
    if recipe.data is None or recipe.data.evaluation is None:
        raise DataError(f"{recipe.name} needs data.evaluation, to find out when its parts are sure")
    path = data_file(recipe, recipe.data, "evaluation")
    messages = []
    for number, row in enumerate(read_rows(path, _COLUMNS, optional=("intent", "item")), start=1):
        # Spreadsheets write TRUE.
        said = row["handover"].casefold()
        if said not in ("true", "false"):
            where = f"{path}, row {number} after the header"
            raise DataError(f"{where}: handover {row['handover']!r} is neither true nor false")
        messages.append(Message(row["text"], row["intent"], row["item"], said == "true"))
    return messages


def messages_digest(messages: Sequence[Message]) -> str:
    """SHA-256 over the evaluation data."""
    return digest_of([vars(message) for message in messages])


def _decide(
    recipe: Recipe, repository: Path, texts: dict[str, Any], messages: Sequence[Message]
) -> dict[str, Any]:
    """Ask the parts, find the thresholds, and measure."""
    intent, faq = (ReleasedPipeline(repository, recipe.parts[name]) for name in ("intent", "faq"))
    for pipeline, output, cure in (
        (intent, "acceptance", "give its recipe data.out_of_scope"),
        (faq, "answer", "publish it anew"),
    ):
        if output not in pipeline.answers:
            raise BuildError(f"{recipe.name} joins {pipeline.model!r}, which has no output {output}: {cure}")
    catalogue = Catalogue.load(faq.last)
    unknown = {message.item for message in messages} - {"", *catalogue.items}
    if unknown:
        raise DataError(f"data.evaluation has items {sorted(unknown)}, which {faq.model!r} does not have")
    written = [message.text for message in messages]
    said = _Said(messages, classify(intent, written), rank(faq, written), texts)
    service = recipe.service
    fixed = (service.intent_threshold, service.answer_threshold)
    if len(messages) < 2 and None in fixed:
        raise DataError(
            "data.evaluation has a single message: thresholds are found without those they decide"
        )
    everything = np.arange(len(messages))
    replies: list[Reply] = [Reply("", True, False, False)] * len(messages)
    for fold in range(_FOLDS):
        here = everything[fold::_FOLDS]
        thresholds = said.calibrate(np.setdiff1d(everything, here), *fixed)
        for place in here:
            replies[place] = said.reply(place, thresholds)
    found = said.calibrate(everything, *fixed)
    return {"thresholds": found._asdict(), "metrics": said.metrics(replies)}


class _Said:
    """What the parts say of each message, and what would be made of it."""

    def __init__(
        self, messages: Sequence[Message], intents: Classified, answers: Ranked, texts: dict[str, Any]
    ) -> None:
        self._messages = messages
        self._intents = intents
        self._answers = answers
        self._texts = texts

    def reply(self, place: int, thresholds: Thresholds) -> Reply:
        replies = Replies(
            **self._texts, intent_threshold=thresholds.intent, answer_threshold=thresholds.answer
        )
        return replies.reply(
            self._intents.labels[place],
            float(self._intents.acceptance[place]),
            self._answers.answers[place],
            float(self._answers.scores[place]),
        )

    def calibrate(self, places: np.ndarray, intent: float | None, answer: float | None) -> Thresholds:
        """The thresholds that decide best on some of the messages; what is given stays."""
        acceptance = self._intents.acceptance[places].astype(float)
        scores = self._answers.scores[places].astype(float)
        intents = _between(acceptance) if intent is None else [(0.0, intent)]
        answers = _between(scores) if answer is None else [(0.0, answer)]
        answer_is_sure = np.array([scores >= threshold for _, threshold in answers])  # [thresholds, places]
        gains = self._gains[..., places]
        best, chosen = (-np.inf, -np.inf, -np.inf), Thresholds(0.0, 0.0)
        for intent_gap, intent_threshold in intents:
            unsure, sure = np.where(acceptance >= intent_threshold, gains[1], gains[0])
            found = unsure.sum() + answer_is_sure @ (sure - unsure)
            for (answer_gap, answer_threshold), gain in zip(answers, found.tolist(), strict=True):
                # The gap of a given threshold is 0 throughout, so that the other's decides.
                quality = (gain, *sorted((intent_gap, answer_gap)))
                if quality > best:
                    best, chosen = quality, Thresholds(intent_threshold, answer_threshold)
        return chosen

    @cached_property
    def _gains(self) -> np.ndarray:
        """What each message's reply is worth, ``[2, 2, messages]``: by whether its intent is sure, and its
        answer."""
        never_and_always = (np.inf, -np.inf)
        return np.array(
            [
                [
                    [
                        self._gain(place, self.reply(place, Thresholds(intent, answer)))
                        for place in range(len(self._messages))
                    ]
                    for answer in never_and_always
                ]
                for intent in never_and_always
            ]
        )

    def _gain(self, place: int, reply: Reply) -> int:
        message = self._messages[place]
        if reply.handover:
            return 1 if message.handover else 0
        return 1 if self._is_right(place, reply) else -1

    def _is_right(self, place: int, reply: Reply) -> bool:
        """Whether a reply that is no hand-over says what it should and nothing else."""
        message = self._messages[place]
        item = self._answers.items[place] if reply.uses_answer else ""
        fits = not reply.uses_intent or self._intents.labels[place] == message.intent
        return not message.handover and fits and item == message.item

    def metrics(self, replies: Sequence[Reply]) -> dict[str, float]:
        """Shares of the messages, of 0 to 1."""
        messages = self._messages
        gains = [self._gain(place, reply) for place, reply in enumerate(replies)]
        needed = np.array([message.handover for message in messages])
        handed = np.array([reply.handover for reply in replies])
        both = int((needed & handed).sum())
        named = [place for place, message in enumerate(messages) if message.intent]
        answered = [place for place, message in enumerate(messages) if message.item]
        return {
            "messages": len(messages),
            "intent_accuracy": _share([self._intents.labels[i] == messages[i].intent for i in named]),
            "item_hit_at_1": _share([self._answers.items[i] == messages[i].item for i in answered]),
            "right": _share([gain > 0 for gain in gains]),
            "wrong": _share([gain < 0 for gain in gains]),
            "unneeded_handover": _share([gain == 0 for gain in gains]),
            "handover_precision": both / max(1, int(handed.sum())),
            "handover_recall": both / max(1, int(needed.sum())),
        }


def _between(values: np.ndarray) -> list[tuple[float, float]]:
    """Thresholds below, between and above the values, each with its distance to the nearest of them."""
    steps = np.unique(values).astype(float)
    middles = [((high - low) / 2, (high + low) / 2) for low, high in pairwise(steps)]
    beyond = np.nextafter(steps[-1], np.inf)
    return [
        (0.0, float(steps[0])),
        *((float(gap), float(middle)) for gap, middle in middles),
        (0.0, float(beyond)),
    ]


def _share(hits: Sequence[Any]) -> float:
    return float(np.mean(hits)) if len(hits) else 0.0
