"""The monitor against a real server: replay over both protocols, a live stream, a restart, a webhook."""

from __future__ import annotations

import base64
import hmac
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from monitor_streams import POLICY, steps
from mooring import Client
from mooring.monitor import OpinionMonitor, read_texts, watch
from mooring_serve import TritonServer
from opinion_models import judge, write_opinion_model
from webhook_receiver import receive

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-W", "error", "-m", "mooring", "monitor"]
OPTIONS = [
    f"--{name.replace('_', '-')}={getattr(POLICY, name)}"
    for name in (
        "window_s step_s baseline_s warm_up_s false_alarms_per_day min_texts min_baseline_texts cooldown_s "
        "max_alert_s lateness_s"
    ).split()
]
KEY = bytes(range(32))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("monitor")
    with TritonServer(write_opinion_model(folder / "repository"), log_file=folder / "log") as running:
        yield running


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("news") / "news.csv"
    texts = [*steps(0, 20), *steps(20, 24, negatives=8), *steps(24, 40)]
    lines = [f"{t},bank {'bad' if text.startswith('neg') else 'good'} {text}\n" for t, _, text in texts]
    path.write_text("time,text\n" + "".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def expected(news: Path) -> list[dict[str, Any]]:
    events = [event.to_dict() for event in watch(OpinionMonitor(POLICY), judge, read_texts(news))]
    assert [event["type"] for event in events] == ["alert", "alert_ended"]
    return events


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_client_and_the_command_raise_the_alerts_of_the_stream(
    server: TritonServer, news: Path, expected: list[dict[str, Any]], protocol: str
) -> None:
    url = server.grpc_url if protocol == "grpc" else server.http_url
    with Client(url) as client:
        task = client.task("opinion_monitor")
        assert task("bank bad news") == judge("bank bad news")
        found = [event.to_dict() for event in watch(OpinionMonitor(POLICY), task, read_texts(news))]
    assert found == expected
    key = f"whsec_{base64.b64encode(KEY).decode()}"
    with receive() as receiver:
        words = ["--replay", str(news), "--url", url, "--webhook", f"{receiver.url}/hook"]
        done = subprocess.run(
            [*COMMAND, *words, "--webhook-secret-env", "HOOK_KEY", *OPTIONS],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=os.environ | {"HOOK_KEY": key},
        )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected
    assert [json.loads(request.body) for request in receiver.requests] == expected
    for request in receiver.requests:
        signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode()
        digest = hmac.digest(KEY, signed + request.body, "sha256")
        assert request.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGINT])
def test_a_live_stream_is_watched_and_goes_on_after_a_restart(
    server: TritonServer, news: Path, expected: list[dict[str, Any]], tmp_path: Path, ended_by: signal.Signals
) -> None:
    texts = list(read_texts(news))
    state = tmp_path / "state.json"
    command = [*COMMAND, "--url", server.grpc_url, "--state", str(state), *OPTIONS]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def lines(first: int, last: int) -> str:
        rows = ({"time": text.time_s, "text": text.text} for text in texts[first:last])
        return "".join(json.dumps(row) + "\n" for row in rows)

    with start() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(lines(0, 230))
        process.stdin.flush()
        # The alert comes while the stream is open still, and the state with it.
        assert json.loads(process.stdout.readline()) == expected[0]
        process.send_signal(ended_by)
        _, said = process.communicate(timeout=60)
    assert process.returncode == (0 if ended_by == signal.SIGTERM else 130), said
    assert "1 alerts, 1 on at the end" in said
    counted = json.loads(state.read_text(encoding="utf-8"))["counts"]["counted"]
    with start() as process:
        out, said = process.communicate(lines(counted, len(texts)), timeout=60)
    assert process.returncode == 0, said
    assert [json.loads(line) for line in out.splitlines()] == expected[1:]
