"""The embedded pytorch backend serves what the official one serves, seen through a real server."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tritonclient.utils import InferenceServerException

from engine_models import ONE_CPU_INSTANCE, write_config
from mooring_serve import TritonServer
from triton_calls import Client, connect, count, infer, infer_together, load_error

pytestmark = pytest.mark.integration

#: Triton's type, NumPy's type, values [2, 2].
_TYPES = (
    ("BOOL", "?", [[True, False], [False, True]]),
    ("UINT8", "u1", [[0, 255], [1, 2]]),
    ("INT8", "i1", [[-128, 127], [1, 2]]),
    ("INT16", "i2", [[-32768, 32767], [1, 2]]),
    ("INT32", "i4", [[-2147483648, 2147483647], [1, 2]]),
    ("INT64", "i8", [[-9223372036854775808, 9223372036854775807], [1, 2]]),
    ("FP16", "f2", [[0.5, -65504.0], [1, 2]]),
    ("FP32", "f4", [[0.1, -3e38], [1, 2]]),
    ("FP64", "f8", [[0.1, -1e308], [1, 2]]),
)
_THREE_TOGETHER = "dynamic_batching { preferred_batch_size: [3] max_queue_delay_microseconds: 5000000 }"
_PARAMETERS = {
    "DISABLE_OPTIMIZED_EXECUTION": "true",
    "INFERENCE_MODE": "false",
    "INTRA_OP_THREAD_COUNT": "1",
    "INTER_OP_THREAD_COUNT": "1",
    "ENABLE_JIT_EXECUTOR": "false",
    "ENABLE_JIT_PROFILING": "false",
    "ENABLE_TENSOR_FUSER": "false",
    "ENABLE_WEIGHT_SHARING": "true",
    "ENABLE_CACHE_CLEANING": "true",
    "DISABLE_CUDNN": "true",
}


class Lookup(torch.nn.Module):
    """Table of 0, 10, 20, 30 under a mask, and the largest value of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(torch.tensor([[0.0], [10.0], [20.0], [30.0]]))

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values = self.table(input_ids).squeeze(-1) * attention_mask
        return values, values.amax(dim=1)


