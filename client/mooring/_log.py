"""The client's logger: quiet unless the program configures logging; never given payloads or header values."""

from __future__ import annotations

import logging

from mooring._errors import ServerError, TransportError

LOG = logging.getLogger("mooring")
# Without a handler of its own, Python would print warnings of a program that configures no logging.
LOG.addHandler(logging.NullHandler())


def describe_error(error: BaseException) -> str:
    """An error in words that hold no payload.

    A server's own words, and what contradicts a model's signature, may repeat what was sent or answered;
    the error that the caller gets has them.
    """
    name = type(error).__name__
    if isinstance(error, TransportError):
        return f"{name}: {error}"
    if isinstance(error, ServerError) and error.code:
        return f"{name} [{error.code}]"
    return name
