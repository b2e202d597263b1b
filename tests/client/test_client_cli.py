"""The ``mooring`` command: predict, plug-ins, errors, exit codes."""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mooring import DataError, InvalidInput, MooringError, StartError
from mooring._cli import main
from mooring.testing import FakeTransport


def feed_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False))


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


def test_predict_prints_entities_aligned(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "ner", "I met Zoë in Ähtäri", "nothing here", "--url", url]) == 0
    assert capsys.readouterr().out == (
        "I met Zoë in Ähtäri\n"
        "  NAME  0.7500        0:1  I\n"
        "  NAME  0.7500        6:9  Zoë\n"
        "  NAME  0.7500      13:19  Ähtäri\n"
        "nothing here\n"
        "  nothing found\n"
    )


def test_predict_prints_labels_aligned(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "intent", "x" * 75, "--url", url]) == 0
    assert capsys.readouterr().out == "x" * 75 + "\n  long   0.7500\n  short  0.2500\n"


def test_predict_prints_json_lines(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "ner", "Zoë", "none", "--url", url, "--json"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first) == {
        "text": "Zoë",
        "entities": [{"label": "NAME", "score": 0.75, "start": 0, "end": 3, "text": "Zoë"}],
    }
    assert "Zoë" in first
    assert json.loads(second) == {"text": "none", "entities": []}
    assert main(["predict", "intent", "x", "--url", url, "--json"]) == 0
    labels = json.loads(capsys.readouterr().out)["labels"]
    assert [label["label"] for label in labels] == ["short", "long"]


@pytest.mark.parametrize("words", [[], ["-"]])
def test_predict_reads_lines_from_stdin(
    grpc_url: str,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    feed_stdin(monkeypatch, "Zoë \r\nBonn".encode())
    assert main(["predict", "ner", *words, "--url", grpc_url, "--json"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["Zoë ", "Bonn"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"ok\ngr\xfc\xdfe\n", "stdin line 2 is not valid UTF-8 (byte 2)"),
        (b"ok\n\nok\n", "stdin line 2 is empty"),
        (b"", "no text: give TEXT arguments, or one text per line on stdin"),
    ],
)
def test_predict_refuses_bad_stdin_with_the_line(
    content: bytes, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    feed_stdin(monkeypatch, content)
    assert main(["predict", "ner", "--url", "grpc://127.0.0.1:1"]) == 2
    assert capsys.readouterr() == ("", f"mooring: error: {said}\n")


def test_predict_says_on_a_terminal_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b""), isatty=lambda: True))
    assert main(["predict", "ner"]) == 2
    assert capsys.readouterr().err.startswith("reading one text per line; end with Ctrl-D\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["ner", ""], 2, "model 'ner': text 0 is empty"),
        (["ner", "a", "b\udcff"], 2, "model 'ner': text 1 can't be written as UTF-8"),
        (["double", "a"], 2, "model 'double' does not say its task"),
        (["nope", "a"], 1, "model 'nope': "),
        (["unloaded", "a"], 1, "has no available versions"),
        (["refusing", "a"], 2, "text 0 is too long"),
        (
            ["ner", "a", "--url", "127.0.0.1:8001"],
            2,
            "does not say the protocol: write grpc://127.0.0.1:8001",
        ),
    ],
)
def test_predict_errors_have_their_exit_code(
    url: str, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--url", url, *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mooring: error: ")
    assert said in err
    assert err.count("\n") == 1


def test_an_unreachable_server_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "ner", "a", "--url", "grpc://127.0.0.1:1"]) == 1
    assert "can't connect; is the server running?" in capsys.readouterr().err


def test_control_characters_do_not_reach_the_terminal(
    grpc_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "ner", "a\x1b[31m\nb", "--url", grpc_url]) == 0
    assert capsys.readouterr().out == "a\\x1b[31m\\nb\n  nothing found\n"


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
            "pip install 'mooring[harbour]'",
        ),
        (ImportError("x is missing: pip install 'y'"), 2, "mooring harbour: x is missing: pip install 'y'"),
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


def test_other_errors_of_other_rooms_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: argparse.Namespace) -> int:
        raise ZeroDivisionError

    make_room(monkeypatch, "mooring_harbour", run)
    plug(monkeypatch, harbour="mooring_harbour:add_command")
    with pytest.raises(ZeroDivisionError):
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
    said = "needs more than the client (No module named 'mooring_quay'): pip install 'mooring[quay]'"
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
    assert "predict" in [line[0] for line in lines]


def test_only_the_wanted_command_is_imported(monkeypatch: pytest.MonkeyPatch, grpc_url: str) -> None:
    def explode(entry: Any) -> Any:
        raise AssertionError(f"{entry.name} was imported")

    plug(monkeypatch, harbour="mooring_harbour:add_command", quay="mooring_quay:add_command")
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", explode)
    assert main(["predict", "ner", "a", "--url", grpc_url]) == 0
    with pytest.raises(AssertionError, match="harbour was imported"):
        main(["harbour"])


def test_a_reader_that_leaves_is_no_error() -> None:
    program = """
import sys
import mooring._cli, mooring._predict
def run(args):
    sys.stdin.read()  # until the reader of our output has gone
    print("short")  # stays in the buffer until the end
    return 0
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
    assert (process.returncode, err) == (0, b"")


def test_fake_is_what_the_wire_reaches(fake: FakeTransport, url: str) -> None:
    assert main(["predict", "ner", "a", "b", "c", "d", "e", "--url", url]) == 0
    assert [len(request.inputs[0].array) for request in fake.requests] == [4, 1]
