"""One set of fake models behind every client and protocol, and the means to open such clients."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

import mooring
from awaited import Awaited, tasks_left
from mooring import AsyncClient, Client, RetryPolicy, TlsConfig
from mooring._url import parse_url
from mooring._wires._grpc import GrpcTransport
from mooring._wires._grpc_aio import AsyncGrpcTransport
from mooring._wires._http import HttpTransport
from mooring._wires._http_aio import AsyncHttpTransport
from raw_server import RawServer, Script
from wire_grpc import start_grpc
from wire_http import start_http
from wire_messages import Served
from wire_models import RecordingServer

PROTOCOLS = ["fake", "grpc", "grpcs", "http", "https"]


@pytest.fixture
def fake() -> RecordingServer:
    return RecordingServer()


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop of every client for coroutines; it runs while a test waits for one."""
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority of the tests and what it signed."""
    folder = tmp_path_factory.mktemp("tls")
    made = Certificates(trustme.CA(), folder).signed("localhost", "127.0.0.1", "triton.test")
    trustme.CA().cert_pem.write_to_path(made.folder / "other-ca.pem")
    return made


@dataclass(frozen=True)
class Certificates:
    """Files in PEM format."""

    authority: trustme.CA
    folder: Path

    def signed(self, *names: str) -> Certificates:
        """A server's certificate for other names, in a folder of its own, and one of a client."""
        folder = self.folder / names[0]
        if folder.exists():
            return Certificates(self.authority, folder)
        folder.mkdir()
        self.authority.cert_pem.write_to_path(folder / "ca.pem")
        for name, made in (
            ("server", self.authority.issue_cert(*names)),
            ("client", self.authority.issue_cert("client@example.org")),
        ):
            made.private_key_pem.write_to_path(folder / f"{name}.key")
            for blob in made.cert_chain_pems:
                blob.write_to_path(folder / f"{name}.pem", append=True)
        return Certificates(self.authority, folder)

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    def for_grpc(self, *, mutual: bool = False) -> grpc.ServerCredentials:
        """What a gRPC server shows, and whether it wants to see a client's certificate."""
        chain = ((self.folder / "server.key").read_bytes(), (self.folder / "server.pem").read_bytes())
        authority = self.ca_file.read_bytes() if mutual else None
        return grpc.ssl_server_credentials([chain], authority, mutual)

    def for_http(self, *, mutual: bool = False) -> ssl.SSLContext:
        """The same for an HTTP server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca_file)
        return context


@dataclass(frozen=True)
class WireServers:
    """One server a protocol for all tests, and what they answer with."""

    served: Served
    ports: dict[str, int]

    def url(self, protocol: str) -> str:
        return f"{protocol}://127.0.0.1:{self.ports[protocol]}"


@pytest.fixture(scope="session")
def wire_servers(certificates: Certificates) -> Iterator[WireServers]:
    served = Served()
    starts: dict[str, Callable[[], tuple[int, Callable[[], Any]]]] = {
        "grpc": lambda: start_grpc(served),
        "grpcs": lambda: start_grpc(served, certificates.for_grpc()),
        "http": lambda: start_http(served),
        "https": lambda: start_http(served, certificates.for_http()),
    }
    with ExitStack() as running:
        ports = {}
        for protocol, start in starts.items():
            ports[protocol], stop = start()
            running.callback(stop)
        yield WireServers(served, ports)


@pytest.fixture
def grpc_url(wire_servers: WireServers, fake: RecordingServer) -> str:
    wire_servers.served.fake = fake
    return wire_servers.url("grpc")


@pytest.fixture
def http_url(wire_servers: WireServers, fake: RecordingServer) -> str:
    wire_servers.served.fake = fake
    return wire_servers.url("http")


@dataclass
class Side:
    """Threads or coroutines; opens clients and transports with one face, and closes them after the test."""

    is_async: bool
    loop: asyncio.AbstractEventLoop
    opened: list[Any] = field(default_factory=list)

    def __str__(self) -> str:
        return "coroutines" if self.is_async else "threads"

    def name(self, name: str) -> str:
        """Name of this side's twin of a class."""
        return f"Async{name}" if self.is_async else name

    def kind(self, name: str) -> Any:
        """This side's twin of a public class."""
        return getattr(mooring, self.name(name))

    def client(self, url: Any, **options: Any) -> Any:
        """A client whose methods are called without ``await``."""
        options.setdefault("timeout_s", 20)
        client = Awaited(self.loop, AsyncClient(url, **options)) if self.is_async else Client(url, **options)
        self.opened.append(client)
        return client

    def transport(self, url: str, tls: TlsConfig | None = None) -> Any:
        """A transport of the URL's protocol."""
        endpoint = parse_url(url)
        kinds = {"grpc": (GrpcTransport, AsyncGrpcTransport), "http": (HttpTransport, AsyncHttpTransport)}
        kind = kinds[endpoint.protocol][self.is_async]
        transport: Any
        if self.is_async:

            async def make() -> Any:
                return kind(endpoint, tls or TlsConfig())

            transport = Awaited(self.loop, self.loop.run_until_complete(make()))
        else:
            transport = kind(endpoint, tls or TlsConfig())
        self.opened.append(transport)
        return transport

    def wait(self, event: threading.Event) -> bool:
        """Whether an event of another thread came, with the event loop at work meanwhile."""
        if not self.is_async:
            return event.wait(20)
        return self.loop.run_until_complete(asyncio.to_thread(event.wait, 20))

    def run(self, work: Any) -> Any:
        """The result of what only the twin for coroutines has to wait for."""
        return self.loop.run_until_complete(work) if self.is_async else work


