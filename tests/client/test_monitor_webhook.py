"""Webhooks: what is sent, when it is sent again, and that nobody waits for it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mooring import ConfigError
from mooring._monitor import webhook as module
from mooring.monitor import Alert, AlertEnded, Webhook
from webhook_receiver import receive

KEY = bytes(range(32))
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
ALERT = Alert(
    topic="Öl",
    window_start_s=180,
    window_end_s=220,
    texts=40,
    negatives=18,
    baseline_texts=180,
    baseline_negatives=18,
    p_value=1e-4,
    level=1e-3,
    correlation=0,
    examples=("schlecht",),
)
END = AlertEnded(alert=ALERT, time_s=400, reason="subsided", peak_share=0.5)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)


@pytest.fixture
def failures() -> list[tuple[Any, str]]:
    return []


def test_alerts_and_their_ends_are_posted_as_json_and_signed() -> None:
    with receive() as receiver, Webhook(f"{receiver.url}/hooks/opinions?team=1", secret=SECRET) as webhook:
        webhook.send(ALERT)
        webhook.send(END)
        webhook.close()
    assert (webhook.delivered, webhook.failed) == (2, 0)
    for request, event in zip(receiver.requests, (ALERT, END), strict=True):
        assert request.path == "/hooks/opinions?team=1"
        assert json.loads(request.body.decode("utf-8")) == event.to_dict()
        assert request.headers["content-type"] == "application/json"
        message_id, sent = request.headers["webhook-id"], request.headers["webhook-timestamp"]
        assert abs(int(sent) - time.time()) < 120
        signed = f"{message_id}.{sent}.".encode() + request.body
        digest = hmac.new(KEY, signed, hashlib.sha256).digest()
        assert request.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert ids == [f"{ALERT.alert_id}.alert", f"{ALERT.alert_id}.alert_ended"]


def test_the_signature_is_that_of_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed by openssl: printf 'id.7.{}' | openssl dgst -sha256 -mac HMAC -macopt hexkey:00…1f -binary."""
    monkeypatch.setattr(time, "time", lambda: 7.9)
    headers = Webhook("http://localhost", secret=SECRET)._headers("id", b"{}")
    assert headers["webhook-timestamp"] == "7"
    assert headers["webhook-signature"] == "v1,AMfAqLI+ZeJog7gHD5cHi42t9Z33d/RigpWd9J/9/e4="


def test_without_a_secret_nothing_is_signed() -> None:
    with receive() as receiver, Webhook(receiver.url) as webhook:
        webhook.send(ALERT)
    (request,) = receiver.requests
    assert request.path == "/"
    assert "webhook-signature" not in request.headers
    assert webhook.delivered == 1


@pytest.mark.parametrize("first", [0, 408, 425, 429, 500, 503])
def test_what_may_pass_is_sent_again_with_the_same_id(first: int) -> None:
    with receive(lambda number: first if number < 2 else 200) as receiver, Webhook(receiver.url) as webhook:
        webhook.send(ALERT)
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    assert (len(receiver.requests), webhook.delivered, webhook.failed) == (3, 1, 0)


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 410])
def test_a_refusal_is_final_and_the_next_event_is_sent(status: int, failures: list[tuple[Any, str]]) -> None:
    with receive(lambda number: 200 if number else status) as receiver:
        webhook = Webhook(receiver.url, on_failure=lambda *failed: failures.append(failed))
        webhook.send(ALERT)
        webhook.send(END)
        webhook.close()
    assert failures == [(ALERT, f"answered {status}")]
    assert (len(receiver.requests), webhook.delivered, webhook.failed) == (2, 1, 1)


def test_tries_end(failures: list[tuple[Any, str]]) -> None:
    with receive(lambda number: 503) as receiver:
        webhook = Webhook(receiver.url, max_retries=2, on_failure=lambda *failed: failures.append(failed))
        webhook.send(ALERT)
        webhook.close()
    assert len(receiver.requests) == 3
    assert failures == [(ALERT, "answered 503")]


def test_a_function_that_fails_ends_no_delivery(caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: Any, reason: str) -> None:
        raise ValueError("mine")

    with receive(lambda number: 400 if number == 0 else 200) as receiver:
        webhook = Webhook(receiver.url, on_failure=fail)
        webhook.send(ALERT)
        webhook.send(ALERT)
        webhook.close()
    assert (webhook.delivered, webhook.failed) == (1, 1)
    assert "on_failure failed" in caplog.text


