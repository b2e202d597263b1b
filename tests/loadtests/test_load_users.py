from __future__ import annotations

import subprocess
import sys


def _run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_grpc_is_prepared_for_gevent_once_and_before_the_first_call() -> None:
    code = """if True:
        import grpc.experimental.gevent as grpc_gevent
        calls, prepare = [], grpc_gevent.init_gevent
        grpc_gevent.init_gevent = lambda: (calls.append(1), prepare())
        import mooring_loadtests.users
        from mooring import Client, ConnectError
        for _ in range(2):
            with Client("grpc://127.0.0.1:1", timeout_s=5.0) as client:
                try:
                    client.server_ready()
                except ConnectError:
                    print(len(calls))
    """
    assert _run_python(code) == "1\n1\n"
