"""Options that the Locust users add to Locust's own command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from mooring import Client, ConfigError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add where to send what; Locust also reads each from ``LOCUST_<NAME>`` in the environment."""
    group = parser.add_argument_group("Mooring options")
    group.add_argument(
        "--grpc-url", type=_url_of("grpc"), default="grpc://127.0.0.1:8001", help="Server that GrpcUser calls"
    )
    group.add_argument(
        "--http-url", type=_url_of("http"), default="http://127.0.0.1:8000", help="Server that HttpUser calls"
    )
    group.add_argument("--model", default="ner", help="Model to ask: takes texts, such as ner or intent")
    group.add_argument("--payload-seed", type=int, default=0, help="Seed of each user's choice of texts")
    group.add_argument(
        "--request-timeout-s", type=_seconds, default=10.0, help="Time budget of a request, in seconds"
    )
    group.add_argument(
        "--results", metavar="FILE", help="Write the final statistics and errors to this file, as JSON"
    )


def _url_of(protocol: str) -> Callable[[str], str]:
    def url(text: str) -> str:
        if not text.startswith(f"{protocol}://"):
            raise argparse.ArgumentTypeError(f"{text!r} does not begin with {protocol}://")
        _check(url=text)
        return text

    return url


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from exc
    _check(timeout_s=seconds)
    return seconds


def _check(*, url: str = "grpc://localhost:1", timeout_s: float = 1.0) -> None:
    """Let the client judge; making one connects nothing."""
    try:
        Client(url, timeout_s=timeout_s).close()
    except ConfigError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
