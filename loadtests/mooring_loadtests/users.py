"""Locust users: callers of a model, one class a protocol, in a closed or an open loop as the profile says.

Importing this module patches the standard library for gevent, as Locust needs it; the client prepares gRPC
for it by itself.
"""

from __future__ import annotations

try:
    # First, as it patches the sockets that the modules below hold on to.
    from locust import LoadTestShape, User, events, stats, task
except ModuleNotFoundError as exc:
    raise ImportError("load tests need Locust: install Mooring's extra [loadtests]") from exc

import hashlib
import itertools
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gevent
import psutil
from gevent.event import Event
from gevent.pool import Pool
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner
from locust.user.users import LOCUST_STATE_STOPPING

from mooring import CircuitPolicy, Client, ConfigError, MooringError, RetryPolicy
from mooring._commands import Credentials
from mooring_loadtests.arrivals import arrival_times
from mooring_loadtests.load_profile import Profile, load_profile
from mooring_loadtests.options import add_options
from mooring_loadtests.payloads import endless_items, items_sha256
from mooring_loadtests.recorder import Recorder, round_ms

# Locust keeps whole milliseconds below 100 and two digits above: too coarse for a model that answers in five.
# https://docs.locust.io/en/stable/customizing-response-time-bucketing.html
stats.bucket_response_time = round_ms

#: Pause after a failure, so that a server that is down does not cost the generator its CPU.
_PAUSE_AFTER_FAILURE_S = 0.2
#: How often a process looks whether it keeps up, in a closed loop.
_HEARTBEAT_S = 0.05
#: By how much gevent's timers, of whole milliseconds, are late at the median.
_TIMER_LATE_S = 0.0008
#: Requests of one user that may be under way; with more, requests leave late, and the run counts as invalid.
_MOST_UNDER_WAY = 5000
#: What the last requests may take beyond their own budget until their users end.
_SLACK_S = 3.0
# Each request is sent once, whatever came of those before: a retry would hide a refusal, and a circuit that
# opens would hold requests back when the server is well again.
_RETRY = RetryPolicy(max_retries=0)
_CIRCUIT = CircuitPolicy(failures=sys.maxsize, pause_s=0.01, max_pause_s=0.01, probe_timeout_s=3600.0)


class _Process:
    """What the users of one process share."""

    def __init__(self) -> None:
        self.profile: Profile | None = None
        self.watched = False
        self.reset()

    def reset(self) -> None:
        """Make ready for a run: Locust's own page can start several, one after another."""
        self.recorder = Recorder()
        self.numbers = itertools.count()
        self._began_s: float | None = None
        self._began = Event()
        #: Users who are to be ready before the clock starts.
        self.awaited = 0
        #: When the clock was started, since 1970. A master has its workers', by its own time.
        self.began_ns: int | None = None
        #: Digest of what is sent.
        self.load = ""
        #: Of a master: workers that send something else.
        self.strangers: set[str] = set()

    def begin(self) -> None:
        """Start the clock, if it stands."""
        if self._began_s is None:
            self._began_s, self.began_ns = time.perf_counter(), time.time_ns()
            self._began.set()

    def arrive(self) -> None:
        """Wait until as many users as are awaited are ready or failed: the last of them starts the clock.

        Else the first stage would have seconds in which its users are still starting.
        """
        self.awaited -= 1
        if self.awaited <= 0:
            self.begin()
        self._began.wait()

    def now_s(self) -> float:
        """Time since the clock was started; 0 before."""
        return 0.0 if self._began_s is None else time.perf_counter() - self._began_s


_process = _Process()


def profile_of(environment: Environment) -> Profile:
    """The run's profile."""
    if _process.profile is None:
        options = environment.parsed_options
        _process.profile = load_profile(options.load_profile, options.overrides)
    return _process.profile


@events.init_command_line_parser.add_listener
def _add_options(parser: Any, **_: Any) -> None:
    add_options(parser)


@events.init.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    profile = profile_of(environment)
    try:
        Credentials.of(environment.parsed_options).client_options()
    except ConfigError as exc:
        # Locust goes on after other exceptions, and its users would fail one by one.
        raise SystemExit(f"mooring: error: {exc}") from exc
    # Requests that are under way at the end are waited for: a server that stalls must not hide them.
    environment.stop_timeout = profile.timeout_s + _SLACK_S
    # While a shape runs, Locust (2.47) has no handler yet, and a master that dies leaves its workers sending.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@events.test_start.add_listener
def _watch(environment: Environment, **_: Any) -> None:
    _process.reset()
    profile = profile_of(environment)
    _process.load = _digest(profile)
    if isinstance(environment.runner, MasterRunner):
        return
    loop = profile.loop
    if environment.parsed_options.generators > 1:
        # All at once: some processes may get their first user in a later stage, or none, and what one whose
        # first answer takes long sends would come after the others' stages.
        _process.begin()
    elif loop == "closed":
        _process.awaited = int(profile.spans()[0].amount)
    if not _process.watched:
        _process.watched = True
        gevent.spawn(_note_cpu, _generator(environment))
        if loop == "closed":
            gevent.spawn(_note_lag)


