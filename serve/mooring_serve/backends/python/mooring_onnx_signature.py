"""Compare an ONNX model's signature with its configuration, and complete a configuration from it.

Follows ``onnxruntime.cc`` in https://github.com/triton-inference-server/onnxruntime_backend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mooring_model_config import BackendError, ModelConfig, TensorConfig

#: ONNX Runtime's element types. BF16 is missing: the official backend refuses it too.
_DATA_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float": "TYPE_FP32",
    "double": "TYPE_FP64",
    "string": "TYPE_STRING",
}


@dataclass(frozen=True)
class OnnxTensor:
    """One input or output as the ONNX model declares it."""

    name: str
    #: Triton's name of the type, or ``None`` where Triton has none; see ``onnx_type``.
    data_type: str | None
    #: With the batch axis; -1 where the size is variable. Empty: a scalar.
    dims: tuple[int, ...]
    #: ONNX Runtime's own name of the type, such as ``tensor(float)``.
    onnx_type: str

    @classmethod
    def parse(cls, node: Any) -> OnnxTensor:
        """Read an ``onnxruntime.NodeArg``.

        Raises:
            BackendError: a sequence, map or optional, which Triton can't carry.
        """
        match = re.fullmatch(r"tensor\((\w+)\)", node.type)
        if match is None:
            raise BackendError(f"'{node.name}' has the ONNX type {node.type}; only tensors can be served")
        dims = tuple(dim if isinstance(dim, int) else -1 for dim in node.shape)
        return cls(node.name, _DATA_TYPES.get(match[1]), dims, node.type)


@dataclass(frozen=True)
class Signature:
    """What an ONNX model takes and gives."""

    inputs: tuple[OnnxTensor, ...]
    #: Initializers that a request may override: Triton's optional inputs.
    initializers: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]

    @classmethod
    def read(cls, session: Any) -> Signature:
        """Read the signature of an ``onnxruntime.InferenceSession``."""
        return cls(
            tuple(OnnxTensor.parse(node) for node in session.get_inputs()),
            tuple(OnnxTensor.parse(node) for node in session.get_overridable_initializers()),
            tuple(OnnxTensor.parse(node) for node in session.get_outputs()),
        )


def check_signature(config: ModelConfig, signature: Signature) -> None:
    """Check that the configuration fits the model.

    Raises:
        BackendError: names the tensor, what was configured and what the model has.
    """
    given = [tensor.name for tensor in config.inputs if not tensor.optional]
    given += [*config.batch_input_names, *(name for name, _ in config.controls)]
    if len(given) != len(signature.inputs):
        raise BackendError(
            f"unable to load model '{config.name}', configuration expects {len(given)} inputs "
            f"{sorted(given)}, model provides {len(signature.inputs)} "
            f"{sorted(tensor.name for tensor in signature.inputs)}"
        )
    inputs = {tensor.name: tensor for tensor in (*signature.inputs, *signature.initializers)}
    for tensor in config.inputs:
        _check_input(config, tensor, _find(config, "input", tensor.name, inputs))
    for entry in config.batch_inputs:
        name = entry.target_name
        _check_type(config, "batch input", name, entry.data_type, _find(config, "input", name, inputs))
    for name, data_type in config.controls:
        found = _find(config, "input", name, inputs)
        _check_type(config, "sequence control", name, data_type, found)
        dims = found.dims[1:] if config.max_batch_size else found.dims
        if dims != (1,):
            raise BackendError(
                f"unable to load model '{config.name}', sequence control '{name}' in model has dims "
                f"{list(dims)} but dims [1] is expected"
            )
    outputs = {tensor.name: tensor for tensor in signature.outputs}
    for tensor in config.outputs:
        found = _find(config, "output", tensor.name, outputs)
        _check_type(config, "output", tensor.name, tensor.data_type, found)
        if tensor.name not in config.batch_outputs:
            _check_dims(config, tensor, found, exact=True)


def _check_input(config: ModelConfig, tensor: TensorConfig, found: OnnxTensor) -> None:
    if tensor.optional and (config.max_batch_size or tensor.ragged):
        raise BackendError(
            f"unable to load model '{config.name}', input '{tensor.name}' is optional, which is not "
            "supported for ragged inputs and for models with max_batch_size > 0"
        )
    _check_type(config, "input", tensor.name, tensor.data_type, found)
    if not tensor.ragged:
        _check_dims(config, tensor, found, exact=False)
    elif found.dims != (-1,):
        raise BackendError(
            f"unable to load model '{config.name}', configuration expects the model to take the shape [-1] "
            f"for the ragged input '{tensor.name}', model provides {list(found.dims)}"
        )


def _find(config: ModelConfig, kind: str, name: str, tensors: Mapping[str, OnnxTensor]) -> OnnxTensor:
    if name not in tensors:
        raise BackendError(
            f"unable to load model '{config.name}', unexpected {kind} '{name}', "
            f"allowed {kind}s are: {', '.join(sorted(tensors))}"
        )
    return tensors[name]


def _check_type(config: ModelConfig, kind: str, name: str, data_type: str, found: OnnxTensor) -> None:
    if data_type != found.data_type:
        raise BackendError(
            f"unable to load model '{config.name}', configuration expects datatype {data_type} for {kind} "
            f"'{name}', model provides {_type_name(found)}"
        )


def _type_name(tensor: OnnxTensor) -> str:
    return tensor.data_type or f"{tensor.onnx_type}, which Triton's onnxruntime backend does not support"


def _check_dims(config: ModelConfig, tensor: TensorConfig, found: OnnxTensor, *, exact: bool) -> None:
    """Compare shapes; unless ``exact``, a variable dimension of the model takes any configured size."""
    dims = tensor.model_dims
    if not found.dims:
        if any(dim != 1 for dim in dims):
            raise BackendError(
                f"unable to load model '{config.name}', tensor '{tensor.name}' is a scalar in the model: "
                f"its dims may only be 1, configured were {list(dims)}"
            )
        return
    if config.max_batch_size and found.dims[0] != -1:
        raise BackendError(
            f"model '{config.name}', tensor '{tensor.name}': for the model to support batching "
            f"(max_batch_size {config.max_batch_size}) its first dimension must be variable, "
            f"but the model has the shape {list(found.dims)}"
        )
    full = (-1, *dims) if config.max_batch_size else dims
    fits = len(full) == len(found.dims) and all(
        configured == actual or (actual == -1 and not exact)
        for configured, actual in zip(full, found.dims, strict=True)
    )
    if not fits:
        batch_axis = " (its batch axis comes from max_batch_size > 0)" if config.max_batch_size else ""
        raise BackendError(
            f"model '{config.name}', tensor '{tensor.name}': the model has {len(found.dims)} dimensions, "
            f"shape {list(found.dims)}, but the configuration specifies {len(full)} dimensions, "
            f"shape {list(full)}{batch_axis}"
        )


def needs_completion(config: Mapping[str, Any]) -> bool:
    """Tell whether inputs or outputs are missing; a configuration with both is taken as it is."""
    return not (config["input"] or config["batch_input"]) or not config["output"]


def complete_config(config: dict[str, Any], signature: Signature, default_max_batch_size: int) -> None:
    """Fill in what a configuration in JSON form leaves out: batching, inputs, outputs.

    Args:
        config: changed in place; has ``input``, ``batch_input`` and ``output``, perhaps empty.
        signature: the model's.
        default_max_batch_size: for models that can batch and don't say how much.

    Raises:
        BackendError: ``max_batch_size`` is set and the model can't batch, or has a type that Triton lacks.
    """
    tensors = (*signature.inputs, *signature.outputs)
    can_batch = all(tensor.dims[:1] == (-1,) for tensor in tensors)
    if can_batch:
        config["max_batch_size"] = config["max_batch_size"] or max(default_max_batch_size, 0)
        if config["max_batch_size"] > 1 and "sequence_batching" not in config:
            config.setdefault("dynamic_batching", {})
    elif config["max_batch_size"]:
        raise BackendError(
            f"autofill failed for model '{config['name']}': model does not support batching while "
            f"max_batch_size {config['max_batch_size']} is specified"
        )
    batching = config["max_batch_size"] > 0
    if not config["input"] and not config["batch_input"]:
        config["input"] = _describe(signature.inputs, batching=batching)
    if not config["output"]:
        config["output"] = _describe(signature.outputs, batching=batching)


def _describe(tensors: Sequence[OnnxTensor], *, batching: bool) -> list[dict[str, Any]]:
    entries = []
    for tensor in tensors:
        if tensor.data_type is None:
            raise BackendError(f"tensor '{tensor.name}' has the type {_type_name(tensor)}")
        entry: dict[str, Any] = {"name": tensor.name, "data_type": tensor.data_type}
        entry["dims"] = list(tensor.dims[1:] if batching else tensor.dims)
        if not entry["dims"]:
            # Triton knows no tensors without dimensions.
            entry["dims"] = [1]
            if batching:
                entry["reshape"] = {"shape": []}
        entries.append(entry)
    return entries
