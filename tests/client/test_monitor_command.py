"""``mooring monitor``: replay and standard input, alerts, webhook, state, picture and exit codes."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from monitor_streams import steps
from mooring import AsyncClient, ConnectError, RetryPolicy
from mooring._cli import main
from mooring._monitor import webhook
from mooring._operations import Infer
from mooring.testing import FakeTransport
from opinion_models import fake_opinion_model
from task_models import make_task_server
from webhook_receiver import receive

OPTIONS = (
    "--window-s 40 --step-s 10 --baseline-s 400 --warm-up-s 100 --false-alarms-per-day 8.64 --min-texts 10 "
    "--min-baseline-texts 50 --cooldown-s 40 --max-alert-s 600 --lateness-s 0"
).split()


def rows() -> list[dict[str, Any]]:
    """A surge from step 20 on for four steps, and then quiet."""
    texts = [*steps(0, 20), *steps(20, 24, negatives=8), *steps(24, 40)]
    words = {"negative": "bad", "positive": "good"}
    return [
        {"time": time_s, "text": f"bank {words[said.sentiment.label]} {text} a@example.com"}
        for time_s, said, text in texts
    ]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    """What answers the command in place of a server."""
    fake = make_task_server()
    fake.models_by_name["opinion_monitor"] = fake_opinion_model()
    client = partial(AsyncClient, transport=fake, retry=RetryPolicy(max_retries=0))
    monkeypatch.setattr("mooring._monitor_command.AsyncClient", client)
    return fake


@pytest.fixture
def news(tmp_path: Path) -> Path:
    path = tmp_path / "news.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    return path


class Raw:
    """Standard input that gives everything at once."""

    def __init__(self, content: bytes) -> None:
        self.chunks = [content]

    def read(self, size: int, /) -> bytes:
        return self.chunks.pop() if self.chunks else b""


@pytest.fixture
def put_stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def put(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(raw=Raw(content))))

    return put


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, list[dict[str, Any]], str]:
    code = main(["monitor", *map(str, words)])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


@pytest.mark.usefixtures("served")
def test_a_replayed_file_gives_its_alerts_as_json_lines(
    capsys: pytest.CaptureFixture[str], news: Path
) -> None:
    code, events, err = run(capsys, "--replay", news, *OPTIONS)
    assert code == 0
    assert [(event["type"], event["topic"], event["time"]) for event in events] == [
        ("alert", "bank", "1970-01-01T00:03:40Z"),
        ("alert_ended", "bank", "1970-01-01T00:05:10Z"),
    ]
    assert events[0]["examples"] == []
    assert err == "mooring: 400 texts on 1 topics, 1 alerts, 0 on at the end\n"


@pytest.mark.usefixtures("served")
def test_standard_input_gives_the_same(
    capsys: pytest.CaptureFixture[str], news: Path, put_stdin: Callable[[bytes], None]
) -> None:
    _, expected, _ = run(capsys, "opinion_monitor", "--replay", news, *OPTIONS)
    put_stdin(news.read_bytes().replace(b'"text"', b'"body"') + b"\n")
    code, events, _ = run(capsys, "--text-key", "body", *OPTIONS)
    assert (code, events) == (0, expected)


@pytest.mark.usefixtures("served")
def test_plain_lines_have_the_time_of_their_arrival(
    capsys: pytest.CaptureFixture[str],
    put_stdin: Callable[[bytes], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_714_564_800.0)
    monkeypatch.setattr("time.clock_gettime", lambda clock: 7.0)
    put_stdin(b"bank bad day\n\nbank good day\nbank \xff\n")
    code, events, err = run(capsys, "--plain", "--state", tmp_path / "state.json", *OPTIONS)
    assert (code, events) == (2, [])
    assert "line 4 is not valid UTF-8 (byte 5)" in err
    state = json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))
    assert state["newest_s"] == 1_714_564_800.0
    assert state["topics"]["bank"]["open"] == {"171456480": [2, 1, []]}


@pytest.mark.usefixtures("served")
def test_alerts_go_to_a_file_and_quote_redacted_texts(
    capsys: pytest.CaptureFixture[str], news: Path, tmp_path: Path
) -> None:
    alerts = tmp_path / "alerts.jsonl"
    for _ in range(2):
        code, events, _ = run(capsys, "--replay", news, "--alerts", alerts, "--examples", "2", *OPTIONS)
        assert (code, events) == (0, [])
    lines = alerts.read_text(encoding="utf-8").splitlines()
    assert lines[:2] == lines[2:]
    assert json.loads(lines[0])["examples"] == [f"bank bad negative 21.{i} [EMAIL]" for i in (7, 6)]


@pytest.mark.usefixtures("served")
def test_an_alert_that_could_not_be_written_comes_after_the_restart(
    capsys: pytest.CaptureFixture[str], news: Path, tmp_path: Path
) -> None:
    words = ("--replay", news, "--state", tmp_path / "state.json", *OPTIONS)
    code, events, err = run(capsys, "--alerts", "/dev/full", *words)
    assert (code, events) == (2, [])
    assert "--alerts '/dev/full' can't be written: No space left on device" in err
    _, events, _ = run(capsys, *words)
    assert [event["type"] for event in events] == ["alert", "alert_ended"]


class Full(io.StringIO):
    """A file with room for one line."""

    def write(self, text: str) -> int:
        if "\n" in self.getvalue():
            raise OSError(28, "No space left on device")
        return super().write(text)


@pytest.mark.usefixtures("served")
def test_nor_is_another_event_of_its_step_lost(
    capsys: pytest.CaptureFixture[str], news: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = news.read_text(encoding="utf-8").splitlines()
    news.write_text("\n".join(each for line in lines for each in (line, line.replace("bank", "oil"))))
    words = ("--replay", news, "--state", tmp_path / "state.json", *OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr("mooring._monitor_command._open_alerts", lambda path: nullcontext(Full()))
        assert run(capsys, "--alerts", "full", *words)[0] == 2
    _, events, _ = run(capsys, *words)
    told = [(event["type"], event["topic"]) for event in events]
    assert told == [("alert", "bank"), ("alert", "oil"), ("alert_ended", "bank"), ("alert_ended", "oil")]


@pytest.mark.usefixtures("served")
def test_a_restart_goes_on_where_it_was(
    capsys: pytest.CaptureFixture[str], news: Path, tmp_path: Path
) -> None:
    _, expected, _ = run(capsys, "--replay", news, *OPTIONS)
    lines = news.read_text(encoding="utf-8").splitlines(keepends=True)
    state = tmp_path / "state.json"
    events: list[dict[str, Any]] = []
    for part in (lines[:215], lines[215:]):
        (tmp_path / "part.jsonl").write_text("".join(part), encoding="utf-8")
        code, found, _ = run(capsys, "--replay", tmp_path / "part.jsonl", "--state", state, *OPTIONS)
        assert code == 0
        events += found
    assert events == expected
    code, _, err = run(capsys, "--replay", news, "--state", state, *OPTIONS, "--step-s", "20")
    assert code == 2
    assert "was kept with step_s=10, not 20" in err


@pytest.mark.usefixtures("served")
def test_alerts_are_posted(
    capsys: pytest.CaptureFixture[str], news: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "whsec_" + "MDAw" * 8)
    with receive() as receiver:
        words = ("--webhook", receiver.url, "--webhook-secret-env", "HOOK_SECRET")
        code, events, _ = run(capsys, "--replay", news, *words, *OPTIONS)
    assert code == 0
    assert [json.loads(request.body) for request in receiver.requests] == events
    assert all("webhook-signature" in request.headers for request in receiver.requests)


@pytest.mark.usefixtures("served")
def test_a_dead_webhook_stops_nothing_but_is_told(
    capsys: pytest.CaptureFixture[str], news: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_FIRST_PAUSE_S", 0.001)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}/s3cret"
    code, events, err = run(capsys, "--replay", news, "--webhook", url, *OPTIONS)
    assert (code, len(events)) == (1, 2)
    assert err.count("webhook: the event on 'bank' was not delivered: no answer: [Errno 111]") == 2
    assert "s3cret" not in err


@pytest.mark.usefixtures("served")
def test_the_state_is_saved_before_a_webhook_is_waited_for(
    capsys: pytest.CaptureFixture[str], news: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, close = tmp_path / "state.json", webhook.Webhook.close
    saved: list[int] = []

    def note(self: webhook.Webhook) -> None:
        saved.append(json.loads(state.read_text(encoding="utf-8"))["counts"]["counted"])
        close(self)

    monkeypatch.setattr(webhook.Webhook, "close", note)
    with receive() as receiver:
        run(capsys, "--replay", news, "--webhook", receiver.url, "--state", state, *OPTIONS)
    assert saved == [400]


@pytest.mark.usefixtures("served")
def test_the_timeline_is_drawn(capsys: pytest.CaptureFixture[str], news: Path, tmp_path: Path) -> None:
    picture = tmp_path / "timeline.png"
    assert run(capsys, "--replay", news, "--plot", picture, *OPTIONS)[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, _, err = run(capsys, "--replay", news, "--plot", tmp_path / "timeline.txt", *OPTIONS)
    assert code == 2
    assert "timeline.txt must end in one of" in err


@pytest.mark.usefixtures("served")
def test_a_stream_without_a_window_has_no_picture_and_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "news.jsonl").write_text('{"time": 7, "text": "bank bad"}\n', encoding="utf-8")
    picture = tmp_path / "timeline.png"
    code, _, err = run(capsys, "--replay", tmp_path / "news.jsonl", "--plot", picture, *OPTIONS)
    assert (code, picture.exists()) == (0, False)
    assert f"no window has ended, so there is no picture in {picture}\n" in err


@pytest.mark.usefixtures("served")
def test_without_matplotlib_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], news: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = run(capsys, "--replay", news, "--plot", "timeline.png")
    assert code == 2
    assert "install Mooring's extra [plot]" in err


@pytest.mark.usefixtures("served")
def test_bad_rows_are_told_and_left_out(capsys: pytest.CaptureFixture[str], news: Path) -> None:
    with news.open("a", encoding="utf-8") as file:
        file.write('{"time": 401}\n')
    code, events, err = run(capsys, "--replay", news, *OPTIONS)
    assert (code, len(events)) == (2, 2)
    assert "news.jsonl, line 401 has no 'text'" in err
    assert "1 lines that can't be read" in err


@pytest.mark.usefixtures("served")
def test_texts_that_the_model_refuses_are_told_once_and_counted(
    capsys: pytest.CaptureFixture[str], news: Path
) -> None:
    with news.open("a", encoding="utf-8") as file:
        file.write('{"time": 400, "text": "bank REFUSED"}\n' * 3)
    code, events, err = run(capsys, "--replay", news, *OPTIONS)
    assert (code, len(events)) == (1, 2)
    assert err.count("the text of 1970-01-01T00:06:40Z was not judged: the text is too long") == 1
    assert "400 texts on 1 topics, 3 failed, " in err


def test_a_replay_stops_when_the_server_is_gone(
    capsys: pytest.CaptureFixture[str], news: Path, served: FakeTransport
) -> None:
    answer = served.models_by_name["opinion_monitor"].answer
    asked = 0

    def fail_later(inputs: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked > 20:
            raise ConnectError("nobody there")
        return answer(inputs)

    served.models_by_name["opinion_monitor"] = fake_opinion_model()
    object.__setattr__(served.models_by_name["opinion_monitor"], "answer", fail_later)
    code, events, err = run(capsys, "--replay", news, *OPTIONS)
    assert (code, events) == (1, [])
    assert "was not judged: nobody there" in err
    assert asked < 100


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["intent"], "model 'intent' is for text-classification, not for opinion-monitoring"),
        (["plain"], "does not say its task"),
        (["--plain"], "--plain is for standard input"),
        (["--window-s", "1000"], "MonitorPolicy.window_s must be a multiple of step_s"),
        (["--alerts", "/nowhere/alerts"], "--alerts '/nowhere/alerts' can't be written: No such file"),
        (["--webhook", "ftp://x"], "the webhook's URL must be http"),
        (
            ["--webhook-secret-env", "HOOK_SECRET"],
            "--webhook-secret-env signs what --webhook URL gets: name that, too",
        ),
        (
            ["--webhook", "http://x", "--webhook-secret-env", "NO_SUCH_SECRET"],
            "--webhook-secret-env: there is no environment variable 'NO_SUCH_SECRET' with a secret",
        ),
    ],
)
def test_mistakes_are_named(
    capsys: pytest.CaptureFixture[str], news: Path, words: list[str], said: str
) -> None:
    code, events, err = run(capsys, "--replay", news, *words)
    assert (code, events) == (2, [])
    assert said in err
    assert "texts on" not in err


@pytest.mark.usefixtures("served")
def test_topics_with_too_few_texts_are_mentioned(capsys: pytest.CaptureFixture[str], news: Path) -> None:
    code, events, err = run(capsys, "--replay", news)
    assert (code, events) == (0, [])
    assert "1 topics with too few texts to judge at the end" in err


def test_the_help_has_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["monitor", "--help"])
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    for text in ("(default: 0.05)", "(default: 604800)", "(default: 900)", "default: opinion_monitor"):
        assert text in said


class Silent:
    """Standard input without a text, until a file has something."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, size: int, /) -> bytes | None:
        return None if self._path.stat().st_size == 0 else b""


