"""A server in memory, for tests of code that uses :class:`mooring.Client`.

::

    model = FakeModel(
        inputs={"x": ("FP32", [-1, 2])},
        outputs={"y": ("FP32", [-1, 2])},
        max_batch_size=8,
        answer=lambda inputs: {"y": 2 * inputs["x"]},
    )
    client = Client("grpc://fake:8001", transport=FakeTransport({"double": model}))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mooring._errors import ModelNotFound, MooringError, ServerError
from mooring._models import ModelConfig, ModelMetadata, ModelStatus, TensorSpec
from mooring._transport import Asked, InferRequest, server_error

__all__ = ["FakeModel", "FakeTransport"]


@dataclass(frozen=True, kw_only=True)
class FakeModel:
    """One model of a :class:`FakeTransport`; its only version is 1."""

    #: Data type and shape of each input by name; the shape as a request carries it, batch axis included.
    inputs: Mapping[str, tuple[str, Sequence[int]]]
    #: The same for the outputs.
    outputs: Mapping[str, tuple[str, Sequence[int]]]
    #: Takes the request's arrays by input name, returns arrays by output name, or raises what the
    #: client should see. ``BYTES`` arrives, and is to be returned, as object arrays of ``bytes``.
    answer: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]
    #: Largest batch of a request; 0 for a model without a batch axis.
    max_batch_size: int = 0
    #: Inputs that a request may leave out.
    optional_inputs: Sequence[str] = ()
    #: ``parameters`` of the model's config.
    parameters: Mapping[str, str] = field(default_factory=dict)
    #: Whether the model is loaded.
    ready: bool = True


class FakeTransport:
    """Answers a client's calls from :class:`FakeModel` s, without a wire.

    Args:
        models: the models by name.

    Attributes:
        models_by_name: the models; may be changed between calls, as by a reload.
        requests: every inference request that reached an existing model, oldest first.
        error: raised by every call while it is not ``None``, such as a ``ConnectError``.
        closed: whether the client was closed.
    """

    def __init__(self, models: Mapping[str, FakeModel]) -> None:
        self.models_by_name: dict[str, FakeModel] = dict(models)
        self.requests: list[InferRequest] = []
        self.error: MooringError | None = None
        self.closed = False

    def server_ready(self, *, timeout_s: float) -> bool:
        """Whether every model is ready."""
        self._raise_error()
        return all(model.ready for model in self.models_by_name.values())

    def model_ready(self, model: str, version: str, *, timeout_s: float) -> bool:
        """Whether the model exists and is ready."""
        self._raise_error()
        found = self.models_by_name.get(model)
        return found is not None and found.ready and version in ("", "1")

    def metadata(self, model: str, version: str, *, timeout_s: float) -> ModelMetadata:
        """The model's signature."""
        found = self._find(model, version)
        return ModelMetadata(
            name=model,
            versions=("1",),
            platform="fake",
            inputs=_specs(found.inputs),
            outputs=_specs(found.outputs),
        )

    def config(self, model: str, version: str, *, timeout_s: float) -> ModelConfig:
        """The model's configuration."""
        found = self._find(model, version)
        return ModelConfig(
            name=model,
            max_batch_size=found.max_batch_size,
            optional_inputs=tuple(found.optional_inputs),
            parameters=dict(found.parameters),
        )

    def models(self, *, timeout_s: float) -> list[ModelStatus]:
        """Every model, with its state."""
        self._raise_error()
        return [
            ModelStatus(name=name, version="1", state="READY" if model.ready else "UNAVAILABLE", reason="")
            for name, model in self.models_by_name.items()
        ]

    def infer(self, request: InferRequest, *, timeout_s: float) -> dict[str, np.ndarray]:
        """Record the request and let the model answer it."""
        found = self._find(request.model, request.version)
        self.requests.append(request)
        answer = found.answer({tensor.name: tensor.array for tensor in request.inputs})
        wanted = answer.keys() if request.outputs is None else request.outputs
        return {name: array for name, array in answer.items() if name in wanted}

    def close(self) -> None:
        """Remember that the client was closed."""
        self.closed = True

    def _find(self, model: str, version: str) -> FakeModel:
        self._raise_error()
        found = self.models_by_name.get(model)
        if found is None or version not in ("", "1"):
            raise _not_found("is not found", model, version)
        if not found.ready:
            raise _not_found("has no available versions", model, version)
        return found

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error


def _not_found(said: str, model: str, version: str) -> ServerError:
    said = f"Request for unknown model: '{model}' {said}"  # tritonserver's words
    return server_error(ModelNotFound, said, asked=Asked(model, version), code="NOT_FOUND")


def _specs(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, datatype=datatype, shape=tuple(shape))
        for name, (datatype, shape) in tensors.items()
    )
