"""gRPC with TLS against a real tritonserver, which has no TLS for HTTP: there a proxy has to speak it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trustme

from mooring import AsyncClient, Client, ConnectError, RetryPolicy, TlsConfig
from mooring_serve import TritonServer
from python_models import write_python_model

pytestmark = pytest.mark.integration

X = np.ones((1, 2), np.float32)


def test_mutual_tls(tmp_path: Path, make_server: Callable[..., TritonServer]) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    for name, issued in (
        ("server", authority.issue_cert("localhost", "127.0.0.1")),
        ("client", authority.issue_cert("client@example.org")),
    ):
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        for part in issued.cert_chain_pems:
            part.write_to_path(tmp_path / f"{name}.pem", append=True)
    server = make_server(
        write_python_model(tmp_path / "models"),
        extra_args=[
            "--grpc-use-ssl=true",
            "--grpc-use-ssl-mutual=true",
            f"--grpc-server-cert={tmp_path / 'server.pem'}",
            f"--grpc-server-key={tmp_path / 'server.key'}",
            f"--grpc-root-cert={tmp_path / 'ca.pem'}",
        ],
    )
    url = server.grpc_url.replace("grpc://", "grpcs://")
    known = {"cert_file": tmp_path / "client.pem", "key_file": tmp_path / "client.key"}
    tls = TlsConfig(ca_file=tmp_path / "ca.pem", **known)

    with Client(url, tls=tls) as client:
        np.testing.assert_array_equal(client.infer("echo", {"x": X})["y"], X)

    async def ask() -> None:
        async with AsyncClient(url, tls=tls) as client:
            np.testing.assert_array_equal((await client.infer("echo", {"x": X}))["y"], X)

    asyncio.run(ask())

    once = RetryPolicy(max_retries=0)
    refused = {
        "another authority": TlsConfig(ca_file=tmp_path / "stranger.pem", **known),
        "no certificate of the client's": TlsConfig(ca_file=tmp_path / "ca.pem"),
    }
    for why, wrong in refused.items():
        with Client(url, tls=wrong, retry=once, timeout_s=20) as client:
            try:
                client.infer("echo", {"x": X})
            except ConnectError:
                continue
        pytest.fail(f"accepted with {why}")
