"""The embedded pytorch backend's engine, with real TorchScript and no server."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import mooring_torch_engine
import numpy as np
import pytest
import torch
from mooring_model_config import BackendError, Instance, ModelConfig, TensorConfig
from mooring_torch_engine import TorchEngine

# TorchScript is the only format that the pytorch backend batches.
pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated:DeprecationWarning")


class Several(torch.nn.Module):
    """A tensor, strings and a scalar."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        return x + 1, ["a", "b"], x.sum()


class Tensors(torch.nn.Module):
    """A list of tensors, which Triton can't return."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


def _tensor(name: str, data_type: str = "TYPE_FP32", *dims: int) -> TensorConfig:
    return TensorConfig(name=name, data_type=data_type, dims=dims or (-1,))


def _on_cpu(folder: Path) -> Instance:
    return Instance(kind="CPU", device_id=0, folder=folder)


def _engine(folder: Path, module: torch.nn.Module, *outputs: TensorConfig, **fields: Any) -> TorchEngine:
    torch.jit.save(torch.jit.script(module), str(folder / "model.pt"))
    config = ModelConfig(name="m", inputs=(_tensor("x"),), outputs=outputs, **fields)
    return TorchEngine(config, _on_cpu(folder))


X = {"x": np.array([1, 2], np.float32)}


def test_returns_the_wanted_outputs(tmp_path: Path) -> None:
    engine = _engine(tmp_path, Several(), _tensor("y__0"), _tensor("texts__1", "TYPE_STRING"))
    assert engine.run(X, ["y__0"])["y__0"].tolist() == [2, 3]
    texts = engine.run(X, ["texts__1"])["texts__1"]
    assert (texts.tolist(), texts.dtype) == (["a", "b"], np.object_)
    assert X["x"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (_tensor("y__3"), r"The output y__3 .* output index which doesn't exist\. This model has 3 outputs"),
        (_tensor("y__0", "TYPE_FP64"), "datatype TYPE_FP64 for output 'y__0', model provides TYPE_FP32"),
        (_tensor("y__1"), "datatype TYPE_FP32 for output 'y__1', model provides TYPE_STRING"),
        (_tensor("y__2"), "output 'y__2' is a scalar which is not supported"),
    ],
)
def test_an_output_that_does_not_fit_fails_every_request(
    tmp_path: Path, output: TensorConfig, message: str
) -> None:
    engine = _engine(tmp_path, Several(), output)
    with pytest.raises(BackendError, match=message):
        engine.run(X, [])


def test_a_list_of_tensors_can_not_be_returned(tmp_path: Path) -> None:
    engine = _engine(tmp_path, Tensors(), _tensor("y__0"))
    with pytest.raises(BackendError, match=r"output 0 must be a Tensor or List\[str\], not a list"):
        engine.run(X, ["y__0"])


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    config = ModelConfig(name="m", inputs=(_tensor("x"),), outputs=(_tensor("y"),))
    with pytest.raises(BackendError, match=f"unable to find '{tmp_path}/model.pt'"):
        TorchEngine(config, _on_cpu(tmp_path))
    (tmp_path / "model.pt").write_bytes(b"not TorchScript")
    with pytest.raises(BackendError, match=f"failed to load model 'm' from '{tmp_path}/model.pt': Pytorch"):
        TorchEngine(config, _on_cpu(tmp_path))


def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Several()), str(tmp_path / "model.pt"))
    missing = Instance(kind="GPU", device_id=torch.cuda.device_count(), folder=tmp_path)
    with pytest.raises(
        BackendError, match=r"model 'm' needs GPU \d+, but the embedded server's PyTorch"
    ) as raised:
        TorchEngine(ModelConfig(name="m"), missing)
    assert raised.value.code == "UNAVAILABLE"


def test_a_gpu_that_triton_chose_is_used_where_pytorch_can(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Instance(kind="GPU", device_id=0, folder=Path(), gpu_wanted=False)
    # Last: a driver that is too old for this PyTorch.
    for gpus, usable, device in ((0, False, "cpu"), (1, True, "cuda:0"), (1, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        monkeypatch.setattr(torch.cuda, "is_available", lambda usable=usable: usable)
        assert str(mooring_torch_engine._device(ModelConfig(name="m"), chosen)) == device


@pytest.mark.parametrize("parameter", ["INFERENCE_MODE", "ENABLE_TENSOR_FUSER", "INTRA_OP_THREAD_COUNT"])
def test_wrong_parameters_are_named(tmp_path: Path, parameter: str) -> None:
    with pytest.raises(BackendError, match=f"parameter '{parameter}': 'much' is not a"):
        _engine(tmp_path, Several(), _tensor("y__0"), parameters={parameter: "much"})


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, {"_set_graph_executor_optimize": True, "cudnn.enabled": True, "inference_mode": True}),
        (
            {
                "DISABLE_OPTIMIZED_EXECUTION": "true",
                "DISABLE_CUDNN": "true",
                "INFERENCE_MODE": "false",
                "INTRA_OP_THREAD_COUNT": "3",
                "INTER_OP_THREAD_COUNT": "5",
                "ENABLE_JIT_PROFILING": "true",
                "ENABLE_JIT_EXECUTOR": "false",
                "ENABLE_TENSOR_FUSER": "true",
            },
            {
                "_set_graph_executor_optimize": False,
                "cudnn.enabled": False,
                "inference_mode": False,
                "set_num_threads": 3,
                "set_num_interop_threads": 5,
                "_jit_set_profiling_mode": True,
                "_jit_set_profiling_executor": False,
                "_jit_set_texpr_fuser_enabled": True,
            },
        ),
    ],
)
def test_parameters_reach_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str], expected: dict[str, object]
) -> None:
    # Not set in truth, as it would be for every other test of the process too.
    told: dict[str, object] = {}
    for where, name in (
        (torch, "set_num_threads"),
        (torch, "set_num_interop_threads"),
        (torch._C, "_set_graph_executor_optimize"),
    ):
        monkeypatch.setattr(where, name, partial(told.__setitem__, name))
    settings = {
        key: partial(told.__setitem__, setting.__name__)
        for key, setting in mooring_torch_engine._JIT_SETTINGS.items()
    }
    monkeypatch.setattr(mooring_torch_engine, "_JIT_SETTINGS", settings)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
    inference_mode = torch.inference_mode

    def note_mode(mode: bool) -> Any:
        told["inference_mode"] = mode
        return inference_mode(mode)

    monkeypatch.setattr(torch, "inference_mode", note_mode)
    engine = _engine(tmp_path, Several(), _tensor("y__0"), parameters=parameters)
    told["cudnn.enabled"] = torch.backends.cudnn.enabled
    assert told == expected
    del told["inference_mode"]
    engine.run(X, ["y__0"])
    assert told == expected
