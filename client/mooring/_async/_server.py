"""One server address: its connections, its circuit and its counts."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from mooring._async_work import AsyncWork
from mooring._cancellation import RequestCancelledError
from mooring._circuit import Circuit
from mooring._counters import EndpointStatus
from mooring._errors import (
    ConfigError,
    DeadlineExceeded,
    DecodeError,
    MooringError,
    Overloaded,
    ServerError,
    Throttled,
    TransportError,
)
from mooring._jitter import JITTER
from mooring._log import LOG, describe_error
from mooring._operations import GetServerReady, Infer, InferAnswer, Operation
from mooring._policies import CircuitPolicy, ConnectionPolicy, ThrottlePolicy
from mooring._throttle import Throttle
from mooring._transport import AsyncTransport, Headers
from mooring._url import Endpoint

T = TypeVar("T")

OpenTransport = Callable[[Endpoint], AsyncTransport]


class AsyncLine:
    """A transport and how many requests are on it; closed when it is retired and the last has ended."""

    def __init__(self, transport: AsyncTransport, max_age_s: float) -> None:
        self.transport = transport
        self.users = 0
        self.retired = False
        # Lines that were opened together are not replaced together.
        self.ends_at_s = time.monotonic() + max_age_s * JITTER.uniform(0.9, 1.1)


class AsyncServer:
    """One address: its line, its circuit and its counts.

    Args:
        endpoint: the address.
        open_transport: makes a transport to it.
        circuit: thresholds of its circuit breaker.
        throttle: when inference requests are held back; ``None`` for never.
        connections: age at which its line is replaced.
        work: runs probes in the background.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        open_transport: OpenTransport,
        *,
        circuit: CircuitPolicy,
        throttle: ThrottlePolicy | None,
        connections: ConnectionPolicy,
        work: AsyncWork,
    ) -> None:
        self.endpoint = endpoint
        self.url = str(endpoint)
        self.circuit = Circuit(circuit)
        self.outstanding = 0
        self.requests = 0
        self.failures = 0
        self.throttled = 0
        self._throttle = None if throttle is None else Throttle(throttle)
        self._policy = circuit
        self._max_age_s = connections.max_age_s
        self._open_transport = open_transport
        self._work = work
        self._lock = threading.Lock()
        self._line: AsyncLine | None = None
        #: Those that are not closed: that one, and older ones with requests.
        self._lines: set[AsyncLine] = set()
        self._closed = False
        self._retired = False

    def status(self) -> EndpointStatus:
        """Its state, for people to read."""
        return EndpointStatus(
            url=self.url,
            circuit=self.circuit.state,
            outstanding=self.outstanding,
            requests=self.requests,
            failures=self.failures,
            throttled=self.throttled,
        )

    async def send(self, operation: Operation[T], *, timeout_s: float, headers: Headers) -> T:
        """Send one request, if it is not held back, and take its outcome into account."""
        self._check_throttle(operation)
        line, old = self._enter()
        try:
            answer = await line.transport.asend(operation, timeout_s=timeout_s, headers=headers)
        except MooringError as error:
            self.note(error, operation)
            raise
        else:
            self.circuit.succeeded()
            return answer
        finally:
            await self._leave(line, old)

    async def stream(
        self, request: Infer, *, timeout_s: float, headers: Headers
    ) -> AsyncGenerator[InferAnswer, None]:
        """Send one request, if it is not held back, and pass its responses on."""
        self._check_throttle(request)
        line, old = self._enter()
        try:
            answers = line.transport.astream(request, timeout_s=timeout_s, headers=headers)
            try:
                async for answer in answers:
                    yield answer
            finally:
                await answers.aclose()
        except MooringError as error:
            self.note(error, request)
            raise
        else:
            self.circuit.succeeded()
        finally:
            await self._leave(line, old)

    def note(self, error: MooringError, operation: Operation[Any]) -> None:
        """Let circuit and throttle know how a request ended that was not answered with a result."""
        if self._closed or isinstance(error, ConfigError | RequestCancelledError):
            return
        if self._throttle is not None and isinstance(error, Overloaded) and isinstance(operation, Infer):
            self._throttle.refused(operation.model)
        if isinstance(error, ServerError):
            self.circuit.succeeded()
            return
        with self._lock:
            self.failures += 1
        if isinstance(error, DeadlineExceeded):
            if self.circuit.timed_out():
                self.probe_apart()
        elif isinstance(error, TransportError | DecodeError) and self.circuit.failed():
            reason = describe_error(error)
            LOG.warning("%s failed too often and gets no requests for a while: %s", self.url, reason)

    def probe_apart(self, ended: Callable[[], None] = lambda: None) -> None:
        """Begin a probe that the circuit asked for; ``ended`` is called when it is over, or can't begin."""

        async def probe() -> None:
            try:
                await self.probe()
            finally:
                ended()

        if not self._work.spawn(probe):
            self.circuit.end_probe(alive=None)
            ended()

    async def probe(self) -> None:
        """Ask over a new connection whether the server lives; if so, it takes the old one's place.

        It does so because the old one may be the reason of the silence: its other end may be gone.
        """
        alive: bool | None = None
        fresh: AsyncLine | None = None
        try:
            timeout_s = self._policy.probe_timeout_s
            fresh = AsyncLine(self._open_transport(self.endpoint), self._max_age_s)
            await fresh.transport.asend(GetServerReady(), timeout_s=timeout_s, headers=())
            alive = True
        except ServerError:
            # It says no, but it speaks.
            alive = True
        except MooringError as error:
            alive = False
            LOG.debug("%s does not answer a probe: %s", self.url, describe_error(error))
        finally:
            changed = self.circuit.end_probe(alive=alive)
            if changed and alive:
                LOG.info("%s is back", self.url)
            elif changed:
                LOG.warning("%s is silent and gets no requests for a while", self.url)
            if fresh is not None:
                idle = self._replace(fresh) if alive else fresh
                if idle is not None:
                    await self._end(idle)

    async def close(self) -> None:
        """Close every line; requests under way end with them."""
        with self._lock:
            self._closed = True
            self._line = None
            lines, self._lines = self._lines, set()
        for line in lines:
            line.retired = True
            # Whoever closes a client wants no more answers.
            await line.transport.aclose()

    async def retire(self) -> None:
        """Keep no line any more; the one that is there is closed when the last request on it has ended."""
        with self._lock:
            self._retired = True
            line, self._line = self._line, None
            if line is None:
                return
            line.retired = True
            idle = line.users == 0
        if idle:
            await self._end(line)

    def abandon(self) -> None:
        """Forget the lines without ending their connections: after a fork they are the parent's."""
        for line in self._lines:
            line.transport.abandon()

    def _check_throttle(self, operation: Operation[Any]) -> None:
        """Raise Throttled where a request is held back."""
        if self._throttle is None or not isinstance(operation, Infer):
            return
        if self._throttle.holds_back(operation.model):
            with self._lock:
                self.throttled += 1
            model = operation.model
            said = f"nothing was sent: {self.url} lately refused too many requests for model {model!r}"
            raise Throttled(said, model=model, version=operation.version or None)

    def _enter(self) -> tuple[AsyncLine, AsyncLine | None]:
        """The line for one more request, and an idle old one that has to be closed."""
        with self._lock:
            line, old = self._line, None
            if line is None or time.monotonic() > line.ends_at_s:
                if self._closed:
                    raise ConfigError(f"{self.url}: the client was closed while a call began")
                if line is not None:
                    line.retired = True
                    old = line if line.users == 0 else None
                line = AsyncLine(self._open_transport(self.endpoint), self._max_age_s)
                self._lines.add(line)
                # A call that chose this server just before it was retired gets a line of its own.
                line.retired = self._retired
                self._line = None if self._retired else line
            line.users += 1
            self.outstanding += 1
            self.requests += 1
        return line, old

    async def _leave(self, line: AsyncLine, old: AsyncLine | None) -> None:
        """Take a request off its line, and close what no request is on: that one if it was retired, and the
        old one that :meth:`_enter` gave."""
        with self._lock:
            self.outstanding -= 1
            line.users -= 1
            is_last = line.retired and line.users == 0
        if old is not None:
            await self._end(old)
        if is_last:
            await self._end(line)

    async def _end(self, line: AsyncLine) -> None:
        with self._lock:
            self._lines.discard(line)
        await line.transport.aclose()

    def _replace(self, fresh: AsyncLine) -> AsyncLine | None:
        """Put a new line in the old one's place; returns a line that has to be closed."""
        with self._lock:
            if self._closed or self._retired:
                return fresh
            line, self._line = self._line, fresh
            self._lines.add(fresh)
            if line is None:
                return None
            line.retired = True
            return line if line.users == 0 else None
