"""``mooring models``, ``mooring stats`` and ``mooring wait``: what they print, and how they end."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from mooring import (
    AccessDenied,
    Client,
    ConnectError,
    DurationStatistics,
    ModelStatistics,
    ModelStatus,
)
from mooring._cli import main
from mooring._commands import first_line, format_table
from mooring._operations import GetIndex, GetServerReady, GetStatistics, Operation
from mooring._transport import Headers
from mooring.testing import FakeTransport
from task_models import make_task_server

TWO = ["--url", "grpc://one:8001", "--url", "http://two:8000"]
MS = 1_000_000


class Server(FakeTransport):
    """Answers of the tests' choice where they want one."""

    def __init__(self) -> None:
        super().__init__(make_task_server().models_by_name)
        self.index: list[ModelStatus] | None = None
        self.counted: list[ModelStatistics] | None = None

    def send(self, operation: Operation[Any], *, timeout_s: float, headers: Headers = ()) -> Any:
        answer = super().send(operation, timeout_s=timeout_s, headers=headers)
        if isinstance(operation, GetIndex) and self.index is not None:
            return self.index
        if isinstance(operation, GetStatistics) and self.counted is not None:
            return self.counted
        return answer


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """What answers the commands in place of a server."""
    fake = Server()
    for module in ("_commands", "_wait"):
        monkeypatch.setattr(f"mooring.{module}.Client", partial(Client, transport=fake))
    yield fake
    assert fake.closed or not fake.headers


def make_statistics(**fields: Any) -> ModelStatistics:
    nothing = DurationStatistics(count=0, ns=0)
    times = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    values: dict[str, Any] = dict.fromkeys((*times, "cache_hit", "cache_miss"), nothing)
    values |= {"name": "ner", "version": "1", "last_inference_ms": 0, "inference_count": 0}
    return ModelStatistics(**{**values, "execution_count": 0, "batches": (), **fields})


COUNTED = make_statistics(
    version="12",
    last_inference_ms=1_700_000_000_123,
    inference_count=30,
    execution_count=8,
    success=DurationStatistics(count=20, ns=200 * MS),
    fail=DurationStatistics(count=2, ns=MS),
    queue=DurationStatistics(count=20, ns=50 * MS),
    compute_input=DurationStatistics(count=20, ns=1 * MS),
    compute_infer=DurationStatistics(count=20, ns=140 * MS),
    compute_output=DurationStatistics(count=20, ns=9 * MS),
)


