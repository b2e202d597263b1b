"""One call: its deadline, tries, hedge, headers and counts."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, TypeVar

from mooring._async._server import AsyncServer
from mooring._async._servers import AsyncServers
from mooring._async_work import AsyncWork, resolved, sleep
from mooring._counters import ClientCounters, Counts
from mooring._deadline import Deadline
from mooring._errors import MooringError
from mooring._headers import AsyncSource, bearer, check_headers, join_headers
from mooring._log import LOG, describe_error
from mooring._operations import Infer, InferAnswer, Operation
from mooring._policies import HedgePolicy, RetryPolicy
from mooring._retry import Latencies, RetryBudget, may_repeat, pause_before
from mooring._telemetry import CallSpan, Telemetry
from mooring._transport import Headers

T = TypeVar("T")


class AsyncCaller:
    """Sends operations to servers until one is answered, or nothing can be done in the time that is left.

    Args:
        servers: where they are sent.
        work: runs hedges.
        retry: which failures are repeated.
        hedge: when slow requests are sent a second time; ``None`` for never.
        token: bearer token of every request; ``None`` for none.
        headers: of every request.
    """

    def __init__(
        self,
        servers: AsyncServers,
        work: AsyncWork,
        *,
        retry: RetryPolicy,
        hedge: HedgePolicy | None,
        token: AsyncSource[str] | None,
        headers: AsyncSource[Mapping[str, str]] | None,
    ) -> None:
        self.servers = servers
        self._work = work
        self._retry = retry
        self._budget = RetryBudget(retry)
        self._latencies = None if hedge is None else Latencies(hedge)
        self._token = token
        self._headers = headers
        self._fixed: Headers = ()
        if token is not None and not callable(token):
            self._fixed, self._token = bearer(token), None
        if headers is not None and not callable(headers):
            self._fixed, self._headers = join_headers(check_headers(headers), self._fixed), None
        self._counts = Counts()
        self._telemetry = Telemetry.find()

    def counters(self) -> ClientCounters:
        """What was counted so far."""
        counts = self._counts
        return ClientCounters(
            calls=counts.calls,
            failed_calls=counts.failed_calls,
            requests=self.servers.requests,
            retries=counts.retries,
            hedges=counts.hedges,
            hedge_wins=counts.hedge_wins,
            sent_bytes=counts.sent_bytes,
            received_bytes=counts.received_bytes,
            endpoints=self.servers.status(),
        )

    async def call(self, operation: Operation[T], deadline: Deadline, headers: Headers = ()) -> T:
        """Send an operation and return its answer.

        Raises:
            MooringError: the last try's error; its ``attempts`` has those of the earlier ones too.
        """
        span = None if self._telemetry is None else self._telemetry.begin(operation)
        began_s = time.perf_counter()
        try:
            if span is not None or self._token is not None or self._headers is not None:
                headers = await self._current_headers(headers, deadline, span)
            elif self._fixed:
                headers = join_headers(self._fixed, headers) if headers else self._fixed
            answer = await self._try(operation, deadline, headers, span)
        except BaseException as error:
            self._end(operation, span, began_s, None, error)
            raise
        self._end(operation, span, began_s, answer, None)
        return answer

    async def stream(
        self, request: Infer, deadline: Deadline, headers: Headers = ()
    ) -> AsyncGenerator[InferAnswer, None]:
        """Send a request and pass its responses on; only what fails before the first one is tried again.

        Raises:
            MooringError: as in :meth:`call`.
        """
        span = None if self._telemetry is None else self._telemetry.begin(request, streams=True)
        began_s = time.perf_counter()
        seen = InferAnswer(outputs={})
        try:
            headers = await self._current_headers(headers, deadline, span)
            tried: list[AsyncServer] = []
            earlier: list[MooringError] = []
            self._budget.deposit()
            while True:
                begun = False
                try:
                    server = await self.servers.choose(tried, deadline, sticky=_sticky(request))
                    tried.append(server)
                    request.timeout_s = deadline.left_s()
                    if span is not None:
                        span.attempt(server.endpoint)
                    answers = server.stream(request, timeout_s=request.timeout_s, headers=headers)
                    try:
                        async for answer in answers:
                            begun = True
                            seen.model_version = answer.model_version
                            seen.received_bytes += answer.received_bytes
                            yield answer
                        break
                    finally:
                        await answers.aclose()
                except MooringError as error:
                    error._earlier = tuple(earlier)
                    if begun:
                        raise
                    await self._before_retry(error, request, deadline, tried, earlier, span)
        except BaseException as error:
            failure = None if isinstance(error, GeneratorExit) else error
            self._end(request, span, began_s, seen, failure)
            raise
        else:
            self._end(request, span, began_s, seen, None)

    async def _try(
        self, operation: Operation[T], deadline: Deadline, headers: Headers, span: CallSpan | None
    ) -> T:
        self._budget.deposit()
        tried: list[AsyncServer] = []
        earlier: list[MooringError] = []
        while True:
            try:
                if self._latencies is None or not _may_run_twice(operation):
                    return await self._attempt(operation, deadline, headers, tried, span)
                return await self._hedged(operation, self._latencies, deadline, headers, tried, earlier, span)
            except MooringError as error:
                error._earlier = tuple(earlier)
                await self._before_retry(error, operation, deadline, tried, earlier, span)

    async def _attempt(
        self,
        operation: Operation[T],
        deadline: Deadline,
        headers: Headers,
        tried: list[AsyncServer],
        span: CallSpan | None,
    ) -> T:
        server = await self.servers.choose(tried, deadline, sticky=_sticky(operation))
        tried.append(server)
        left_s = deadline.left_s()
        if isinstance(operation, Infer):
            operation.timeout_s = left_s
        if span is None:
            return await server.send(operation, timeout_s=left_s, headers=headers)
        span.attempt(server.endpoint)
        answer = await server.send(operation, timeout_s=left_s, headers=headers)
        span.answered(server.endpoint)
        return answer

    async def _hedged(
        self,
        operation: Operation[T],
        latencies: Latencies,
        deadline: Deadline,
        headers: Headers,
        tried: list[AsyncServer],
        earlier: list[MooringError],
        span: CallSpan | None,
    ) -> T:
        delay_s = latencies.hedge_delay_s(operation.model)
        began_s = time.perf_counter()
        if delay_s is None or not deadline.allows(delay_s):
            answer = await self._attempt(operation, deadline, headers, tried, span)
        else:

            async def first() -> T:
                return await self._attempt(operation, deadline, headers, tried, span)

            async def second() -> T:
                try:
                    return await self._attempt(operation, deadline, headers, tried, span)
                except MooringError as error:
                    # The call ends with the first request's error, if it must; this one is kept beside it.
                    earlier.append(error)
                    raise

            answer, hedge_won = await self._work.race(
                first, second, after_s=delay_s, may_start=self._may_hedge
            )
            if hedge_won:
                self._counts.add("hedge_wins")
        latencies.add(operation.model, time.perf_counter() - began_s)
        return answer

    def _may_hedge(self) -> bool:
        if not self._budget.withdraw():
            return False
        self._counts.add("hedges")
        return True

    async def _before_retry(
        self,
        error: MooringError,
        operation: Operation[Any],
        deadline: Deadline,
        tried: list[AsyncServer],
        earlier: list[MooringError],
        span: CallSpan | None,
    ) -> None:
        """Wait for the next try, or raise where there is none."""
        retry = len(earlier)
        # The state of a sequence is with one server alone.
        other = _sticky(operation) is None and self.servers.has_other(tried)
        if retry >= self._retry.max_retries or not may_repeat(error, operation, other_endpoint=other):
            raise error
        # Another server need not be spared.
        pause_s = 0.0 if other else pause_before(retry, error, self._retry)
        if not deadline.allows(pause_s) or not self._budget.withdraw():
            raise error
        earlier.append(error)
        self._counts.add("retries")
        if span is not None:
            span.retry(error)
        LOG.debug("try %d failed, next one in %.3f s: %s", retry + 1, pause_s, describe_error(error))
        if pause_s > 0:
            await sleep(pause_s)

    async def _current_headers(self, headers: Headers, deadline: Deadline, span: CallSpan | None) -> Headers:
        current = self._fixed
        if callable(self._headers):
            current = join_headers(current, check_headers(await resolved(self._headers, deadline)))
        if callable(self._token):
            current = join_headers(current, bearer(await resolved(self._token, deadline)))
        current = join_headers(current, headers)
        return current if span is None else join_headers(span.context_headers(), current)

    def _end(
        self,
        operation: Operation[Any],
        span: CallSpan | None,
        began_s: float,
        answer: Any,
        error: BaseException | None,
    ) -> None:
        sent_bytes = operation.sent_bytes if isinstance(operation, Infer) else 0
        received_bytes = answer.received_bytes if isinstance(answer, InferAnswer) else 0
        self._counts.call_ended(
            failed=error is not None, sent_bytes=sent_bytes, received_bytes=received_bytes
        )
        if span is not None:
            span.end(operation, answer, error)
        if LOG.isEnabledFor(10):
            outcome = "answered" if error is None else f"failed: {type(error).__name__}"
            ms = (time.perf_counter() - began_s) * 1000
            LOG.debug(
                "%s of %s %s in %.1f ms, %d bytes sent, %d received",
                type(operation).__name__,
                operation.model or "the server",
                outcome,
                ms,
                sent_bytes,
                received_bytes,
            )


def _may_run_twice(operation: Operation[Any]) -> bool:
    """Whether two copies of it may be under way; an output in shared memory has one place only."""
    return isinstance(operation, Infer) and operation.sequence is None and not operation.output_memory


def _sticky(operation: Operation[Any]) -> object:
    if type(operation) is Infer and operation.sequence is not None:
        return operation.model, operation.sequence.id
    return None
