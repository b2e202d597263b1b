"""What the users ask: items drawn for the model's task, or replayed from a file."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from mooring import ConfigError, ModelConfig, ModelMetadata
from mooring_loadtests.load_profile import Payload
from mooring_loadtests.texts import SENTENCES

#: Height and width of a drawn image; the server scales it to the model's size.
_IMAGE_SIZE = 64
_WORDS = tuple(word for sentence in SENTENCES for word in sentence.split())


def endless_items(
    payload: Payload, config: ModelConfig, metadata: ModelMetadata, *, source: int
) -> Iterator[Any]:
    """Items of the model's task, for ever; the same sequence for the same seed and source.

    Args:
        payload: what the profile says of them.
        config: of the model; names its task.
        metadata: of the model; says how wide a row of numbers is.
        source: which of the users asks.

    Raises:
        ConfigError: the file is missing or holds no items, or nothing can be drawn for the task.
    """
    if payload.file is not None:
        items = read_items(Path(payload.file))
        return itertools.islice(itertools.cycle(items), source % len(items), None)
    task = config.parameters.get("task", "")
    random = np.random.default_rng([payload.seed, source])
    if task == "recommendation":
        raise ConfigError(
            f"model {config.name!r} takes items of its own catalogue: name a file of histories "
            "(payload.file), one JSON array a line"
        )
    if task == "image-classification":
        return _draw(lambda: random.integers(0, 256, (_IMAGE_SIZE, _IMAGE_SIZE, 3), dtype=np.uint8))
    if task == "tabular-classification":
        width = metadata.inputs[0].shape[-1]
        return _draw(lambda: random.standard_normal(width, dtype=np.float32))
    of_texts = Random(f"{payload.seed}/{source}")
    return _draw(lambda: draw_text(of_texts, payload))


def read_items(path: Path) -> list[Any]:
    """Items of a file of JSON lines.

    Raises:
        ConfigError: it is missing, empty, or a line is no JSON.
    """
    items = []
    try:
        # Not splitlines, which takes more for the end of a line, such as what JSON strings may hold.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"payload.file {path} cannot be read: {exc}") from exc
    for number, line in enumerate(lines, start=1):
        try:
            items += [json.loads(line)] if line.strip() else []
        except ValueError as exc:
            raise ConfigError(f"payload.file {path}, line {number}: no JSON ({exc})") from exc
    if not items:
        raise ConfigError(f"payload.file {path} holds no items")
    return items


def items_sha256(payload: Payload) -> str:
    """Digest of the file that is replayed; empty where items are drawn."""
    return "" if payload.file is None else hashlib.sha256(Path(payload.file).read_bytes()).hexdigest()


def draw_text(random: Random, payload: Payload) -> str:
    """A run of words whose number is drawn; it begins anywhere."""
    count = round(random.lognormvariate(math.log(payload.median_words), payload.sigma))
    first = random.randrange(len(_WORDS))
    words = itertools.islice(itertools.cycle(_WORDS), first, first + max(1, min(count, payload.max_words)))
    return " ".join(words)


def _draw(one: Callable[[], Any]) -> Iterator[Any]:
    while True:
        yield one()
