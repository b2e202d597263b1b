"""What the embedded backends need of Triton's model configuration, parsed once at load.

The modules in this folder are copied beside each backend's ``model.py``. They need numpy and the standard
library alone, so that everything but the engines themselves can be tested without a server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TRUE = {"true", "on", "1"}
_FALSE = {"false", "off", "0"}


class BackendError(Exception):
    """A model that can't be loaded, or a request that can't be answered.

    Attributes:
        code: name of the ``TritonError`` constant that the caller sees, such as ``INVALID_ARG``.
    """

    def __init__(self, message: str, *, code: str = "INVALID_ARG") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class TensorConfig:
    """One entry of ``input`` or ``output``; ``dims`` come without the batch axis."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    #: What the model itself sees instead of ``dims``; Triton's core converts both ways.
    reshape: tuple[int, ...] | None = None
    optional: bool = False
    ragged: bool = False

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> TensorConfig:
        """Read one entry of the configuration."""
        reshape = entry.get("reshape")
        return cls(
            name=entry["name"],
            data_type=entry["data_type"],
            dims=tuple(int(dim) for dim in entry["dims"]),
            reshape=None if reshape is None else tuple(int(dim) for dim in reshape.get("shape", ())),
            optional=bool(entry.get("optional", False)),
            ragged=bool(entry.get("allow_ragged_batch", False)),
        )

    @property
    def model_dims(self) -> tuple[int, ...]:
        """The shape that the model sees, without the batch axis."""
        return self.dims if self.reshape is None else self.reshape


@dataclass(frozen=True, kw_only=True)
class BatchInput:
    """One entry of ``batch_input``: a tensor that the server computes from the shapes of a batch."""

    kind: str
    data_type: str
    target_name: str
    source_input: str


@dataclass(frozen=True, kw_only=True)
class BatchOutput:
    """One entry of ``batch_output``: an output that is cut by the shape of an input."""

    target_name: str
    source_input: str
    #: Shape of one request's part, with the batch axis; -1 takes the source input's dimension.
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model configuration, as far as the backends use it."""

    name: str
    #: 0: the model has no batch axis.
    max_batch_size: int = 0
    inputs: tuple[TensorConfig, ...] = ()
    outputs: tuple[TensorConfig, ...] = ()
    batch_inputs: tuple[BatchInput, ...] = ()
    #: By the name of the output that each cuts.
    batch_outputs: Mapping[str, BatchOutput] = field(default_factory=dict)
    #: Inputs that the sequence batcher adds: name and data type.
    controls: tuple[tuple[str, str], ...] = ()
    model_filename: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    optimization: Mapping[str, Any] = field(default_factory=dict)
    op_libraries: tuple[str, ...] = ()
    #: Instances that run on CPU, each a process of its own.
    cpu_instances: int = 0

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read the JSON form that Triton gives to Python models.

        Raises:
            BackendError: the configuration asks for something that the embedded backends don't do.
        """
        name = config["name"]
        if config.get("sequence_batching", {}).get("state"):
            raise BackendError(
                f"model '{name}': sequence_batching.state (implicit state) is not available to the embedded "
                "server's backends; serve this model with the official container",
                code="UNSUPPORTED",
            )
        if config.get("model_transaction_policy", {}).get("decoupled"):
            raise BackendError(
                f"model '{name}': model_transaction_policy {{ decoupled: true }} is not available to the "
                "embedded server's backends, which send one response for each request; remove it",
                code="UNSUPPORTED",
            )
        max_batch_size = int(config.get("max_batch_size", 0))
        inputs = tuple(TensorConfig.parse(entry) for entry in config.get("input", ()))
        outputs = tuple(TensorConfig.parse(entry) for entry in config.get("output", ()))
        return cls(
            name=name,
            max_batch_size=max_batch_size,
            inputs=inputs,
            outputs=outputs,
            batch_inputs=tuple(_parse_batch_input(name, entry) for entry in config.get("batch_input", ())),
            batch_outputs=_parse_batch_outputs(
                name, max_batch_size, inputs, outputs, config.get("batch_output", ())
            ),
            controls=_parse_controls(config.get("sequence_batching", {})),
            model_filename=config.get("default_model_filename", ""),
            parameters={
                key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()
            },
            optimization=config.get("optimization", {}),
            op_libraries=tuple(config.get("model_operations", {}).get("op_library_filename", ())),
            cpu_instances=sum(
                int(group.get("count", 1))
                for group in config.get("instance_group", ())
                if group.get("kind") == "KIND_CPU"
            ),
        )

    @property
    def ragged_inputs(self) -> frozenset[str]:
        """Names of the inputs whose requests are packed into one rank-1 tensor."""
        return frozenset(tensor.name for tensor in self.inputs if tensor.ragged)

    @property
    def batch_input_names(self) -> tuple[str, ...]:
        """Names of the tensors that ``batch_input`` adds, in the configuration's order."""
        return tuple(entry.target_name for entry in self.batch_inputs)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Read a boolean from ``parameters``; true/false, on/off and 1/0 are understood."""
        value = self.parameters.get(key)
        return default if value is None else parse_bool(key, value)

    def integer(self, key: str, *, default: int = 0) -> int:
        """Read a whole number from ``parameters``."""
        value = self.parameters.get(key)
        return default if value is None else parse_int(key, value)


@dataclass(frozen=True, kw_only=True)
class Instance:
    """Where one instance of a model runs."""

    #: ``CPU``, ``GPU`` or ``MODEL``.
    kind: str
    device_id: int
    #: The folder that holds the model's version.
    folder: Path
    #: Whether the config asks for a GPU. Otherwise Triton chose one, as there is one: the CPU does as well.
    gpu_wanted: bool = True

    @classmethod
    def parse(cls, args: Mapping[str, str]) -> Instance:
        """Read the arguments of ``TritonPythonModel.initialize``."""
        folder = Path(args["model_repository"])
        written = folder / "config.pbtxt"
        return cls(
            kind=args["model_instance_kind"],
            device_id=int(args["model_instance_device_id"]),
            folder=folder / args["model_version"],
            # The config that Triton hands over has its choice in place of KIND_AUTO.
            gpu_wanted=written.is_file() and _names_gpu(written),
        )


def _names_gpu(config: Path) -> bool:
    text = config.read_text(encoding="utf-8", errors="replace")
    return re.search(r"^[^#\n]*\bKIND_GPU\b", text, re.MULTILINE) is not None


def check_model_file(config: ModelConfig, path: Path) -> Path:
    """Return the path of the model's file.

    Raises:
        BackendError: the file does not exist.
    """
    if not path.exists():
        raise BackendError(f"model '{config.name}': unable to find '{path}'", code="UNAVAILABLE")
    return path


def parse_bool(key: str, value: str) -> bool:
    """Read a boolean as Triton's backends do."""
    lowered = value.lower()
    if lowered not in _TRUE | _FALSE:
        raise BackendError(f"parameter '{key}': '{value}' is not a boolean; use true, false, on, off, 1 or 0")
    return lowered in _TRUE