def _digest(profile: Profile) -> str:
    """Of what a profile sends, items of a file included."""
    try:
        items = items_sha256(profile.payload)
    except OSError:
        # The users say so.
        items = ""
    load = profile.model_dump_json(exclude={"description", "slo"})
    return hashlib.sha256(f"{load}\n{items}".encode()).hexdigest()


def _generator(environment: Environment) -> int:
    """Number of this process among those that generate the load."""
    return max(0, getattr(environment.runner, "worker_index", 0))


def _note_cpu(generator: int) -> None:
    process = psutil.Process()
    process.cpu_percent()
    while True:
        gevent.sleep(1.0)
        cpu = round(process.cpu_percent() / 100, 2)
        _process.recorder.health[int(_process.now_s())].cpu[generator] = cpu


def _note_lag() -> None:
    """In a closed loop nothing leaves late; what a user would wait for its turn is measured instead.

    Beats are due at set times: a process that stands still for long is late for many of them.
    """
    due_s = time.perf_counter()
    while True:
        due_s += _HEARTBEAT_S
        gevent.sleep(max(0.0, due_s - time.perf_counter()))
        late_s = max(0.0, time.perf_counter() - due_s)
        # Before the clock is started nothing is due.
        if (at_s := _process.now_s() - late_s) > 0:
            _process.recorder.late(at_s, late_s)


@events.report_to_master.add_listener
def _hand_over(data: dict[str, Any], **_: Any) -> None:
    data["mooring"] = _process.recorder.take()
    data["mooring_load"] = _process.load
    # Clocks of other machines may differ.
    data["mooring_ago_s"] = None if _process.began_ns is None else _process.now_s()


@events.worker_report.add_listener
def _take_over(client_id: str, data: dict[str, Any]) -> None:
    _process.recorder.add(data["mooring"])
    if (ago_s := data["mooring_ago_s"]) is not None:
        _process.began_ns = max(_process.began_ns or 0, time.time_ns() - round(ago_s * 1e9))
        if data["mooring_load"] != _process.load:
            _process.strangers.add(client_id)


@events.quitting.add_listener
def _write_results(environment: Environment, **_: Any) -> None:
    path = environment.parsed_options.results
    runner = environment.runner
    # Workers hand over to the master, which writes.
    if path is None or runner is None or isinstance(runner, WorkerRunner):
        return
    crashes = [crash["traceback"] for crash in runner.exceptions.values()]
    measured = _process.recorder.to_dict()
    # A worker's name ends in an underscore and a number of its own.
    strangers = sorted({name.rpartition("_")[0] for name in _process.strangers})
    written = {
        "measured": measured,
        "began_ns": _process.began_ns,
        "crashes": crashes,
        "strangers": strangers,
    }
    Path(path).write_text(json.dumps(written), encoding="utf-8")


@events.quit.add_listener
def _leave(exit_code: int, **_: Any) -> None:
    # At interpreter exit gRPC closes its channels once more, after gevent's hub is gone, and that can wait
    # for ever (seen with grpcio 1.85, gevent 26.9). Everything is written by now, so leave without it.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


class ProfileShape(LoadTestShape):
    """As many users as the profile's stages say: callers of a closed loop, sources of an open one."""

    # Locust takes the first class that it finds otherwise, and would refuse -u and -t as well.
    abstract = False
    #: How often there were fewer users than wanted.
    _looks = 0

    def tick(self) -> tuple[int, float] | None:
        """Users and users started a second, as Locust asks for it every second; ``None`` at the end.

        Users end by themselves, after their last request. A master that ended them would not wait for what
        its workers still have under way.
        """
        environment = self.runner.environment
        profile = profile_of(environment)
        now_s, spans = self.get_run_time(), profile.spans()
        if profile.loop == "closed" and not isinstance(self.runner, MasterRunner):
            # By the clock that requests are noted by; a master has none of its own. On Locust's page it is
            # still that of the test before when a new one begins.
            now_s = min(now_s, _process.now_s())
        over_s = now_s - profile.seconds
        if (over_s >= 1 and not self.runner.user_count) or over_s >= profile.timeout_s + 2 * _SLACK_S:
            return None
        if profile.loop == "open":
            count = environment.parsed_options.generators * len(environment.user_classes)
            return count, count
        # A worker that fell silent has its users still, as a rule, and may be back with them.
        silent = isinstance(self.runner, MasterRunner) and bool(self.runner.clients.missing)
        span = next((span for span in spans if now_s < span.end_s), spans[-1])
        if now_s < profile.seconds and self.runner.user_count < span.amount and not silent:
            # Users who still waited when fewer were wanted have ended since; Locust took them for there when
            # it was to start more. Another rate makes it look again.
            self._looks += 1
        # As many at once as ever there are: Locust ends no more than that in a second, either.
        return int(span.amount), max(span.amount for span in spans) + self._looks / 1000


