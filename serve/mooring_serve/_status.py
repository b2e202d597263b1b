"""Ask a running server for the state of its models, and put what failed into words."""

from __future__ import annotations

import http.client
import json
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# No proxy of the environment stands between this process and a server that it started.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_ANSWER_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """One entry of the server's repository index."""

    name: str
    #: Empty for a model of which no version was loaded.
    version: str
    #: ``"READY"``, ``"UNAVAILABLE"``, ``"LOADING"``, ``"UNLOADING"``; empty for a model of which no version
    #: was loaded.
    state: str
    #: Why it isn't ready, in the server's words.
    reason: str


def ask(http_url: str, path: str, *, post: bool = False) -> Any:
    """Return the server's JSON answer, or ``None`` if there is none or it is an error."""
    answer = _get(f"{http_url}/v2{path}", body=b"{}" if post else None)
    try:
        return None if answer is None else json.loads(answer or b"{}")
    except ValueError:
        return None


def _get(url: str, *, body: bytes | None = None) -> bytes | None:
    try:
        with _OPENER.open(urllib.request.Request(url, data=body), timeout=_ANSWER_TIMEOUT_S) as answer:
            return bytes(answer.read())
    except (OSError, http.client.HTTPException):
        return None


def model_states(http_url: str) -> list[ModelState] | None:
    """State of every version of every model, or ``None`` while the server doesn't answer."""
    entries = ask(http_url, "/repository/index", post=True)
    if entries is None:
        return None
    return [
        ModelState(
            name=entry["name"],
            version=entry.get("version", ""),
            state=entry.get("state", ""),
            reason=entry.get("reason", ""),
        )
        for entry in entries
    ]


def is_ready(http_url: str, metrics_url: str) -> bool:
    """Whether the server calls itself ready and all its services answer.

    The metrics start last (after gRPC and HTTP), and the server ends if they can't.
    """
    return ask(http_url, "/health/ready") is not None and _get(metrics_url) is not None


def load_failures(
    states: Sequence[ModelState], wanted: Collection[str], logged: Mapping[str, str]
) -> dict[str, str]:
    """Reasons of the models that could not be loaded, by name and version.

    Args:
        states: the repository index. It leaves out models whose configuration or versions can't be used.
        wanted: names of the models that were to be loaded.
        logged: load errors from the server's log, for the models that the index says nothing about.
    """
    failures = {
        f"{state.name} version {state.version}": state.reason
        for state in states
        if state.state == "UNAVAILABLE" and state.reason not in ("", "unloaded")
    }
    known = {state.name for state in states if state.state}
    for name in sorted(set(wanted) - known):
        failures[name] = logged.get(name, "not loaded; the log may say why")
    return failures


def describe_failures(failures: Mapping[str, str]) -> str:
    """One paragraph for each model that could not be loaded."""
    paragraphs = [f"{name}: {reason.strip()}".replace("\n", "\n    ") for name, reason in failures.items()]
    return "\n".join(f"  {paragraph}" for paragraph in paragraphs)
