"""Compare an exported engine with the PyTorch model, on inputs that were not traced.

The cases cross batch sizes with lengths, and mix lengths inside a batch under a padding mask; real texts
of the evaluation split come on top. Positions under the mask are left out: what an engine computes there
is nobody's answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mooring import VerificationError
from mooring_build.engines import Engine
from mooring_build.recipe import Recipe

BATCH_SIZES = (1, 2, 3, 5, 8)
_REAL_TEXTS = 64


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What verification measured; goes into the manifest."""

    passed: bool
    #: Largest absolute difference of any logit over all cases.
    max_abs_difference: float
    tolerance: float
    #: Cases, each one batch, and texts in them.
    cases: int
    texts: int
    #: Shape ``[B, L]`` and kind of the case with the largest difference.
    worst_case: str
    #: Share of answers (texts, or unmasked tokens) whose best label is the PyTorch model's.
    label_agreement: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify_engine(
    engine: Engine,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    texts: Sequence[str],
) -> Parity:
    """Run every case through both and compare.

    Args:
        engine: the export under test.
        model: the PyTorch model it was made from, in evaluation mode.
        tokenizer: the model's tokenizer.
        recipe: gives the tolerance, the longest length and the largest batch.
        texts: real texts; the first 64 are used, in batches of mixed lengths.

    Raises:
        VerificationError: the engine fails to run, gives another shape, gives NaN or infinity, or is
            further away than the tolerance; the message names output, case and distance.
    """
    worst, worst_case, cases, rows, answers, agreed = -1.0, "", 0, 0, 0, 0
    for name, input_ids, attention_mask in _cases(recipe, model, tokenizer, texts):
        expected = _run_model(model, input_ids, attention_mask)
        if not np.isfinite(expected).all():
            raise VerificationError(f"the PyTorch model itself gives NaN or infinity in case {name}")
        actual = _run_engine(engine, name, input_ids, attention_mask)
        if actual.dtype != np.float32:
            raise VerificationError(f"output 'logits' of case {name} is {actual.dtype}, float32 is served")
        if actual.shape != expected.shape:
            raise VerificationError(
                f"output 'logits' of case {name} has shape {actual.shape}, "
                f"the PyTorch model gives {expected.shape}"
            )
        if expected.ndim == 3:
            keep = attention_mask.astype(bool)
            expected, actual = expected[keep], actual[keep]
        if not np.isfinite(actual).all():
            raise VerificationError(f"output 'logits' of case {name} holds NaN or infinity")
        distance = float(np.abs(actual - expected).max())
        if distance > worst:
            worst, worst_case = distance, name
        agreed += int((actual.argmax(-1) == expected.argmax(-1)).sum())
        answers += expected.shape[0]
        cases, rows = cases + 1, rows + input_ids.shape[0]
    parity = Parity(
        passed=worst <= recipe.verify.tolerance,
        max_abs_difference=worst,
        tolerance=recipe.verify.tolerance,
        cases=cases,
        texts=rows,
        worst_case=worst_case,
        label_agreement=agreed / answers,
    )
    if not parity.passed:
        raise VerificationError(
            f"output 'logits' differs from the PyTorch model by {worst:.3g} in case {worst_case}, "
            f"the recipe allows {recipe.verify.tolerance:.3g} (verify.tolerance); best labels agree on "
            f"{parity.label_agreement:.1%} of {answers} answers"
        )
    return parity


def _cases(
    recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (name, input_ids ``[B, L]``, attention_mask ``[B, L]``), the same ones in every run."""
    random = np.random.default_rng(20)
    longest = recipe.text.max_length
    lengths = sorted({2, 3, 7, 16, 33, longest} & set(range(2, longest + 1)))
    high = min(len(tokenizer), model.config.vocab_size)
    low = min(1000, high // 2)
    for batch in (*BATCH_SIZES, recipe.serving.max_batch_size):
        for length in lengths:
            if batch * length > 2048:
                continue
            ids = random.integers(low, high, size=(batch, length))
            yield f"[{batch}, {length}] random ids, equal lengths", ids, np.ones_like(ids)
            if batch > 1:
                mask = (np.arange(length) < random.integers(1, length + 1, size=(batch, 1))).astype(np.int64)
                mask[random.integers(batch)] = 1
                yield f"[{batch}, {length}] random ids, mixed lengths", np.where(mask, ids, 0), mask
    chosen = list(texts[:_REAL_TEXTS])
    for start in range(0, len(chosen), 7):
        encoded = tokenizer(
            chosen[start : start + 7], padding=True, truncation=True, max_length=longest, return_tensors="np"
        )
        ids, mask = (encoded[key].astype(np.int64) for key in ("input_ids", "attention_mask"))
        yield f"{list(ids.shape)} real texts, mixed lengths", ids, mask


def _run_model(model: PreTrainedModel, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        output = model(input_ids=torch.from_numpy(input_ids), attention_mask=torch.from_numpy(attention_mask))
    return output.logits.numpy()


def _run_engine(engine: Engine, case: str, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
    try:
        return engine(input_ids, attention_mask)
    except Exception as exc:  # engines raise whatever their runtime has
        reason = str(exc).strip().splitlines()[-1] if str(exc).strip() else type(exc).__name__
        raise VerificationError(f"the engine fails on case {case}: {reason}") from exc
