"""The client for coroutines."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np

from mooring._async._server_client import AsyncServerClient
from mooring._async._shared_memory import AsyncSharedMemory
from mooring._async._tasks import TASKS, AsyncTask, check_counts
from mooring._async_work import AsyncWork
from mooring._deadline import Deadline
from mooring._errors import (
    ConfigError,
    DecodeError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    MooringError,
)
from mooring._headers import check_headers
from mooring._operations import Compression, InferAnswer, Parameter, SequenceStep
from mooring._outcomes import Outcome
from mooring._progress import progress_bar
from mooring._requests import check_names, make_request
from mooring._task_kinds import find_kind
from mooring._tensors import Signature, check_inputs, check_outputs, check_requested

TaskT = TypeVar("TaskT", bound=AsyncTask[Any, Any, Any])


class AsyncClient(AsyncServerClient):
    """Calls the models of one or several Triton servers.

    Connects with the first call. See ``docs/client.md`` for a walk through it.
    Arrays in answers may be read-only views of the received bytes; copy one to change it.

    Args:
        url: ``grpc://host:port`` or ``http://host:port``, ``grpcs://`` or ``https://`` for TLS; or a list of
            such URLs of servers with the same models. A host name that resolves to several addresses stands
            for as many servers.
        timeout_s: time budget of a call in seconds, retries and pauses included; each method takes its own
            ``timeout_s`` as well.
        tls: certificates for ``grpcs://`` and ``https://``.
        token: bearer token, or a callable that gives the current one for each call.
        headers: headers of every request, or a callable that gives them for each call.
        retry: which failures are repeated; ``None`` for those of a ``RetryPolicy()``.
        hedge: when slow requests are sent a second time; ``None`` for never.
        circuit: when an endpoint gets no more requests.
        throttle: when requests are held back, as an endpoint refuses too many; ``None`` for never.
        connections: how long names and connections are relied on.
        transport: answers in place of the wire, such as :class:`mooring.testing.FakeTransport`; the
            client closes it.

    Raises:
        ConfigError: an argument can't be right.

    Every method that calls the server raises ``ConfigError`` once the client is closed,
    ``TransportError`` when no answer came (``ConnectError``, ``CircuitOpen``, ``DeadlineExceeded``),
    ``ServerError`` when the server said no, and ``DecodeError`` when its answer makes no sense.
    """

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        outputs: Sequence[str] | None = None,
        version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        priority: int = 0,
        sequence: SequenceStep | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        headers: Mapping[str, str] | None = None,
        request_compression: Compression | None = None,
        response_compression: Compression | None = None,
        shared_memory: AsyncSharedMemory | None = None,
    ) -> dict[str, np.ndarray]:
        """Run a model once.

        The model's signature is asked for at the first call, kept, and checked against before
        anything is sent; when it says no, it is asked for anew first.

        Args:
            model: name of the model.
            inputs: arrays by input name, ``[B, ...]`` with ``1 <= B <= max_batch_size`` where the
                model batches. ``BYTES`` takes arrays of ``str``, ``bytes`` or of objects of both;
                numpy drops zero bytes at the end of its fixed-width ``S`` elements. ``BF16`` takes
                ``float32``, rounded to the nearest, or the ``bfloat16`` of ``ml_dtypes``.
            outputs: names of the wanted outputs; ``None`` for all.
            version: version of the model; empty for the server's choice.
            timeout_s: time budget of the call in seconds; ``None`` for the client's. What is left of it
                when a request is sent goes along as that request's queue timeout.
            request_id: shown in the server's logs and errors; empty for none.
            priority: 1 is the highest; 0 is the model's default.
            sequence: place in a sequence, for models that keep state; all of a sequence goes to one server.
            parameters: further parameters of the request, by name.
            headers: further headers of the request.
            request_compression: of the request's body.
            response_compression: that is asked for over HTTP; over gRPC the server decides alone.
            shared_memory: a region of the client's ``shared_memory``, through which inputs, and outputs of
                known size, go instead of the wire.

        Returns:
            Arrays by output name, ``[B, ...]`` where the model batches; ``BYTES`` as object arrays
            of ``bytes``, ``BF16`` as ``float32``. Arrays may be read-only.

        Raises:
            InvalidInput: the model does not take such inputs or give such outputs.
            ModelNotFound: the server does not know the model or the version.
            ModelNotReady: no version of it is loaded.
            Overloaded: the server refused because of load.
            DecodeError: the answer contradicts the model's signature.
        """
        deadline = self._begin(timeout_s)
        key = (model, version)
        if key not in self._signatures:
            check_names(model, version)
        extra_headers = () if headers is None else check_headers(headers)
        try:
            signature, tensors, requested = await self._check(deadline, model, version, inputs, outputs)
            if signature.config.decoupled:
                raise InvalidInput(f"model {model!r} answers with any number of responses: call stream")
            request = make_request(
                model=model,
                version=version,
                inputs=tensors,
                outputs=requested,
                request_id=request_id,
                priority=priority,
                sequence=sequence,
                parameters=parameters,
                request_compression=request_compression,
                response_compression=response_compression,
                batched=signature.config.max_batch_size > 0,
            )
            if shared_memory is None:
                answer = await self._caller.call(request, deadline, extra_headers)
                arrays = answer.outputs
            else:
                async with shared_memory._lend(request, signature) as lent:
                    answer = await self._caller.call(request, deadline, extra_headers)
                    arrays = lent.collect(answer)
            checked = check_outputs(signature, requested, arrays)
        except (DecodeError, InvalidInput, ModelNotFound, ModelNotReady):
            # What is known of the model may be out of date.
            self._signatures.pop(key, None)
            raise
        self._notice_reload(signature, version, answer)
        return checked

    def _notice_reload(self, signature: Signature, version: str, answer: InferAnswer) -> None:
        """After an answer of a version that is new: the next call asks what the model looks like now."""
        if answer.model_version and not version and answer.model_version not in signature.metadata.versions:
            self._signatures.pop((signature.metadata.name, version), None)

    async def stream(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        outputs: Sequence[str] | None = None,
        version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        priority: int = 0,
        parameters: Mapping[str, Parameter] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[dict[str, np.ndarray], None]:
        """Run a model that answers one request with any number of responses (a decoupled model).

        Closing the iterator, or cancelling it, ends the request on the server too. Over HTTP this is
        Triton's ``generate_stream``, whose JSON carries inputs of one axis beside a batch of 1.

        Args:
            model: name of the model.
            inputs: as for ``infer``.
            outputs: as for ``infer``.
            version: as for ``infer``.
            timeout_s: time budget until the last response, in seconds; ``None`` for the client's.
            request_id: as for ``infer``.
            priority: as for ``infer``.
            parameters: as for ``infer``.
            headers: as for ``infer``.

        Yields:
            Arrays by output name, one mapping a response.

        Raises:
            InvalidInput: as for ``infer``; over HTTP also what ``generate_stream`` can't carry.
            ServerError: the model said no, be it in the midst of its responses.
        """
        check_names(model, version)
        deadline = self._begin(timeout_s)
        extra_headers = () if headers is None else check_headers(headers)
        try:
            signature, tensors, requested = await self._check(deadline, model, version, inputs, outputs)
            request = make_request(
                model=model,
                version=version,
                inputs=tensors,
                outputs=requested,
                request_id=request_id,
                priority=priority,
                parameters=parameters,
                batched=signature.config.max_batch_size > 0,
            )
            request.output_specs = signature.metadata.outputs
            answers = self._caller.stream(request, deadline, extra_headers)
            try:
                async for answer in answers:
                    self._notice_reload(signature, version, answer)
                    yield check_outputs(signature, requested, answer.outputs, partial=True)
            finally:
                await answers.aclose()
        except (DecodeError, InvalidInput, ModelNotFound, ModelNotReady):
            # As in infer.
            self._signatures.pop((model, version), None)
            raise

    async def infer_many(
        self,
        model: str,
        requests: Iterable[Mapping[str, np.ndarray]] | AsyncIterable[Mapping[str, np.ndarray]],
        *,
        concurrency: int = 32,
        ordered: bool = True,
        progress: bool = False,
        outputs: Sequence[str] | None = None,
        version: str = "",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Outcome[dict[str, np.ndarray]], None]:
        """Run a model once for each of many inputs, several requests at a time.

        Inputs are taken from the iterable only when there is room for them, and results are held back until
        they are asked for, so neither piles up. Inputs that fail get an error of their own and stop nothing.

        Args:
            model: name of the model.
            requests: inputs as for ``infer``.
            concurrency: requests under way at a time.
            ordered: whether results come in the order of the inputs, or as soon as they are there.
            progress: whether a progress bar is drawn on standard error (needs ``tqdm``).
            outputs: as for ``infer``.
            version: as for ``infer``.
            timeout_s: time budget of each request in seconds; ``None`` takes the client's.

        Yields:
            One :class:`Outcome` for each inputs.

        Raises:
            ConfigError: ``concurrency`` can't be right.
        """
        check_counts(concurrency=concurrency)
        check_names(model, version)
        self._begin(timeout_s)

        async def run(numbered: tuple[int, Any]) -> Outcome[dict[str, np.ndarray]]:
            index, inputs = numbered
            try:
                value = await self.infer(model, inputs, outputs=outputs, version=version, timeout_s=timeout_s)
            except MooringError as error:
                return Outcome(index=index, error=error)
            return Outcome(index=index, value=value)

        bar = progress_bar(requests, shown=progress, label=model)
        outcomes = self._work.map(run, AsyncWork.number(requests), concurrency=concurrency, ordered=ordered)
        try:
            async for outcome in outcomes:
                bar.update(1)
                yield outcome
        finally:
            bar.close()
            await outcomes.aclose()

    @overload
    async def task(
        self,
        model: str,
        kind: None = None,
        *,
        version: str = "",
        tokenize: str = "server",
        tokenizer: str | os.PathLike[str] | None = None,
        timeout_s: float | None = None,
    ) -> Any: ...

    @overload
    async def task(
        self,
        model: str,
        kind: type[TaskT],
        *,
        version: str = "",
        tokenize: str = "server",
        tokenizer: str | os.PathLike[str] | None = None,
        timeout_s: float | None = None,
    ) -> TaskT: ...

    async def task(
        self,
        model: str,
        kind: type[Any] | None = None,
        *,
        version: str = "",
        tokenize: str = "server",
        tokenizer: str | os.PathLike[str] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """The typed call that the model describes in its config (``parameters.task``).

        Args:
            model: name of the model.
            kind: the class that the caller relies on, such as :class:`AsyncTokenClassifier`: a model that is
                another is refused, and type checkers know what comes back. ``None`` takes any.
            version: version of the model; empty for the server's choice at each call.
            tokenize: ``"server"`` sends the text; ``"client"`` makes the token ids here, asks the engine
                alone, and reads its logits here: the same answers with less work for the server. It is for
                token and text classification with an ensemble that Mooring published. The release that is
                there when the task is made answers until the server unloads it, then the one after it.
            tokenizer: folder with the model's ``tokenizer.json``, for ``tokenize="client"``; ``None`` asks
                the server for it.
            timeout_s: time budget for asking the model, in seconds; ``None`` for the client's.

        Returns:
            The task's own class, such as a token classifier for ``token-classification``.

        Raises:
            ConfigError: the model names no task, one that this client does not know, or another than
                ``kind``; or the client can't tokenize for it, or not with that ``tokenizer``.
            ImportError: ``tokenize="client"`` without ``tokenizers``: install Mooring's extra [tokenize].
            DecodeError: the model's signature is not that of its task.
            ModelNotFound: the server does not know the model or the version.
            ModelNotReady: no version of it is loaded.
        """
        check_names(model, version)
        if kind is not None and kind not in TASKS.values():
            known = ", ".join(sorted(known.__name__ for known in TASKS.values()))
            raise ConfigError(f"kind must be one of {known}, or None; got {kind!r}")
        local = None
        if tokenize == "client":
            # What few need, and what `import mooring` should not pay for.
            from mooring._async._local_tasks import AsyncLocalPipelines

            local = AsyncLocalPipelines(self, model=model, version=version, tokenizer=tokenizer)
        elif tokenize != "server" or tokenizer is not None:
            options = f"tokenize={tokenize!r}, tokenizer={tokenizer!r}"
            raise ConfigError(
                f"tokenize must be 'server', or 'client' with or without tokenizer; got {options}"
            )
        deadline = self._begin(timeout_s)
        signature = await self._ask_signature(deadline, model, version)
        found = find_kind(signature.metadata, signature.config, model=model)
        made = TASKS[found.name]
        if kind is not None and kind is not made:
            raise ConfigError(
                f"model {model!r} says task {found.name!r}, a {made.__name__}, where the caller relies on a "
                f"{kind.__name__}"
            )
        if local is not None:
            await local.load(signature, deadline)
        return made(self, found, model=model, version=version, local=local)

    def shared_memory(
        self,
        *,
        input_bytes: int,
        output_bytes: Mapping[str, int] | None = None,
        kind: str = "system",
        name: str | None = None,
        device_id: int = 0,
    ) -> AsyncSharedMemory:
        """A region of memory that this client shares with a server on the same machine.

        Use it in a ``with`` block (``async with`` in coroutines), which registers it with the server and
        removes it again, and pass it to ``infer``; it serves one request at a time, and none after one that
        was given up: open another region then.

        Args:
            input_bytes: room for the inputs of one request.
            output_bytes: room for outputs by name; the others come over the wire.
            kind: ``"system"`` (POSIX shared memory) or ``"cuda"``.
            name: of the region; one that a crashed client left under it is replaced. ``None`` makes one up.
            device_id: of the GPU, for ``"cuda"``.

        Raises:
            ConfigError: the sizes or the kind can't be right, or the client has several servers.
        """
        self._check_one_server("shared memory")
        return AsyncSharedMemory(
            self,
            kind=kind,
            name=name,
            input_bytes=input_bytes,
            output_bytes=dict(output_bytes or {}),
            device_id=device_id,
        )

    async def _check(
        self,
        deadline: Deadline,
        model: str,
        version: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None,
    ) -> tuple[Signature, Any, tuple[str, ...] | None]:
        known_before = (model, version) in self._signatures
        signature = await self._signature(deadline, model, version)
        try:
            return signature, check_inputs(signature, inputs), check_requested(signature, outputs)
        except InvalidInput:
            if not known_before:
                raise
        # The model may have been reloaded with another signature.
        signature = await self._ask_signature(deadline, model, version)
        return signature, check_inputs(signature, inputs), check_requested(signature, outputs)
