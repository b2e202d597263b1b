"""Options that the Locust users add to Locust's own command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from mooring import Client, ConfigError
from mooring._commands import add_credential_options
from mooring._toml_files import add_override_option


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add where to send what; Locust also reads each from ``LOCUST_<NAME>`` in the environment."""
    group = parser.add_argument_group("Mooring options")
    group.add_argument(
        "--grpc-url", type=_url_of("grpc"), default="grpc://127.0.0.1:8001", help="Server that GrpcUser calls"
    )
    group.add_argument(
        "--http-url", type=_url_of("http"), default="http://127.0.0.1:8000", help="Server that HttpUser calls"
    )
    add_credential_options(group)
    group.add_argument("--model", default="ner", help="Model to ask; it says itself what for")
    group.add_argument(
        "--load-profile", default="smoke", help="Load: path of a TOML file, or the name of a shipped profile"
    )
    add_override_option(group, "Change one key of the profile, such as rate=40 or payload.seed=1")
    group.add_argument(
        "--generators",
        type=int,
        default=1,
        help="Processes that share an open loop's rate: as many as --processes or --expect-workers",
    )
    group.add_argument("--results", metavar="FILE", help="Write what was measured to this file, as JSON")


def _url_of(protocol: str) -> Callable[[str], str]:
    def url(text: str) -> str:
        if not text.startswith((f"{protocol}://", f"{protocol}s://")):
            raise argparse.ArgumentTypeError(f"{text!r} does not begin with {protocol}://")
        try:
            # Let the client judge; making one connects nothing.
            Client(text, timeout_s=1.0).close()
        except ConfigError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc
        return text

    return url
