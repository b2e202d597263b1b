"""``mooring predict``: every task's answers, lines as they come, failures with their line."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mooring import AsyncClient, CircuitPolicy, ConnectError, RetryPolicy
from mooring._cli import main
from mooring._lines import read_lines
from mooring.testing import FakeTransport
from task_models import make_task_server


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    """What answers the command in place of a server."""
    fake = make_task_server()
    monkeypatch.setattr("mooring._predict.AsyncClient", partial(AsyncClient, transport=fake))
    return fake


class Raw:
    """An unbuffered stream that gives one chunk a read."""

    def __init__(self, *chunks: bytes | None, terminal: bool = False) -> None:
        self.chunks = list(chunks)
        self.reads = 0
        self.terminal = terminal

    def read(self, size: int, /) -> bytes | None:
        self.reads += 1
        return self.chunks.pop(0) if self.chunks else b""

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Put a stream in the place of standard input."""

    def put(raw: Any) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(raw=raw)))

    return put


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["predict", *words])
    return code, *capsys.readouterr()


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("model", "words", "printed"),
    [
        (
            "ner",
            ["I met Zoë in Ähtäri", "nothing here"],
            "I met Zoë in Ähtäri\n"
            "  NAME  0.7500        0:1  I\n"
            "  NAME  0.7500        6:9  Zoë\n"
            "  NAME  0.7500      13:19  Ähtäri\n"
            "nothing here\n"
            "  nothing found\n",
        ),
        ("intent", ["x" * 75], "x" * 75 + "\n  long   0.7500\n  short  0.2500\n"),
        (
            "embed",
            ["x"],
            "x\n  8 values, norm 1.1832: 0.0000 0.1000 0.2000 0.3000 0.4000 0.5000 …\n",
        ),
        ("rank", ["sofa"], "sofa\n  lamp  12.5000\n  sofa  -3.2500\n  > Rub it.\n"),
        ("recommend", ["tent, rope"], "tent, rope\n  lamp  12.5000\n  tent  -3.2500\n"),
        ("recommend", ['["a, b"]'], '["a, b"]\n  lamp  12.5000\n  a, b  -3.2500\n'),
    ],
)
def test_answers_are_printed_for_people(
    model: str, words: list[str], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, model, *words) == (0, printed, "")


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("model", "word", "said"),
    [
        (
            "ner",
            "Zoë",
            {
                "text": "Zoë",
                "entities": [{"label": "NAME", "score": 0.75, "start": 0, "end": 3, "text": "Zoë"}],
            },
        ),
        ("ner", "none", {"text": "none", "entities": []}),
        (
            "intent",
            "x" * 75,
            {
                "text": "x" * 75,
                "labels": [{"label": "long", "score": 0.75}, {"label": "short", "score": 0.25}],
            },
        ),
        ("embed", "x", {"text": "x", "embedding": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}),
        (
            "rank",
            "sofa",
            {
                "text": "sofa",
                "items": [
                    {"item": "lamp", "score": 12.5, "text": "Rub it."},
                    {"item": "sofa", "score": -3.25, "text": ""},
                ],
            },
        ),
        (
            "recommend",
            "tent ,rope",
            {
                "history": ["tent", "rope"],
                "items": [{"item": "lamp", "score": 12.5}, {"item": "tent", "score": -3.25}],
            },
        ),
        (
            "rows",
            "[0.5, 0, 0.25]",
            {
                "features": [0.5, 0.0, 0.25],
                "labels": [{"label": "much", "score": 0.75}, {"label": "little", "score": 0.25}],
            },
        ),
    ],
)
def test_json_is_an_object_a_line(
    model: str, word: str, said: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, model, word, word, "--json")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert json.loads(first) == json.loads(second) == said
    assert word in first or model in ("recommend", "rows")


