"""What ``--backend-config`` set on tritonserver's command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def read_backend_flags(backend: str) -> dict[str, str]:
    """Return what ``--backend-config`` set for one backend.

    Triton doesn't hand the flags to Python-based backends, so they are read from the command line of the
    server, which is the parent of every stub.
    """
    command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    return parse_backend_flags(backend, [os.fsdecode(part) for part in command.split(b"\0")])


def parse_backend_flags(backend: str, command: Sequence[str]) -> dict[str, str]:
    """Find the settings of one backend in tritonserver's command line.

    Args:
        backend: name of the backend; its own settings go before those for all backends.
        command: the arguments. Both ``--backend-config=VALUE`` and ``--backend-config VALUE`` count; VALUE is
            ``<backend>,<key>=<value>``, or ``<key>=<value>`` for every backend.
    """
    general: dict[str, str] = {}
    own: dict[str, str] = {}
    for argument, following in zip(command, [*command[1:], ""], strict=True):
        option, equals, value = argument.partition("=")
        if option != "--backend-config":
            continue
        head, comma, setting = (value if equals else following).partition(",")
        key, _, text = (setting if comma else head).partition("=")
        if not comma:
            general[key] = text
        elif head == backend:
            own[key] = text
    return general | own
