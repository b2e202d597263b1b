"""Every error that Mooring raises on purpose.

::

    MooringError
    ├── ConfigError(ValueError)        the caller's mistake; never retried
    │   ├── RecipeError                a recipe (mooring_build): every mistake with its key
    │   ├── DataError                  a data file (mooring_build): path, line, what was expected
    │   └── CheckpointError            a checkpoint (mooring_build): missing, corrupt, wrong labels
    ├── TransportError                 no answer came
    │   ├── ConnectError               nothing listens at the address
    │   │   └── CircuitOpen            not sent: every endpoint failed lately
    │   └── DeadlineExceeded(TimeoutError)
    ├── ServerError                    the server answered no; ``model``, ``version``, ``code``
    │   ├── ModelNotFound
    │   ├── ModelNotReady
    │   ├── InvalidInput               also raised before sending, when metadata already says no
    │   ├── AccessDenied               token, header or certificate missing or not accepted
    │   └── Overloaded                 may be retried; ``retry_after_s``
    │       └── Throttled              not sent: the server refuses too many
    ├── DecodeError                    the answer contradicts the model's signature
    ├── BuildError                     a build could not write, was not alone or lacks a part (mooring_build)
    ├── VerificationError              an engine is not as good as its recipe demands (mooring_build)
    ├── PublishError                   a release could not be written (mooring_build)
    ├── StartError                     tritonserver did not start; says why (mooring_serve)
    └── UnsupportedPlatform            the embedded server can't run here (mooring_serve)

The message carries the offending value and the way out. ``attempts`` of a call's error holds the error
of every try, oldest first; each has the foreign exception behind it as its ``__cause__``. The errors of
the other rooms live in this module too, so that one ``except MooringError`` covers everything and the tree
is seen in one place.
"""

from __future__ import annotations


class MooringError(Exception):
    """Root of the tree."""

    # Filled in by the client when an error ends a call that was tried before.
    _earlier: tuple[MooringError, ...] = ()

    @property
    def attempts(self) -> tuple[MooringError, ...]:
        """The error of every try of the call, oldest first; the last is this one."""
        return (*self._earlier, self)


class ConfigError(MooringError, ValueError):
    """The caller's mistake: an option, URL, file or argument that can't be right."""


class RecipeError(ConfigError):
    """A recipe has mistakes; the message lists each with its key."""


class DataError(ConfigError):
    """A data file is missing or malformed; the message has the path and the line."""


class CheckpointError(ConfigError):
    """A checkpoint is missing, corrupt, or does not fit the recipe."""


class TransportError(MooringError):
    """No answer came from the server."""


class ConnectError(TransportError):
    """Nothing accepted the connection."""


class CircuitOpen(ConnectError):
    """Nothing was sent, because every endpoint failed lately; each is tried again after a pause."""


class DeadlineExceeded(TransportError, TimeoutError):
    """The call's time budget ran out before an answer came."""


class ServerError(MooringError):
    """The server answered, and the answer is an error.

    Attributes:
        model: name of the model that was asked, or ``None`` for a server-wide call.
        version: version that was asked for, or ``None`` for the server's choice.
        code: the protocol's own code: a gRPC status name or an HTTP status number as text.
    """

    def __init__(
        self, message: str, *, model: str | None = None, version: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.model = model
        self.version = version
        self.code = code


class ModelNotFound(ServerError):
    """The server does not know the model or the version."""


class ModelNotReady(ServerError):
    """The server knows the model, but it is not loaded."""


class InvalidInput(ServerError):
    """A tensor or text that the model does not take: wrong name, dtype, shape, or content."""


class AccessDenied(ServerError):
    """The server, or a proxy before it, does not accept the caller: token, header or certificate."""


class Overloaded(ServerError):
    """The server refused because of load: queue full or rate limit. May be retried.

    Attributes:
        retry_after_s: pause that the answer asks for (``Retry-After``), in seconds; ``None`` without one.
    """

    def __init__(
        self,
        message: str,
        *,
        model: str | None = None,
        version: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, model=model, version=version, code=code)
        self.retry_after_s = retry_after_s


class Throttled(Overloaded):
    """Nothing was sent, because the server refuses too many requests for the model. May be retried."""


class DecodeError(MooringError):
    """The server's answer contradicts what the model says of itself."""


class BuildError(MooringError):
    """A build could not go on: it can't write, is not alone, or lacks a part or a compiler."""


class VerificationError(MooringError):
    """An engine answers otherwise or worse than its recipe allows; the message has the numbers."""


class PublishError(MooringError):
    """A release could not be written into the model repository."""


class StartError(MooringError):
    """tritonserver did not start or stopped early; the message says why, in the server's own words."""


class UnsupportedPlatform(MooringError):
    """The embedded server can't run here; the message says what to do instead."""