class Ragged(torch.nn.Module):
    """Twice the packed ids [T], and for every item of shapes [B, 1] their length and T."""

    def forward(self, ids: torch.Tensor, shapes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ids * 2, torch.cat([shapes, 0 * shapes + ids.shape[0]], dim=1)


class Echo(torch.nn.Module):
    """Every input again, whatever its type."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors)


class Loud(torch.nn.Module):
    """Every text with the number of texts, and the numbers as they come."""

    def forward(self, texts: list[str], numbers: torch.Tensor) -> tuple[list[str], torch.Tensor]:
        return [text + str(len(texts)) for text in texts], numbers


class Difference(torch.nn.Module):
    """Left minus right, from a dictionary."""

    def forward(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return tensors["left"] - tensors["right"]


def _write(repository: Path, name: str, module: torch.jit.ScriptModule, config: str) -> None:
    text = f'backend: "pytorch"\n{ONE_CPU_INSTANCE}\n{config}'
    torch.jit.save(module, str(write_config(repository, name, text) / "model.pt"))


def _tensors(side: str, *described: str) -> str:
    """Write entries from "NAME TYPE DIMS REST"."""
    entries = []
    for line in described:
        name, data_type, dims, *rest = line.split(maxsplit=3)
        entries.append(
            f'{side} {{ name: "{name}" data_type: TYPE_{data_type} dims: {dims} {" ".join(rest)} }}'
        )
    return "\n".join(entries)


def _write_all(repository: Path) -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    lookup = torch.jit.trace(Lookup(), (ids, ids))
    by_name = (
        _tensors("input", "attention_mask INT64 [-1]", "input_ids INT64 [-1]")
        + _tensors("output", "logits__0 FP32 [-1]", "largest__1 FP32 [1] reshape { shape: [] }")
        + "\nmax_batch_size: 8\n"
    )
    _write(repository, "together", lookup, by_name + _THREE_TOGETHER)
    parameters = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in _PARAMETERS.items()
    )
    _write(
        repository,
        "tuned",
        lookup,
        by_name.replace("attention_mask", "B__1").replace("input_ids", "A__0") + parameters,
    )

    examples = tuple(torch.from_numpy(np.array(values, dtype=dtype)) for _, dtype, values in _TYPES)
    echo = torch.jit.trace(Echo(), examples)
    _write(
        repository,
        "types",
        echo,
        _tensors("input", *(f"in__{index} {kind} [-1,-1]" for index, (kind, *_) in enumerate(_TYPES)))
        + _tensors("output", *(f"out__{index} {kind} [-1,-1]" for index, (kind, *_) in enumerate(_TYPES))),
    )
    _write(
        repository,
        "ragged",
        torch.jit.trace(Ragged(), (torch.arange(6), torch.tensor([[2], [4]], dtype=torch.int32))),
        _tensors("input", "ids INT64 [-1] allow_ragged_batch: true")
        + 'batch_input { kind: BATCH_ITEM_SHAPE target_name: "shapes" data_type: TYPE_INT32 '
        + 'source_input: "ids" }\n'
        + _tensors("output", "twice__0 INT64 [-1]", "lengths__1 INT32 [2]")
        + 'batch_output { target_name: "twice__0" kind: BATCH_SCATTER_WITH_INPUT_SHAPE '
        + 'source_input: "ids" }\n'
        + "max_batch_size: 8\n"
        + _THREE_TOGETHER,
    )
    _write(
        repository,
        "strings",
        torch.jit.script(Loud()),
        _tensors("input", "texts STRING [1] reshape { shape: [] }", "numbers FP32 [1]")
        + _tensors("output", "loud STRING [1] reshape { shape: [] }", "same FP32 [1]")
        + "max_batch_size: 8\n"
        + _THREE_TOGETHER,
    )
    _write(
        repository,
        "dictionary",
        torch.jit.script(Difference()),
        _tensors("input", "right FP32 [2]", "left FP32 [2]") + _tensors("output", "difference FP32 [2]"),
    )
    _write(
        repository,
        "wrong_count",
        lookup,
        _tensors("input", "x INT64 [-1]") + _tensors("output", "y FP32 [-1]"),
    )
    (repository / "wrong_count" / "1" / "model.pt").rename(repository / "wrong_count" / "1" / "other.pt")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("pytorch")
    with warnings.catch_warnings():
        # TorchScript is the only format that the pytorch backend batches.
        warnings.filterwarnings(
            "ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning
        )
        _write_all(folder / "repository")
    with TritonServer(
        folder / "repository", strict_readiness=False, log_file=folder / "tritonserver.log"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[Client]:
    with connect(server) as connected:
        yield connected


def test_every_data_type_passes_through(client: Client) -> None:
    sent = {f"in__{index}": np.array(values, dtype=dtype) for index, (_, dtype, values) in enumerate(_TYPES)}
    result = infer(client, "types", **sent)
    for index, (kind, *_) in enumerate(_TYPES):
        returned = result.as_numpy(f"out__{index}")
        assert returned.dtype == sent[f"in__{index}"].dtype, kind
        assert returned.tolist() == sent[f"in__{index}"].tolist(), kind


def test_one_bad_request_fails_alone(client: Client) -> None:
    before = count(client, "together", "execution_count")
    requests = [{"input_ids": [ids], "attention_mask": [[1, 1]]} for ids in ([1, 2], [3, 99], [0, 3])]
    good, bad, other = infer_together(client, "together", requests)
    assert good.as_numpy("logits__0").tolist() == [[10, 20]]
    assert other.as_numpy("logits__0").tolist() == [[0, 30]]
    assert other.as_numpy("largest__1").tolist() == [[30]]
    assert isinstance(bad, InferenceServerException)
    assert "PyTorch execute failure: " in bad.message()
    assert "index out of range in self" in bad.message()
    assert count(client, "together", "execution_count") == before + 1


def test_only_the_wanted_outputs_come_back(client: Client) -> None:
    result = infer(client, "tuned", outputs=["largest__1"], A__0=[[1, 2]], B__1=[[1, 1]])
    assert [output.name for output in result.get_response().outputs] == ["largest__1"]
    assert result.as_numpy("largest__1").tolist() == [[20]]


def test_ragged_batch(client: Client) -> None:
    first, second = infer_together(client, "ragged", [{"ids": [[1, 2, 3], [4, 5, 6]]}, {"ids": [[7, 8]]}])
    assert first.as_numpy("twice__0").tolist() == [[2, 4, 6], [8, 10, 12]]
    assert first.as_numpy("lengths__1").tolist() == [[3, 8], [3, 8]]
    assert second.as_numpy("twice__0").tolist() == [[14, 16]]
    assert second.as_numpy("lengths__1").tolist() == [[2, 8]]


def test_strings_are_lists_cut_by_request(client: Client) -> None:
    texts = [["é", "b"], ["c"]]
    requests = [
        {
            "texts": np.array([[text.encode()] for text in group], dtype=np.object_),
            "numbers": np.zeros((len(group), 1), np.float32),
        }
        for group in texts
    ]
    for group, result in zip(texts, infer_together(client, "strings", requests), strict=True):
        assert [row[0].decode() for row in result.as_numpy("loud")] == [f"{text}3" for text in group]


def test_a_dictionary_of_tensors(client: Client) -> None:
    result = infer(
        client, "dictionary", left=np.array([3, 4], np.float32), right=np.array([1, 1], np.float32)
    )
    assert result.as_numpy("difference").tolist() == [2, 3]


def test_load_error_says_what_is_wrong(server: TritonServer) -> None:
    error = load_error(server, "wrong_count")
    assert "unable to find '" in error
    assert "/wrong_count/1/model.pt'" in error
