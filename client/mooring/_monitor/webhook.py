"""Alerts as HTTP POST requests, sent beside the monitor."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import json
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from mooring._deadline import check_timeout
from mooring._errors import ConfigError
from mooring._jitter import JITTER
from mooring._log import LOG
from mooring._monitor.events import AlertEvent

_QUEUE = 1000
_SECRET_PREFIX = "whsec_"
_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0
#: Answers after which another try may succeed.
_AGAIN = frozenset({408, 425, 429})

OnFailedDelivery = Callable[[AlertEvent, str], None]


class Webhook:
    """Posts alerts and their ends to a URL, from a thread of its own: the monitor never waits for it.

    Requests follow the Standard Webhooks specification
    (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md). One that is
    not answered with 2xx is sent again when no answer came, or it was 408, 425, 429 or 5xx, after pauses
    that double; redirects are not followed. Events are delivered in their order, at least once; what can't be
    delivered is counted, logged and given to ``on_failure``. Up to 1000 events wait; further ones fail.

    Args:
        url: ``http://`` or ``https://``.
        secret: signs each request: ``whsec_`` and a key in base64; ``None`` does not sign.
        timeout_s: how long the other side may be silent in one try, in seconds.
        max_retries: further tries of one event.
        on_failure: gets each event that was not delivered, and why; called from the webhook's thread, from
            ``close``, or from ``send`` where too many wait.

    Attributes:
        delivered: events that were delivered.
        failed: events that were not.

    Raises:
        ConfigError: the arguments can't be right.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str | None = None,
        timeout_s: float = 5.0,
        max_retries: int = 4,
        on_failure: OnFailedDelivery | None = None,
    ) -> None:
        self._scheme, self._host, self._port, self._target = _parse_url(url)
        self._key = None if secret is None else _parse_secret(secret)
        self._timeout_s = check_timeout(timeout_s)
        if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
            raise ConfigError(f"max_retries must be a whole number from 0, got {max_retries!r}")
        self._max_retries = max_retries
        self._on_failure = on_failure
        self.delivered = 0
        self.failed = 0
        self._events: queue.Queue[AlertEvent | None] = queue.Queue(_QUEUE)
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._under_way: AlertEvent | None = None

    def __repr__(self) -> str:
        # The path is often the secret.
        return f"Webhook({self._scheme}://{self._host}:{self._port})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, event: AlertEvent) -> None:
        """Have an event delivered; returns at once."""
        if self._hurry.is_set():
            raise ConfigError("the webhook is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mooring-webhook", daemon=True)
            self._thread.start()
        try:
            self._events.put_nowait(event)
        except queue.Full:
            self._fail(event, f"{_QUEUE} events wait already")

    def close(self, *, timeout_s: float = 30.0) -> None:
        """Deliver what waits, without long pauses, and end; what is left after the time fails.

        Args:
            timeout_s: how long that may take, in seconds.
        """
        thread, self._thread = self._thread, None
        self._hurry.set()
        if thread is None:
            return
        until_s = time.monotonic() + timeout_s
        try:
            self._events.put(None, timeout=timeout_s)
            thread.join(max(0.0, until_s - time.monotonic()))
        except queue.Full:
            pass
        if not thread.is_alive():
            return
        left: list[AlertEvent | None] = []
        with suppress(queue.Empty):
            while True:
                left.append(self._events.get_nowait())
        # For the thread that is still waiting for an answer: it ends when it is through with that.
        self._events.put(None)
        # Only now, as the thread may have taken one more.
        for event in (self._take_under_way(), *left):
            if event is not None:
                self._fail(event, f"not sent within {timeout_s:g} s of closing")

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            with self._lock:
                self._under_way = event
            reason = self._deliver(event)
            if self._take_under_way() is None:
                # Given up by close, which has counted it.
                return
            if reason is None:
                self.delivered += 1
            else:
                self._fail(event, reason)

    def _take_under_way(self) -> AlertEvent | None:
        """The event that is being delivered, which the caller then counts."""
        with self._lock:
            event, self._under_way = self._under_way, None
        return event

    def _fail(self, event: AlertEvent, reason: str) -> None:
        self.failed += 1
        LOG.warning("%r: an event was not delivered: %s", self, reason)
        if self._on_failure is not None:
            try:
                self._on_failure(event, reason)
            except Exception:  # noqa: BLE001 - whatever a caller's function raises
                # The events after it are to be sent all the same.
                LOG.exception("%r: on_failure failed", self)

    def _deliver(self, event: AlertEvent) -> str | None:
        """Why an event could not be delivered, or nothing."""
        said = event.to_dict()
        message_id = f"{said['id']}.{said['type']}"
        body = json.dumps(said, ensure_ascii=False).encode("utf-8")
        reason, again = self._try(message_id, body)
        for retry in range(self._max_retries):
            if reason is None or not again:
                break
            pause_s = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2**retry)
            # Evenly from half of it, so that many senders do not come back together; cut short by close.
            if self._hurry.wait(JITTER.uniform(pause_s / 2, pause_s)):
                time.sleep(_FIRST_PAUSE_S / 5)
            reason, again = self._try(message_id, body)
        return reason

    def _try(self, message_id: str, body: bytes) -> tuple[str | None, bool]:
        """Send once: why it failed, or nothing, and whether another try may help."""
        kind = http.client.HTTPSConnection if self._scheme == "https" else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request("POST", self._target, body, self._headers(message_id, body))
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as exc:
            return f"no answer: {exc or type(exc).__name__}", True
        finally:
            connection.close()
        if 200 <= status < 300:
            return None, False
        return f"answered {status}", status in _AGAIN or status >= 500

    def _headers(self, message_id: str, body: bytes) -> dict[str, str]:
        sent = str(int(time.time()))
        headers = {
            "content-type": "application/json",
            "user-agent": "mooring",
            "webhook-id": message_id,
            "webhook-timestamp": sent,
        }
        if self._key is not None:
            signed = b".".join((message_id.encode(), sent.encode(), body))
            digest = hmac.digest(self._key, signed, hashlib.sha256)
            headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
        return headers


def _parse_url(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and target of the request."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except (ValueError, AttributeError) as exc:
        raise ConfigError(f"the webhook's URL can't be read: {exc}") from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.fragment:
        # Not the whole URL: its path is often the secret.
        raise ConfigError(
            "the webhook's URL must be http:// or https:// with a host, and without user or fragment, got "
            f"{parts.scheme or 'no scheme'} and {parts.hostname or 'no host'}"
        )
    try:
        parts.hostname.encode("idna")
        http.client.HTTPConnection(parts.hostname, 80)  # connects to nothing yet, but looks at the name
    except (UnicodeError, http.client.InvalidURL) as exc:
        raise ConfigError(f"the webhook's URL has no host name but {parts.hostname!r}: {exc}") from exc
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii() or not target.isprintable() or " " in target:
        raise ConfigError("the webhook's URL has characters in its path that must be percent-encoded")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), target


def _parse_secret(secret: str) -> bytes:
    try:
        if not secret.startswith(_SECRET_PREFIX):
            raise ValueError
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ConfigError("the webhook's secret must be whsec_ and a key in base64") from exc
    if not 24 <= len(key) <= 64:
        raise ConfigError(f"the webhook's secret must hold a key of 24 to 64 bytes, got {len(key)}")
    return key