class ModelUser(User):
    """Asks one model one item at a time; every request goes into the result and into Locust's statistics."""

    abstract = True
    #: ``grpc`` or ``http``.
    protocol: ClassVar[str]

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        options = environment.parsed_options
        self._profile = profile_of(environment)
        self._model: str = options.model
        self._name = f"{self._model} {self.protocol}"
        url = {"grpc": options.grpc_url, "http": options.http_url}[self.protocol]
        self._client = Client(
            url,
            timeout_s=self._profile.timeout_s,
            retry=_RETRY,
            circuit=_CIRCUIT,
            **Credentials.of(options).client_options(),
        )
        turn = next(_process.numbers)
        self._number = _generator(environment) + options.generators * turn
        #: Of an open loop: starts in place of a source whose process has gone. What that one had still to
        #: send is missing, and the result says so: sent now, most of it would come as one burst.
        self._is_replacement = turn >= len(environment.user_classes)
        self._items: Iterator[Any] = iter(())
        self._ask: Any = None
        self._arrived = False

    def on_stop(self) -> None:
        """Let go of the connections."""
        self._client.close()

    @task
    def run_loop(self) -> None:
        """One turn of a closed loop, or all of an open one."""
        closed = self._profile.loop == "closed"
        if _process.now_s() >= self._profile.seconds if closed else self._is_replacement:
            raise StopUser
        if self._ask is None and not self._be_ready():
            gevent.sleep(_PAUSE_AFTER_FAILURE_S)
        elif not closed:
            self._send_at_set_times()
        elif not self._send(_process.now_s(), due=False):
            gevent.sleep(_PAUSE_AFTER_FAILURE_S)

    def _be_ready(self) -> bool:
        """Learn; a user of a closed loop then waits for the others, whatever came of it."""
        arrives = self._profile.loop == "closed" and not self._arrived
        self._arrived = True
        try:
            return self._learn()
        finally:
            if arrives:
                _process.arrive()

    def _learn(self) -> bool:
        """Ask the model what it is for, and one item; neither is part of any request's time."""
        began_s = _process.now_s()
        try:
            config, metadata = self._client.config(self._model), self._client.metadata(self._model)
            self._items = endless_items(self._profile.payload, config, metadata, source=self._number)
            ask = self._client.task(self._model)
            ask(next(self._items))
        except MooringError as exc:
            self._note(began_s, None, exc)
            return False
        self._ask = ask
        if self._profile.loop == "open":
            _process.begin()
        return True

    def _send_at_set_times(self) -> None:
        options = self.environment.parsed_options
        pool = Pool(_MOST_UNDER_WAY)
        times = arrival_times(
            self._profile.spans(),
            arrivals=self._profile.arrivals,
            seed=f"{self._profile.payload.seed}",
            source=self._number,
            sources=options.generators * len(self.environment.user_classes),
        )
        for intended_s in times:
            wait_s = intended_s - _process.now_s() - _TIMER_LATE_S
            if wait_s > 0:
                gevent.sleep(wait_s)
            if self._state == LOCUST_STATE_STOPPING:
                # Somebody ends the run early.
                break
            pool.spawn(self._send_due, intended_s)
        pool.join()
        raise StopUser

    def _send_due(self, intended_s: float) -> None:
        try:
            self._send(intended_s)
        except Exception as exc:  # noqa: BLE001 - a crash, which Locust notes by itself in a user's own greenlet
            self.environment.events.user_error.fire(user_instance=self, exception=exc, tb=exc.__traceback__)

    def _send(self, intended_s: float, *, due: bool = True) -> bool:
        """Send the next item and note how it went, counted from ``intended_s``; whether it was answered.

        What leaves early, by a fraction of a millisecond, counts from when it leaves.
        """
        sent_s = _process.now_s() if due else None
        if sent_s is not None:
            intended_s = min(intended_s, sent_s)
        failure: MooringError | None = None
        try:
            self._ask(next(self._items))
        except MooringError as exc:
            failure = exc
        self._note(intended_s, sent_s, failure)
        return failure is None

    def _note(self, intended_s: float, sent_s: float | None, failure: MooringError | None) -> None:
        ended_s = _process.now_s()
        _process.recorder.request(
            self._name,
            intended_s=intended_s,
            sent_s=sent_s,
            ended_s=ended_s,
            error=None if failure is None else f"{type(failure).__name__}: {failure}",
        )
        self.environment.events.request.fire(
            request_type=self.protocol,
            name=self._name,
            response_time=(ended_s - intended_s) * 1000,
            response_length=0,
            exception=failure,
            context=self.context(),
        )


class GrpcUser(ModelUser):
    """Calls over gRPC."""

    protocol = "grpc"


class HttpUser(ModelUser):
    """Calls over HTTP."""

    protocol = "http"
