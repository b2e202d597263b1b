"""The seam between a client and the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from mooring._errors import ModelNotFound, ModelNotReady, Overloaded, ServerError
from mooring._models import ModelConfig, ModelMetadata, ModelStatus


@dataclass(frozen=True, eq=False)
class Tensor:
    """One input, checked and ready to be written."""

    name: str
    #: Triton's name of the data type.
    datatype: str
    #: Little-endian; ``BYTES`` as an object array of ``bytes``.
    array: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class InferRequest:
    """One inference request, protocol-free."""

    model: str
    #: Empty: the server chooses.
    version: str
    inputs: tuple[Tensor, ...]
    #: Names of the wanted outputs; ``None`` asks for all.
    outputs: tuple[str, ...] | None
    #: Empty: none.
    request_id: str


class Transport(Protocol):
    """One connection to one server; safe to use from several threads.

    Every method takes its time budget in seconds and raises only errors of Mooring's tree, each
    from the foreign error that caused it.
    """

    def server_ready(self, *, timeout_s: float) -> bool:
        """Whether the server and the models that it must have are ready."""

    def model_ready(self, model: str, version: str, *, timeout_s: float) -> bool:
        """Whether the model can answer; ``False`` also where the server does not know it."""

    def metadata(self, model: str, version: str, *, timeout_s: float) -> ModelMetadata:
        """The model's signature."""

    def config(self, model: str, version: str, *, timeout_s: float) -> ModelConfig:
        """The model's configuration."""

    def models(self, *, timeout_s: float) -> list[ModelStatus]:
        """The repository index."""

    def infer(self, request: InferRequest, *, timeout_s: float) -> dict[str, np.ndarray]:
        """Outputs by name; ``BYTES`` as object arrays of ``bytes``. May be read-only."""

    def close(self) -> None:
        """Let go of every connection; may be called twice."""


# tritonserver gives these the same codes as an unknown model or a full queue; only its words
# differ (src/core of triton-inference-server/core, checked on 24.10).
_NOT_READY_WORDS: Sequence[str] = ("has no available versions", "is not at ready state", "server not ready")


class Asked(NamedTuple):
    """Whom a request asked, for its errors; without a model the server itself."""

    model: str | None = None
    #: Empty: the server's choice.
    version: str = ""


def server_error(kind: type[ServerError], said: str, *, asked: Asked, code: str) -> ServerError:
    """Build the error for an answer that says no.

    Args:
        kind: what the protocol's code means.
        said: the server's own message.
        asked: model and version that were asked.
        code: the protocol's own code.

    Returns:
        An error of ``kind``, or :class:`ModelNotReady` where the words say so.
    """
    said = said.removeprefix("[request id: <id_unknown>] ") or "no message"
    if kind in (ModelNotFound, Overloaded) and any(words in said.lower() for words in _NOT_READY_WORDS):
        kind = ModelNotReady
    model, version = asked
    if model is None:
        subject = "the server"
        kind = ServerError if kind is ModelNotFound else kind
    else:
        subject = f"model {model!r} version {version}" if version else f"model {model!r}"
    return kind(f"{subject}: {said} [{code}]", model=model, version=version or None, code=code)
