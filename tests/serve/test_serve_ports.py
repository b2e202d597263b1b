from __future__ import annotations

import socket

import pytest

from mooring import ConfigError, StartError
from mooring_serve._ports import check_ports, choose_ports, resolve_host

LOOPBACK = "127.0.0.1"


@pytest.mark.parametrize("port", [-1, 65536])
def test_out_of_range(port: int) -> None:
    with pytest.raises(ConfigError, match=f"grpc_port is {port}: a port is between 1 and 65535"):
        check_ports({"http_port": 8000, "grpc_port": port})


def test_given_twice() -> None:
    with pytest.raises(ConfigError, match="metrics_port and http_port are both 8000"):
        check_ports({"http_port": 8000, "grpc_port": 8001, "metrics_port": 8000})
    check_ports({"http_port": 0, "grpc_port": 0, "metrics_port": 0})


def test_free_ports_are_distinct() -> None:
    # So many that one would come twice, were each given back before the next is chosen.
    chosen = choose_ports(LOOPBACK, {f"port_{number}": 0 for number in range(400)})
    assert 0 not in chosen.values()
    assert len(set(chosen.values())) == 400


def test_a_free_port_is_kept() -> None:
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
    assert choose_ports(LOOPBACK, {"http_port": port}) == {"http_port": port}


@pytest.mark.parametrize("listening_on", [LOOPBACK, "0.0.0.0"])
def test_a_taken_port_is_named(listening_on: str) -> None:
    with socket.create_server((listening_on, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(StartError, match=rf"grpc_port {port} on 127\.0\.0\.1 is already in use"):
            choose_ports(LOOPBACK, {"http_port": 0, "grpc_port": port})


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ConfigError, match=r"can't listen on 192\.0\.2\.1"):
        choose_ports("192.0.2.1", {"http_port": 0})


def test_resolve_host() -> None:
    assert resolve_host("localhost") == LOOPBACK
    assert resolve_host("0.0.0.0") == "0.0.0.0"
    for host in ("::1", "10..0.1"):
        with pytest.raises(ConfigError, match=f"host '{host}' has no IPv4 address"):
            resolve_host(host)
