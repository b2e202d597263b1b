"""``mooring redact``: a file's lines without their personal data."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from mooring._commands import add_server_options, client_options, server_urls
from mooring._errors import ConfigError, InvalidInput
from mooring._sync._client import Client
from mooring._sync._tasks import TokenClassifier
from mooring._task_kinds import Entity
from mooring.redaction import Redactor

_DESCRIPTION = """\
Replace e-mail addresses, IBANs, payment card and phone numbers in each line, and names where a model is
given that finds them: [EMAIL], [IBAN], [CARD], [PHONE], [NAME]. The lines go to standard output, how many
were found of each kind to standard error. Works on any file of lines, CSV too; with --json every text in each
line's JSON is redacted, whole numbers are taken as texts, and keys stay.

Exit status: 0 done, 1 the server said no or no answer came, 2 the input was wrong."""
#: Lines whose texts are asked about at a time.
_LINES = 256


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``redact`` to the command line."""
    parser = subparsers.add_parser(
        "redact",
        help="replace personal data in the lines of a file",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="left out, or -: standard input")
    parser.add_argument("--json", action="store_true", help="each line is a JSON value")
    parser.add_argument(
        "--names", metavar="MODEL", help="served token classifier that finds names, such as ner"
    )
    parser.add_argument(
        "--name-label", metavar="LABEL", default="PER", help="its label of names (default: %(default)s)"
    )
    add_server_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer ``mooring redact`` and print; returns the exit code."""
    counts: Counter[str] = Counter()
    redactor = Redactor(name_labels=[args.name_label])
    with ExitStack() as stack:
        task: TokenClassifier | None = None
        if args.names is not None:
            client = stack.enter_context(Client(server_urls(args), **client_options(args)))
            served = client.task(args.names)
            if not isinstance(served, TokenClassifier):
                raise ConfigError(f"--names {args.names!r}: expected a token classifier, got {served.name}")
            task = served
        lines = _read(stack.enter_context(_open(args.file)))
        while batch := list(islice(lines, _LINES)):
            values = [(number, _parse(number, line) if args.json else line) for number, line in batch]
            entities = {} if task is None else _find_names(task, values)
            for _, value in values:
                redacted = _redact(value, redactor, entities, counts)
                print(_dump(redacted) if args.json else redacted)
    found = ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts)) or "nothing"
    print(f"found {found}", file=sys.stderr)
    return 0


def _open(file: str) -> AbstractContextManager[Iterable[bytes]]:
    if file == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(file).open("rb")
    except OSError as exc:
        raise ConfigError(f"{file!r} can't be read: {exc.strerror}") from exc


def _read(stream: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """Number and text of each line."""
    for number, raw in enumerate(stream, start=1):
        try:
            yield number, raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as exc:
            raise InvalidInput(f"line {number} is not valid UTF-8 (byte {exc.start})") from exc


def _find_names(task: TokenClassifier, values: Sequence[tuple[int, Any]]) -> dict[str, Sequence[Entity]]:
    """Entities of every text in the values of some lines."""
    lines = {text: number for number, value in values for text in _texts(value) if text.strip()}
    found: dict[str, Sequence[Entity]] = {}
    for (text, number), outcome in zip(lines.items(), task.map(lines), strict=True):
        if isinstance(outcome.error, InvalidInput):
            raise InvalidInput(f"line {number}: {outcome.error}") from outcome.error
        found[text] = outcome.unwrap()
    return found


def _parse(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as exc:
        raise InvalidInput(f"line {number} is no JSON: {exc}") from exc


def _dump(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # A lone surrogate can be written as an escape alone.
        return json.dumps(value)
    return text


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for part in value:
                yield from _texts(part)
        case dict():
            yield from _texts(list(value.values()))


def _redact(
    value: Any, redactor: Redactor, entities: Mapping[str, Sequence[Entity]], counts: Counter[str]
) -> Any:
    match value:
        case str():
            redaction = redactor.redact(value, entities.get(value, ()))
            counts.update(finding.kind for finding in redaction.findings)
            return redaction.text
        case bool():
            return value
        case int():
            redacted = _redact(str(value), redactor, {}, counts)
            return value if redacted == str(value) else redacted
        case list():
            return [_redact(part, redactor, entities, counts) for part in value]
        case dict():
            return {key: _redact(part, redactor, entities, counts) for key, part in value.items()}
    return value
