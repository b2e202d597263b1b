"""Items of each task from words, and its answers as words or JSON, for ``mooring predict``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mooring._commands import printable
from mooring._errors import InvalidInput
from mooring._service_kinds import CustomerServiceAnswer
from mooring._task_kind import Label, RankedAnswer, RankedItem
from mooring._task_kinds import Entity, Opinion

#: Values of an embedding that are shown to people.
_SHOWN_VALUES = 6
_ANSWER_KEYS = {
    "customer-service": "service",
    "feature-extraction": "embedding",
    "opinion-monitoring": "opinion",
    "recommendation": "items",
    "text-ranking": "items",
    "token-classification": "entities",
}


def parse_item(task: str, word: str) -> Any:
    """One item of a task from a line or argument.

    Args:
        task: name of the task.
        word: a text; for ``recommendation`` a history, as a JSON array of texts or separated by commas; for
            ``image-classification`` the path of an image; for ``tabular-classification`` a row of numbers,
            as a JSON array or separated by commas.

    Raises:
        InvalidInput: it is no such thing.
    """
    if task == "recommendation":
        return _parse_history(word)
    if task == "tabular-classification":
        return _parse_row(word)
    if task == "image-classification" and word:
        try:
            return Path(word).read_bytes()
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else exc
            raise InvalidInput(f"the image {word!r} can't be read: {reason}") from exc
    return word


def _parse_history(word: str) -> list[str]:
    if not word.lstrip().startswith("["):
        return [entry.strip() for entry in word.split(",")]
    try:
        history = json.loads(word)
    except ValueError as exc:
        raise InvalidInput(f"the history is no JSON array of texts: {exc}") from exc
    if not history or not all(isinstance(entry, str) for entry in history):
        raise InvalidInput("the history is no JSON array of texts, or empty")
    return list(history)


def _parse_row(word: str) -> list[float]:
    numbers = word.strip().removeprefix("[").removesuffix("]").split(",")
    try:
        return [float(number) for number in numbers]
    except ValueError as exc:
        raise InvalidInput(f"the row is not of numbers: {exc}") from exc


def format_json(task: str, word: str, item: Any, answer: Any) -> str:
    """One item and its answer as one line of JSON."""
    said: dict[str, Any] = {"text": word}
    if task == "recommendation":
        said = {"history": item}
    elif task == "image-classification":
        said = {"image": word}
    elif task == "tabular-classification":
        said = {"features": item}
    if isinstance(answer, np.ndarray):
        # str() of a float32 is the shortest that reads back as the same.
        found: Any = [float(str(value)) for value in answer]
    elif isinstance(answer, Opinion | CustomerServiceAnswer):
        found = asdict(answer)
    elif isinstance(answer, dict):
        found = {head: [asdict(part) for part in parts] for head, parts in answer.items()}
    else:
        found = [asdict(part) for part in answer]
    return json.dumps({**said, _ANSWER_KEYS.get(task, "labels"): found}, ensure_ascii=False)


def format_readable(word: str, answer: Any) -> str:
    """One item as the word it was, and its answer in aligned lines."""
    if isinstance(answer, Opinion):
        answer = [answer.topic, answer.sentiment]
    if isinstance(answer, dict):
        lines = [line for head, parts in answer.items() for line in (f"  {head}", *_indented(_parts(parts)))]
    elif isinstance(answer, CustomerServiceAnswer):
        lines = _service(answer)
    else:
        lines = _embedding(answer) if isinstance(answer, np.ndarray) else _parts(answer)
        if isinstance(answer, list) and answer and isinstance(answer[0], RankedAnswer):
            lines += _quoted(answer[0].text)
    return "\n".join([printable(word), *lines])


def _service(answer: CustomerServiceAnswer) -> list[str]:
    end = ["  a person takes over"] if answer.handover else []
    return [*_parts([answer.intent, *answer.answers]), *_quoted(answer.reply), *end]


def _quoted(text: str) -> list[str]:
    return [f"  > {printable(line)}" for line in text.split("\n")] if text else []


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _embedding(values: np.ndarray) -> list[str]:
    shown = " ".join(f"{value:.4f}" for value in values[:_SHOWN_VALUES])
    more = " …" if len(values) > _SHOWN_VALUES else ""
    return [f"  {len(values)} values, norm {np.linalg.norm(values):.4f}: {shown}{more}"]


def _parts(answer: Sequence[Any]) -> list[str]:
    if not answer:
        return ["  nothing found"]
    names = [printable(_name(part)) for part in answer]
    scores = [f"{part.score:.4f}" for part in answer]
    name_width, score_width = max(map(len, names)), max(map(len, scores))
    lines = []
    for part, label, score in zip(answer, names, scores, strict=True):
        line = f"  {label:<{name_width}}  {score:>{score_width}}"
        if isinstance(part, Entity):
            line += f"  {f'{part.start}:{part.end}':>9}  {printable(part.text)}"
        lines.append(line)
    return lines


def _name(part: Entity | Label | RankedItem) -> str:
    return part.item if isinstance(part, RankedItem) else part.label
