"""Which tensor of a configuration is which argument or result of a TorchScript model.

Follows ``libtorch.cc`` in https://github.com/triton-inference-server/pytorch_backend. TorchScript knows
neither shapes nor types of tensors, so they are not compared at load.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mooring_model_config import BackendError, ModelConfig, TensorConfig

#: BF16 and the unsigned integers above 8 bits are missing: the official backend refuses them too.
TORCH_TYPES = {
    "TYPE_BOOL": "bool",
    "TYPE_UINT8": "uint8",
    "TYPE_INT8": "int8",
    "TYPE_INT16": "int16",
    "TYPE_INT32": "int32",
    "TYPE_INT64": "int64",
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float32",
    "TYPE_FP64": "float64",
}
#: What follows the first ``__`` counts; nothing there is 0.
_INDEXED_NAME = re.compile(r"(?:(?!__).)*__(\d*)")


@dataclass(frozen=True)
class Argument:
    """One argument of ``forward()``; kind as TorchScript names it, such as ``TensorType``."""

    name: str
    kind: str


def read_arguments(schema: Any) -> list[Argument]:
    """Read the arguments of a ``torch._C.FunctionSchema``, without self."""
    arguments = [Argument(argument.name, argument.type.kind()) for argument in schema.arguments]
    return arguments[1:] if arguments and arguments[0].kind == "ClassType" else arguments


def takes_dict(arguments: Sequence[Argument]) -> bool:
    """Tell whether the model takes all its inputs in one ``Dict[str, Tensor]``."""
    return [argument.kind for argument in arguments] == ["DictType"]


def order_inputs(config: ModelConfig, arguments: Sequence[Argument]) -> dict[str, int]:
    """Return each input's position among the arguments of ``forward()``.

    The inputs are named as the arguments, or ``<name>__<position>``; where they are neither, they come in
    the order of the configuration.

    Raises:
        BackendError: the inputs don't fit the arguments, or have a type or shape that can't be passed.
    """
    for tensor in config.inputs:
        _check_tensor(config, "input", tensor)
        if tensor.optional:
            raise BackendError(
                f"model '{config.name}': input '{tensor.name}' is optional, which the pytorch backend "
                "does not support"
            )
    configured = [tensor.name for tensor in config.inputs]
    controls = [name for name, _ in config.controls]
    names = [*configured, *config.batch_input_names, *controls]
    if not configured:
        raise BackendError(f"model '{config.name}': the configuration must have at least one input")
    for name, data_type in config.controls:
        if data_type not in TORCH_TYPES:
            raise BackendError(
                f"model '{config.name}': sequence control '{name}' is {data_type}, which TorchScript has not"
            )
    if takes_dict(arguments):
        return {name: position for position, name in enumerate(names)}
    for argument in arguments:
        if argument.kind not in ("TensorType", "ListType"):
            raise BackendError(
                f"model '{config.name}': argument '{argument.name}' of forward() is a {argument.kind}; only "
                "tensors, lists of strings and a single Dict[str, Tensor] can be served"
            )
    if len(names) != len(arguments):
        raise BackendError(
            f"unable to load model '{config.name}', configuration expects {len(names)} inputs {names}, model "
            f"provides {len(arguments)} {[argument.name for argument in arguments]}"
        )
    known = [argument.name for argument in arguments]
    tensors = [*configured, *config.batch_input_names]
    if set(configured) <= set(known):
        order = {name: known.index(name) if name in known else -1 for name in tensors}
    else:
        order = _indexed(configured, tensors)
    # The sequence batcher's inputs are always found by number.
    order |= {name: _index(name) for name in controls}
    if sorted(order.values()) != list(range(len(arguments))):
        raise BackendError(
            f"model '{config.name}': inputs {names} don't name every argument of forward() "
            f"{known} once; use these names, or NAME__0, NAME__1, …"
        )
    return order


def order_outputs(config: ModelConfig) -> dict[str, int]:
    """Return each output's position in what ``forward()`` returns.

    The outputs are named ``<name>__<position>``; where one is not, they come in the configuration's order.

    Raises:
        BackendError: there is none, or one has a type or shape that can't be returned.
    """
    for tensor in config.outputs:
        _check_tensor(config, "output", tensor)
    names = [tensor.name for tensor in config.outputs]
    if not names:
        raise BackendError(f"model '{config.name}': the configuration must have at least one output")
    return _indexed(names, names)


def _indexed(deciding: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    if all(_INDEXED_NAME.fullmatch(name) for name in deciding):
        return {name: _index(name) for name in names}
    return {name: position for position, name in enumerate(names)}


def _index(name: str) -> int:
    match = _INDEXED_NAME.fullmatch(name)
    return int(match[1] or 0) if match else -1


def _check_tensor(config: ModelConfig, kind: str, tensor: TensorConfig) -> None:
    if tensor.data_type == "TYPE_STRING":
        rank = len(tensor.model_dims) + (1 if config.max_batch_size else 0)
        if rank > 1:
            raise BackendError(
                f"model '{config.name}': {kind} '{tensor.name}' has {rank} dimensions with the batch axis; "
                "TorchScript takes and gives strings only as a list: use dims [1] and reshape { shape: [] }, "
                "or max_batch_size 0"
            )
    elif tensor.data_type not in TORCH_TYPES:
        raise BackendError(
            f"unsupported datatype {tensor.data_type} for {kind} '{tensor.name}' for model '{config.name}'"
        )