@pytest.mark.usefixtures("served")
def test_windows_end_by_the_clock_while_no_text_comes(
    capsys: pytest.CaptureFixture[str], news: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = news.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_text("".join(lines[:240]), encoding="utf-8")
    alerts = tmp_path / "alerts.jsonl"
    words = ("--state", tmp_path / "state.json", *OPTIONS)
    _, (alert,), err = run(capsys, "--replay", tmp_path / "part.jsonl", *words)
    assert "1 alerts, 1 on at the end" in err
    monkeypatch.setattr("mooring._monitor_command._TICK_S", 0.01)
    monkeypatch.setattr("time.time", lambda: 10_000.0)
    stdin = SimpleNamespace(buffer=SimpleNamespace(raw=Silent(alerts)))
    monkeypatch.setattr(sys, "stdin", stdin)
    # Ends only when the end of the alert was written.
    code, _, err = run(capsys, "--plain", "--alerts", alerts, *words)
    assert code == 0
    (end,) = (json.loads(line) for line in alerts.read_text(encoding="utf-8").splitlines())
    assert (end["type"], end["id"]) == ("alert_ended", alert["id"])
    assert "0 texts on 0 topics, 0 alerts, 0 on at the end" in err


@pytest.mark.usefixtures("served")
def test_a_state_that_can_not_be_kept_ends_the_watch(
    capsys: pytest.CaptureFixture[str], news: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = news.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_text("".join(lines[:240]), encoding="utf-8")
    words = ("--state", tmp_path / "state.json", *OPTIONS)
    run(capsys, "--replay", tmp_path / "part.jsonl", *words)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    monkeypatch.setattr("mooring._monitor_command._TICK_S", 0.01)
    monkeypatch.setattr("time.time", lambda: 10_000.0)
    # No text ever comes; the end of the alert is told, and then the state can't be written.
    (tmp_path / "empty").touch()
    stdin = SimpleNamespace(buffer=SimpleNamespace(raw=Silent(tmp_path / "empty")))
    monkeypatch.setattr(sys, "stdin", stdin)
    code, events, err = run(capsys, "--plain", *words)
    assert (code, [event["type"] for event in events]) == (2, ["alert_ended"])
    assert "the monitor's state can't be written to" in err


class Slow:
    """A model behind which the clock goes on."""

    def __init__(self, served: FakeTransport) -> None:
        self._served = served
        self.time_s = 7.0

    async def asend(self, operation: Any, *, timeout_s: float, headers: Any = ()) -> Any:
        if isinstance(operation, Infer):
            self.time_s += 1000.0
            await asyncio.sleep(0.1)  # for ten ticks
        return self._served.send(operation, timeout_s=timeout_s, headers=headers)

    async def aclose(self) -> None:
        """Nothing is open."""


def test_a_text_is_not_late_for_the_model_s_slowness(
    served: FakeTransport,
    capsys: pytest.CaptureFixture[str],
    put_stdin: Callable[[bytes], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Slow(served)
    monkeypatch.setattr("mooring._monitor_command.AsyncClient", partial(AsyncClient, transport=slow))
    monkeypatch.setattr("mooring._monitor_command._TICK_S", 0.01)
    # The time of day is put back, which is no matter.
    times = iter([10_000.0])
    monkeypatch.setattr("time.time", lambda: next(times, 0.0))
    monkeypatch.setattr("time.clock_gettime", lambda clock: slow.time_s)
    put_stdin(b"bank bad day\nbank good day\n")
    code, _, err = run(capsys, "--plain", *OPTIONS)
    assert code == 0
    assert err.startswith("mooring: 2 texts on 1 topics, 1 topics with too few")


class Pausing:
    """Standard input with lines, then none until a file is there."""

    def __init__(self, lines: str, path: Path) -> None:
        self._lines, self._path = lines.encode(), path

    def read(self, size: int, /) -> bytes | None:
        piece, self._lines = self._lines[:size], self._lines[size:]
        return piece or (b"" if self._path.exists() else None)


@pytest.mark.usefixtures("served")
def test_the_state_is_kept_while_no_text_comes(
    capsys: pytest.CaptureFixture[str], news: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mooring._monitor_command._TICK_S", 0.01)
    monkeypatch.setattr("mooring._monitor_command._SAVE_EVERY_S", 0.05)
    lines = news.read_text(encoding="utf-8").splitlines(keepends=True)[:20]
    stdin = SimpleNamespace(buffer=SimpleNamespace(raw=Pausing("".join(lines), tmp_path / "state.json")))
    monkeypatch.setattr(sys, "stdin", stdin)
    # Ends only when the state was written.
    code, _, err = run(capsys, "--state", tmp_path / "state.json", *OPTIONS)
    assert code == 0
    assert "20 texts on" in err


@pytest.mark.usefixtures("served")
def test_texts_that_come_too_late_are_told_while_the_watch_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def note(error: object) -> None:
        said.append(str(error))
        (tmp_path / "told").touch()

    monkeypatch.setattr("mooring._monitor_command._TICK_S", 0.01)
    monkeypatch.setattr("mooring._monitor_command.report", note)
    lines = "".join(f'{{"time": {time_s}, "text": "bank good"}}\n' for time_s in (4000, 40, 50, 60))
    stdin = SimpleNamespace(buffer=SimpleNamespace(raw=Pausing(lines, tmp_path / "told")))
    monkeypatch.setattr(sys, "stdin", stdin)
    # Ends only when it was told.
    code, _, err = run(capsys, *OPTIONS)
    assert code == 0
    assert said == [
        "texts come too late and are left out: one of 1970-01-01T01:06:40Z was seen before them "
        "(--lateness-s 0); how many, the end says"
    ]
    assert "1 texts on 1 topics, 3 late" in err
