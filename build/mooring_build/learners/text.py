"""Text and token classification: encoders with a head of transformers' own."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from mooring import CheckpointError
from mooring_build.datasets import Dataset
from mooring_build.examples import Example, LabelledText, TaggedSentence
from mooring_build.learners._learner import Case, Exportable, Learner, Lesson, verified_batches
from mooring_build.learners._one_label import label_scores
from mooring_build.learners.adapters import add_adapter, merge_adapter
from mooring_build.metrics import label_report, token_metrics
from mooring_build.models import (
    check_padding,
    check_served_tokens,
    check_vocabulary,
    load_base_model,
    load_fine_tuned_model,
    load_tokenizer,
)
from mooring_build.recipe import Recipe

#: Label id that the loss leaves out (PyTorch's cross entropy default).
IGNORED = -100

_REAL_TEXTS = 64


class OneOutput(torch.nn.Module):
    """A model of texts whose ``forward`` takes two tensors by position and returns one output alone."""

    def __init__(self, model: PreTrainedModel, output: str = "logits") -> None:
        super().__init__()
        self.model = model
        self._output = output

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)[self._output]


class TextLearner(Learner):
    """What every model that reads texts has in common."""

    def cases(self, recipe: Recipe, exportable: Exportable, dataset: Dataset) -> Iterator[Case]:
        return text_cases(recipe, exportable, [example.text for example in dataset.evaluation])

    def count_cut(self, recipe: Recipe, folder: Path | None, dataset: Dataset) -> int:
        tokenizer = load_tokenizer(required(recipe, folder))
        texts = [example.text for example in [*dataset.train, *dataset.evaluation]]
        lengths = tokenizer(texts, return_length=True)["length"] if texts else []
        return sum(length > recipe.text.max_length for length in lengths)


class _ClassificationLearner(TextLearner):
    def lesson(
        self, recipe: Recipe, folder: Path | None, dataset: Dataset, *, fine_tuned: bool = False
    ) -> Lesson:
        folder = required(recipe, folder)
        adapted = recipe.adapter is not None and not fine_tuned
        if fine_tuned:
            model, new_pooler = load_fine_tuned_model(folder, recipe.task), False
        else:
            model, new_pooler = load_base_model(folder, recipe.task, dataset.labels)
        tokenizer = tokenizer_of(model, folder, recipe)
        if adapted:
            model = add_adapter(model, recipe, new_pooler=new_pooler)
        return Lesson(
            model=model,
            finish=merge_adapter if adapted else None,
            train=encode_examples(dataset.train, tokenizer, recipe, dataset.labels),
            evaluation=encode_examples(
                dataset.evaluation, tokenizer, recipe, dataset.labels, first_pieces_only=True
            ),
            collator=self._collator(tokenizer),
            **self._scores(dataset.labels),
            processor=tokenizer,
            arguments={"train_sampling_strategy": "group_by_length"},
        )

    def exportable(self, recipe: Recipe, folder: Path) -> Exportable:
        return text_exportable(load_fine_tuned_model(folder, recipe.task), folder, recipe)

    @abstractmethod
    def _collator(self, tokenizer: PreTrainedTokenizerFast) -> Any: ...

    @abstractmethod
    def _scores(self, labels: list[str]) -> dict[str, Callable[[EvalPrediction], Any]]:
        """``metrics`` and ``report`` of the lesson."""


class TextClassificationLearner(_ClassificationLearner):
    """One label a text."""

    headline = "accuracy"

    def lesson(
        self, recipe: Recipe, folder: Path | None, dataset: Dataset, *, fine_tuned: bool = False
    ) -> Lesson:
        lesson = super().lesson(recipe, folder, dataset, fine_tuned=fine_tuned)
        if fine_tuned or not dataset.out_of_scope:
            return lesson
        outside = lesson.processor(
            list(dataset.out_of_scope), truncation=True, max_length=recipe.text.max_length
        )
        rows = zip(outside["input_ids"], outside["attention_mask"], strict=True)
        items = [{"input_ids": ids, "attention_mask": mask, "labels": IGNORED} for ids, mask in rows]
        return replace(lesson, train=[*lesson.train, *items], loss=exposure_loss)

    def _collator(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        return DataCollatorWithPadding(tokenizer)

    def _scores(self, labels: list[str]) -> dict[str, Callable[[EvalPrediction], Any]]:
        return label_scores(labels)


class TokenClassificationLearner(_ClassificationLearner):
    """One BIO tag a word."""

    headline = "entity_f1"

    def _collator(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        return DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED)

    def _scores(self, labels: list[str]) -> dict[str, Callable[[EvalPrediction], Any]]:
        def read(prediction: EvalPrediction) -> Iterator[list[list[str]]]:
            """Right and chosen tags, a list of them an example."""
            truth, logits = np.asarray(prediction.label_ids), np.asarray(prediction.predictions)
            counted = truth != IGNORED
            for tags in (truth, logits.argmax(-1)):
                yield [[labels[i] for i in row[keep]] for row, keep in zip(tags, counted, strict=True)]

        return {
            "metrics": lambda prediction: token_metrics(*read(prediction)),
            "report": lambda prediction: label_report(
                *(list(chain(*tags)) for tags in read(prediction)), labels
            ),
        }


def exposure_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Cross entropy with the label, or with all labels alike where a text has none (``IGNORED``): outlier
    exposure, Hendrycks et al., 2019, arXiv:1812.04606.

    Args:
        outputs: ``logits`` ``[B, labels]``.
        labels: ``[B]``.
        num_items_in_batch: given by the Trainer; the mean of a batch needs no count.
    """
    away = -torch.log_softmax(outputs["logits"], dim=-1)  # [B, labels]
    own = away.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return torch.where(labels == IGNORED, away.mean(dim=-1), own).mean()


