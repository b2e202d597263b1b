"""Exported engines: their files, and running one outside of Triton."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tritonclient.grpc import model_config_pb2 as pb

from mooring import DataError
from mooring._served.encoding import EncodedTexts, TextEncoder
from mooring._served.texts import TextError
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import ONLY_FORMAT, ExportFormat, Precision

#: File name of each format in a version folder (Triton's ``default_model_filename``).
ENGINE_FILES: dict[ExportFormat, str] = {"onnx": "model.onnx", "torchscript": "model.pt"}
#: Texts that are tokenized and answered at a time.
_BATCH_SIZE = 32


def engine_precision(recipe: Recipe, export_format: ExportFormat) -> Precision:
    """The precision that an engine of this format gets."""
    precision = recipe.export.precision
    return precision if ONLY_FORMAT.get(precision, export_format) == export_format else "fp32"


class Engine(Protocol):
    """Runs an exported file: its inputs by position, each ``[B, …]``, and its one FP32 output."""

    def __call__(self, *inputs: np.ndarray) -> np.ndarray: ...


def open_engine(path: Path, export_format: ExportFormat, config: pb.ModelConfig | None = None) -> Engine:
    """Load an exported engine on the CPU.

    Args:
        path: the file.
        export_format: its format.
        config: of its Triton model. An engine whose inputs are ragged there takes padded batches all the
            same: it is fed as Triton would.
    """
    engine = _OPENERS[export_format](path)
    if config is None or not any(tensor.allow_ragged_batch for tensor in config.input):
        return engine
    from mooring_build.ragged_engine import RaggedEngine

    return RaggedEngine(engine, config)


def run_texts(
    engine: Engine, encoder: TextEncoder, texts: Sequence[str], source: str
) -> Iterator[tuple[Sequence[str], EncodedTexts, np.ndarray]]:
    """Tokenize texts and run an engine, some at a time: the texts, their tokens, the output ``[B, …]``.

    Raises:
        DataError: the model does not take a text; ``source`` says where it is from.
    """
    for start in range(0, len(texts), _BATCH_SIZE):
        some = texts[start : start + _BATCH_SIZE]
        try:
            encoded = encoder.encode(some)
        except TextError as exc:
            raise DataError(f"{source}, counted from text {start} on: {exc}") from exc
        yield some, encoded, engine(encoded.input_ids, encoded.attention_mask)


def open_session(path: Path, *, threads: int = 0) -> Any:
    """ONNX Runtime's own session on the CPU.

    Args:
        path: an ONNX file.
        threads: that share the work of one run; 0 leaves it to ONNX Runtime.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _open_onnx(path: Path) -> Engine:
    session = open_session(path)
    names = [item.name for item in session.get_inputs()]

    def run(*inputs: np.ndarray) -> np.ndarray:
        return session.run(None, dict(zip(names, inputs, strict=True)))[0]

    return run


def _open_torchscript(path: Path) -> Engine:
    import torch

    with warnings.catch_warnings():
        # Deprecated upstream, and still the only format that Triton's PyTorch backend batches.
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        module = torch.jit.load(str(path), map_location="cpu")

    def run(*inputs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(*map(torch.from_numpy, inputs)).numpy()

    return run


_OPENERS: dict[ExportFormat, Callable[[Path], Engine]] = {
    "onnx": _open_onnx,
    "torchscript": _open_torchscript,
}
