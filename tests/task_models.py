"""A fake server with a small model of each task, for tests of what is built upon tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from mooring import InvalidInput
from mooring.testing import FakeModel, FakeTransport

Arrays = Mapping[str, np.ndarray]
_TEXT = {"text": ("BYTES", [-1, 1])}
_ENTITIES = {
    "label": ("BYTES", [-1, -1]),
    "score": ("FP32", [-1, -1]),
    "start": ("INT32", [-1, -1]),
    "end": ("INT32", [-1, -1]),
    "entity": ("BYTES", [-1, -1]),
}
_LABELS = {"label": ("BYTES", [-1, 2]), "score": ("FP32", [-1, 2])}
_RANKING = {"item": ("BYTES", [-1, -1]), "score": ("FP32", [-1, -1])}
_ANSWERS = {**_RANKING, "answer": ("BYTES", [-1, -1])}


def make_task_server() -> FakeTransport:
    """Models ``ner``, ``intent``, ``embed``, ``rank``, ``recommend``, ``images``, ``rows``, and others.

    ``ner`` refuses texts with ``REFUSED``; ``plain`` names no task; ``unloaded`` is not ready.
    """
    return FakeTransport(
        {
            "ner": _model("token-classification", _ENTITIES, _find_entities),
            "intent": _model("text-classification", _LABELS, _classify_length),
            "embed": _model("feature-extraction", {"embedding": ("FP32", [-1, 8])}, _embed),
            "rank": _model("text-ranking", _ANSWERS, _answer),
            "recommend": _model(
                "recommendation",
                _RANKING,
                lambda inputs: _rank(inputs["history"]),
                inputs={"history": ("BYTES", [-1, -1])},
            ),
            "images": _model(
                "image-classification",
                _LABELS,
                lambda inputs: _classify_length({"text": inputs["image"]}),
                inputs={"image": ("BYTES", [-1, 1])},
            ),
            "rows": _model(
                "tabular-classification", _LABELS, _classify_sum, inputs={"features": ("FP32", [-1, 3])}
            ),
            "plain": FakeModel(inputs={"x": ("FP32", [-1])}, outputs={"x": ("FP32", [-1])}, answer=dict),
            "unloaded": FakeModel(inputs={}, outputs={}, answer=dict, ready=False),
        }
    )


def _model(
    task: str,
    outputs: Mapping[str, tuple[str, list[int]]],
    answer: Callable[[Arrays], Arrays],
    *,
    inputs: Mapping[str, tuple[str, list[int]]] = _TEXT,
) -> FakeModel:
    return FakeModel(
        inputs=inputs, outputs=outputs, max_batch_size=4, parameters={"task": task}, answer=answer
    )


def _find_entities(inputs: Arrays) -> Arrays:
    """Every capitalised word is an entity; rows are padded to the longest."""
    texts = [raw.decode("utf-8") for raw in inputs["text"][:, 0]]
    if any("REFUSED" in text for text in texts):
        raise InvalidInput("the text is too long", model="ner", code="400")
    rows = [
        [(found.start(), found.end(), found[0]) for found in re.finditer(r"\b[A-ZÄÖÜ]\w*", t)] for t in texts
    ]
    shape = (len(rows), max(map(len, rows)))
    answer = {name: np.zeros(shape, np.int32) for name in ("start", "end")}
    answer |= {name: np.full(shape, b"", np.object_) for name in ("label", "entity")}
    answer["score"] = np.zeros(shape, np.float32)
    for i, row in enumerate(rows):
        for j, (start, end, word) in enumerate(row):
            answer["start"][i, j], answer["end"][i, j], answer["score"][i, j] = start, end, 0.75
            answer["label"][i, j], answer["entity"][i, j] = b"NAME", word.encode("utf-8")
    return answer


def _classify_length(inputs: Arrays) -> Arrays:
    """``long`` is the more probable, the longer the text, up to 100 bytes."""
    long = np.array([min(len(raw), 100) / 100 for raw in inputs["text"][:, 0]], np.float32)
    best_is_long = (long > 0.5)[:, None]
    label = np.where(
        best_is_long, np.array([b"long", b"short"], object), np.array([b"short", b"long"], object)
    )
    return {"label": label, "score": np.sort(np.stack([long, 1 - long], axis=1), axis=1)[:, ::-1].copy()}


def _classify_sum(inputs: Arrays) -> Arrays:
    """``much`` is the more probable, the larger the sum of the row, from 0 to 1."""
    much = inputs["features"].sum(axis=1, keepdims=True)
    order = np.where(
        much > 0.5, np.array([b"much", b"little"], object), np.array([b"little", b"much"], object)
    )
    return {"label": order, "score": np.sort(np.hstack([much, 1 - much]), axis=1)[:, ::-1].copy()}


def _embed(inputs: Arrays) -> Arrays:
    return {"embedding": np.tile(np.arange(8, dtype=np.float32) / 10, (len(inputs["text"]), 1))}


def _answer(inputs: Arrays) -> Arrays:
    """As :func:`_rank`; only the lamp has an answer."""
    ranking = _rank(inputs["text"])
    return {**ranking, "answer": np.where(ranking["item"] == b"lamp", b"Rub it.", b"").astype(np.object_)}


def _rank(column: np.ndarray) -> Arrays:
    """A lamp, and whatever was asked with first; the second item of a row that is padded."""
    items = np.array([[b"lamp", row[0], b""] for row in column], np.object_)
    return {"item": items, "score": np.tile(np.array([12.5, -3.25, 0], np.float32), (len(column), 1))}
