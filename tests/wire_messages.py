"""What servers on loopback answer with: a FakeTransport's answers, as Triton's messages hold them.

Tensors are read and written with tritonclient's own functions, not with the client's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import grpc
import numpy as np
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

from mooring import (
    AccessDenied,
    InvalidInput,
    ModelConfig,
    ModelMetadata,
    ModelNotFound,
    ModelNotReady,
    ModelStatistics,
    MooringError,
    Overloaded,
    SequenceStep,
)
from mooring._operations import (
    Infer,
    Operation,
    Tensor,
)
from mooring.testing import FakeModel, FakeTransport

#: Time budget that a fake is given; it has no use for it.
_TIMEOUT_S = 1.0


class Served:
    """What a wire server answers with; tests put their own fake in its place."""

    fake: FakeTransport

    def ask(self, operation: Operation[Any], headers: Mapping[str, str]) -> Any:
        """The fake's answer."""
        return self.fake.send(operation, timeout_s=_TIMEOUT_S, headers=tuple(headers.items()))

    def stream(self, request: Infer, headers: Mapping[str, str]) -> Iterator[Any]:
        """The fake's responses."""
        return self.fake.stream(request, timeout_s=_TIMEOUT_S, headers=tuple(headers.items()))

    def model(self, name: str) -> FakeModel:
        """A model that is known to exist."""
        return self.fake.models_by_name[name]


def code_of(error: MooringError) -> tuple[grpc.StatusCode, int]:
    """What tritonserver answers for each kind of refusal, over gRPC and over HTTP."""
    if isinstance(error, InvalidInput):
        return grpc.StatusCode.INVALID_ARGUMENT, 400
    if isinstance(error, ModelNotFound | ModelNotReady):
        return grpc.StatusCode.NOT_FOUND, 404
    if isinstance(error, Overloaded):
        return grpc.StatusCode.UNAVAILABLE, 503
    if isinstance(error, AccessDenied):
        return grpc.StatusCode.UNAUTHENTICATED, 401
    return grpc.StatusCode.INTERNAL, 500


def read_tensor(datatype: str, shape: list[int], raw: bytes) -> np.ndarray:
    if datatype == "BYTES":
        return deserialize_bytes_tensor(raw).reshape(shape)
    return np.frombuffer(raw, "<u2" if datatype == "BF16" else triton_to_np_dtype(datatype)).reshape(shape)


def write_tensor(datatype: str, array: np.ndarray) -> bytes:
    if datatype == "BYTES":
        return serialize_byte_tensor(array).item() if array.size else b""
    if datatype == "BF16":
        # The upper half of a float32; fakes answer with numbers that it can hold.
        return (np.ascontiguousarray(array).view(np.uint32) >> 16).astype("<u2").tobytes()
    return array.tobytes()


def make_request(
    model: str,
    version: str,
    tensors: list[Tensor],
    parameters: dict[str, Any],
    **options: Any,
) -> Infer:
    """An inference request as the client wrote it; ``parameters`` are those of the protocol."""
    step = None
    if "sequence_id" in parameters:
        step = SequenceStep(
            id=parameters.pop("sequence_id"),
            start=parameters.pop("sequence_start"),
            end=parameters.pop("sequence_end"),
        )
    parameters.pop("binary_data_output", None)
    return Infer(
        model=model,
        version=version,
        inputs=tuple(tensors),
        timeout_s=parameters.pop("timeout", 0) / 1e6,
        priority=parameters.pop("priority", 0),
        sequence=step,
        parameters=parameters,
        **options,
    )


def metadata_json(said: ModelMetadata) -> dict[str, Any]:
    return {**asdict(said), "versions": list(said.versions)}


def config_json(said: ModelConfig) -> dict[str, Any]:
    return {
        "name": said.name,
        "backend": said.backend,
        "max_batch_size": said.max_batch_size,
        "input": [{"name": name, "optional": True} for name in said.optional_inputs],
        "parameters": {key: {"string_value": value} for key, value in said.parameters.items()},
        "model_transaction_policy": {"decoupled": said.decoupled},
    }


def statistics_json(found: list[ModelStatistics]) -> dict[str, Any]:
    times = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    said = []
    for one in map(asdict, found):
        inference = {name: one[name] for name in (*times, "cache_hit", "cache_miss")}
        said.append(
            {
                **{key: one[key] for key in ("name", "version", "inference_count", "execution_count")},
                "last_inference": one["last_inference_ms"],
                "inference_stats": inference,
                "batch_stats": list(one["batches"]),
            }
        )
    return {"model_stats": said}