@pytest.fixture(params=["threads", "coroutines"])
def side(request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop) -> Iterator[Side]:
    side = Side(request.param == "coroutines", loop)
    yield side
    for opened in side.opened:
        opened.close()
    assert not tasks_left(loop)


@dataclass
class Wired:
    """A client, and the fake that answers it, at the other end of a wire or in memory."""

    side: Side
    fake: RecordingServer
    #: ``fake``, ``grpc``, ``grpcs``, ``http`` or ``https``.
    protocol: str
    url: str
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.client = self.open()

    @property
    def is_async(self) -> bool:
        return self.side.is_async

    @property
    def wire(self) -> str:
        """The protocol without regard to TLS."""
        return self.protocol.removesuffix("s")

    def open(self, **options: Any) -> Any:
        """Another client of the same server."""
        return self.side.client(self.url, **{**self.options, **options})


@pytest.fixture(params=PROTOCOLS)
def wired(request: pytest.FixtureRequest, side: Side, fake: RecordingServer) -> Wired:
    """The same fake models behind each client and protocol."""
    protocol = request.param
    if protocol == "fake":
        return Wired(side, fake, protocol, "grpc://fake:8001", {"transport": fake})
    servers: WireServers = request.getfixturevalue("wire_servers")
    servers.served.fake = fake
    options = {}
    if protocol.endswith("s"):
        options["tls"] = TlsConfig(ca_file=request.getfixturevalue("certificates").ca_file)
    return Wired(side, fake, protocol, servers.url(protocol), options)


@pytest.fixture
def connect(side: Any) -> Callable[..., Any]:
    """Open a client that tries everything once."""
    return lambda url, **options: side.client(
        url, **{"timeout_s": 10, "retry": RetryPolicy(max_retries=0), **options}
    )


@pytest.fixture
def serve_raw() -> Iterator[Callable[..., RawServer]]:
    with contextlib.ExitStack() as stack:

        def start(script: Script, tls: ssl.SSLContext | None = None) -> RawServer:
            server = RawServer(script, tls)
            stack.callback(server.close)
            return server

        yield start
