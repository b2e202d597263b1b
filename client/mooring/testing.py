"""A server in memory, for tests of code that uses :class:`mooring.Client` or :class:`mooring.AsyncClient`.

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

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from mooring._errors import ConfigError, ModelNotFound, ModelNotReady, MooringError, ServerError
from mooring._models import (
    DurationStatistics,
    ModelConfig,
    ModelMetadata,
    ModelStatistics,
    ModelStatus,
    ServerMetadata,
    TensorSpec,
)
from mooring._operations import (
    GetConfig,
    GetIndex,
    GetMetadata,
    GetModelReady,
    GetServerMetadata,
    GetServerReady,
    GetStatistics,
    Infer,
    InferAnswer,
    LoadModel,
    Operation,
    UnloadModel,
)
from mooring._tensor_bytes import widen_bf16
from mooring._transport import Headers, server_error

T = TypeVar("T")

__all__ = ["FakeModel", "FakeTransport"]


@dataclass(frozen=True, kw_only=True)
class FakeModel:
    """One model of a :class:`FakeTransport`; its only version is 1."""

    #: Data type and shape of each input by name; the shape as a request carries it, batch axis included.
    inputs: Mapping[str, tuple[str, Sequence[int]]]
    #: The same for the outputs.
    outputs: Mapping[str, tuple[str, Sequence[int]]]
    #: Takes the request's arrays by input name, returns arrays by output name, or raises what the
    #: client should see. ``BYTES`` arrives, and is to be returned, as object arrays of ``bytes``,
    #: ``BF16`` as ``float32``. A decoupled model returns an iterator of such arrays instead.
    answer: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray] | Iterator[Mapping[str, np.ndarray]]]
    #: Whether a request gets any number of responses; such a model is called with ``stream``.
    decoupled: bool = False
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
        headers: the headers of every request, oldest first.
        error: raised by every request while it is not ``None``, such as a ``ConnectError``.
        closed: whether the client was closed.
    """

    def __init__(self, models: Mapping[str, FakeModel]) -> None:
        self.models_by_name: dict[str, FakeModel] = dict(models)
        self.requests: list[Infer] = []
        self.headers: list[dict[str, str]] = []
        self.error: MooringError | None = None
        self.closed = False

    def send(self, operation: Operation[T], *, timeout_s: float, headers: Headers = ()) -> T:
        """Answer one operation of a :class:`mooring.Client`."""
        self.headers.append(dict(headers))
        if self.error is not None:
            raise self.error
        answer: T = self._answer(operation)
        return answer

    async def asend(self, operation: Operation[T], *, timeout_s: float, headers: Headers = ()) -> T:
        """Answer one operation of a :class:`mooring.AsyncClient`."""
        await asyncio.sleep(0)
        return self.send(operation, timeout_s=timeout_s, headers=headers)

    def stream(
        self, request: Infer, *, timeout_s: float, headers: Headers = ()
    ) -> Generator[InferAnswer, None, None]:
        """Answer a streaming request of a :class:`mooring.Client`."""
        self.headers.append(dict(headers))
        if self.error is not None:
            raise self.error
        answers = self._run(request)
        for outputs in [answers] if isinstance(answers, Mapping) else answers:
            yield _infer_answer(request, outputs)

    async def astream(
        self, request: Infer, *, timeout_s: float, headers: Headers = ()
    ) -> AsyncGenerator[InferAnswer, None]:
        """Answer a streaming request of a :class:`mooring.AsyncClient`."""
        for answer in self.stream(request, timeout_s=timeout_s, headers=headers):
            await asyncio.sleep(0)
            yield answer

    def close(self) -> None:
        """Remember that the client was closed."""
        self.closed = True

    async def aclose(self) -> None:
        """Remember that the client was closed."""
        self.closed = True

    def abandon(self) -> None:
        """Nothing is held that could belong to another process."""

    def _answer(self, operation: Operation[Any]) -> Any:
        match operation:
            case Infer():
                answer = self._run(operation)
                if not isinstance(answer, Mapping):
                    said = "doesn't support models with decoupled transaction policy"
                    raise server_error(ServerError, said, operation=operation, code="UNIMPLEMENTED")
                return _infer_answer(operation, answer)
            case GetServerReady():
                return all(model.ready for model in self.models_by_name.values())
            case GetServerMetadata():
                return ServerMetadata(name="fake", version="0.0.0", extensions=())
            case GetModelReady():
                found = self.models_by_name.get(operation.model)
                return found is not None and found.ready and operation.version in ("", "1")
            case GetIndex():
                return [_status(name, model) for name, model in self.models_by_name.items()]
            case GetStatistics():
                names = [operation.model] if operation.model else list(self.models_by_name)
                return [self._statistics(operation, name) for name in names]
            case LoadModel() | UnloadModel():
                self._switch(operation)
                return None
        found = self._find(operation)
        if isinstance(operation, GetMetadata):
            return _metadata(operation.model, found)
        if isinstance(operation, GetConfig):
            return _config(operation.model, found)
        raise server_error(ServerError, "not supported by FakeTransport", operation=operation, code="FAKE")

    def _run(self, request: Infer) -> Mapping[str, np.ndarray] | Iterator[Mapping[str, np.ndarray]]:
        found = self._find(request)
        self.requests.append(request)
        return found.answer(
            {
                tensor.name: widen_bf16(tensor.array) if tensor.datatype == "BF16" else tensor.array
                for tensor in request.inputs
            }
        )

    def _switch(self, operation: LoadModel | UnloadModel) -> None:
        found = self.models_by_name.get(operation.model)
        if found is None:
            raise server_error(
                ServerError, f"failed to load '{operation.model}'", operation=operation, code="FAKE"
            )
        ready = isinstance(operation, LoadModel)
        self.models_by_name[operation.model] = replace(found, ready=ready)

    def _statistics(self, operation: GetStatistics, name: str) -> ModelStatistics:
        self._find(GetStatistics(model=name, version=operation.version))
        count = sum(request.model == name for request in self.requests)
        nothing = DurationStatistics(count=0, ns=0)
        return ModelStatistics(
            name=name,
            version="1",
            last_inference_ms=0,
            inference_count=count,
            execution_count=count,
            success=DurationStatistics(count=count, ns=0),
            fail=nothing,
            queue=nothing,
            compute_input=nothing,
            compute_infer=nothing,
            compute_output=nothing,
            cache_hit=nothing,
            cache_miss=nothing,
            batches=(),
        )

    def _find(self, operation: Operation[Any]) -> FakeModel:
        found = self.models_by_name.get(operation.model)
        # tritonserver's words
        unknown = f"Request for unknown model: '{operation.model}'"
        if found is None or operation.version not in ("", "1"):
            raise server_error(
                ModelNotFound, f"{unknown} is not found", operation=operation, code="NOT_FOUND"
            )
        if not found.ready:
            said = f"{unknown} has no available versions"
            raise server_error(ModelNotReady, said, operation=operation, code="NOT_FOUND")
        return found


