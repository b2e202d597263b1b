# Generated from mooring/_async/_servers.py by .ci/generate_sync.py; change that file.
"""The servers of one client: their addresses, connections and circuits, and which gets the next request."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from hashlib import blake2b

from mooring._counters import EndpointStatus
from mooring._deadline import MAX_TIMEOUT_S, Deadline
from mooring._errors import (
    CircuitOpen,
    ConfigError,
    ConnectError,
    DeadlineExceeded,
    MooringError,
)
from mooring._log import LOG
from mooring._policies import CircuitPolicy, ConnectionPolicy, ThrottlePolicy
from mooring._sync._server import OpenTransport, Server
from mooring._sync_work import SyncWork
from mooring._url import Endpoint, is_address

#: A name that has not been resolved yet, beside others that were, is asked for again after so long.
_UNKNOWN_AGAIN_S = 1.0


class Servers:
    """Every address of a client's URLs, and the choice among them.

    Args:
        endpoints: the client's URLs. A host name with several addresses of the family that the system
            prefers stands for as many servers and is resolved again and again; any other is left to the
            system.
        open_transport: makes a transport.
        circuit: of each server.
        throttle: of each server; ``None`` for none.
        connections: of each server.
        work: runs probes and look-ups in the background.
        resolve: whether host names are resolved at all.
    """

    def __init__(
        self,
        endpoints: Collection[Endpoint],
        open_transport: OpenTransport,
        *,
        circuit: CircuitPolicy,
        throttle: ThrottlePolicy | None,
        connections: ConnectionPolicy,
        work: SyncWork,
        resolve: bool = True,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._open_transport = open_transport
        self._circuit = circuit
        self._throttle = throttle
        self._connections = connections
        self._work = work
        self._lock = threading.Lock()
        self._names = [one for one in self._endpoints if resolve and not _is_known(one.host)]
        self._looking_up = False
        self._look_up_at_s = 0.0
        self._closed = False
        self._turn = 0
        self._servers = (
            {} if self._names else {endpoint: self._make(endpoint) for endpoint in self._endpoints}
        )
        # Replaced as a whole, so that a reader needs no lock.
        self._list = tuple(self._servers.values())
        #: Servers that are gone, those without a request since until the next look-up.
        self._leaving: list[Server] = []
        #: The same as the list, and the requests that were sent to those that are gone.
        self._counted = (self._list, 0)

    @property
    def requests(self) -> int:
        """Requests that were sent, to addresses that are gone too."""
        servers, gone = self._counted
        return gone + sum(server.requests for server in servers)

    def status(self) -> tuple[EndpointStatus, ...]:
        """The state of each server."""
        return tuple(server.status() for server in self._list)

    def has_other(self, tried: Collection[Server]) -> bool:
        """Whether a server that gets requests has not been tried."""
        return any(server not in tried and not server.circuit.is_open for server in self._list)

    def choose(self, tried: Collection[Server], deadline: Deadline, *, sticky: object = None) -> Server:
        """The server for the next request: of those that work, the one with the fewest outstanding.

        Args:
            tried: servers that failed in this call; they come last.
            deadline: of the call.
            sticky: requests with the same value go to the same server, as long as the servers stay the same.

        Raises:
            CircuitOpen: none gets requests now.
            ConfigError: the client was closed meanwhile.
            ConnectError: the host name can't be resolved.
            DeadlineExceeded: that took too long.
        """
        if self._names and time.monotonic() >= self._look_up_at_s:
            self._refresh(deadline)
        servers = self._list
        if len(servers) == 1 and not servers[0].circuit.is_open:
            return servers[0]
        working = [server for server in servers if not server.circuit.is_open]
        due = [server for server in servers if server.circuit.begin_probe()]
        if working or not deadline.allows(self._circuit.probe_timeout_s):
            for server in due:
                server.probe_apart()
        elif due:
            # Nothing else to do for this call than to wait for them.
            self._probe(due, deadline, all_of_them=sticky is not None)
            working = [server for server in servers if not server.circuit.is_open]
        if sticky is not None:
            return self._stick(servers, sticky)
        if not working:
            urls = ", ".join(server.url for server in servers)
            raise CircuitOpen(
                f"nothing was sent: every endpoint failed lately and rests for a moment ({urls})"
            )
        fresh = [server for server in working if server not in tried] or working
        fewest = min(server.outstanding for server in fresh)
        equal = [server for server in fresh if server.outstanding == fewest]
        self._turn += 1
        return equal[self._turn % len(equal)]

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            self._closed = True
            servers = [*self._list, *self._leaving]
        for server in servers:
            server.close()

    def abandon(self) -> None:
        """Forget every connection without ending it: after a fork they are the parent's."""
        for server in (*self._list, *self._leaving):
            server.abandon()

    def _probe(self, due: Collection[Server], deadline: Deadline, *, all_of_them: bool) -> None:
        """Probe servers side by side, until one is back or all probes have ended."""
        over = self._work.event()
        ended: list[Server] = []

        def end(server: Server) -> None:
            ended.append(server)
            if len(ended) == len(due) or not (all_of_them or server.circuit.is_open):
                over.set()

        for server in due:
            server.probe_apart(partial(end, server))
        self._work.wait(over, timeout_s=deadline.left_s())

    def _stick(self, servers: Collection[Server], sticky: object) -> Server:
        # Rendezvous hashing: a server that comes or goes moves only its own sequences.
        # (A CRC will not do: those of two addresses differ by the same bits for every sequence.)
        server = max(
            servers, key=lambda server: blake2b(f"{sticky!r} {server.url}".encode(), digest_size=8).digest()
        )
        if server.circuit.is_open:
            raise CircuitOpen(
                f"nothing was sent: {server.url}, which has the sequence's state, failed lately"
            )
        return server

    def _make(self, endpoint: Endpoint) -> Server:
        return Server(
            endpoint,
            self._open_transport,
            circuit=self._circuit,
            throttle=self._throttle,
            connections=self._connections,
            work=self._work,
        )

    def _refresh(self, deadline: Deadline) -> None:
        """Resolve the host names: at first at once, later in the background."""
        if not self._list:
            self._look_up(deadline)
            return
        with self._lock:
            if self._looking_up:
                return
            self._looking_up = True
        if not self._work.spawn(self._look_up_again):
            self._look_up_at_s = time.monotonic() + _UNKNOWN_AGAIN_S
            self._looking_up = False

    def _look_up_again(self) -> None:
        try:
            self._look_up(Deadline(min(self._connections.resolve_interval_s, MAX_TIMEOUT_S)))
        except MooringError as error:
            # What was known is still the best guess.
            if not self._closed:
                LOG.warning("%s; the addresses found before are kept", error)
            self._look_up_at_s = time.monotonic() + self._connections.resolve_interval_s
        finally:
            self._looking_up = False

    def _look_up(self, deadline: Deadline) -> None:
        found: list[Endpoint] = []
        failures: list[tuple[MooringError, bool]] = []
        names = len(self._names)
        for endpoint in self._endpoints:
            if endpoint not in self._names:
                found.append(endpoint)
                continue
            # A name that hangs leaves the others their part.
            timeout_s = deadline.left_s() / names
            names -= 1
            try:
                found += self._addresses(endpoint, timeout_s)
            except MooringError as error:
                known = [one for one in self._servers if replace(one, connect_to=None) == endpoint]
                found += known
                failures.append((error, bool(known)))
        if failures and not found:
            raise failures[0][0]
        for failure, is_known in failures:
            now = "the addresses found before are kept" if is_known else "the other servers get its requests"
            LOG.warning("%s; %s", failure, now)
        self._take_over(found)
        if not all(is_known for _, is_known in failures):
            self._look_up_at_s = min(self._look_up_at_s, time.monotonic() + _UNKNOWN_AGAIN_S)

    def _addresses(self, endpoint: Endpoint, timeout_s: float) -> list[Endpoint]:
        """The servers that a host name stands for.

        Raises:
            ConnectError: it can't be resolved.
            DeadlineExceeded: not in time.
        """
        try:
            addresses = self._work.look_up(endpoint.host, endpoint.port, timeout_s=timeout_s)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"{endpoint}: the name was not resolved within {timeout_s:.3g} s") from exc
        except (OSError, UnicodeError) as exc:
            raise ConnectError(f"{endpoint}: the name can't be resolved ({exc})") from exc
        several = _several_of_one_family(addresses)
        return [replace(endpoint, connect_to=address) for address in several] or [endpoint]

    def _take_over(self, endpoints: list[Endpoint]) -> None:
        with self._lock:
            if self._closed:
                raise ConfigError(f"{self._endpoints[0]}: the client was closed while a call began")
            gone = [server for known, server in self._servers.items() if known not in endpoints]
            self._servers = {
                endpoint: self._servers.get(endpoint) or self._make(endpoint) for endpoint in endpoints
            }
            self._list = tuple(self._servers.values())
            self._counted = (self._list, self._counted[1] + sum(server.requests for server in gone))
            self._leaving = [*(server for server in self._leaving if server.outstanding), *gone]
            self._look_up_at_s = time.monotonic() + self._connections.resolve_interval_s
        for server in gone:
            server.retire()


def _is_known(host: str) -> bool:
    return host == "localhost" or is_address(host)


def _several_of_one_family(addresses: list[str]) -> list[str]:
    """The addresses that stand for servers of their own.

    One server may well have an IPv4 and an IPv6 address; two of one family are two servers. The family is
    that of the first address: the system puts what can't be reached from here last (RFC 6724).
    """
    found = [address for address in addresses if (":" in address) is (":" in addresses[0])]
    return found if len(found) > 1 else []
