"""What a client is besides inference: its servers, its life, and what it asks of servers and their models."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from mooring._async._caller import AsyncCaller
from mooring._async._servers import AsyncServers
from mooring._async_work import AsyncWork
from mooring._counters import ClientCounters
from mooring._deadline import Deadline, check_timeout
from mooring._errors import ConfigError
from mooring._headers import AsyncSource
from mooring._models import ModelConfig, ModelMetadata, ModelStatistics, ModelStatus, ServerMetadata
from mooring._open_transports import open_async_transport
from mooring._operations import (
    GetConfig,
    GetIndex,
    GetMetadata,
    GetModelReady,
    GetServerMetadata,
    GetServerReady,
    GetStatistics,
    Infer,
    InferAnswer,
    LoadModel,
    Operation,
    UnloadModel,
)
from mooring._policies import (
    CircuitPolicy,
    ConnectionPolicy,
    HedgePolicy,
    RetryPolicy,
    ThrottlePolicy,
    TlsConfig,
    check_policy,
)
from mooring._requests import check_names
from mooring._tensors import Signature
from mooring._transport import AsyncTransport, Headers
from mooring._url import Endpoint, parse_urls

T = TypeVar("T")


class AsyncLentTransport:
    """The transport that a client was given: one for all its servers, so closing it is the client's part."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def asend(self, operation: Operation[T], *, timeout_s: float, headers: Headers = ()) -> T:
        """Send through it."""
        return await self._transport.asend(operation, timeout_s=timeout_s, headers=headers)

    def astream(
        self, request: Infer, *, timeout_s: float, headers: Headers = ()
    ) -> AsyncGenerator[InferAnswer, None]:
        """Stream through it."""
        return self._transport.astream(request, timeout_s=timeout_s, headers=headers)

    async def aclose(self) -> None:
        """Leave it open: lines to servers come and go."""

    def abandon(self) -> None:
        """Pass it on."""
        self._transport.abandon()


