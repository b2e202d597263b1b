"""``mooring wait``: until servers, or models on them, are ready."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from mooring._commands import add_server_options, client_options, first_line, printable, report, server_urls
from mooring._errors import AccessDenied, ConfigError, ServerError, TransportError
from mooring._policies import RetryPolicy
from mooring._sync._client import Client

_POLL_S = 0.25
#: A server that is starting may accept connections long before it answers.
_MAX_QUESTION_S = 5.0
_SHORTEST_QUESTION_S = 0.1


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``wait`` to the command line."""
    parser = subparsers.add_parser(
        "wait",
        help="wait until a server, or models on it, are ready",
        description="Wait until every server, with the models that it must have, is ready; or until the "
        "models named are. Exit status: 0 ready, 1 not ready in time, 2 the input was wrong.",
    )
    parser.add_argument("models", metavar="MODEL", nargs="*", help="name of a model, such as ner")
    parser.add_argument(
        "--for-s",
        type=float,
        default=60.0,
        metavar="S",
        help="how long, in seconds; 0 asks once (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_server_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer ``mooring wait`` and print; returns the exit code."""
    if not args.for_s >= 0:
        raise ConfigError(f"--for-s must be 0 or more, got {args.for_s:g}")
    options = client_options(args)
    began_s = time.monotonic()
    reasons: dict[str, str] = {}
    while True:
        left_s = began_s + args.for_s - time.monotonic()
        timeout_s = min(args.timeout_s, _MAX_QUESTION_S, max(left_s, _SHORTEST_QUESTION_S))
        found = {}
        for url in server_urls(args):
            reason = _why_not(url, args.models, {**options, "timeout_s": timeout_s})
            if reason is not None:
                found[url] = reason
        waited_s = time.monotonic() - began_s
        if not found or waited_s + _POLL_S > args.for_s:
            break
        for url, reason in found.items():
            if reasons.get(url) != reason:
                print(f"waiting up to {args.for_s:g} s: {printable(reason)}", file=sys.stderr, flush=True)
        reasons = found
        time.sleep(_POLL_S)
    _print_end(args, found, waited_s)
    return 1 if found else 0


def _print_end(args: argparse.Namespace, reasons: dict[str, str], waited_s: float) -> None:
    if args.json:
        servers = [
            {"server": url, "ready": url not in reasons, "reason": reasons.get(url, "")}
            for url in server_urls(args)
        ]
        said: dict[str, Any] = {"ready": not reasons, "waited_s": round(waited_s, 3), "servers": servers}
        print(json.dumps(said, ensure_ascii=False, indent=2))
    elif reasons:
        for reason in reasons.values():
            report(f"not ready after {waited_s:.1f} s: {reason}")
    else:
        what = ", ".join(args.models) if args.models else "the server and its models"
        print(f"ready after {waited_s:.1f} s: {printable(what)} on {', '.join(server_urls(args))}")


def _why_not(url: str, models: list[str], options: dict[str, Any]) -> str | None:
    """What a server, or models on it, lack to be ready; ``None`` where they are."""
    try:
        with Client(url, retry=RetryPolicy(max_retries=0), **options) as client:
            if not models and client.server_ready():
                return None
            waiting = [model for model in models if not client.ready(model)]
            if models and not waiting:
                return None
            return f"{client.urls[0]}: {_states(client, waiting)}"
    except AccessDenied:
        # Time won't change that.
        raise
    except (ServerError, TransportError) as error:
        said = str(error)
        return said if url in said else f"{url}: {said}"


def _states(client: Client, models: list[str]) -> str:
    """The states of the models that are waited for, or of all that are not ready."""
    found = [status for status in client.models() if status.state != "READY"]
    said = []
    for model in models or sorted({status.name for status in found}):
        states = [status for status in found if status.name == model]
        if not states:
            said.append(f"model {model!r} is not in the server's repository")
        for status in states:
            reason = f" ({first_line(status.reason)})" if status.reason else ""
            version = f" version {status.version}" if status.version else ""
            said.append(f"model {model!r}{version} is {status.state or 'not loaded'}{reason}")
    return "; ".join(said) or "the server is not ready"
