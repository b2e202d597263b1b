"""``mooring monitor``: texts with times in, alerts out as JSON lines."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, asynccontextmanager, nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

from mooring._async._client import AsyncClient
from mooring._async._tasks import AsyncOpinionClassifier
from mooring._commands import add_server_options, client_options, report, server_urls
from mooring._errors import CircuitOpen, ConfigError, DataError, MooringError
from mooring._lines import read_lines
from mooring._monitor.events import format_time
from mooring._monitor.texts import parse_row
from mooring._monitor.timeline import check_picture
from mooring.monitor import (
    Alert,
    AlertEnded,
    MonitorPolicy,
    OpinionMonitor,
    TimedText,
    Timeline,
    Webhook,
    awatch,
    read_texts,
)

_DESCRIPTION = """\
Ask a served model for topic and sentiment of a stream of texts, keep each topic's negative share over sliding
windows, and print a line of JSON when it surges and when that is over. Texts come from a file (--replay) or
from standard input, a JSON object with "time" and "text" a line. docs/monitor.md has the rule."""
_EPILOG = """\
Exit status: 0 done, 1 the server said no, texts were not judged or events not delivered, 2 the input was
wrong."""
_SAVE_EVERY_S = 30.0
_REPORT_EVERY_S = 10.0
_TICK_S = 1.0
# Counts while the machine sleeps, too.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
# Each text ends in one of these counters.
_OUTCOMES = ("counted", "late", "unsure", "crowded", "failed")
_POLICY_HELP = {
    "window_s": "length of a window",
    "step_s": "a window is judged every so many seconds",
    "baseline_s": "length of the trailing baseline",
    "warm_up_s": "shortest baseline that is trusted",
    "false_alarms_per_day": "most false alerts a day and topic, on average",
    "min_texts": "windows with fewer texts are not judged",
    "min_baseline_texts": "nor while the baseline has fewer",
    "min_rise": "smallest rise of the negative share that is worth an alert, 0 to 1",
    "min_score": "opinions with a lower score are left out, 0 to 1",
    "cooldown_s": "an alert ends after so long without a high window",
    "max_alert_s": "or after so long; the new share is the baseline then",
    "lateness_s": "how much older than the newest text another one may be",
    "examples": "negative texts that an alert quotes, without personal data (names are not recognised)",
}


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``monitor`` to the command line."""
    parser = subparsers.add_parser(
        "monitor",
        help="watch a stream of texts and say when negative opinions surge",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default="opinion_monitor", help="default: %(default)s"
    )
    source = parser.add_argument_group("texts")
    source.add_argument("--replay", metavar="FILE", help="read this .csv or .jsonl file instead of stdin")
    source.add_argument("--time-key", default="time", metavar="KEY", help="column or key (default: time)")
    source.add_argument("--text-key", default="text", metavar="KEY", help="column or key (default: text)")
    source.add_argument(
        "--plain", action="store_true", help="each line of stdin is a text, and its time is now"
    )
    results = parser.add_argument_group("results")
    results.add_argument("--alerts", metavar="FILE", help="append alerts to this file, not to stdout")
    results.add_argument("--webhook", metavar="URL", help="post alerts to this URL too")
    results.add_argument(
        "--webhook-secret-env", metavar="NAME", help="environment variable with the secret that signs them"
    )
    results.add_argument("--state", metavar="FILE", help="go on from this file, and keep it up to date")
    results.add_argument("--plot", metavar="FILE", help="draw the timeline at the end (needs matplotlib)")
    rule = parser.add_argument_group("windows and rule (seconds are those of the texts' times)")
    defaults = MonitorPolicy()
    for field in fields(MonitorPolicy):
        if field.name in _POLICY_HELP:
            default = getattr(defaults, field.name)
            rule.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=type(default),
                default=default,
                metavar="N" if isinstance(default, int) else "X",
                help=f"{_POLICY_HELP[field.name]} (default: {default:g})",
            )
    add_server_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run ``mooring monitor``; returns the exit code."""
    if args.plain and args.replay:
        raise ConfigError("--plain is for standard input: a file that is replayed has times of its own")
    if args.plot:
        check_picture(args.plot)
    timeline = Timeline() if args.plot else None
    policy = MonitorPolicy(**{name: getattr(args, name) for name in _POLICY_HELP})
    if args.state and Path(args.state).exists():
        monitor = OpinionMonitor.load(args.state, policy, timeline=timeline)
    else:
        monitor = OpinionMonitor(policy, timeline=timeline)
    with ExitStack() as stack:
        if timeline is not None:
            stack.callback(_draw, monitor, timeline, args.plot)
        out = stack.enter_context(_open_alerts(args.alerts))
        webhook = _make_webhook(args)
        session = _Session(args, monitor, out, webhook)
        if webhook is not None:
            stack.callback(webhook.close)
        # Before the webhook is waited for, which may be longer than a SIGTERM leaves.
        stack.callback(session.finish)
        with suppress(asyncio.CancelledError):  # SIGTERM
            asyncio.run(session.watch())
    return session.code


def _draw(monitor: OpinionMonitor, timeline: Timeline, path: str) -> None:
    if timeline.topics:
        timeline.plot(path)
    elif monitor.judged_topics:
        print(f"mooring: no window has ended, so there is no picture in {path}", file=sys.stderr)


def _open_alerts(path: str | None) -> Any:
    if path is None:
        return nullcontext(sys.stdout)
    try:
        return Path(path).open("a", encoding="utf-8")
    except OSError as exc:
        raise _not_written(path, exc) from exc


def _not_written(path: str, error: OSError) -> ConfigError:
    return ConfigError(f"--alerts {path!r} can't be written: {error.strerror}")


def _make_webhook(args: argparse.Namespace) -> Webhook | None:
    if args.webhook is None:
        if args.webhook_secret_env is not None:
            raise ConfigError("--webhook-secret-env signs what --webhook URL gets: name that, too")
        return None
    secret = None
    if args.webhook_secret_env is not None:
        secret = os.environ.get(args.webhook_secret_env)
        if not secret:
            name = args.webhook_secret_env
            raise ConfigError(
                f"--webhook-secret-env: there is no environment variable {name!r} with a secret"
            )

    def say(event: Alert | AlertEnded, reason: str) -> None:
        report(f"webhook: the event on {event.topic!r} was not delivered: {reason}")

    return Webhook(args.webhook, secret=secret, on_failure=say)


class _Session:
    """One run of the command.

    Args:
        args: of the command line.
        monitor: keeps the counts.
        out: gets the alerts.
        webhook: gets them too.
    """

    def __init__(
        self, args: argparse.Namespace, monitor: OpinionMonitor, out: IO[str], webhook: Webhook | None
    ) -> None:
        self._args = args
        self._monitor = monitor
        self._out = out
        self._webhook = webhook
        self._refused = 0
        self._began = False
        #: Whether an event happened that could not be written.
        self._untold = False
        self._before = monitor.counters
        self._late_told = False
        self._reported: tuple[type[MooringError] | None, float] = (None, 0.0)
        self._saved_s = time.monotonic()
        # Of the time of day, which may be put forward and back, only the beginning counts.
        self._clock_began_s = time.time() - time.clock_gettime(_CLOCK)
        #: Times of plain lines that may not be judged yet, and how many of all are.
        self._waiting: deque[float] = deque()
        self._judged = 0

    @property
    def code(self) -> int:
        """The exit code."""
        if self._refused:
            return 2
        undelivered = self._webhook is not None and self._webhook.failed > 0
        return 1 if undelivered or self._monitor.counters.failed > self._before.failed else 0

    async def watch(self) -> None:
        """Watch until the texts end, or the process is told to."""
        args = self._args
        with suppress(ValueError, RuntimeError):  # not in the main thread
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with AsyncClient(server_urls(args), **client_options(args)) as client:
            model = await client.task(args.model)
            if not isinstance(model, AsyncOpinionClassifier):
                raise ConfigError(f"model {args.model!r} is for {model.name}, not for opinion-monitoring")
            self._began = True
            # A text of a live stream is sent as it comes; the server batches what comes together.
            size = None if args.replay else 1
            events = awatch(
                self._monitor, model, self._texts(), on_failure=self._note_failure, batch_size=size
            )
            async with aclosing(events), self._ticking():
                async for event in events:
                    self._tell(event)

    def finish(self) -> None:
        """Save the state and say what became of the texts."""
        if not self._began:
            return
        if not self._untold:
            self._save()
        now, before, topics = self._monitor.counters, self._before, self._monitor.judged_topics
        parts = [f"{now.counted - before.counted} texts on {len(topics)} topics"]
        for name in ("late", "unsure", "crowded", "failed"):
            count = getattr(now, name) - getattr(before, name)
            if count:
                parts.append(f"{count} {name}")
        if self._refused:
            parts.append(f"{self._refused} lines that can't be read")
        unjudged = sum(not judged for judged in topics.values())
        if unjudged:
            parts.append(f"{unjudged} topics with too few texts to judge at the end")
        parts.append(f"{now.alerts - before.alerts} alerts, {len(self._monitor.open_alerts)} on at the end")
        print(f"mooring: {', '.join(parts)}", file=sys.stderr)

    async def _texts(self) -> AsyncGenerator[TimedText, None]:
        args = self._args
        if args.replay:
            for text in read_texts(
                args.replay, time_key=args.time_key, text_key=args.text_key, on_error=self._refuse
            ):
                yield text
            return
        async with aclosing(self._lines()) as lines:
            async for text in lines:
                yield text

    async def _lines(self) -> AsyncGenerator[TimedText, None]:
        args = self._args
        # Not the buffer: the thread that waits for the next line would hold its lock when Python ends.
        stream = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
        number = 0
        try:
            async with aclosing(read_lines(stream)) as lines:
                async for line in lines:
                    number += 1
                    where = f"line {number}"
                    if not line.strip():
                        continue
                    try:
                        if args.plain:
                            yield self._plain(line, where)
                        else:
                            yield parse_row(line, where=where, time_key=args.time_key, text_key=args.text_key)
                    except DataError as error:
                        self._refuse(error)
        except OSError as exc:
            raise ConfigError(f"can't read on after line {number}: {exc}") from exc

    def _plain(self, line: bytes, where: str) -> TimedText:
        try:
            text = TimedText(self._now_s(), line.decode("utf-8"))
        except UnicodeDecodeError as exc:
            raise DataError(f"{where} is not valid UTF-8 (byte {exc.start})") from exc
        self._waiting.append(text.time_s)
        return text

    def _now_s(self) -> float:
        return self._clock_began_s + time.clock_gettime(_CLOCK)

    def _settled_s(self) -> float:
        """Until when no more texts come: now, or the time of the oldest that the model has still."""
        now = self._monitor.counters
        judged = sum(getattr(now, name) - getattr(self._before, name) for name in _OUTCOMES)
        while self._judged < judged:
            self._waiting.popleft()
            self._judged += 1
        return self._waiting[0] if self._waiting else self._now_s()

    @asynccontextmanager
    async def _ticking(self) -> AsyncGenerator[None, None]:
        """Save the state now and then, and let windows end while no text comes, where time is the clock's."""
        watching = asyncio.current_task()
        assert watching is not None
        clock = asyncio.ensure_future(self._tick())
        # It fails where alerts or the state can't be written; then the stream is not waited for any more.
        clock.add_done_callback(lambda clock: clock.cancelled() or watching.cancel())
        try:
            yield
        finally:
            clock.cancel()
            with suppress(asyncio.CancelledError):
                await clock

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if self._args.plain:
                for event in self._monitor.advance(self._settled_s()):
                    self._tell(event)
            self._look_for_late_texts()
            if time.monotonic() - self._saved_s > _SAVE_EVERY_S:
                self._save()

    def _tell(self, event: Alert | AlertEnded) -> None:
        # The monitor knows all events of the step by now: a state saved before they are told loses them.
        self._untold = True
        try:
            print(event.to_json(), file=self._out, flush=True)
        except OSError as exc:
            if self._args.alerts is None:
                raise  # as where the reader of stdout left
            with suppress(OSError):  # it would try again to write the line
                self._out.close()
            raise _not_written(self._args.alerts, exc) from exc
        if self._webhook is not None:
            self._webhook.send(event)
        self._untold = False
        self._saved_s = -math.inf  # the next tick saves

    def _look_for_late_texts(self) -> None:
        """Say once that there are some: after a time far ahead all are, and nothing else would tell."""
        if self._late_told or self._monitor.counters.late == self._before.late:
            return
        self._late_told = True
        newest_s = self._monitor.newest_s
        assert newest_s is not None
        report(
            f"texts come too late and are left out: one of {format_time(newest_s)} was seen before them "
            f"(--lateness-s {self._monitor.policy.lateness_s:g}); how many, the end says"
        )

    def _refuse(self, error: DataError) -> None:
        self._refused += 1
        report(error)

    def _note_failure(self, text: TimedText, error: MooringError) -> None:
        if self._args.replay and isinstance(error, CircuitOpen):
            # Those that follow would meet the same, and the file can be replayed later.
            raise error
        kind, at_s = self._reported
        if type(error) is not kind or time.monotonic() - at_s > _REPORT_EVERY_S:
            self._reported = (type(error), time.monotonic())
            report(f"the text of {format_time(text.time_s)} was not judged: {error}")

    def _save(self) -> None:
        if self._args.state:
            self._monitor.save(self._args.state)
            self._saved_s = time.monotonic()
