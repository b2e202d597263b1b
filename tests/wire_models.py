"""Models for tests of the client, and a server that holds them, in memory or behind ``wire_*``."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mooring import BatchStatistics, DurationStatistics, InvalidInput, ModelStatistics, Overloaded
from mooring._operations import GetMetadata, GetStatistics, Infer, InferAnswer, Operation
from mooring._transport import Headers
from mooring.testing import FakeModel, FakeTransport
from task_models import make_task_server

Arrays = dict[str, np.ndarray]

#: For tests of what a client does by itself: it does the same over every wire.
in_memory = pytest.mark.parametrize("wired", ["fake"], indirect=True)

NER_OUTPUTS = {
    "label": ("BYTES", [-1, -1]),
    "score": ("FP32", [-1, -1]),
    "start": ("INT32", [-1, -1]),
    "end": ("INT32", [-1, -1]),
    "entity": ("BYTES", [-1, -1]),
}


def answer_ner(inputs: Arrays) -> Arrays:
    """Every capitalised word is an entity; rows are padded to the longest."""
    rows = []
    for raw in inputs["text"][:, 0]:
        text = raw.decode("utf-8")
        rows.append([(m.start(), m.end(), m[0].encode("utf-8")) for m in re.finditer(r"[A-ZÄÖÜ]\w*", text)])
    width = max(map(len, rows))
    padded = [row + [(-1, -1, b"")] * (width - len(row)) for row in rows]
    start = np.array([[found[0] for found in row] for row in padded], np.int32).reshape(len(rows), width)
    end = np.array([[found[1] for found in row] for row in padded], np.int32).reshape(len(rows), width)
    entity = np.array([[found[2] for found in row] for row in padded], np.object_).reshape(len(rows), width)
    label = np.where(start >= 0, np.array(b"NAME", np.object_), np.array(b"", np.object_))
    score = np.where(start >= 0, np.float32(0.75), np.float32(0))
    return {"label": label, "score": score, "start": start, "end": end, "entity": entity}


def answer_intent(inputs: Arrays) -> Arrays:
    """``long`` is the more probable, the longer the text."""
    long = np.array([min(len(raw.decode("utf-8")), 100) / 100 for raw in inputs["text"][:, 0]], np.float32)
    label = np.where(
        long[:, None] > 0.5,
        np.array([b"long", b"short"], np.object_),
        np.array([b"short", b"long"], np.object_),
    )
    score = np.sort(np.stack([long, 1 - long], axis=1), axis=1)[:, ::-1]
    return {"label": label, "score": np.ascontiguousarray(score)}


def count_up(inputs: Arrays) -> Iterator[Arrays]:
    """The numbers below ``n``, one a response; then, where a word is given, a refusal that repeats it."""
    for number in range(int(inputs["n"][0])):
        yield {"i": np.array([number], np.int32), "word": np.array([f"№ {number}".encode()], np.object_)}
    if "fail" in inputs:
        raise InvalidInput(f"expected no {inputs['fail'][0].decode()}")


def refuse(inputs: Arrays) -> Arrays:
    raise InvalidInput("text 0 is too long")


def overload(inputs: Arrays) -> Arrays:
    raise Overloaded("Exceeds maximum queue size")


def make_models() -> dict[str, FakeModel]:
    """``double`` has numbers and an optional input, ``count`` is decoupled, seven models have a task each."""
    text = {"text": ("BYTES", [-1, 1])}
    of_tasks = make_task_server().models_by_name
    return {
        **{name: of_tasks[name] for name in ("embed", "rank", "recommend", "images", "rows")},
        "ner": FakeModel(
            inputs=text,
            outputs=NER_OUTPUTS,
            max_batch_size=4,
            parameters={"task": "token-classification"},
            answer=answer_ner,
        ),
        "intent": FakeModel(
            inputs=text,
            outputs={"label": ("BYTES", [-1, 2]), "score": ("FP32", [-1, 2])},
            max_batch_size=4,
            parameters={"task": "text-classification"},
            answer=answer_intent,
        ),
        "double": FakeModel(
            inputs={"x": ("FP32", [-1, -1]), "bias": ("FP32", [-1, 1])},
            outputs={"y": ("FP32", [-1, -1]), "rows": ("INT64", [-1, 1])},
            max_batch_size=3,
            optional_inputs=["bias"],
            answer=lambda inputs: {
                "y": 2 * inputs["x"] + inputs.get("bias", np.float32(0)),
                "rows": np.arange(len(inputs["x"]), dtype=np.int64)[:, None],
            },
        ),
        "echo": FakeModel(
            inputs={"t": ("BYTES", [-1])}, outputs={"t": ("BYTES", [-1])}, answer=lambda inputs: dict(inputs)
        ),
        "count": FakeModel(
            inputs={"n": ("INT32", [1]), "fail": ("BYTES", [1])},
            outputs={"i": ("INT32", [1]), "word": ("BYTES", [1])},
            optional_inputs=["fail"],
            decoupled=True,
            answer=count_up,
        ),
        "refusing": FakeModel(
            inputs=text,
            outputs=NER_OUTPUTS,
            max_batch_size=4,
            parameters={"task": "token-classification"},
            answer=refuse,
        ),
        "overloaded": FakeModel(inputs={"x": ("FP32", [-1])}, outputs={"x": ("FP32", [-1])}, answer=overload),
        "unloaded": FakeModel(inputs={}, outputs={}, answer=dict, ready=False),
    }


class RecordingServer(FakeTransport):
    """A FakeTransport that remembers every operation and can pretend to have been reloaded.

    Attributes:
        operations: every operation that arrived, streams not included, oldest first.
        version: the version that models name and answer with.
    """

    def __init__(self) -> None:
        super().__init__(make_models())
        self.operations: list[Operation[Any]] = []
        self.version = "1"

    def count(self, kind: type[Operation[Any]]) -> int:
        """How many operations of a kind arrived."""
        return sum(isinstance(operation, kind) for operation in self.operations)

    def change(self, name: str, **changes: Any) -> None:
        """Change a model, as a reload does."""
        self.models_by_name[name] = replace(self.models_by_name[name], **changes)

    def send(self, operation: Operation[Any], *, timeout_s: float, headers: Headers = ()) -> Any:
        self.operations.append(operation)
        answer = super().send(operation, timeout_s=timeout_s, headers=headers)
        if isinstance(operation, GetMetadata):
            return replace(answer, versions=(self.version,))
        if isinstance(answer, InferAnswer):
            answer.model_version = self.version
        return answer

    def stream(
        self, request: Infer, *, timeout_s: float, headers: Headers = ()
    ) -> Generator[InferAnswer, None, None]:
        for answer in super().stream(request, timeout_s=timeout_s, headers=headers):
            answer.model_version = self.version
            yield answer

    def _statistics(self, operation: GetStatistics, name: str) -> ModelStatistics:
        counted = super()._statistics(operation, name)
        took = DurationStatistics(count=2, ns=3_000_000)
        batch = BatchStatistics(batch_size=8, compute_input=took, compute_infer=took, compute_output=took)
        # 64-bit integers, which protobuf's JSON writes as text.
        return replace(counted, last_inference_ms=1_700_000_000_000, queue=took, batches=(batch,))