def test_models_are_a_table(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    served.index = [
        ModelStatus(name="ner", version="10", state="READY", reason=""),
        ModelStatus(name="ner", version="1", state="READY", reason=""),
        ModelStatus(name="broken", version="1", state="UNAVAILABLE", reason="no\x1b weights\nAt: line 1"),
        ModelStatus(name="later", version="", state="", reason=""),
    ]
    model = served.models_by_name["ner"]
    served._find = lambda operation: model  # type: ignore[method-assign]  # it has no version 10
    assert main(["models"]) == 0
    assert capsys.readouterr() == (
        "NAME    VERSION  STATE        TASK                  MAX BATCH  REASON\n"
        "broken        1  UNAVAILABLE                                   no\\x1b weights\n"
        "later            not loaded\n"
        "ner           1  READY        token-classification          4\n"
        "ner          10  READY        token-classification          4\n",
        "",
    )


def test_models_as_json(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json", *TWO]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 2 * len(served.models_by_name)
    assert [entry for entry in found if entry["name"] == "ner"] == [
        {
            "server": url,
            "name": "ner",
            "version": "1",
            "state": "READY",
            "task": "token-classification",
            "max_batch_size": 4,
            "reason": "",
        }
        for url in ("grpc://one:8001", "http://two:8000")
    ]
    (plain, _) = (entry for entry in found if entry["name"] == "plain")
    assert (plain["task"], plain["max_batch_size"]) == (None, 0)


def test_models_of_several_servers_say_whose_they_are(
    served: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    served.models_by_name = {"ner": served.models_by_name["ner"]}
    assert main(["models", *TWO]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["SERVER", "NAME"],
        ["grpc://one:8001", "ner"],
        ["http://two:8000", "ner"],
    ]


def test_an_empty_repository_says_so(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    served.models_by_name = {}
    assert main(["models"]) == 0
    assert capsys.readouterr().out == "no models\n"
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_one_silent_server_of_two_is_told_and_the_other_answers(
    served: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make_client(url: str, **options: Any) -> Client:
        if "one" in url:
            silent = FakeTransport({})
            silent.error = AccessDenied("who are you?")
            return Client(url, transport=silent, **options)
        return Client(url, transport=served, **options)

    monkeypatch.setattr("mooring._commands.Client", make_client)
    assert main(["models", *TWO]) == 1
    out, err = capsys.readouterr()
    assert err == "mooring: error: grpc://one:8001: who are you?\n"
    assert {line.split()[0] for line in out.splitlines()[1:]} == {"http://two:8000"}


def test_statistics_are_means_in_milliseconds(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    served.counted = [COUNTED, make_statistics(version="13")]
    assert main(["stats", "ner", "--url", "http://two:8000"]) == 0
    out = capsys.readouterr().out
    first, second = out.split("\n\n")
    lines = first.splitlines()
    assert lines[:3] == [
        "ner version 12 on http://two:8000",
        "  requests    20 answered, 2 failed",
        "  mean batch  3.75  (30 items in 8 runs)",
    ]
    assert lines[3].startswith("  last asked  2023-11-1")
    assert lines[4:] == [
        "  mean time of a request, in ms",
        "    total            10.000",
        "    in the queue      2.500",
        "    reading inputs    0.050",
        "    inference         7.000",
        "    writing outputs   0.450",
    ]
    assert second.splitlines()[2] == "  mean batch  0.00  (0 items in 0 runs)"
    assert "last asked" not in second


def test_the_cache_is_told_where_there_is_one(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    served.counted = [replace(COUNTED, cache_hit=DurationStatistics(count=3, ns=1))]
    assert main(["stats", "ner"]) == 0
    assert "  cache       3 hits, 0 misses\n" in capsys.readouterr().out


def test_statistics_as_json(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    served.counted = [COUNTED, make_statistics(version="13")]
    assert main(["stats", "ner", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == {
        "server": "grpc://127.0.0.1:8001",
        "name": "ner",
        "version": "12",
        "answered": 20,
        "failed": 2,
        "items": 30,
        "runs": 8,
        "mean_batch": 3.75,
        "mean_ms": {
            "total": 10.0,
            "queue": 2.5,
            "compute_input": 0.05,
            "compute_infer": 7.0,
            "compute_output": 0.45,
        },
        "cache_hits": 0,
        "cache_misses": 0,
        "last_inference": "2023-11-14T22:13:20.123+00:00",
    }
    assert second["last_inference"] is None


@pytest.mark.usefixtures("served")
def test_statistics_of_an_unknown_model_are_a_no(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "nope"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "nope" in err


def test_waiting_ends_at_once_where_all_is_ready(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wait", "ner", "intent", *TWO]) == 0
    out, err = capsys.readouterr()
    assert (out.partition(" after ")[0], err) == ("ready", "")
    assert out.endswith(" s: ner, intent on grpc://one:8001, http://two:8000\n")
    del served.models_by_name["unloaded"]
    assert main(["wait"]) == 0
    assert capsys.readouterr().out.endswith(" s: the server and its models on grpc://127.0.0.1:8001\n")


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (["ner", "unloaded"], "model 'unloaded' version 1 is UNAVAILABLE"),
        (["nope"], "model 'nope' is not in the server's repository"),
        ([], "model 'unloaded' version 1 is UNAVAILABLE"),
    ],
)
@pytest.mark.usefixtures("served")
def test_waiting_in_vain_says_for_what(
    models: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["wait", *models, "--for-s", "1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    waiting, ended = err.splitlines()
    assert waiting == f"waiting up to 1 s: grpc://127.0.0.1:8001: {said}"
    why = re.escape(f"grpc://127.0.0.1:8001: {said}")
    assert re.fullmatch(rf"mooring: error: not ready after \d+\.\d s: {why}", ended)


def test_asking_once_does_not_wait(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    served.error = ConnectError("grpc://one:8001: nobody is there")
    assert main(["wait", "--for-s", "0", "--json", "--url", "grpc://one:8001"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    said = json.loads(out)
    assert said["ready"] is False
    reason = "grpc://one:8001: nobody is there"
    assert said["servers"] == [{"server": "grpc://one:8001", "ready": False, "reason": reason}]
    assert len(served.headers) == 1


def test_what_is_waited_for_may_come(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    asked = threading.Event()
    send = served.send

    def send_and_note(operation: Operation[Any], *, timeout_s: float, headers: Headers = ()) -> Any:
        if isinstance(operation, GetServerReady):
            if asked.is_set():
                served.error = None
            asked.set()
        return send(operation, timeout_s=timeout_s, headers=headers)

    served.send = send_and_note  # type: ignore[method-assign]
    del served.models_by_name["unloaded"]
    served.error = ConnectError("nobody is there")
    assert main(["wait", "--json", "--for-s", "30"]) == 0
    out, err = capsys.readouterr()
    assert err == "waiting up to 30 s: grpc://127.0.0.1:8001: nobody is there\n"
    assert json.loads(out)["ready"] is True
    assert json.loads(out)["servers"][0]["reason"] == ""


def test_waiting_does_not_go_on_where_the_caller_may_not_ask(
    served: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    served.error = AccessDenied("who are you?")
    assert main(["wait", "--for-s", "600"]) == 1
    assert capsys.readouterr().err == "mooring: error: who are you?\n"


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("words", [["--for-s", "-1"], ["--for-s", "nan"], ["--url", "nonsense"]])
def test_waiting_for_nonsense_is_wrong_input(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wait", *words]) == 2
    assert capsys.readouterr().err.startswith("mooring: error: ")


@pytest.mark.parametrize("command", [["models"], ["stats", "ner"], ["wait", "ner"]])
def test_every_command_takes_a_token_from_the_environment(
    command: list[str], served: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_TOKEN", "tok-123")
    assert main([*command, "--token-env", "MY_TOKEN"]) == 0
    assert {headers["authorization"] for headers in served.headers} == {"Bearer tok-123"}
    assert "tok-123" not in "".join(capsys.readouterr())


def test_columns_without_content_are_left_out() -> None:
    rows = [["a", "", "1"], ["bb", "", "22"]]
    assert format_table(["X", "EMPTY", "N"], rows, right=["N"]) == "X    N\na    1\nbb  22"


def test_only_the_beginning_of_a_long_reason_is_shown() -> None:
    assert first_line("\n  \nboom\nAt: line 1") == "boom"
    assert first_line("") == ""
    assert first_line("x" * 300) == "x" * 200 + "…"
