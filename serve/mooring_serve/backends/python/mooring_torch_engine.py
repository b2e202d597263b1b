"""Run a TorchScript model as the official pytorch backend does.

Parameters follow the README and ``libtorch.cc`` in https://github.com/triton-inference-server/pytorch_backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mooring_batch import Array
from mooring_model_config import BackendError, Instance, ModelConfig, check_model_file
from mooring_torch_signature import TORCH_TYPES, order_inputs, order_outputs, read_arguments, takes_dict

_TRITON_TYPES = {getattr(torch, name): data_type for data_type, name in TORCH_TYPES.items()}
# Set only where the parameter is given; otherwise PyTorch's own default stays.
_JIT_SETTINGS: Mapping[str, Callable[[bool], object]] = {
    "ENABLE_JIT_PROFILING": torch._C._jit_set_profiling_mode,
    "ENABLE_JIT_EXECUTOR": torch._C._jit_set_profiling_executor,
    "ENABLE_TENSOR_FUSER": torch._C._jit_set_texpr_fuser_enabled,
}


class TorchEngine:
    """One loaded TorchScript module.

    Args:
        config: configuration of the model.
        instance: where it runs. Instances of kind ``MODEL`` leave the devices to the model.

    Raises:
        BackendError: the file is missing or damaged, a parameter is wrong, the device is not available, or
            the configuration does not fit ``forward()``.
    """

    def __init__(self, config: ModelConfig, instance: Instance) -> None:
        path = check_model_file(config, instance.folder / (config.model_filename or "model.pt"))
        _apply_parameters(config)
        self._device = _device(config, instance)
        self._inference_mode = config.flag("INFERENCE_MODE", default=True)
        self._clean_cache = (
            config.flag("ENABLE_CACHE_CLEANING") and instance.kind != "CPU" and torch.cuda.is_available()
        )
        try:
            with torch.inference_mode(self._inference_mode):
                map_location = None if instance.kind == "MODEL" else self._device
                self._module: Any = torch.jit.load(str(path), map_location=map_location)
        except Exception as error:
            raise BackendError(
                f"failed to load model '{config.name}' from '{path}': {error}", code="INTERNAL"
            ) from error
        arguments = read_arguments(self._module.forward.schema)
        self._takes_dict = takes_dict(arguments)
        self._inputs = order_inputs(config, arguments)
        self._outputs = order_outputs(config)
        self._output_types = {tensor.name: tensor.data_type for tensor in config.outputs}

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Run the model once.

        Args:
            inputs: tensors by name; strings as object arrays of bytes.
            wanted: names of the outputs to return.

        Raises:
            BackendError: with PyTorch's own message.
        """
        try:
            with torch.inference_mode(self._inference_mode), torch.no_grad():
                results = _as_results(self._module(*self._arguments(inputs)))
                for name, index in self._outputs.items():
                    self._check_result(name, index, results)
                return {name: _to_numpy(results[self._outputs[name]]) for name in wanted}
        except BackendError:
            raise
        except UnicodeDecodeError as error:
            raise BackendError(
                "the model gave a string that is not valid UTF-8, which the embedded server can't return: "
                f"{error}",
                code="UNSUPPORTED",
            ) from error
        except Exception as error:
            raise BackendError(f"PyTorch execute failure: {error}", code="INTERNAL") from error
        finally:
            if self._clean_cache:
                torch.cuda.empty_cache()

    def _arguments(self, inputs: Mapping[str, Array]) -> list[Any]:
        values = {name: self._to_torch(value) for name, value in inputs.items()}
        if self._takes_dict:
            return [values]
        return [values[name] for name in sorted(values, key=self._inputs.__getitem__)]

    def _to_torch(self, value: Array) -> Any:
        if value.dtype == np.object_:
            return value.reshape(-1).tolist()
        return torch.from_numpy(value).to(self._device)

    def _check_result(self, name: str, index: int, results: Sequence[Any]) -> None:
        if index >= len(results):
            raise BackendError(
                f"The output {name} in the model configuration refers to an output index which doesn't "
                f"exist. This model has {len(results)} outputs"
            )
        result = results[index]
        provided = _TRITON_TYPES.get(result.dtype) if torch.is_tensor(result) else "TYPE_STRING"
        if provided != self._output_types[name]:
            raise BackendError(
                f"configuration expects datatype {self._output_types[name]} for output '{name}', "
                f"model provides {provided or result.dtype}"
            )
        if torch.is_tensor(result) and result.ndim == 0:
            raise BackendError(f"output '{name}' is a scalar which is not supported.")


def _to_numpy(result: Any) -> Array:
    if not torch.is_tensor(result):
        return np.array(result, dtype=np.object_)
    array: Array = result.cpu().contiguous().numpy()
    return array


def _as_results(returned: Any) -> Sequence[Any]:
    """Check what ``forward()`` returned, and list it."""
    results = returned if isinstance(returned, tuple) else (returned,)
    for index, result in enumerate(results):
        is_strings = isinstance(result, list) and all(isinstance(item, str) for item in result)
        if not torch.is_tensor(result) and not is_strings:
            raise BackendError(
                f"PyTorch execute failure: output {index} must be a Tensor or List[str], not a "
                f"{type(result).__name__}; forward() returns one of these or a tuple of them",
                code="INTERNAL",
            )
    return results


def _apply_parameters(config: ModelConfig) -> None:
    """Set the process-wide switches; every instance has its own process."""
    torch._C._set_graph_executor_optimize(not config.flag("DISABLE_OPTIMIZED_EXECUTION"))
    torch.backends.cudnn.enabled = not config.flag("DISABLE_CUDNN")
    for key, setting in _JIT_SETTINGS.items():
        if key in config.parameters:
            setting(config.flag(key))
    intra_op = config.integer("INTRA_OP_THREAD_COUNT")
    if intra_op > 0:
        torch.set_num_threads(intra_op)
    inter_op = config.integer("INTER_OP_THREAD_COUNT")
    if inter_op > 0:
        torch.set_num_interop_threads(inter_op)


def _device(config: ModelConfig, instance: Instance) -> Any:
    count = torch.cuda.device_count()
    # Devices are counted, too, where the driver is too old for this PyTorch.
    if instance.kind != "GPU" or (not instance.gpu_wanted and not torch.cuda.is_available()):
        return torch.device("cpu")
    if instance.device_id >= count:
        raise BackendError(
            f"model '{config.name}' needs GPU {instance.device_id}, but the embedded server's PyTorch "
            f"{torch.__version__} sees {count} GPUs: install a PyTorch with CUDA, or set "
            "instance_group { kind: KIND_CPU }",
            code="UNAVAILABLE",
        )
    return torch.device("cuda", instance.device_id)
