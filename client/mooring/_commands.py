"""What the commands that ask a server share: their options, their clients, and how they print."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mooring._errors import ConfigError, MooringError
from mooring._policies import TlsConfig
from mooring._sync._client import Client

_MOST_CHARACTERS = 200
_DEFAULT_URL = "grpc://127.0.0.1:8001"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Certificates and token of a client, as options of a command name them."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    #: The environment variable that has it.
    token_env: str | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Credentials:
        """Those of a command line with the options of :func:`add_credential_options`."""
        return cls(**{one.name: getattr(args, one.name) for one in fields(cls)})

    def words(self) -> list[str]:
        """The options again, for another command."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        options = {f"--{name.replace('_', '-')}": value for name, value in given.items() if value is not None}
        return [word for option in options.items() for word in option]

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments of a client.

        Raises:
            ConfigError: the variable for the token is not set, or a certificate is missing.
        """
        options: dict[str, Any] = {}
        if self.ca_file or self.cert_file or self.key_file:
            options["tls"] = TlsConfig(ca_file=self.ca_file, cert_file=self.cert_file, key_file=self.key_file)
        if self.token_env is not None:
            options["token"] = os.environ.get(self.token_env)
            if not options["token"]:
                raise ConfigError(
                    f"--token-env: there is no environment variable {self.token_env!r} with a token"
                )
        return options


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which server is asked, and how."""
    options = parser.add_argument_group("server")
    options.add_argument(
        "--url",
        action="append",
        dest="urls",
        metavar="URL",
        help=f"grpc[s]://host:port or http[s]://host:port; may be repeated (default: {_DEFAULT_URL})",
    )
    options.add_argument(
        "--timeout-s",
        type=float,
        default=60.0,
        metavar="S",
        help="time budget of each call in seconds (default: %(default)g)",
    )
    add_credential_options(options)


def add_folder_option(parser: argparse.ArgumentParser, option: str, default: str, words: str) -> None:
    """Add an option that names a folder; ``words`` is its help, to which the default is added."""
    parser.add_argument(
        option, type=Path, default=Path(default), metavar="FOLDER", help=f"{words} (default: %(default)s)"
    )


def add_credential_options(options: argparse._ActionsContainer) -> None:
    """Add the options of :class:`Credentials`."""
    options.add_argument(
        "--ca-file", metavar="FILE", help="authorities that may sign the server's certificate"
    )
    options.add_argument("--cert-file", metavar="FILE", help="own certificate, for mutual TLS")
    options.add_argument("--key-file", metavar="FILE", help="its private key")
    options.add_argument(
        "--token-env",
        metavar="NAME",
        help="environment variable with the bearer token; a token on the command line would be seen by all",
    )


def server_urls(args: argparse.Namespace) -> list[str]:
    """The servers that the command line names, or the usual one."""
    return args.urls or [_DEFAULT_URL]


def client_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of a client, but for its URL.

    Raises:
        ConfigError: the variable for the token is not set, or a certificate is missing.
    """
    return {"timeout_s": args.timeout_s, **Credentials.of(args).client_options()}


def ask_each_server(args: argparse.Namespace) -> Iterator[tuple[str, Client]]:
    """A client of each server, one after the other; closed when the next one is asked for."""
    options = client_options(args)
    for url in server_urls(args):
        with Client(url, **options) as client:
            yield client.urls[0], client


def report(error: MooringError | str) -> None:
    """Print what went wrong to standard error, in one line."""
    print(f"mooring: error: {printable(str(error))}", file=sys.stderr)


def printable(text: str) -> str:
    """The text on one line, without characters that would steer the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def first_line(text: str) -> str:
    """The beginning of what a server says, which may be a whole stack trace."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}…"


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Aligned columns under their headers; columns without any content are left out.

    Args:
        headers: one a column.
        rows: texts, one a column.
        right: headers of the columns that are aligned to the right.
    """
    shown = [column for column in range(len(headers)) if any(row[column] for row in rows)]
    lines = [headers, *([printable(cell) for cell in row] for row in rows)]
    widths = {column: max(len(line[column]) for line in lines) for column in shown}
    aligned = (
        (
            line[column].rjust(widths[column])
            if headers[column] in right
            else line[column].ljust(widths[column])
            for column in shown
        )
        for line in lines
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)
