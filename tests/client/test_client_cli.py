"""The ``mooring`` command: plug-ins, errors, exit codes."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mooring import AsyncClient, DataError, InvalidInput, MooringError, StartError
from mooring._cli import _build_parser, main
from mooring.testing import FakeTransport
from task_models import make_task_server


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    """What answers ``mooring predict``."""
    fake = make_task_server()
    monkeypatch.setattr("mooring._predict.AsyncClient", partial(AsyncClient, transport=fake))
    return fake


def test_version_and_module_entry() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mooring", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"mooring {importlib.metadata.version('mooring')}\n"


def test_no_command_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "required: COMMAND" in capsys.readouterr().err


def test_a_text_is_not_among_what_predict_misses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["predict"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("the following arguments are required: MODEL\n")


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("predict ner --json a b", "texts", ["a", "b"]),
        ("predict ner a b --json", "texts", ["a", "b"]),
        ("predict ner --json -- -a", "texts", ["-a"]),
        ("predict ner --json", "texts", []),
        ("rollback ner --repository models 3", "version", 3),
        ("rollback ner --repository models", "version", None),
        ("wait --for-s 0 ner intent", "models", ["ner", "intent"]),
    ],
)
def test_words_that_may_be_left_out_may_follow_options(line: str, key: str, value: Any) -> None:
    assert getattr(_build_parser(line.split()).parse_args(line.split()), key) == value


def plug(monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    """Make these entry points (name = module:function) the only ones of the group."""
    entries = [
        importlib.metadata.EntryPoint(name, value, "mooring.commands") for name, value in commands.items()
    ]
    found = importlib.metadata.EntryPoints(entries)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: found.select(group=group))


def make_room(monkeypatch: pytest.MonkeyPatch, module: str, run: Any) -> None:
    """A module with an ``add_command`` for a command of the module's last name."""

    def add_command(subparsers: Any) -> None:
        parser = subparsers.add_parser(module.rpartition("_")[2], help="help of the room")
        parser.add_argument("--port", type=int)
        parser.set_defaults(run=run)

    room = ModuleType(module)
    room.add_command = add_command  # type: ignore[attr-defined]
    run.__module__ = module
    monkeypatch.setitem(sys.modules, module, room)


def test_commands_of_other_rooms_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = []

    def run(args: argparse.Namespace) -> int:
        ports.append(args.port)
        return 1

    make_room(monkeypatch, "mooring_harbour", run)
    plug(monkeypatch, harbour="mooring_harbour:add_command")
    assert main(["harbour", "--port", "7"]) == 1
    assert ports == [7]


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (DataError("line 3"), 2, "line 3"),
        (InvalidInput("text 0"), 2, "text 0"),
        (StartError("port in use"), 1, "port in use"),
        (MooringError("no"), 1, "no"),
        (
            ModuleNotFoundError("No module named 'torch'"),
            2,
            "mooring harbour needs more than the client (No module named 'torch'): "
            "install Mooring's extra [harbour]",
        ),
        (
            ImportError("x is missing: install Mooring's extra [y]"),
            2,
            "mooring harbour: x is missing: install Mooring's extra [y]",
        ),
        (PermissionError(13, "Permission denied", "reports/a.log"), 1, "reports/a.log: Permission denied"),
    ],
)
def test_errors_of_other_rooms_are_reported(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: Exception,
    code: int,
    said: str,
) -> None:
    def run(args: argparse.Namespace) -> int:
        raise raised

    make_room(monkeypatch, "mooring_harbour", run)
    plug(monkeypatch, harbour="mooring_harbour:add_command")
    assert main(["harbour"]) == code
    assert capsys.readouterr() == ("", f"mooring: error: {said}\n")


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError("no file's fault")])
def test_other_errors_of_other_rooms_are_not_hidden(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(args: argparse.Namespace) -> int:
        raise error

    make_room(monkeypatch, "mooring_harbour", run)
    plug(monkeypatch, harbour="mooring_harbour:add_command")
    with pytest.raises(type(error)):
        main(["harbour"])


def test_interrupt_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    make_room(monkeypatch, "mooring_harbour", run)
    plug(monkeypatch, harbour="mooring_harbour:add_command")
    assert main(["harbour"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("options", [[], ["--port", "7"], ["x", "-h"]])
def test_a_command_whose_extra_is_missing_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    plug(monkeypatch, quay="mooring_quay.cli:add_command")
    assert main(["quay", *options]) == 2
    said = "needs more than the client (No module named 'mooring_quay'): install Mooring's extra [quay]"
    assert capsys.readouterr().err == f"mooring: error: mooring quay {said}\n"


def test_help_shows_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_room(monkeypatch, "mooring_harbour", lambda args: 0)
    plug(monkeypatch, harbour="mooring_harbour:add_command", quay="mooring_quay.cli:add_command")
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    lines = [
        line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("    ")
    ]
    assert ["harbour", "help of the room"] in lines
    assert ["quay", "(not installed)"] in lines
    for name in ("predict", "models", "stats", "wait"):
        assert len(next(line[1] for line in lines if line[0] == name)) > 20


def test_only_the_wanted_command_is_imported(monkeypatch: pytest.MonkeyPatch, served: FakeTransport) -> None:
    def explode(entry: Any) -> Any:
        raise AssertionError(f"{entry.name} was imported")

    plug(monkeypatch, harbour="mooring_harbour:add_command", quay="mooring_quay:add_command")
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", explode)
    assert main(["predict", "ner", "a"]) == 0
    assert served.requests
    with pytest.raises(AssertionError, match="harbour was imported"):
        main(["harbour"])


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        # In the buffer until the end, and at once.
        ('print("short"); return 0', 0),
        ('print("short"); return 1', 1),
        ('print("short"); return 3', 3),
        ('print("short", flush=True); return 0', 141),
    ],
)
def test_a_reader_that_leaves_is_no_error_and_makes_no_success(shown: str, status: int) -> None:
    program = f"""
import sys
import mooring._cli, mooring._predict
def run(args):
    sys.stdin.read()  # until the reader of our output has gone
    {shown}
mooring._predict.run = run
sys.exit(mooring._cli.main(["predict", "ner"]))
"""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=buffered,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(b"")
    assert (process.returncode, err) == (status, b"")


@pytest.mark.parametrize("flush", [False, True])
def test_output_for_which_there_is_no_room_is_an_error(flush: bool) -> None:
    program = f"""
import sys
import mooring._cli, mooring._predict
mooring._predict.run = lambda args: print("short", flush={flush}) or 0
sys.exit(mooring._cli.main(["predict", "ner"]))
"""
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    said = "mooring: error: output can't be written: No space left on device\n"
    assert (process.returncode, process.stderr) == (1, said)


def test_output_whose_encoding_lacks_a_character_is_an_error() -> None:
    program = """
import sys
import mooring._cli, mooring._predict
mooring._predict.run = lambda args: print("\\u00c5sa")
sys.exit(mooring._cli.main(["predict", "ner"]))
"""
    process = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONIOENCODING": "iso8859-2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (1, "")
    said = "mooring: error: output can't be written: iso8859-2 has no '\\xc5'; set PYTHONIOENCODING=utf-8\n"
    assert process.stderr == said
