"""``mooring predict``: texts in, entities or labels out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import BinaryIO

from mooring._client import Client
from mooring._errors import InvalidInput
from mooring._tasks import Entity, Label, TokenClassifier


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``predict`` to the command line."""
    parser = subparsers.add_parser(
        "predict",
        help="send texts to a served model and print its answers",
        description="Send texts to a served model and print the entities or labels that it finds.",
    )
    parser.add_argument("model", metavar="MODEL", help="name of the model, such as ner")
    parser.add_argument(
        "texts", metavar="TEXT", nargs="*", help="a text; none, or a single -, reads stdin, a text per line"
    )
    parser.add_argument(
        "--url",
        default="grpc://127.0.0.1:8001",
        help="server, grpc://host:port or http://host:port (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer ``mooring predict`` and print; returns the exit code."""
    texts = args.texts
    if texts in ([], ["-"]):
        if sys.stdin.isatty():
            print("reading one text per line; end with Ctrl-D", file=sys.stderr)
        texts = read_lines(sys.stdin.buffer)
    with Client(args.url) as client:
        task = client.task(args.model)
        answers = task(texts)
    key = "entities" if isinstance(task, TokenClassifier) else "labels"
    for text, answer in zip(texts, answers, strict=True):
        print(format_json(text, key, answer) if args.json else format_readable(text, answer))
    return 0


def read_lines(stream: BinaryIO) -> list[str]:
    """Read one text per line.

    Raises:
        InvalidInput: no line at all, or one that is empty or not UTF-8; the message has its number.
    """
    texts = list(_decoded(stream))
    if not texts:
        raise InvalidInput("no text: give TEXT arguments, or one text per line on stdin")
    return texts


def _decoded(stream: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        raw = line.rstrip(b"\r\n")
        if not raw:
            raise InvalidInput(f"stdin line {number} is empty")
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise InvalidInput(f"stdin line {number} is not valid UTF-8 (byte {exc.start})") from exc


def format_json(text: str, key: str, answer: Sequence[Entity | Label]) -> str:
    """One text's answer, under ``key``, as one line of JSON."""
    return json.dumps({"text": text, key: [asdict(found) for found in answer]}, ensure_ascii=False)


def format_readable(text: str, answer: Sequence[Entity | Label]) -> str:
    """One text's answer as the text and an aligned line for each entity or label."""
    label_width = max((len(found.label) for found in answer), default=0)
    lines = [_printable(text)]
    for found in answer:
        line = f"  {_printable(found.label):<{label_width}}  {found.score:.4f}"
        if isinstance(found, Entity):
            line += f"  {f'{found.start}:{found.end}':>9}  {_printable(found.text)}"
        lines.append(line)
    if not answer:
        lines.append("  nothing found")
    return "\n".join(lines)


def _printable(text: str) -> str:
    """The text on one line, without characters that would steer the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