def tokenizer_of(
    model: PreTrainedModel, folder: Path, recipe: Recipe, output: str = "logits"
) -> PreTrainedTokenizerFast:
    """Load a checkpoint's tokenizer, and try whether its model answers what the tokenizer gives.

    Raises:
        CheckpointError: it can't be loaded, has tokens without an embedding, or cuts texts off at their
            beginning; or padding changes the answer, or what the model was asked before.
    """
    _check_attention(model, folder, recipe)
    tokenizer, module = load_tokenizer(folder), OneOutput(model, output).eval()
    if recipe.text.truncation and tokenizer.truncation_side != "right":
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: truncation_side is {tokenizer.truncation_side!r}, and the "
            "server cuts off the end of a long text: have such texts refused (--set text.truncation=false), "
            'or write "right" there, if the model answers as well by their beginning'
        )
    check_vocabulary(module, tokenizer, str(folder))
    check_padding(module, token_sample(recipe)[0], tokenizer.pad_token_id, str(folder))
    return tokenizer


def _check_attention(model: PreTrainedModel, folder: Path, recipe: Recipe) -> None:
    """Refuse texts for which BigBird's attention is sparse.

    transformers' model gives that up for good with the first text that is too short for it, and an engine
    holds one of both ways (``BigBirdModel.forward``).
    """
    config = model.config
    if getattr(config, "attention_type", None) != "block_sparse":
        return
    longest = (5 + 2 * config.num_random_blocks) * config.block_size
    if recipe.text.max_length > longest:
        raise CheckpointError(
            f"{folder}: its attention is sparse for texts of more than {longest} tokens, which can't be "
            f"served, and text.max_length is {recipe.text.max_length}: add --set text.max_length={longest}, "
            'or write attention_type "original_full" into its config.json, if it was trained so'
        )


def text_exportable(
    model: PreTrainedModel, folder: Path, recipe: Recipe, output: str = "logits"
) -> Exportable:
    """A model of texts as its engine: ``input_ids`` and ``attention_mask`` ``[B, L]`` in, one FP32 output.

    Raises:
        CheckpointError: as :func:`tokenizer_of`, or the tokenizer's file would be served as another one.
    """
    tokenizer = tokenizer_of(model, folder, recipe, output)
    check_served_tokens(tokenizer, folder)
    return Exportable(
        module=OneOutput(model, output).eval(),
        inputs=("input_ids", "attention_mask"),
        output=output,
        sample=token_sample(recipe),
        axes=token_axes(recipe),
        hub_model=model,
        tokenizer=tokenizer,
    )


