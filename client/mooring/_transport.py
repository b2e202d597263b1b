"""The seam between a client and the wire."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any, Protocol, TypeVar

from mooring._errors import InvalidInput, ModelNotFound, ModelNotReady, Overloaded, ServerError
from mooring._operations import GetStatistics, Infer, InferAnswer, LoadModel, Operation, UnloadModel

T = TypeVar("T")

#: Header names (lower case) and values that go with one request.
Headers = Sequence[tuple[str, str]]


class Transport(Protocol):
    """Connections to one server, for threads; safe to use from several at once.

    Every method raises only errors of Mooring's tree, each from the foreign error that caused it.
    """

    def send(self, operation: Operation[T], *, timeout_s: float, headers: Headers = ()) -> T:
        """Send one request within its time budget in seconds, and read the answer."""

    def stream(
        self, request: Infer, *, timeout_s: float, headers: Headers = ()
    ) -> Generator[InferAnswer, None, None]:
        """Send one request, and read responses until the model has given its last; closing it cancels."""

    def close(self) -> None:
        """Let go of every connection; may be called twice."""

    def abandon(self) -> None:
        """Forget every connection without ending it: in a forked child they are the parent's."""


class AsyncTransport(Protocol):
    """Connections to one server, for the coroutines of one event loop; errors as in :class:`Transport`."""

    async def asend(self, operation: Operation[T], *, timeout_s: float, headers: Headers = ()) -> T:
        """As :meth:`Transport.send`; cancelling it gives the request up."""

    def astream(
        self, request: Infer, *, timeout_s: float, headers: Headers = ()
    ) -> AsyncGenerator[InferAnswer, None]:
        """As :meth:`Transport.stream`."""

    async def aclose(self) -> None:
        """Let go of every connection; may be called twice."""

    def abandon(self) -> None:
        """As :meth:`Transport.abandon`."""


# tritonserver gives these the same codes as an unknown model or a full queue; only its words
# differ (src/core of triton-inference-server/core, checked on 24.10).
_NOT_READY_WORDS: Sequence[str] = ("has no available versions", "is not at ready state", "server not ready")
# The same code as a full queue as well: the server was not started so that clients may do this.
_NOT_ALLOWED_WORDS: Sequence[str] = ("explicit model load / unload is not allowed",)
_LOAD_HINT = "start tritonserver with --model-control-mode=explicit"


def server_error(kind: type[ServerError], said: str, *, operation: Operation[Any], code: str) -> ServerError:
    """Build the error for an answer that says no.

    Args:
        kind: what the protocol's code means.
        said: the server's own message.
        operation: what was asked.
        code: the protocol's own code.

    Returns:
        An error of ``kind``, or of a better one where the words say so.
    """
    said = said.removeprefix("[request id: <id_unknown>] ") or "no message"
    words = said.lower()
    if kind is InvalidInput and isinstance(operation, GetStatistics) and "is not available" in words:
        kind = ModelNotFound
    elif kind is InvalidInput and isinstance(operation, LoadModel | UnloadModel):
        kind = ServerError
    if kind in (ModelNotFound, Overloaded) and any(part in words for part in _NOT_READY_WORDS):
        kind = ModelNotReady
    elif any(part in words for part in _NOT_ALLOWED_WORDS):
        kind, said = ServerError, f"{said}: {_LOAD_HINT}"
    model, version = operation.model or None, operation.version or None
    if model is None:
        subject = "the server"
        kind = ServerError if kind is ModelNotFound else kind
    else:
        subject = f"model {model!r} version {version}" if version else f"model {model!r}"
    return kind(f"{subject}: {said} [{code}]", model=model, version=version, code=code)


def stream_error(said: str, request: Infer) -> ServerError:
    """Build the error for a stream's answer that says no.

    Both protocols carry it as text alone, so tritonserver's words tell the kinds that a caller can act on.
    """
    words = said.lower()
    kind = ServerError
    if "unknown model" in words:
        kind = ModelNotFound
    elif "exceeds maximum queue size" in words:
        kind = Overloaded
    elif "expected" in words:
        kind = InvalidInput
    return server_error(kind, said, operation=request, code="STREAM")
