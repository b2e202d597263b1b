"""The checkpoint as the servers run it that leave the model to their user: transformers on the CPU, fp32."""

from __future__ import annotations

from typing import Any

import torch
from transformers import pipeline
from transformers.pipelines import AggregationStrategy

from alternatives.options import Options, say_loaded

Answers = list[dict[str, Any]]


class PipelineModel:
    """Texts to answers by transformers' own pipeline."""

    def __init__(self, options: Options) -> None:
        torch.set_num_threads(options.threads)
        self._labels_tokens = options.task == "token-classification"
        # A text over the model's length is cut off; a pipeline for tokens does so without being told.
        arguments = {"aggregation_strategy": "simple"} if self._labels_tokens else {"truncation": True}
        self._pipeline = pipeline(
            options.task, model=options.checkpoint, device="cpu", dtype=torch.float32, **arguments
        )
        self(["A first text."])
        say_loaded()

    def __call__(self, texts: list[str]) -> list[Answers]:
        """Answer ``[b]`` texts as one batch."""
        found = self._pipeline(texts, batch_size=len(texts))
        return [_plain(answers if self._labels_tokens else [answers]) for answers in found]


class BatchedModel(PipelineModel):
    """The same answers from one call of the tokenizer and one of the model.

    A pipeline encodes text by text and collates through a data loader. Who writes a server's predict
    method spares that, as the servers' own examples do.
    """

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> list[Answers]:
        """Answer ``[b]`` texts as one batch."""
        pipe = self._pipeline
        extras = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
        encoded = pipe.tokenizer(
            texts,
            padding=True,
            truncation=True,
            return_tensors="pt",
            **(extras if self._labels_tokens else {}),
        )
        apart = {
            name: encoded.pop(name) for name in ("offset_mapping", "special_tokens_mask") if name in encoded
        }
        logits = pipe.model(**encoded).logits  # [b, labels] or [b, L, labels]
        if self._labels_tokens:
            return self._entities(texts, logits, encoded, apart)
        scores, best = logits.softmax(dim=-1).max(dim=-1)
        labels = pipe.model.config.id2label
        return [
            [{"label": labels[index], "score": score}]
            for index, score in zip(best.tolist(), scores.tolist(), strict=True)
        ]

    def _entities(self, texts: list[str], logits: Any, encoded: Any, apart: Any) -> list[Answers]:
        answers = []
        for index, text in enumerate(texts):
            real = encoded["attention_mask"][index].bool()
            tensors = {"logits": logits, "input_ids": encoded["input_ids"], **apart}
            row = {name: tensor[index, real][None] for name, tensor in tensors.items()}
            found = self._pipeline.postprocess([row | {"sentence": text}], AggregationStrategy.SIMPLE)
            answers.append(_plain(found))
        return answers


def _plain(answers: Answers) -> Answers:
    """Answers that JSON takes, the label under one name for both tasks."""
    plain = []
    for answer in answers:
        label = answer["entity_group"] if "entity_group" in answer else answer["label"]
        place = {name: int(answer[name]) for name in ("start", "end") if name in answer}
        plain.append({"label": label, "score": float(answer["score"]), **place})
    return plain
