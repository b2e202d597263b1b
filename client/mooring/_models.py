"""What a server says of its models, as small typed objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mooring._errors import DecodeError


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a model."""

    name: str
    #: Triton's name of the data type: ``FP32``, ``INT64``, ``BYTES`` …
    datatype: str
    #: Shape as a request carries it: with the batch axis where the model batches; -1 is any length.
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}{list(self.shape)}"


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """A model's signature."""

    name: str
    #: Versions that are ready, as text.
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the client needs of a model's ``config.pbtxt``."""

    name: str
    #: Largest first axis of a request; 0 means that the model has no batch axis.
    max_batch_size: int
    #: Inputs that a request may leave out.
    optional_inputs: tuple[str, ...]
    #: ``parameters`` of the config: each key with its ``string_value``.
    parameters: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """One line of the server's repository index."""

    name: str
    #: Empty where the server has not looked at any version yet.
    version: str
    #: ``READY``, ``LOADING``, ``UNLOADING``, ``UNAVAILABLE``, or empty where never loaded.
    state: str
    #: Why the model is not ready, in the server's words; may be empty.
    reason: str


# Triton's HTTP JSON and protobuf's JSON of the gRPC messages differ in two ways that matter here:
# protobuf writes 64-bit integers as text and leaves default values out. These readers take both.


def read_metadata(raw: Any, *, model: str) -> ModelMetadata:
    """Read a model-metadata answer (JSON object).

    Raises:
        DecodeError: it is not one.
    """
    try:
        return ModelMetadata(
            name=_text(raw["name"]),
            versions=tuple(_text(version) for version in raw.get("versions", [])),
            platform=_text(raw.get("platform", "")),
            inputs=tuple(_tensor_spec(tensor) for tensor in raw.get("inputs", [])),
            outputs=tuple(_tensor_spec(tensor) for tensor in raw.get("outputs", [])),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise DecodeError(f"model {model!r}: the answer is no model metadata: {_excerpt(raw)}") from exc


def read_config(raw: Any, *, model: str) -> ModelConfig:
    """Read a model-config answer (JSON object).

    Raises:
        DecodeError: it is not one.
    """
    try:
        return ModelConfig(
            name=_text(raw["name"]),
            max_batch_size=int(raw.get("max_batch_size", 0)),
            optional_inputs=tuple(
                _text(tensor["name"]) for tensor in raw.get("input", []) if tensor.get("optional", False)
            ),
            parameters={
                _text(key): _text(value.get("string_value", ""))
                for key, value in raw.get("parameters", {}).items()
            },
        )
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise DecodeError(f"model {model!r}: the answer is no model config: {_excerpt(raw)}") from exc


def read_index(raw: Any) -> list[ModelStatus]:
    """Read a repository-index answer (JSON array).

    Raises:
        DecodeError: it is not one.
    """
    try:
        return [
            ModelStatus(
                name=_text(entry["name"]),
                version=_text(entry.get("version", "")),
                state=_text(entry.get("state", "")),
                reason=_text(entry.get("reason", "")),
            )
            for entry in raw
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise DecodeError(f"the answer is no repository index: {_excerpt(raw)}") from exc


def _tensor_spec(raw: Any) -> TensorSpec:
    return TensorSpec(
        name=_text(raw["name"]),
        datatype=_text(raw["datatype"]),
        shape=tuple(int(size) for size in raw.get("shape", [])),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _excerpt(raw: Any) -> str:
    text = repr(raw)
    return text if len(text) <= 200 else text[:200] + "…"
