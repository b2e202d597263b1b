"""Ports for one server: free ones on request, a clear error for a taken one."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from contextlib import ExitStack

from mooring import ConfigError, StartError


def check_ports(ports: Mapping[str, int]) -> None:
    """Refuse ports that are out of range or given twice.

    Args:
        ports: port by the name of its option; 0 asks for a free one.

    Raises:
        ConfigError: names the option and its value.
    """
    seen: dict[int, str] = {}
    for option, port in ports.items():
        if not 0 <= port <= 65535:
            raise ConfigError(f"{option} is {port}: a port is between 1 and 65535, or 0 for a free one")
        if port and port in seen:
            raise ConfigError(f"{option} and {seen[port]} are both {port}: each needs its own port")
        seen[port] = option


def resolve_host(host: str) -> str:
    """IPv4 address of a host; tritonserver's HTTP service doesn't take names.

    Raises:
        ConfigError: it has none.
    """
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0])
    except (OSError, UnicodeError) as exc:
        # The latter of labels that are empty or too long, as in "10..0.1".
        raise ConfigError(f"host {host!r} has no IPv4 address to listen on: {exc}") from exc


def choose_ports(address: str, ports: Mapping[str, int]) -> dict[str, int]:
    """Replace each 0 by a port that is free now, and make sure that the others are.

    Args:
        address: IPv4 address on which the server will listen.
        ports: port by the name of its option.

    Raises:
        StartError: a port is taken; names it and the option that asks for it.
        ConfigError: this machine doesn't have the address.
    """
    chosen: dict[str, int] = {}
    with ExitStack() as held:
        for option, port in ports.items():
            # Kept open until all are chosen, so that no free port is chosen twice.
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as exc:
                if exc.errno == errno.EADDRINUSE:
                    raise StartError(port_taken(option, port, address)) from exc
                if exc.errno == errno.EACCES:
                    raise StartError(f"{option} {port} needs root's rights: choose one above 1023") from exc
                raise ConfigError(f"can't listen on {address}: {exc}") from exc
            chosen[option] = probe.getsockname()[1]
    return chosen


def port_taken(option: str, port: int, address: str) -> str:
    """Say that a port is in use, which option asks for it, and the way out."""
    return (
        f"{option} {port} on {address} is already in use: stop what listens there, choose another port, "
        "or 0 for a free one"
    )
