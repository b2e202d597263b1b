"""``mooring predict``: texts, histories or images in, a model's answers out, each as it comes."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from pathlib import Path
from typing import Any

from mooring._answers import format_json, format_readable, parse_item
from mooring._async._client import AsyncClient
from mooring._commands import add_server_options, client_options, report, server_urls
from mooring._errors import CircuitOpen, ConfigError, InvalidInput
from mooring._lines import read_lines
from mooring.redaction import Redactor

_DESCRIPTION = """\
Send texts to a served model and print what it answers: entities, labels, embeddings, rankings or
recommendations, as the model's config says. Lines are read only as fast as they are answered, and answers are
printed in the order of the lines. What fails is reported with its line; the others are answered."""
_EPILOG = """\
What a TEXT or a line is:
  for a recommender     a history, oldest first: a JSON array of texts, or texts separated by commas
  for an image model    the path of an image
  for a tabular model   a row of numbers: a JSON array, or separated by commas
  for all other models  a text

Exit status: 0 all were answered, 1 the server said no or no answer came, 2 the input was wrong."""


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``predict`` to the command line."""
    parser = subparsers.add_parser(
        "predict",
        help="send texts to a model and print its answers",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="name of the model, such as ner")
    parser.add_argument(
        "texts",
        metavar="TEXT",
        nargs="*",
        default=[],  # without one argparse counts them among what is missing
        help="a text; none, or a single -, reads a text a line from stdin",
    )
    parser.add_argument("--file", metavar="FILE", help="read a text a line from this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument(
        "--redact",
        action="store_true",
        help="replace e-mail addresses, IBANs, card and phone numbers before a text is sent or printed",
    )
    add_server_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer ``mooring predict`` and print; returns the exit code."""
    if args.file is not None and args.texts:
        raise ConfigError("give TEXT arguments or --file, not both")
    with _open_lines(args) as stream:
        return asyncio.run(_predict(args, stream))


def _open_lines(args: argparse.Namespace) -> AbstractContextManager[Any]:
    """The file with the lines, unbuffered; ``None`` where the texts are arguments."""
    if args.file not in (None, "-"):
        try:
            return Path(args.file).open("rb", buffering=0)
        except OSError as exc:
            raise ConfigError(f"--file {args.file!r} can't be read: {exc.strerror}") from exc
    if args.file is None and args.texts not in ([], ["-"]):
        return nullcontext()
    # Not the buffer: the thread that waits for the next line would hold its lock when Python ends.
    return nullcontext(getattr(sys.stdin.buffer, "raw", sys.stdin.buffer))


async def _predict(args: argparse.Namespace, stream: Any) -> int:
    async with AsyncClient(server_urls(args), **client_options(args)) as client:
        task = await client.task(args.model)
        source = _Source(args.texts, stream, task, redactor=Redactor() if args.redact else None)
        code = 0
        outcomes = task.map(source.items())
        async with aclosing(outcomes):
            async for outcome in outcomes:
                where, word, item = source.waiting.popleft()
                if outcome.error is None:
                    answer = outcome.value
                    line = format_json(task.name, word, item, answer) if args.json else None
                    print(line or format_readable(word, answer), flush=True)
                    continue
                report(f"{where}: {outcome.error}")
                if isinstance(outcome.error, CircuitOpen):
                    # Those that follow would meet the same.
                    return max(code, 1)
                code = max(code, 2 if isinstance(outcome.error, InvalidInput) else 1)
        if not source.count:
            raise InvalidInput("no text: give TEXT arguments, --file, or one text per line on stdin")
        return 2 if source.refused else code


class _Source:
    """The items of the command line, of a file or of standard input.

    Args:
        texts: arguments.
        stream: has the lines, unbuffered; ``None`` takes the arguments.
        task: what they are for.
        redactor: takes personal data out of each item; ``None`` leaves them as they are.

    Attributes:
        waiting: place, word and item of each that was given out and is not answered, oldest first.
        count: lines or arguments so far.
        refused: how many of them were no items.
    """

    def __init__(self, texts: Sequence[str], stream: Any, task: Any, *, redactor: Redactor | None) -> None:
        self._redactor = redactor
        self._texts = texts
        self._stream = stream
        self._task = task
        self.waiting: deque[tuple[str, str, Any]] = deque()
        self.count = 0
        self.refused = 0

    async def items(self) -> AsyncGenerator[Any, None]:
        """What the task takes; what is none is reported and left out."""
        async with aclosing(self._words()) as words:
            async for where, raw in words:
                self.count += 1
                try:
                    word, item = self._parse(where, raw)
                except InvalidInput as error:
                    report(error)
                    self.refused += 1
                    continue
                self.waiting.append((where, word, item))
                yield item

    def _parse(self, where: str, raw: str | bytes) -> tuple[str, Any]:
        try:
            word = raw if isinstance(raw, str) else raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise InvalidInput(f"{where} is not valid UTF-8 (byte {exc.start})") from exc
        if not word:
            raise InvalidInput(f"{where} is empty")
        try:
            item = parse_item(self._task.name, word)
        except InvalidInput as exc:
            raise InvalidInput(f"{where}: {exc}") from exc
        self._task._kind.check_item(item, where=where, model=self._task.model)
        return (word, item) if self._redactor is None else _redacted(self._redactor, item)

    async def _words(self) -> AsyncGenerator[tuple[str, str | bytes], None]:
        if self._stream is None:
            for number, text in enumerate(self._texts, start=1):
                yield f"text {number}", text
            return
        if self._stream.isatty():
            print(f"reading one {self._task._kind.item} per line; end with Ctrl-D", file=sys.stderr)
        number = 0
        try:
            async with aclosing(read_lines(self._stream)) as lines:
                async for line in lines:
                    number += 1
                    yield f"line {number}", line
        except OSError as exc:
            raise ConfigError(f"can't read on after line {number}: {exc}") from exc


def _redacted(redactor: Redactor, item: Any) -> tuple[str, Any]:
    """Word and item without personal data: a text, or a history as JSON."""
    if isinstance(item, str):
        text = redactor(item).text
        return text, text
    if isinstance(item, list) and all(isinstance(entry, str) for entry in item):
        history = [redactor(entry).text for entry in item]
        return json.dumps(history, ensure_ascii=False), history
    raise ConfigError("--redact is for texts and histories of texts, which this model does not take")