def _infer_answer(request: Infer, outputs: Mapping[str, np.ndarray]) -> InferAnswer:
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray):
            where = f"FakeModel {request.model!r}, output {name!r}"
            raise ConfigError(f"{where}: answer must give a numpy array, got {type(array).__name__}")
    wanted = outputs.keys() if request.outputs is None else request.outputs
    return InferAnswer(
        outputs={name: array for name, array in outputs.items() if name in wanted}, model_version="1"
    )


def _status(name: str, model: FakeModel) -> ModelStatus:
    return ModelStatus(name=name, version="1", state="READY" if model.ready else "UNAVAILABLE", reason="")


def _metadata(name: str, model: FakeModel) -> ModelMetadata:
    return ModelMetadata(
        name=name,
        versions=("1",),
        platform="fake",
        inputs=_specs(model.inputs),
        outputs=_specs(model.outputs),
    )


def _config(name: str, model: FakeModel) -> ModelConfig:
    return ModelConfig(
        name=name,
        backend="fake",
        max_batch_size=model.max_batch_size,
        optional_inputs=tuple(model.optional_inputs),
        parameters=dict(model.parameters),
        decoupled=model.decoupled,
    )


def _specs(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, datatype=datatype, shape=tuple(shape))
        for name, (datatype, shape) in tensors.items()
    )