def test_nobody_there_is_no_error_for_the_sender(
    failures: list[tuple[Any, str]], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    webhook = Webhook(
        f"http://127.0.0.1:{port}/s3cret", max_retries=1, on_failure=lambda *failed: failures.append(failed)
    )
    webhook.send(ALERT)
    webhook.close()
    assert [event for event, _ in failures] == [ALERT]
    assert "Connection refused" in failures[0][1]
    assert f"Webhook(http://127.0.0.1:{port}): an event was not delivered" in caplog.text
    # Paths are often the secret.
    assert "s3cret" not in caplog.text + repr(webhook)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_silent_server_holds_nobody_up(silent_server: str, failures: list[tuple[Any, str]]) -> None:
    webhook = Webhook(silent_server, timeout_s=60, on_failure=lambda *failed: failures.append(failed))
    for event in (ALERT, END):
        webhook.send(event)  # returns, or the test's own time limit ends it
    thread = webhook._thread
    assert thread is not None
    webhook.close(timeout_s=0.2)
    assert failures == [(event, "not sent within 0.2 s of closing") for event in (ALERT, END)]
    assert (webhook.delivered, webhook.failed) == (0, 2)
    # The first is under way still; its thread does not keep the process.
    assert (thread.is_alive(), thread.daemon) == (True, True)
    webhook.close()


def test_an_answer_after_the_close_does_not_count_an_event_again(failures: list[tuple[Any, str]]) -> None:
    answered = threading.Event()
    with receive(lambda number: 200 if answered.wait(20) else 500) as receiver:
        webhook = Webhook(receiver.url, on_failure=lambda *failed: failures.append(failed))
        webhook.send(ALERT)
        thread = webhook._thread
        assert thread is not None
        webhook.close(timeout_s=0.1)
        answered.set()
        thread.join(20)
    assert not thread.is_alive()
    assert failures == [(ALERT, "not sent within 0.1 s of closing")]
    assert (webhook.delivered, webhook.failed) == (0, 1)


def test_a_silent_server_is_given_up(silent_server: str, failures: list[tuple[Any, str]]) -> None:
    webhook = Webhook(
        silent_server, timeout_s=0.05, max_retries=1, on_failure=lambda *failed: failures.append(failed)
    )
    webhook.send(ALERT)
    webhook.close()
    assert failures == [(ALERT, "no answer: timed out")]


def test_events_that_pile_up_are_given_up(
    silent_server: str, failures: list[tuple[Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUEUE", 2)
    webhook = Webhook(silent_server, timeout_s=60, on_failure=lambda *failed: failures.append(failed))
    for _ in range(5):
        webhook.send(ALERT)
    # Two wait, and one may be under way.
    assert len(failures) in (2, 3)
    assert failures[0][1] == "2 events wait already"
    webhook.close(timeout_s=0.1)


def test_a_closed_webhook_takes_nothing() -> None:
    webhook = Webhook("http://localhost")
    webhook.close()
    with pytest.raises(ConfigError, match="the webhook is closed"):
        webhook.send(ALERT)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/x", "must be http:// or https:// with a host, .*got ftp and host"),
        ("localhost/s3cret", "got no scheme and no host"),
        ("https:///s3cret", "got https and no host"),
        ("https://user:pass@host/", "without user or fragment"),
        ("https://host:99999/", "can't be read: Port out of range"),
        ("https://host/a b", "must be percent-encoded"),
        ("https://host/ö", "must be percent-encoded"),
        ("https://hooks..example.com/s3cret", "no host name but 'hooks..example.com'"),
        (f"https://{'a' * 64}.example.com/", "no host name but 'aaaa"),
        ("https://example.com ", "no host name but 'example.com '"),
        ("https://example.com /s3cret", "no host name but 'example.com '"),
        (7, "can't be read"),
    ],
)
def test_urls_that_can_not_be_right(url: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^the webhook's URL .*{said}") as caught:
        Webhook(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"secret": "hunter2"}, "secret must be whsec_ and a key in base64"),
        ({"secret": "whsec_?"}, "secret must be whsec_ and a key in base64"),
        ({"secret": "whsec_c2hvcnQ="}, "a key of 24 to 64 bytes, got 5"),
        ({"timeout_s": 0}, "timeout_s must be above 0"),
        ({"max_retries": -1}, "max_retries must be a whole number from 0, got -1"),
    ],
)
def test_options_that_can_not_be_right(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Webhook("https://host/", **options)
    assert "hunter2" not in str(caught.value)


def test_default_ports() -> None:
    assert repr(Webhook("https://host/x")) == "Webhook(https://host:443)"
    assert repr(Webhook("http://[::1]/x")) == "Webhook(http://::1:80)"
