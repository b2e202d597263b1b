"""A published release in memory, whose models run the code that publishing copies."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mooring import InvalidInput, ModelNotFound
from mooring._models import EnsembleStep
from mooring._operations import GetConfig, Infer
from mooring._served.classification import rank_labels
from mooring._served.encoding import EncodingSettings, TextEncoder
from mooring._served.entities import BioLabels, tabulate
from mooring._served.texts import TextError, decode_texts
from mooring._transport import server_error
from mooring.testing import FakeModel, FakeTransport
from tiny_release import VOCABULARY

ENTITY_LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
INTENT_LABELS = ["refund", "balance", "card"]
OUTPUTS = {
    "token-classification": {
        "label": ("BYTES", [-1, -1]),
        "score": ("FP32", [-1, -1]),
        "start": ("INT32", [-1, -1]),
        "end": ("INT32", [-1, -1]),
        "entity": ("BYTES", [-1, -1]),
    },
    "text-classification": {"label": ("BYTES", [-1, 2]), "score": ("FP32", [-1, 2])},
}
MAX_BATCH_SIZE = 4


class ReleaseTransport(FakeTransport):
    """One release of a pipeline ``m``: its version answers, any other is unknown.

    Args:
        tokenizer: content of ``tokenizer.json``.
        task: of the pipeline.
        version: that the ensemble pins.
        labels: in the order of the logits.
        max_length: longest text in tokens.
        seed: of the engine's random logits.
    """

    def __init__(
        self,
        tokenizer: bytes,
        *,
        task: str = "token-classification",
        version: str = "1",
        labels: list[str] | None = None,
        max_length: int = 24,
        seed: int = 0,
    ) -> None:
        self.version = version
        self.labels = labels or (ENTITY_LABELS if task == "token-classification" else INTENT_LABELS)
        self.settings = EncodingSettings(
            task=task,
            max_length=max_length,
            truncation=False,
            padded_lengths=list(range(8, 129, 8)),
            pad_token_id=0,
        )
        self.tokenizer = tokenizer
        self._encoder = TextEncoder(Tokenizer.from_str(tokenizer.decode()), self.settings)
        table = np.random.default_rng(seed).normal(size=(len(VOCABULARY), len(self.labels)))
        self._table = table.astype(np.float32)
        self.steps = (
            EnsembleStep(
                model="m_tokenizer",
                version=version,
                inputs={"text": "text"},
                outputs={"input_ids": "input_ids", "attention_mask": "attention_mask"},
            ),
            EnsembleStep(
                model="m_engine",
                version=version,
                inputs={"input_ids": "input_ids", "attention_mask": "attention_mask"},
                outputs={"logits__0": "logits"},
            ),
        )
        super().__init__(self._models(task))

    def release(self, other: ReleaseTransport) -> None:
        """Become another release."""
        # Its models note the requests in the same lists.
        other.requests, other.headers = self.requests, self.headers
        vars(self).update(vars(other))

    def send(self, operation: Any, *, timeout_s: float, headers: Any = ()) -> Any:
        if operation.version not in ("", self.version):
            said = f"Request for unknown model: '{operation.model}' version {operation.version} is not found"
            raise server_error(ModelNotFound, said, operation=operation, code="NOT_FOUND")
        asked = dataclasses.replace(operation, version="") if operation.version else operation
        answer = super().send(asked, timeout_s=timeout_s, headers=headers)
        if isinstance(operation, Infer):
            self.requests[-1].version = operation.version
        if isinstance(operation, GetConfig) and operation.model == "m":
            return dataclasses.replace(answer, steps=self.steps)
        return answer

    def asked(self) -> list[str]:
        """The models that were run, in order."""
        return [request.model for request in self.requests]

    def _models(self, task: str) -> dict[str, FakeModel]:
        tokens = {"input_ids": ("INT64", [-1, -1]), "attention_mask": ("INT64", [-1, -1])}
        logits = [-1, -1, len(self.labels)] if task == "token-classification" else [-1, len(self.labels)]
        text = {"text": ("BYTES", [-1, 1])}
        files = {"tokenizer": ("BYTES", [-1, 1]), "settings": ("BYTES", [-1, 1])}
        return {
            "m": FakeModel(
                inputs=text,
                outputs=OUTPUTS[task],
                answer=self._pipeline,
                max_batch_size=MAX_BATCH_SIZE,
                parameters={"task": task, "labels": json.dumps(self.labels)},
            ),
            "m_tokenizer": FakeModel(
                inputs=text, outputs=tokens | files, answer=self._tokenize, max_batch_size=MAX_BATCH_SIZE
            ),
            "m_engine": FakeModel(
                inputs=tokens,
                outputs={"logits__0": ("FP32", logits)},
                answer=lambda inputs: {"logits__0": self._logits(inputs)},
                max_batch_size=MAX_BATCH_SIZE,
            ),
        }

    def _tokenize(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        files = {
            "tokenizer": np.array([[self.tokenizer]], np.object_),
            "settings": np.array([[json.dumps(vars(self.settings)).encode()]], np.object_),
        }
        if set(self.requests[-1].outputs or ()) <= files.keys():
            return files
        (encoded,) = self._encoder.encode_requests([inputs["text"][:, 0]])
        if isinstance(encoded, TextError):
            raise InvalidInput(f"model 'm_tokenizer': {encoded}")
        return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask, **files}

    def _logits(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        logits = self._table[inputs["input_ids"]] * (inputs["attention_mask"][..., None] == 1)
        return logits if self.settings.task == "token-classification" else logits.sum(axis=1)

    def _pipeline(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What tokenizer, engine and postprocessor of a release answer."""
        (encoded,) = self._encoder.encode_requests([inputs["text"][:, 0]])
        if isinstance(encoded, TextError):
            raise InvalidInput(f"model 'm': in ensemble 'm', {encoded}")
        logits = self._logits({"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask})
        if encoded.words is None:
            order, scores = rank_labels(logits, 2)
            return {
                "label": np.array([name.encode() for name in self.labels], object)[order],
                "score": scores,
            }
        texts = decode_texts(inputs["text"][:, 0])
        found = BioLabels(self.labels).decode(texts, logits, encoded.words)
        return tabulate(texts, found)