def test_images_are_read_from_their_paths(
    served: FakeTransport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "cat.png"
    image.write_bytes(b"\x89PNG" * 20)
    code, out, err = run(capsys, "images", str(image), str(tmp_path / "dog.png"), str(tmp_path), "--json")
    labels = [
        {"label": "long", "score": pytest.approx(0.8)},
        {"label": "short", "score": pytest.approx(0.2)},
    ]
    assert json.loads(out) == {"image": str(image), "labels": labels}
    assert err == (
        f"mooring: error: text 2: the image '{tmp_path}/dog.png' can't be read: No such file or directory\n"
        f"mooring: error: text 3: the image '{tmp_path}' can't be read: Is a directory\n"
    )
    assert code == 2
    assert served.requests[0].inputs[0].array[0, 0] == image.read_bytes()


@pytest.mark.usefixtures("served")
def test_rows_are_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "rows", "0.5,0,0.25", "0.5,zero,0", "1,2", "nan,0,0", "0.5,0,0.25", "--json")
    assert code == 2
    first, second = out.splitlines()
    assert json.loads(first) == json.loads(second)
    assert "text 2: the row is not of numbers: could not convert string to float: 'zero'\n" in err
    assert "text 4, number 0 is nan, expected one that is finite as float32\n" in err
    assert "text 3: model 'rows': input 'features' has shape [1, 2]; expected [-1, 3]" in err


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("words", [[], ["-"], ["--file", "-"], ["--file", "lines.txt"]])
def test_lines_are_read_from_stdin_or_a_file(
    words: list[str],
    feed: Callable[[Any], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = "Zoë \r\nBonn".encode()
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_bytes(content)
    feed(Raw(content[:3], content[3:]))  # in the midst of a letter
    code, out, err = run(capsys, "ner", *words, "--json")
    assert (code, err) == (0, "")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["Zoë ", "Bonn"]


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([], []),
        ([b"\n"], [b""]),
        ([b"a"], [b"a"]),
        ([b"a\n", b"\n", b"b\r", b"\n"], [b"a", b"", b"b"]),
        ([b"a", b"b", b"c\nd", b"e"], [b"abc", b"de"]),
        ([None, b"a\r\nb\rc\n"], [b"a", b"b\rc"]),
    ],
)
def test_lines_are_whole_however_they_arrive(chunks: list[bytes | None], lines: list[bytes]) -> None:
    async def read() -> list[bytes]:
        return [line async for line in read_lines(Raw(*chunks))]

    assert asyncio.run(read()) == lines