def parse_int(key: str, value: str) -> int:
    """Read a whole number."""
    try:
        return int(value)
    except ValueError:
        raise BackendError(f"parameter '{key}': '{value}' is not a whole number") from None


def _parse_batch_input(model: str, entry: Mapping[str, Any]) -> BatchInput:
    target = _only_target(model, "batch_input", entry)
    return BatchInput(
        kind=entry["kind"],
        data_type=entry["data_type"],
        target_name=target,
        source_input=entry["source_input"][0],
    )


def _parse_batch_outputs(
    model: str,
    max_batch_size: int,
    inputs: Sequence[TensorConfig],
    outputs: Sequence[TensorConfig],
    entries: Sequence[Mapping[str, Any]],
) -> dict[str, BatchOutput]:
    batch_axis = (-1,) if max_batch_size else ()
    sources = {tensor.name: batch_axis + tensor.model_dims for tensor in inputs}
    shapes = {tensor.name: batch_axis + tensor.model_dims for tensor in outputs}
    parsed = {}
    for entry in entries:
        target, source = _only_target(model, "batch_output", entry), entry["source_input"][0]
        if target not in shapes:
            raise BackendError(
                f"model '{model}': batch_output target '{target}' is missing in output; list it there too"
            )
        shape = shapes[target]
        if source in sources and -1 in shape[len(sources[source]) :]:
            raise BackendError(
                f"model '{model}': batch_output '{target}' takes every -1 of its shape {list(shape)} from "
                f"the same dimension of input '{source}', whose shape is {list(sources[source])}: write "
                f"a number for each -1 after the first {len(sources[source])} dimensions"
            )
        parsed[target] = BatchOutput(target_name=target, source_input=source, shape=shape)
    return parsed


def _only_target(model: str, kind: str, entry: Mapping[str, Any]) -> str:
    targets = entry["target_name"]
    if len(targets) != 1:
        raise BackendError(
            f"model '{model}': a {kind} names {len(targets)} targets {targets}; write one entry for each"
        )
    return str(targets[0])


def _parse_controls(sequence_batching: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    controls = []
    for entry in sequence_batching.get("control_input", ()):
        (control,) = entry["control"]
        controls.append((entry["name"], _control_data_type(control)))
    return tuple(controls)


def _control_data_type(control: Mapping[str, Any]) -> str:
    # The type follows from which pair of false/true values is given; only a correlation id names its own.
    if control.get("int32_false_true"):
        return "TYPE_INT32"
    if control.get("fp32_false_true"):
        return "TYPE_FP32"
    if control.get("bool_false_true"):
        return "TYPE_BOOL"
    return str(control.get("data_type", "TYPE_INVALID"))
