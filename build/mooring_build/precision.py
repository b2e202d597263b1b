"""Lower precision: made of a verified fp32 export, and refused where it costs more than the recipe allows.

======  ==================  =============================================================================
value   formats             what it is
======  ==================  =============================================================================
fp32    ONNX, TorchScript   as trained
fp16    ONNX, TorchScript   weights and arithmetic in half precision, inputs and output as before; for GPUs
bf16    TorchScript         the same with fp32's range and three bits less than fp16, for activations beyond
                            65504; an ONNX engine beside it stays in fp32
int8    ONNX                weights in 7 of 8 bits, activations quantised as they come; for CPUs, fastest
                            with VNNI or the like. PyTorch has no format of its own for it that Triton's
                            backend loads, so a TorchScript engine beside it stays in fp32
======  ==================  =============================================================================
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from torch.utils.data import DataLoader
from transformers import EvalPrediction
from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer
from transformers.exporters.configs import ExportFormat as HubExportFormat
from transformers.trainer_pt_utils import nested_concat

from mooring import VerificationError
from mooring_build.engines import Engine
from mooring_build.export import export_engine
from mooring_build.learners import Exportable, Lesson
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import ExportFormat, Precision

#: Label id that counts for nothing.
_IGNORED = -100
_BATCH_SIZE = 16
_HALVES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a lower precision costs on the evaluation set; goes into the manifest."""

    precision: Precision
    #: The task's headline metric, of the PyTorch model in fp32 and of the engine.
    metric: str
    fp32: float
    lowered: float
    #: Share of answers whose best label is another one.
    label_flips: float
    examples: int

    @property
    def drop(self) -> float:
        return self.fp32 - self.lowered

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def lower_engine(path: Path, exportable: Exportable, recipe: Recipe, export_format: ExportFormat) -> None:
    """Replace a verified fp32 engine by the one in the recipe's precision."""
    if recipe.export.precision == "int8":
        quantize_onnx(path)
    elif export_format == "onnx":
        halve_onnx(path)
    else:
        dtype = _HALVES[recipe.export.precision]
        halved = replace(exportable, module=Halved(exportable.module, dtype), hub_model=None)
        export_engine(halved, recipe, export_format, path.parent)


def quantize_onnx(path: Path) -> None:
    """Replace an ONNX file by its int8 version, with one scale a channel and weights in seven of the bits.

    Processors without VNNI add two products in 16 bits, which saturate where weights take all eight
    (https://github.com/microsoft/onnxruntime/issues/14642): the engine would answer otherwise than where
    it was verified.
    """
    model = onnx_ir.load(path)
    onnx_ir.external_data.load_to_model(model)
    quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(per_channel=True, reduce_range=True))
    with _without_basic_config():
        quantized = quantizer.quantize(model, {}, HubExportFormat.ONNX)
    quantized.ir_version = min(quantized.ir_version, model.ir_version)
    onnx_ir.save(quantized, str(path))


@contextmanager
def _without_basic_config() -> Iterator[None]:
    """Keep ``logging.warning()`` from setting up the root logger, where the program has not.

    ONNX Runtime's quantizer calls it for tensors that it leaves as they are, which are none of the caller's
    business; from then on every library's warnings would go to standard error.
    """
    root, nowhere = logging.getLogger(), logging.NullHandler()
    root.addHandler(nowhere)
    try:
        yield
    finally:
        root.removeHandler(nowhere)


def halve_onnx(path: Path) -> None:
    """Replace an ONNX file by its fp16 version; inputs and output keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    onnx.save(half, path)


class Halved(torch.nn.Module):
    """A module in a type of 16 bits, with FP32 at both ends."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).to(dtype)
        self._dtype = dtype

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        halves = [value.to(self._dtype) if value.is_floating_point() else value for value in inputs]
        return self.module(*halves).float()


def open_halved(exportable: Exportable) -> Engine:
    """The PyTorch model in fp16, which rounds after each operator as a GPU does.

    ONNX Runtime's CPU provider computes in fp32 what it has no fp16 kernel for, and from one such operator
    to the next it rounds nothing (``InsertedPrecisionFreeCast`` in insert_cast_transformer.cc): what exceeds
    fp16's range there does not show.
    """
    halved = Halved(exportable.module, torch.float16).eval()

    def run(*inputs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return halved(*map(torch.from_numpy, inputs)).numpy()

    return run


def measure_cost(
    engine: Engine, exportable: Exportable, lesson: Lesson, *, precision: Precision, metric: str
) -> Cost:
    """Score an engine and the PyTorch model on the evaluation set.

    Args:
        engine: the export in lower precision.
        exportable: the model in fp32.
        lesson: gives the evaluation set, its collator and metrics.
        precision: of the engine.
        metric: the headline.
    """
    expected, actual, truth = None, None, None
    for inputs, labels in _batches(lesson, exportable.inputs):
        with torch.inference_mode():
            reference = exportable.module(*map(torch.from_numpy, inputs)).numpy()
        # Token classification pads each batch to its own length.
        expected = _joined(expected, reference)
        actual = _joined(actual, engine(*inputs))
        truth = _joined(truth, labels)
    if expected is None or actual is None or truth is None:
        raise VerificationError(f"precision {precision} needs evaluation data to measure what it costs")
    counted = truth != _IGNORED
    flips = (expected.argmax(-1) != actual.argmax(-1))[counted]
    scores = [
        lesson.metrics(EvalPrediction(predictions=predictions, label_ids=truth))[metric]
        for predictions in (expected, actual)
    ]
    return Cost(
        precision=precision,
        metric=metric,
        fp32=scores[0],
        lowered=scores[1],
        label_flips=float(flips.mean()),
        examples=len(truth),
    )


def check_cost(cost: Cost, recipe: Recipe) -> None:
    """Refuse a precision that costs more than the recipe's ``[quality]`` allows.

    Raises:
        VerificationError: with both figures and the bound.
    """
    if cost.drop > recipe.quality.max_drop:
        raise VerificationError(
            f"precision {cost.precision} lowers {cost.metric} from {cost.fp32:.4f} to {cost.lowered:.4f}, "
            f"the recipe allows {recipe.quality.max_drop:g} (quality.max_drop)"
        )
    if cost.label_flips > recipe.quality.max_label_flips:
        raise VerificationError(
            f"precision {cost.precision} changes {cost.label_flips:.2%} of the best labels on "
            f"{cost.examples} examples, the recipe allows {recipe.quality.max_label_flips:.2%} "
            "(quality.max_label_flips)"
        )


def _batches(lesson: Lesson, names: tuple[str, ...]) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    loader = DataLoader(lesson.evaluation, batch_size=_BATCH_SIZE, collate_fn=lesson.collator)
    for batch in loader:
        yield [batch[name].numpy() for name in names], batch["labels"].numpy()


def _joined(first: np.ndarray | None, second: np.ndarray) -> np.ndarray:
    joined: np.ndarray = second if first is None else nested_concat(first, second, padding_index=_IGNORED)
    return joined
