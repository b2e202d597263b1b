"""Locust users: callers of a text model, one class per protocol, in a closed loop.

A closed loop sends a user's next text when the answer to the last one is in, so the load follows the
server: it shows what a fixed number of callers get, not what happens at a set arrival rate.

Importing this module patches the standard library for gevent, as Locust needs it; the client prepares gRPC
for it by itself.
"""

from __future__ import annotations

try:
    # First, as it patches the sockets that the modules below hold on to.
    from locust import User, events, stats, task
except ModuleNotFoundError as exc:
    raise ImportError("load tests need Locust: pip install 'mooring[loadtests]'") from exc

import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any, ClassVar

from locust.env import Environment

from mooring import Client, Entity, Label, MooringError
from mooring_loadtests.options import add_options
from mooring_loadtests.results import round_response_time
from mooring_loadtests.texts import endless_sentences

# Locust keeps whole milliseconds below 100 and two digits above: too coarse for a model that answers in five.
# https://docs.locust.io/en/stable/customizing-response-time-bucketing.html
stats.bucket_response_time = round_response_time

#: Pause after a failure, so that a server that is down does not cost the generator its CPU.
_PAUSE_AFTER_FAILURE_S = 0.2

_numbers = itertools.count()


@events.init_command_line_parser.add_listener
def _add_options(parser: Any, **_: Any) -> None:
    add_options(parser)


@events.quitting.add_listener
def _write_results(environment: Environment, **_: Any) -> None:
    # Locust's own files won't do: its CSV misses what came after the last whole second, its JSON the errors.
    path = environment.parsed_options.results
    runner = environment.runner
    if path is None or runner is None:
        return
    crashes = [{"error": crash["msg"], "occurrences": crash["count"]} for crash in runner.exceptions.values()]
    results = {
        "stats": environment.stats.serialize_stats(),
        "errors": list(environment.stats.serialize_errors().values()),
        "crashes": crashes,
    }
    Path(path).write_text(json.dumps(results, indent=2), encoding="utf-8")


@events.quit.add_listener
def _leave(exit_code: int, **_: Any) -> None:
    # At interpreter exit gRPC closes its channels once more, after gevent's hub is gone, and that can wait
    # for ever (seen with grpcio 1.85, gevent 26.9). Everything is written by now, so leave without it.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


class TextUser(User):
    """Asks one model one text at a time; every request and every failure goes into Locust's statistics."""

    abstract = True
    #: ``grpc`` or ``http``.
    protocol: ClassVar[str]

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        options = environment.parsed_options
        self._model: str = options.model
        url = {"grpc": options.grpc_url, "http": options.http_url}[self.protocol]
        self._client = Client(url, timeout_s=options.request_timeout_s)
        self._texts: Iterator[str] = endless_sentences(options.payload_seed, next(_numbers))
        self._classify: Callable[[str], list[Entity] | list[Label]] | None = None

    def on_stop(self) -> None:
        """Let go of the connections."""
        self._client.close()

    @task
    def ask(self) -> None:
        """Send the next text and report how it went."""
        failure: MooringError | None = None
        answer: list[Entity] | list[Label] = []
        began_s = time.perf_counter()
        try:
            if self._classify is None:
                # The model describes itself once per user; that is no part of a request's time.
                self._classify = self._client.task(self._model)
                began_s = time.perf_counter()
            answer = self._classify(next(self._texts))
        except MooringError as exc:
            failure = exc
        self.environment.events.request.fire(
            request_type=self.protocol,
            name=f"{self._model} {self.protocol}",
            response_time=(time.perf_counter() - began_s) * 1000,
            response_length=answer_bytes(answer),
            exception=failure,
            context=self.context(),
        )
        if failure is not None:
            time.sleep(_PAUSE_AFTER_FAILURE_S)


class GrpcUser(TextUser):
    """Calls over gRPC."""

    protocol = "grpc"


class HttpUser(TextUser):
    """Calls over HTTP."""

    protocol = "http"


def answer_bytes(answer: list[Entity] | list[Label]) -> int:
    """Size of an answer's values as Triton encodes them: 4 bytes a number, 4 + length a string."""
    values = itertools.chain.from_iterable(map(astuple, answer))
    return sum(4 + len(value.encode()) if isinstance(value, str) else 4 for value in values)