class AsyncServerClient:
    """The part of :class:`AsyncClient` that does not run models; see there."""

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        timeout_s: float = 60.0,
        tls: TlsConfig | None = None,
        token: AsyncSource[str] | None = None,
        headers: AsyncSource[Mapping[str, str]] | None = None,
        retry: RetryPolicy | None = None,
        hedge: HedgePolicy | None = None,
        circuit: CircuitPolicy | None = None,
        throttle: ThrottlePolicy | None = None,
        connections: ConnectionPolicy | None = None,
        transport: AsyncTransport | None = None,
    ) -> None:
        self._endpoints = parse_urls(url)
        #: The servers' URLs.
        self.urls = tuple(map(str, self._endpoints))
        #: Time budget of a call, in seconds.
        self.timeout_s = check_timeout(timeout_s)
        self._tls = check_policy("tls", tls, TlsConfig) or TlsConfig()
        if tls is not None and not self._endpoints[0].is_tls:
            raise ConfigError(
                f"tls is given, but {self.urls[0]} is not encrypted: write grpcs:// or https://"
            )
        self._transport = transport
        self._circuit = check_policy("circuit", circuit, CircuitPolicy) or CircuitPolicy()
        self._throttle = check_policy("throttle", throttle, ThrottlePolicy)
        self._connections = check_policy("connections", connections, ConnectionPolicy) or ConnectionPolicy()
        self._work = AsyncWork()
        self._make_caller = partial(
            AsyncCaller,
            retry=check_policy("retry", retry, RetryPolicy) or RetryPolicy(),
            hedge=check_policy("hedge", hedge, HedgePolicy),
            token=token,
            headers=headers,
        )
        self._caller = self._make_caller(self._make_servers(), self._work)
        self._closed = False
        # By model and version. A lost update between threads costs one more question to the server.
        self._signatures: dict[tuple[str, str], Signature] = {}
        # Those that are being asked for.
        self._asked: dict[tuple[str, str], Any] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.urls[0] if len(self.urls) == 1 else list(self.urls)!r})"

    def __reduce__(self) -> NoReturn:
        # What multiprocessing and executors do with arguments; locks and sockets can't follow.
        raise ConfigError(f"{self!r} can't be copied or sent to another process: make a client there")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the connections; calls under way end with an error. May be called again."""
        self._closed = True
        # Another event loop than that of the calls may close, too.
        with suppress(ConfigError):
            self._leave_parent()
        await self._work.close()
        await self._caller.servers.close()
        if self._transport is not None:
            await self._transport.aclose()

    def counters(self) -> ClientCounters:
        """What this client did so far, and the state of each endpoint."""
        return self._caller.counters()

    async def server_ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether the server, with the models that it must have, can answer."""
        return await self._call(GetServerReady(), timeout_s)

    async def server_metadata(self, *, timeout_s: float | None = None) -> ServerMetadata:
        """Name, version and extensions of the server."""
        return await self._call(GetServerMetadata(), timeout_s)

    async def ready(self, model: str, *, version: str = "", timeout_s: float | None = None) -> bool:
        """Whether the model can answer; ``False`` also where the server does not know it."""
        check_names(model, version)
        return await self._call(GetModelReady(model=model, version=version), timeout_s)

    async def metadata(
        self, model: str, *, version: str = "", timeout_s: float | None = None
    ) -> ModelMetadata:
        """The model's signature, asked anew.

        Raises:
            ModelNotFound: the server does not know the model or the version.
            ModelNotReady: no version of it is loaded.
        """
        check_names(model, version)
        return await self._call(GetMetadata(model=model, version=version), timeout_s)

    async def config(self, model: str, *, version: str = "", timeout_s: float | None = None) -> ModelConfig:
        """The model's configuration, asked anew.

        Raises:
            ModelNotFound: the server does not know the model or the version.
            ModelNotReady: no version of it is loaded.
        """
        check_names(model, version)
        return await self._call(GetConfig(model=model, version=version), timeout_s)

    async def statistics(
        self, model: str = "", *, version: str = "", timeout_s: float | None = None
    ) -> list[ModelStatistics]:
        """What the server counted, one entry a model and version.

        Args:
            model: name of the model; empty for all.
            version: version of the model; empty for all that are loaded.
            timeout_s: time budget of the call in seconds; ``None`` for the client's.

        Raises:
            ModelNotFound: the server does not know the model or the version, or has not loaded it.
        """
        if model or version:
            check_names(model, version)
        return await self._call(GetStatistics(model=model, version=version), timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> list[ModelStatus]:
        """Every model and version in the server's repositories, with its state."""
        return await self._call(GetIndex(), timeout_s)

    async def load(
        self,
        model: str,
        *,
        config: str | None = None,
        files: Mapping[str, bytes] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Load a model, or load it again; it takes as long as the model takes.

        Several servers are several repositories: this reaches one of them, so name one in the client's URL.

        Args:
            model: name of the model.
            config: its config as JSON text, in place of the repository's ``config.pbtxt``.
            files: content by path, such as ``1/model.onnx``, in place of the repository's; needs ``config``.
            timeout_s: time budget of the call in seconds; ``None`` for the client's.

        Raises:
            ConfigError: the client has several servers, or there are files without a config.
            ServerError: the model can't be loaded, or the server was not started with
                ``--model-control-mode=explicit``.
        """
        check_names(model, "")
        self._check_one_server("load")
        if files and config is None:
            raise ConfigError("files need a config: Triton takes no files without one")
        operation = LoadModel(model=model, config=config, files=dict(files or {}))
        try:
            await self._call(operation, timeout_s)
        finally:
            self._forget(model)

    async def unload(
        self, model: str, *, unload_dependents: bool = False, timeout_s: float | None = None
    ) -> None:
        """Unload a model; the server answers before it is gone.

        Args:
            model: name of the model.
            unload_dependents: whether the models that an ensemble calls are unloaded too.
            timeout_s: time budget of the call in seconds; ``None`` for the client's.

        Raises:
            ConfigError: the client has several servers.
            ServerError: the server was not started with ``--model-control-mode=explicit``.
        """
        check_names(model, "")
        self._check_one_server("unload")
        operation = UnloadModel(model=model, unload_dependents=unload_dependents)
        try:
            await self._call(operation, timeout_s)
        finally:
            self._forget(model)

    def _make_servers(self) -> AsyncServers:
        return AsyncServers(
            self._endpoints,
            self._open_transport,
            circuit=self._circuit,
            throttle=self._throttle,
            connections=self._connections,
            work=self._work,
            # Whatever answers in place of the wire needs no address.
            resolve=self._transport is None,
        )

    def _open_transport(self, endpoint: Endpoint) -> AsyncTransport:
        if self._transport is None:
            return open_async_transport(endpoint, self._tls)
        return AsyncLentTransport(self._transport)

    async def _call(self, operation: Operation[T], timeout_s: float | None) -> T:
        deadline = self._begin(timeout_s)
        # Looked up after that: a forked child has another one then.
        return await self._caller.call(operation, deadline)

    def _begin(self, timeout_s: float | None) -> Deadline:
        if self._closed:
            raise ConfigError(f"the client of {', '.join(self.urls)} is closed; make a new one")
        self._leave_parent()
        return Deadline(self.timeout_s if timeout_s is None else timeout_s)

    def _leave_parent(self) -> None:
        """After a fork: what is open is the parent's, and a lock that its threads held stays locked here."""
        self._work.check_place(self._begin_anew)

    def _begin_anew(self) -> None:
        self._caller.servers.abandon()
        self._caller = self._make_caller(self._make_servers(), self._work)
        self._asked = {}

    def _check_one_server(self, what: str) -> None:
        if len(self._endpoints) > 1:
            raise ConfigError(f"{what} concerns one server, but this client has {len(self._endpoints)}")

    def _forget(self, model: str) -> None:
        # A copy: another thread may add its own meanwhile.
        for key in [key for key in list(self._signatures) if key[0] == model]:
            self._signatures.pop(key, None)

    async def _signature(self, deadline: Deadline, model: str, version: str) -> Signature:
        key = (model, version)
        known = self._signatures.get(key)
        if known is not None:
            return known
        asked = self._asked.get(key)
        if asked is not None:
            # Of many first calls one asks. Should it fail, the others ask for themselves.
            await self._work.wait(asked, timeout_s=deadline.left_s())
            known = self._signatures.get(key)
            return await self._ask_signature(deadline, model, version) if known is None else known
        asked = self._asked[key] = self._work.event()
        try:
            return await self._ask_signature(deadline, model, version)
        finally:
            self._asked.pop(key, None)
            asked.set()

    async def _ask_signature(self, deadline: Deadline, model: str, version: str) -> Signature:
        signature = Signature(
            metadata=await self._caller.call(GetMetadata(model=model, version=version), deadline),
            config=await self._caller.call(GetConfig(model=model, version=version), deadline),
        )
        self._signatures[(model, version)] = signature
        return signature
