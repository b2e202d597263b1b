"""The ``mooring`` command: finds the wanted subcommand, runs it and reports errors.

The subcommands of the other rooms come from the entry points ``mooring.commands``. Only the wanted
one is imported; ``mooring --help`` imports them all.
"""

from __future__ import annotations

import argparse
import errno
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from mooring import _inspect, _monitor_command, _predict, _redact, _wait
from mooring._errors import ConfigError, InvalidInput, MooringError

#: What a shell reports for a command that ended as the reader of its output had left.
_SIGPIPE = 141
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

_Subparsers = argparse._SubParsersAction  # the only name that argparse has for it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one ``mooring`` command.

    Args:
        argv: the words after ``mooring``; ``None`` takes the process's own.

    Returns:
        The exit code: 0 done, 1 a check failed or the server said no, 2 the input was wrong, and as shells
        report them 130 for Ctrl-C and 141 where the reader of the output left before the command was done.

    Raises:
        SystemExit: from argparse, for ``--help``, ``--version`` and unknown arguments.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = _build_parser(words).parse_args(words)
    code = None
    try:
        code = int(args.run(args))
        sys.stdout.flush()
    except (ConfigError, InvalidInput) as exc:
        return _report(str(exc), 2)
    except MooringError as exc:
        return _report(str(exc), 1)
    except ImportError as exc:
        return _report(_explain_import(args.command, args.run.__module__, exc), 2)
    except BrokenPipeError:
        # The reader of our output left, as `head` does: no error, but no success of a command that had not
        # ended, either.
        _write_no_more()
        return _SIGPIPE if code is None else code
    except OSError as exc:
        if exc.filename is not None:
            return _report(f"{exc.filename}: {exc.strerror}", 1)
        if exc.errno not in _NO_ROOM:
            raise
        _write_no_more()
        return _report(f"output can't be written: {exc.strerror}", 1)
    except UnicodeEncodeError as exc:
        if exc.encoding == "utf-8":
            raise
        # Of a locale from before UTF-8, for example.
        said = f"{sys.stdout.encoding} has no {exc.object[exc.start]!r}"
        return _report(f"output can't be written: {said}; set PYTHONIOENCODING=utf-8", 1)
    except KeyboardInterrupt:
        return 130  # what a shell reports for a command ended by Ctrl-C
    return code


def _write_no_more() -> None:
    """Replace stdout, as Python flushes it once more at exit
    (https://docs.python.org/3/library/signal.html#note-on-sigpipe).
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """Takes words that may be left out after options, too: ``predict ner --json TEXT``.

    Python up to 3.13.0 settles that there are none at the first option
    (https://github.com/python/cpython/issues/59317).
    """

    def _match_arguments_partial(
        self, actions: Sequence[argparse.Action], arg_strings_pattern: str
    ) -> list[int]:
        counts = super()._match_arguments_partial(actions, arg_strings_pattern)
        if arg_strings_pattern[sum(counts) :].startswith("O"):
            while counts and not counts[-1]:
                counts.pop()
        return counts


def _build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="mooring", description="Build, serve, call and load-test models on NVIDIA Triton."
    )
    version = importlib.metadata.version("mooring")
    parser.add_argument("--version", action="version", version=f"mooring {version}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    _predict.add_command(subparsers)
    _monitor_command.add_command(subparsers)
    _redact.add_command(subparsers)
    _inspect.add_commands(subparsers)
    _wait.add_command(subparsers)
    wanted = next((word for word in words if not word.startswith("-")), None)
    entries = {entry.name: entry for entry in importlib.metadata.entry_points(group="mooring.commands")}
    if wanted in subparsers.choices:
        return parser
    for name in [wanted] if wanted in entries else sorted(entries):
        _add_entry_point(subparsers, entries[name])
    return parser


def _add_entry_point(
    subparsers: _Subparsers[argparse.ArgumentParser], entry: importlib.metadata.EntryPoint
) -> None:
    try:
        add_command = entry.load()
    except ImportError as exc:
        reason = _explain_import(entry.name, entry.module, exc)
    else:
        add_command(subparsers)
        return

    def refuse(args: argparse.Namespace) -> int:
        raise ConfigError(reason)

    # The command still shows in the help. No word starts with NUL, so every option that the real
    # parser would know is taken as a plain word here.
    parser = subparsers.add_parser(entry.name, help="(not installed)", add_help=False, prefix_chars="\0")
    parser.add_argument("words", nargs="*")
    parser.set_defaults(run=refuse)


def _explain_import(command: str, module: str, exc: ImportError) -> str:
    room = module.partition(".")[0]
    if "install Mooring's extra" in str(exc) or not room.startswith("mooring_"):
        return f"mooring {command}: {exc}"
    extra = room.removeprefix("mooring_")
    return f"mooring {command} needs more than the client ({exc}): install Mooring's extra [{extra}]"


def _report(message: str, code: int) -> int:
    print(f"mooring: error: {message}", file=sys.stderr)
    return code
