"""What a client can ask of a server, without a word of how it travels.

Each operation is a small object; its type parameter is what the answer is read into. Both protocols'
codecs (:mod:`mooring._wires`) and :class:`mooring.testing.FakeTransport` know every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, TypeVar

import numpy as np

from mooring._models import (
    ModelConfig,
    ModelMetadata,
    ModelStatistics,
    ModelStatus,
    ServerMetadata,
    TensorSpec,
)

T_co = TypeVar("T_co", covariant=True)

#: What a request may carry beside its tensors; integers are of 64 bits.
Parameter = str | bool | int | float
Compression = Literal["gzip", "deflate"]


@dataclass(slots=True, eq=False, kw_only=True)
class Operation(Generic[T_co]):
    """One request to a server."""

    #: Whether it changes nothing, so that a lost answer can be asked for again.
    repeatable: ClassVar[bool] = True

    #: Name of the model that is asked; empty for the server itself.
    model: str = ""
    #: Empty: the server chooses.
    version: str = ""


@dataclass(slots=True, eq=False, kw_only=True)
class GetServerReady(Operation[bool]):
    """Whether the server and the models that it must have are ready."""


@dataclass(slots=True, eq=False, kw_only=True)
class GetServerMetadata(Operation[ServerMetadata]):
    """Name, version and extensions of the server."""


@dataclass(slots=True, eq=False, kw_only=True)
class GetModelReady(Operation[bool]):
    """Whether the model can answer; ``False`` also where the server does not know it."""


@dataclass(slots=True, eq=False, kw_only=True)
class GetMetadata(Operation[ModelMetadata]):
    """The model's signature."""


@dataclass(slots=True, eq=False, kw_only=True)
class GetConfig(Operation[ModelConfig]):
    """The model's configuration."""


@dataclass(slots=True, eq=False, kw_only=True)
class GetStatistics(Operation[list[ModelStatistics]]):
    """What the server counted, one entry a model and version; without a model, of all models."""


@dataclass(slots=True, eq=False, kw_only=True)
class GetIndex(Operation[list[ModelStatus]]):
    """The repository index."""


@dataclass(slots=True, eq=False, kw_only=True)
class LoadModel(Operation[None]):
    """Load a model, or load it again."""

    repeatable: ClassVar[bool] = False

    #: The config as JSON text in place of the repository's ``config.pbtxt``; ``None`` keeps that.
    config: str | None = None
    #: Content of version folders by path, such as ``1/model.onnx``, in place of the repository's.
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(slots=True, eq=False, kw_only=True)
class UnloadModel(Operation[None]):
    """Unload a model."""

    repeatable: ClassVar[bool] = False

    #: Whether models that only its ensemble needs are unloaded too.
    unload_dependents: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class RegisterSystemMemory(Operation[None]):
    """Let the server map a region of POSIX shared memory."""

    repeatable: ClassVar[bool] = False

    name: str
    #: Name of the memory object, as for ``shm_open``.
    key: str
    byte_size: int


@dataclass(slots=True, eq=False, kw_only=True)
class RegisterCudaMemory(Operation[None]):
    """Let the server map a region of CUDA memory."""

    repeatable: ClassVar[bool] = False

    name: str
    #: The serialized ``cudaIpcMemHandle_t``.
    raw_handle: bytes
    device_id: int
    byte_size: int


@dataclass(slots=True, eq=False, kw_only=True)
class UnregisterSystemMemory(Operation[None]):
    """Let the server let go of a region of POSIX shared memory."""

    name: str


@dataclass(slots=True, eq=False, kw_only=True)
class UnregisterCudaMemory(Operation[None]):
    """Let the server let go of a region of CUDA memory."""

    name: str


@dataclass(frozen=True, slots=True)
class MemorySlice:
    """A part of a registered shared-memory region."""

    region: str
    offset: int
    byte_size: int


@dataclass(slots=True, eq=False)
class Tensor:
    """One input, checked and ready to be written."""

    name: str
    #: Triton's name of the data type.
    datatype: str
    #: Little-endian; ``BYTES`` as an object array of ``bytes``, ``BF16`` as ``uint16``.
    array: np.ndarray
    #: Where the data lies already; ``None`` sends it along.
    memory: MemorySlice | None = None


@dataclass(frozen=True, kw_only=True)
class SequenceStep:
    """Place of a request in a sequence that one model instance follows."""

    #: Correlation id: a number above 0, or a text.
    id: int | str
    #: Whether it is the sequence's first request.
    start: bool = False
    #: Whether it is the last.
    end: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class InferAnswer:
    """One response of a model."""

    #: By name; ``BYTES`` as object arrays of ``bytes``, ``BF16`` as ``float32``. May be read-only.
    outputs: dict[str, np.ndarray]
    #: Data type and shape of the outputs that lie in shared memory, by name.
    in_memory: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    #: Version that answered; empty where the server does not say.
    model_version: str = ""
    #: Size of the outputs on the wire.
    received_bytes: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class Infer(Operation[InferAnswer]):
    """Run a model once."""

    repeatable: ClassVar[bool] = False

    inputs: tuple[Tensor, ...]
    #: Names of the wanted outputs; ``None`` asks for all.
    outputs: tuple[str, ...] | None = None
    #: Outputs that the server writes into shared memory.
    output_memory: Mapping[str, MemorySlice] = field(default_factory=dict)
    #: Shown in the server's logs and errors; empty: none.
    request_id: str = ""
    #: 1 is the highest; 0 is the model's default.
    priority: int = 0
    sequence: SequenceStep | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    request_compression: Compression | None = None
    response_compression: Compression | None = None
    #: How long it may wait in the server's queue, in seconds; 0 for as long as the model's config allows.
    timeout_s: float = 0.0
    #: What the model says of its outputs: protocols that carry no shapes need it.
    output_specs: tuple[TensorSpec, ...] = ()
    #: Items in it, noted for whoever watches; 0 where the model has no batch axis.
    batch_size: int = 0
    #: Size of the inputs on the wire, noted when they are written.
    sent_bytes: int = 0
