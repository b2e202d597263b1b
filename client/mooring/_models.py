"""What a server says of its models, as small typed objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
class EnsembleStep:
    """One model that an ensemble calls."""

    model: str
    #: The version that the ensemble pins; empty for the server's choice.
    version: str
    #: The ensemble's tensors by the step's own input names.
    inputs: Mapping[str, str]
    #: The ensemble's tensors by the step's own output names.
    outputs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class DynamicBatching:
    """How a model's requests wait for one another."""

    preferred_batch_sizes: tuple[int, ...] = ()
    #: How long the oldest request waits for others, in microseconds.
    max_queue_delay_us: int = 0
    #: Requests that may wait; further ones are refused. 0 is any number.
    max_queue_size: int = 0
    #: How long a request may wait before it is refused, in microseconds. 0 is any time.
    queue_timeout_us: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the client needs of a model's ``config.pbtxt``."""

    name: str
    #: The backend that runs it, or ``ensemble``; may be empty where the config leaves it to the server.
    backend: str = ""
    #: Largest first axis of a request; 0 means that the model has no batch axis.
    max_batch_size: int
    #: Inputs that a request may leave out.
    optional_inputs: tuple[str, ...]
    #: ``parameters`` of the config: each key with its ``string_value``.
    parameters: Mapping[str, str]
    #: Whether one request may get any number of responses; such a model is called with ``stream``.
    decoupled: bool = False
    #: How many of it run side by side; 0 where the config leaves it to the server, or for an ensemble.
    instance_count: int = 0
    #: What they run on, in Triton's words such as ``KIND_GPU``, each once.
    instance_kinds: tuple[str, ...] = ()
    #: Resources that a run of one of them takes while it lasts, by name, where the server limits the rate.
    resources: Mapping[str, int] = field(default_factory=dict)
    #: How requests are batched; ``None`` where each runs by itself.
    dynamic_batching: DynamicBatching | None = None
    #: Whether the server may answer a repeated request from its cache.
    response_cache: bool = False
    #: What an ensemble calls, in the config's order; empty for other models.
    steps: tuple[EnsembleStep, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ServerMetadata:
    """What a server says of itself."""

    name: str
    #: Of tritonserver, such as ``2.51.0``.
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DurationStatistics:
    """How often something was done and how long it took in all."""

    count: int
    #: Nanoseconds, summed over ``count``.
    ns: int

    @property
    def mean_ms(self) -> float:
        """Mean time in milliseconds; 0 where nothing was counted."""
        return self.ns / self.count / 1e6 if self.count else 0.0


@dataclass(frozen=True, kw_only=True)
class BatchStatistics:
    """Executions of one batch size."""

    batch_size: int
    compute_input: DurationStatistics
    compute_infer: DurationStatistics
    compute_output: DurationStatistics


@dataclass(frozen=True, kw_only=True)
class ModelStatistics:
    """What the server counted for one version of a model since it was loaded."""

    name: str
    version: str
    #: When the last inference ran, in milliseconds since 1970; 0 for never.
    last_inference_ms: int
    #: Batch items inferred.
    inference_count: int
    #: Times the model ran; ``inference_count / execution_count`` is the mean batch.
    execution_count: int
    #: Requests that were answered, queueing included.
    success: DurationStatistics
    fail: DurationStatistics
    queue: DurationStatistics
    compute_input: DurationStatistics
    compute_infer: DurationStatistics
    compute_output: DurationStatistics
    cache_hit: DurationStatistics
    cache_miss: DurationStatistics
    batches: tuple[BatchStatistics, ...]


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
        groups = raw.get("instance_group", [])
        return ModelConfig(
            name=_text(raw["name"]),
            backend=_text(raw.get("backend", "")) or _text(raw.get("platform", "")),
            max_batch_size=int(raw.get("max_batch_size", 0)),
            optional_inputs=tuple(
                _text(tensor["name"]) for tensor in raw.get("input", []) if tensor.get("optional", False)
            ),
            parameters={
                _text(key): _text(value.get("string_value", ""))
                for key, value in raw.get("parameters", {}).items()
            },
            decoupled=bool(raw.get("model_transaction_policy", {}).get("decoupled", False)),
            instance_count=sum(map(_instances, groups)),
            instance_kinds=tuple(dict.fromkeys(map(_kind, groups))),
            resources=_resources(groups),
            dynamic_batching=_dynamic_batching(raw.get("dynamic_batching")),
            response_cache=bool(raw.get("response_cache", {}).get("enable", False)),
            steps=tuple(_step(step) for step in raw.get("ensemble_scheduling", {}).get("step", [])),
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


def read_server_metadata(raw: Any) -> ServerMetadata:
    """Read a server-metadata answer (JSON object).

    Raises:
        DecodeError: it is not one.
    """
    try:
        return ServerMetadata(
            name=_text(raw["name"]),
            version=_text(raw["version"]),
            extensions=tuple(_text(name) for name in raw.get("extensions", [])),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise DecodeError(f"the answer is no server metadata: {_excerpt(raw)}") from exc


def read_statistics(raw: Any) -> list[ModelStatistics]:
    """Read a statistics answer (JSON object).

    Raises:
        DecodeError: it is not one.
    """
    try:
        return [_model_statistics(entry) for entry in raw.get("model_stats", [])]
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise DecodeError(f"the answer is no model statistics: {_excerpt(raw)}") from exc


_TIMES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
_CACHE_TIMES = ("cache_hit", "cache_miss")


def _instances(group: Mapping[str, Any]) -> int:
    # So many on each of its GPUs.
    return int(group.get("count", 1)) * max(1, len(group.get("gpus", [])))


def _kind(group: Mapping[str, Any]) -> str:
    return _text(group.get("kind", "KIND_AUTO"))


def _resources(groups: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {
        _text(resource["name"]): int(resource.get("count", 0))
        for group in groups
        for resource in group.get("rate_limiter", {}).get("resources", [])
    }


def _dynamic_batching(raw: Mapping[str, Any] | None) -> DynamicBatching | None:
    if raw is None:
        return None
    policy = raw.get("default_queue_policy", {})
    return DynamicBatching(
        preferred_batch_sizes=tuple(int(size) for size in raw.get("preferred_batch_size", [])),
        max_queue_delay_us=int(raw.get("max_queue_delay_microseconds", 0)),
        max_queue_size=int(policy.get("max_queue_size", 0)),
        queue_timeout_us=int(policy.get("default_timeout_microseconds", 0)),
    )


def _model_statistics(raw: Any) -> ModelStatistics:
    times = raw.get("inference_stats", {})
    return ModelStatistics(
        name=_text(raw["name"]),
        version=_text(raw.get("version", "")),
        last_inference_ms=int(raw.get("last_inference", 0)),
        inference_count=int(raw.get("inference_count", 0)),
        execution_count=int(raw.get("execution_count", 0)),
        batches=tuple(
            BatchStatistics(
                batch_size=int(batch["batch_size"]),
                **{name: _duration(batch.get(name, {})) for name in _TIMES[3:]},
            )
            for batch in raw.get("batch_stats", [])
        ),
        **{name: _duration(times.get(name, {})) for name in (*_TIMES, *_CACHE_TIMES)},
    )


def _duration(raw: Any) -> DurationStatistics:
    return DurationStatistics(count=int(raw.get("count", 0)), ns=int(raw.get("ns", 0)))


def _step(raw: Any) -> EnsembleStep:
    version = int(raw.get("model_version", -1))
    return EnsembleStep(
        model=_text(raw["model_name"]),
        version=str(version) if version > 0 else "",
        inputs={_text(key): _text(value) for key, value in raw.get("input_map", {}).items()},
        outputs={_text(key): _text(value) for key, value in raw.get("output_map", {}).items()},
    )


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