def token_sample(recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of two of unequal length, so that tracing meets a real padding mask."""
    length = min(11, recipe.text.max_length)
    input_ids = torch.arange(2 * length).reshape(2, length) % 90 + 5
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, length - 3 :] = 0
    return input_ids, attention_mask


def token_axes(recipe: Recipe) -> tuple[dict[int, Any], dict[int, Any]]:
    """Batch and sequence of both inputs."""
    axes = {
        0: torch.export.Dim("batch", min=1, max=1024),
        1: torch.export.Dim("sequence", min=2, max=recipe.text.max_length),
    }
    return axes, axes


def text_cases(recipe: Recipe, exportable: Exportable, texts: Sequence[str]) -> Iterator[Case]:
    """Batch sizes crossed with lengths, mixed lengths under a padding mask, and real texts on top.

    Positions under the mask are left out where the output has them: what an engine computes there is nobody's
    answer.
    """
    tokenizer = exportable.tokenizer
    per_token = recipe.task == "token-classification"

    def case(name: str, ids: np.ndarray, mask: np.ndarray) -> Case:
        return Case(name=name, inputs=(ids, mask), keep=mask.astype(bool) if per_token else None)

    random = np.random.default_rng(20)
    longest = recipe.text.max_length
    lengths = sorted({2, 3, 7, 16, 33, longest} & set(range(2, longest + 1)))
    high = min(len(tokenizer), exportable.hub_model.config.vocab_size)
    low = min(1000, high // 2)
    for batch in verified_batches(recipe):
        for length in lengths:
            if batch > 1 and batch * length > 2048:
                continue
            ids = random.integers(low, high, size=(batch, length))
            yield case(f"[{batch}, {length}] random ids, equal lengths", ids, np.ones_like(ids))
            if batch > 1:
                mask = (np.arange(length) < random.integers(1, length + 1, size=(batch, 1))).astype(np.int64)
                mask[random.integers(batch)] = 1
                yield case(f"[{batch}, {length}] random ids, mixed lengths", np.where(mask, ids, 0), mask)
    chosen = list(texts[:_REAL_TEXTS])
    for start in range(0, len(chosen), 7):
        encoded = tokenizer(
            chosen[start : start + 7], padding=True, truncation=True, max_length=longest, return_tensors="np"
        )
        ids, mask = (encoded[key].astype(np.int64) for key in ("input_ids", "attention_mask"))
        yield case(f"{list(ids.shape)} real texts, mixed lengths", ids, mask)


def encode_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    labels: list[str],
    *,
    first_pieces_only: bool = False,
) -> list[dict[str, Any]]:
    """Turn examples into token ids and label ids, cut at ``text.max_length``.

    For training every piece of a word is labelled: the first carries the word's tag, the rest continue
    it (``B-X`` becomes ``I-X``). So the server may split words more finely than CoNLL does and still
    meets only positions that were trained. Evaluation counts words as CoNLL does: first pieces only.
    """
    ids = {label: index for index, label in enumerate(labels)}
    encoded = []
    for example in examples:
        # As the server sees it, not word by word: of a word alone some tokenizers make other pieces.
        item = tokenizer(example.text, truncation=True, max_length=recipe.text.max_length)
        features: dict[str, Any] = {key: item[key] for key in ("input_ids", "attention_mask")}
        if isinstance(example, LabelledText):
            features["labels"] = ids[example.label]
        else:
            word_ids = _tokens_of_pieces(item.encodings[0], example)
            features["labels"] = _piece_labels(
                word_ids, example.tags, ids, first_pieces_only=first_pieces_only
            )
        encoded.append(features)
    return encoded


def _tokens_of_pieces(encoding: Encoding, sentence: TaggedSentence) -> list[int | None]:
    """Of each piece of the text, the token in which it begins; ``None`` for special tokens.

    White space that a piece begins with is not part of it: byte-level tokenizers count the space before a
    word to its first piece.
    """
    text = sentence.text
    starts = [0, *accumulate(len(token) + len(sentence.separator) for token in sentence.tokens)]
    spaces = [len(text[begin:end]) - len(text[begin:end].lstrip()) for begin, end in encoding.offsets]
    return [
        None if word is None else min(bisect_right(starts, begin + skipped), len(sentence.tokens)) - 1
        for word, (begin, _), skipped in zip(encoding.word_ids, encoding.offsets, spaces, strict=True)
    ]


def _piece_labels(
    word_ids: Sequence[int | None], tags: Sequence[str], ids: dict[str, int], *, first_pieces_only: bool
) -> list[int]:
    labels, previous = [], None
    for word in word_ids:
        if word is None or (first_pieces_only and word == previous):
            labels.append(IGNORED)
            continue
        tag = tags[word]
        if word == previous and tag.startswith("B-"):
            tag = "I-" + tag[2:]
        # A label list without I-X (all entities are one word) continues with B-X.
        labels.append(ids.get(tag, ids[tags[word]]))
        previous = word
    return labels


def mean_of_tokens(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """``[B, L, D]`` hidden states and ``[B, L]`` mask to ``[B, D]``."""
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # [B, L, 1]
    return (hidden * mask).sum(1) / mask.sum(1)


def embed_texts(
    model: Any, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int
) -> np.ndarray:
    """What a model's ``embed`` makes of any number of texts, in their order, each cut off at ``max_length``
    tokens: ``[N, D]`` float32."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    vectors = np.zeros((len(texts), model.config.hidden_size), np.float32)
    for start in range(0, len(order), 32):
        places = order[start : start + 32]
        batch = tokenizer(
            [texts[place] for place in places],
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            vectors[places] = model.embed(batch["input_ids"], batch["attention_mask"]).cpu().numpy()
    return vectors


def required(recipe: Recipe, folder: Path | None) -> Path:
    if folder is None:
        raise CheckpointError(
            f"base: task {recipe.task!r} needs a checkpoint with a tokenizer; base.config has none"
        )
    return folder
