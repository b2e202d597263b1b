"""Releases of the smallest models: where they answer text, each word has its label in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import BertWordPieceTokenizer

from mooring_build.layouts.text import LENGTHS
from mooring_build.publish import EngineFiles, Release
from mooring_build.recipe import Recipe, Task, load_recipe
from mooring_build.recipe_tables import ExportFormat

LABELS: dict[Task, list[str]] = {
    "token-classification": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "image-classification": ["bright", "dark"],
    "tabular-classification": ["little", "much"],
    "text-classification": ["refund", "balance", "card"],
}
WORDS = ["anna", "smith", "porto", "new", "york", "visits", "my", "where", "is", "refund", "card", "."]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
#: Logit of a word's label; the others have 0.
LOGIT = 4.0


def make_tokenizer(folder: Path) -> tuple[Path, Path]:
    """Write ``tokenizer.json``, with padding and truncation that nobody should heed, and its config."""
    tokenizer = BertWordPieceTokenizer({word: index for index, word in enumerate(VOCABULARY)}, lowercase=True)
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
    return folder / "tokenizer.json", folder / "tokenizer_config.json"


def padded_recipe(shipped: str | Path, overrides: Sequence[str] = (), **more: Any) -> Recipe:
    """A recipe whose engines take ``[b, L]``, as most of the tables do, and not packed texts."""
    return load_recipe(shipped, ["serving.mixed_lengths=padded", *overrides], **more)


def make_release(
    folder: Path,
    recipe: Recipe,
    answers: Mapping[str, str] | None = None,
    *,
    labels: Sequence[str] | None = None,
    inputs_digest: str = "a",
    runnable: bool = False,
) -> Release:
    """Make the files of a release.

    Args:
        folder: gets the files; made anew.
        recipe: task and formats.
        answers: label by word.
        labels: those of the model; left out, the task's in ``LABELS``.
        inputs_digest: of the release.
        runnable: whether the engines are real ones, or stand for engines that nobody runs.
    """
    folder.mkdir(parents=True)
    tokenizer_file, tokenizer_config_file = make_tokenizer(folder)
    labels = list(labels or LABELS[recipe.task])
    table = np.zeros((len(VOCABULARY), len(labels)), np.float32)
    for word, label in (answers or {}).items():
        table[VOCABULARY.index(word), labels.index(label)] = LOGIT
    engines: dict[ExportFormat, EngineFiles] = {}
    for export_format in recipe.export.formats:
        path = folder / f"engine.{export_format}"
        if runnable:
            packed = {"packed": True} if recipe.serving.mixed_lengths == "ragged" else {}
            _WRITERS[export_format](path, table, recipe.task, **packed)
        else:
            path.write_bytes(export_format.encode() + table.tobytes())
        engines[export_format] = EngineFiles(
            path=path, parity={"passed": True, "cases": 7}, key=inputs_digest
        )
    foreign = recipe.data is not None and recipe.data.out_of_scope is not None
    return Release(
        labels=labels,
        engines=engines,
        tokenizer_file=tokenizer_file,
        tokenizer_config_file=tokenizer_config_file,
        step_files={"postprocessor": {"acceptance.json": '{"confidences": [2.0, 3.5]}'}} if foreign else {},
        inputs_digest=inputs_digest,
        facts={"git_commit": None, "metrics": {"accuracy": 0.5}},
    )


def snapshot(repository: Path) -> dict[str, bytes]:
    """Every file of a model repository but the lock, by its path in it."""
    return {
        str(path.relative_to(repository)): path.read_bytes()
        for path in repository.rglob("*")
        if path.is_file() and path.name != ".publish.lock"
    }


def _write_onnx(path: Path, table: np.ndarray, task: Task, *, packed: bool = False) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    tokens = ["tokens"] if packed else ["batch", "length"]
    summed = task == "text-classification"
    assert not (packed and summed), "each token by itself"
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask_3d"]),
        helper.make_node("Mul", ["rows", "mask_3d"], ["masked" if summed else "logits"]),
    ]
    if summed:
        nodes.append(helper.make_node("ReduceSum", ["masked", "length_axis"], ["logits"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info(n, TensorProto.INT64, tokens) for n in ("input_ids", "attention_mask")]
        + [helper.make_tensor_value_info(LENGTHS, TensorProto.INT32, ["batch", 1])] * packed,
        [
            helper.make_tensor_value_info(
                "logits", TensorProto.FLOAT, [*(tokens[:1] if summed else tokens), table.shape[1]]
            )
        ],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([len(tokens)]), "last"),
            numpy_helper.from_array(np.array([1]), "length_axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _write_torchscript(path: Path, table: np.ndarray, task: Task) -> None:
    import warnings

    import torch

    class Lookup(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.from_numpy(table))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits = self.table[input_ids] * attention_mask.unsqueeze(-1)
            return logits.sum(1) if task == "text-classification" else logits

    example = torch.ones(2, 3, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(Lookup().eval(), (example, example)), str(path))


_WRITERS = {"onnx": _write_onnx, "torchscript": _write_torchscript}
