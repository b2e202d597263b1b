"""ONNX Runtime's options from a model configuration.

Parameters and accelerators follow the README and ``onnxruntime.cc`` in
https://github.com/triton-inference-server/onnxruntime_backend. One thing differs on CPU: ONNX Runtime's
threads don't spin while they wait, because here every instance is a process of its own and spinning threads
take the cores from the server and from the other instances. ``session.intra_op.allow_spinning`` and
``session.inter_op.allow_spinning`` in ``parameters`` turn it on again; the official backend ignores both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime as ort
from mooring_model_config import BackendError, Instance, ModelConfig, parse_bool, parse_int

_THREAD_COUNTS = ("intra_op_thread_count", "inter_op_thread_count")
_SPINNING = ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning")
_DEVICE_ALLOCATOR = "session.use_device_allocator_for_initializers"
_ARENA_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
# Keyed by optimization.graph.level; every other level means all optimizations.
_GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_EXECUTION_MODES = {0: ort.ExecutionMode.ORT_SEQUENTIAL, 1: ort.ExecutionMode.ORT_PARALLEL}
# Superseded by the accelerator "cuda" and still obeyed. None: the text is passed on as it is.
_CUDA_PARAMETERS: Mapping[str, Mapping[str, str] | None] = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "gpu_mem_limit": None,
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "do_copy_in_default_stream": None,
}
_TENSORRT_PRECISIONS: Mapping[str, Mapping[str, str]] = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "BF16": {"trt_bf16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}
_ON_GPU = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
_TENSORRT_NAMES = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}

Provider = tuple[str, dict[str, str]]


def session_options(config: ModelConfig, providers: Sequence[Provider], flags: Mapping[str, str]) -> Any:
    """Build the ``onnxruntime.SessionOptions`` of one instance.

    Args:
        config: configuration of the model.
        providers: of :func:`execution_providers`.
        flags: what ``--backend-config`` set for the backend. With ``enable-global-threadpool`` its thread
            counts go before the model's; the pool is that of the instance, which has its own process.

    Raises:
        BackendError: a parameter has a value that is not allowed.
    """
    options = ort.SessionOptions()
    graph_level = int(config.optimization.get("graph", {}).get("level", 0))
    options.graph_optimization_level = _GRAPH_LEVELS.get(
        graph_level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    mode = config.integer("execution_mode")
    if mode not in _EXECUTION_MODES:
        raise BackendError(f"parameter 'execution_mode': expected 0 (sequential) or 1 (parallel), got {mode}")
    options.execution_mode = _EXECUTION_MODES[mode]
    for key, count in _thread_counts(config, flags).items():
        # 0 and less leave the choice to ONNX Runtime.
        if count > 0:
            setattr(options, key.replace("thread_count", "num_threads"), count)
    options.enable_cpu_mem_arena = config.flag("enable_mem_arena", default=True)
    options.enable_mem_pattern = config.flag("enable_mem_pattern", default=True)
    if _DEVICE_ALLOCATOR in config.parameters:
        options.add_session_config_entry(_DEVICE_ALLOCATOR, config.parameters[_DEVICE_ALLOCATOR])
    if not {name for name, _ in providers} & _ON_GPU:
        for key in _SPINNING:
            options.add_session_config_entry(key, "1" if config.flag(key) else "0")
    for library in config.op_libraries:
        try:
            options.register_custom_ops_library(library)
        except Exception as error:
            raise BackendError(f"model '{config.name}': op library '{library}': {error}") from error
    return options


def run_options(config: ModelConfig) -> Any:
    """Build the ``onnxruntime.RunOptions`` of every run."""
    options = ort.RunOptions()
    if _ARENA_SHRINKAGE in config.parameters:
        options.add_run_config_entry(_ARENA_SHRINKAGE, config.parameters[_ARENA_SHRINKAGE])
    return options


def _thread_counts(config: ModelConfig, flags: Mapping[str, str]) -> dict[str, int]:
    if parse_bool("enable-global-threadpool", flags.get("enable-global-threadpool", "false")):
        return {key: parse_int(key, flags.get(key, "0")) for key in _THREAD_COUNTS}
    return {key: config.integer(key) for key in _THREAD_COUNTS}


def execution_providers(config: ModelConfig, instance: Instance) -> list[Provider]:
    """List the execution providers of one instance, the first choice first.

    Raises:
        BackendError: a provider that the instance needs is not in this ONNX Runtime, or an accelerator or
            its parameter is unknown. A GPU that only Triton chose is not needed.
    """
    accelerators = config.optimization.get("execution_accelerators", {})
    available = ort.get_available_providers()
    providers: list[Provider] = []
    if instance.kind == "GPU" and (instance.gpu_wanted or "CUDAExecutionProvider" in available):
        providers += _gpu_providers(config, instance, accelerators.get("gpu_execution_accelerator", ()))
    for accelerator in accelerators.get("cpu_execution_accelerator", ()):
        if accelerator["name"] != "openvino":
            raise BackendError(_unknown(config, accelerator["name"]))
        providers.append(("OpenVINOExecutionProvider", {"device_type": "CPU"}))
    for name, _ in providers:
        if name not in available:
            raise BackendError(
                f"model '{config.name}' needs {name}, but the ONNX Runtime of the embedded server has only "
                f"{available}: install an onnxruntime that has it, or change the model's instance_group and "
                "execution_accelerators",
                code="UNAVAILABLE",
            )
    return [*providers, ("CPUExecutionProvider", {})]


def _gpu_providers(
    config: ModelConfig, instance: Instance, accelerators: Sequence[Mapping[str, Any]]
) -> list[Provider]:
    device = {"device_id": str(instance.device_id)}
    providers: list[Provider] = []
    cuda = _cuda_parameters(config)
    for accelerator in accelerators:
        parameters = accelerator.get("parameters", {})
        if accelerator["name"] == "tensorrt":
            providers.append(("TensorrtExecutionProvider", _tensorrt_parameters(config, parameters) | device))
        elif accelerator["name"] == "cuda":
            cuda |= parameters
        else:
            raise BackendError(_unknown(config, accelerator["name"]))
    return [*providers, ("CUDAExecutionProvider", cuda | device)]


def _cuda_parameters(config: ModelConfig) -> dict[str, str]:
    options = {}
    for key, names in _CUDA_PARAMETERS.items():
        value = config.parameters.get(key)
        if value is None:
            continue
        if names is not None and value not in names:
            raise BackendError(f"parameter '{key}': '{value}' is not one of {sorted(names)}")
        options[key] = value if names is None else names[value]
    return options


def _tensorrt_parameters(config: ModelConfig, parameters: Mapping[str, str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, value in parameters.items():
        if key == "precision_mode":
            if value not in _TENSORRT_PRECISIONS:
                raise BackendError(
                    f"model '{config.name}': unsupported precision mode '{value}' is requested"
                )
            options |= _TENSORRT_PRECISIONS[value]
        elif key in _TENSORRT_NAMES:
            options[_TENSORRT_NAMES[key]] = value
        elif key.startswith("trt_"):
            options[key] = value
        else:
            raise BackendError(
                f"model '{config.name}': unknown parameter '{key}' for the execution accelerator 'tensorrt'"
            )
    return options


def _unknown(config: ModelConfig, accelerator: str) -> str:
    return f"model '{config.name}': unknown execution accelerator '{accelerator}' is requested"