def test_an_answer_is_printed_before_the_next_line_comes(
    served: FakeTransport, feed: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = threading.Event()
    seen: list[bool] = []

    class Output(io.StringIO):
        def flush(self) -> None:
            if "NAME" in self.getvalue():
                printed.set()

    class Slow(Raw):
        def read(self, size: int, /) -> bytes | None:
            if self.reads == 1:
                seen.append(printed.wait(30))
            return super().read(size)

    feed(Slow(b"Zo\n", b"Bonn\n"))
    monkeypatch.setattr(sys, "stdout", Output())
    assert main(["predict", "ner"]) == 0
    assert seen == [True]
    assert len(served.requests) == 2


def test_a_terminal_is_told_what_to_type(
    served: FakeTransport, feed: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    feed(Raw(b"a,b\n", b"c\n", terminal=True))
    code, _, err = run(capsys, "recommend")
    assert (code, err) == (0, "reading one history per line; end with Ctrl-D\n")
    assert [len(request.inputs[0].array) for request in served.requests] == [1, 1]


@pytest.mark.usefixtures("served")
def test_what_fails_is_told_with_its_line_and_the_rest_is_answered(
    feed: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    feed(io.BytesIO(b"ok 1\n\ngr\xfc\xdfe\nREFUSED\nok 5\n"))
    code, out, err = run(capsys, "ner", "--json")
    assert code == 2
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["ok 1", "ok 5"]
    assert sorted(err.splitlines()) == [
        "mooring: error: line 2 is empty",
        "mooring: error: line 3 is not valid UTF-8 (byte 2)",
        "mooring: error: line 4: the text is too long",
    ]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('["a", 1]', "line 1: the history is no JSON array of texts, or empty"),
        ("[]", "line 1: the history is no JSON array of texts, or empty"),
        ('["a"', "line 1: the history is no JSON array of texts: Expecting ',' delimiter"),
        ("a,,b", "model 'recommend': line 1, item 1 is empty"),
    ],
)
def test_a_history_that_is_none_is_refused(
    line: str, said: str, feed: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    feed(Raw(line.encode()))
    code, out, err = run(capsys, "recommend")
    assert (code, out) == (2, "")
    assert err.startswith(f"mooring: error: {said}")


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["ner", ""], 2, "text 1 is empty"),
        (["ner", "b\udcff"], 2, "text 1 can't be written as UTF-8"),
        (["plain", "a"], 2, "model 'plain' does not say its task"),
        (["nope", "a"], 1, "model 'nope': "),
        (["unloaded", "a"], 1, "has no available versions"),
        (["ner", "REFUSED"], 2, "text 1: the text is too long"),
        (
            ["ner", "a", "--url", "127.0.0.1:8001"],
            2,
            "does not say the protocol: write grpc://127.0.0.1:8001",
        ),
        (["ner", "a", "--timeout-s", "0"], 2, "timeout_s must be above 0"),
        (["ner", "a", "--ca-file", "/no/ca.pem"], 2, "TlsConfig.ca_file: there is no file '/no/ca.pem'"),
        (["ner", "a", "--token-env", "NO_TOKEN"], 2, "no environment variable 'NO_TOKEN'"),
        (["ner", "a", "--file", "x"], 2, "give TEXT arguments or --file, not both"),
        (["ner", "--file", "/no/lines.txt"], 2, "--file '/no/lines.txt' can't be read: No such file"),
    ],
)
def test_errors_have_their_exit_code(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, out, err = run(capsys, *words)
    assert (got, out) == (code, "")
    assert err.startswith("mooring: error: ")
    assert said in err
    assert err.count("\n") == 1


def test_nothing_to_send_is_wrong_input(
    served: FakeTransport, feed: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    feed(Raw())
    code, out, err = run(capsys, "ner")
    assert (code, out) == (2, "")
    assert err == "mooring: error: no text: give TEXT arguments, --file, or one text per line on stdin\n"


def test_an_unreachable_server_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "ner", "a", "--url", "grpc://127.0.0.1:1", "--timeout-s", "5")
    assert code == 1
    assert "can't connect; is the server running?" in err


def test_a_server_that_dies_ends_it_however_many_lines_are_left(
    feed: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Endless(Raw):
        def read(self, size: int, /) -> bytes | None:
            super().read(size)
            return b"Zo\n" * 100

    fake = make_task_server()
    model = fake.models_by_name["ner"]

    def die(inputs: Any) -> Any:
        if len(fake.requests) > 50:
            fake.error = ConnectError("nobody is there")
            raise fake.error
        return model.answer(inputs)

    fake.models_by_name["ner"] = replace(model, answer=die)
    make_client = partial(
        AsyncClient,
        transport=fake,
        retry=RetryPolicy(max_retries=0),
        circuit=CircuitPolicy(failures=3, pause_s=10),
    )
    monkeypatch.setattr("mooring._predict.AsyncClient", make_client)
    endless = Endless()
    feed(endless)
    code, out, err = run(capsys, "ner")
    assert code == 1
    assert out.count("NAME") >= 50
    assert re.search(r"(?m)^mooring: error: line \d+: nobody is there$", err)
    assert "nothing was sent: every endpoint failed lately" in err.splitlines()[-1]
    assert endless.reads < 20


def test_the_token_comes_from_the_environment_and_is_never_shown(
    served: FakeTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_TOKEN", "tok-123")
    code, out, err = run(capsys, "ner", "REFUSED", "a", "--token-env", "MY_TOKEN")
    assert code == 2
    assert {headers["authorization"] for headers in served.headers} == {"Bearer tok-123"}
    assert "tok-123" not in out + err


@pytest.mark.usefixtures("served")
def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "ner", "a\x1b[31m\nb") == (0, "a\\x1b[31m\\nb\n  nothing found\n", "")
