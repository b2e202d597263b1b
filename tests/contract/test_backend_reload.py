"""Loading and unloading leaves nothing behind: no process, no shared memory, no growth of the server."""

from __future__ import annotations

from pathlib import Path

import onnx
import psutil
import pytest

from engine_models import LOOKUP_CONFIG, lookup_model, write_config
from mooring_serve import TritonServer
from processes import wait_until
from triton_calls import connect, infer

pytestmark = pytest.mark.integration

_ROUNDS = 20
# The first rounds fill the allocator's pools; what leaks shows in every later one.
_WARM_ROUNDS = 5
_MAX_GROWTH_BYTES = 4 << 20


def _stubs(server: psutil.Process) -> int:
    return sum("triton_python_backend_stub" in child.name() for child in server.children())


def _shared_memory(server: psutil.Process) -> int:
    (prefix,) = {
        argument.split("shm-region-prefix-name=")[1]
        for argument in server.cmdline()
        if "shm-region-prefix-name=" in argument
    }
    return len(list(Path("/dev/shm").glob(f"{prefix}*")))


def test_twenty_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    model = lookup_model()
    onnx.save(model, write_config(repository, "lookup", LOOKUP_CONFIG) / "model.onnx")
    with (
        TritonServer(
            repository, model_control_mode="explicit", log_file=tmp_path / "tritonserver.log"
        ) as running,
        connect(running) as client,
    ):
        assert running.pid is not None
        server = psutil.Process(running.pid)
        loaded = (_stubs(server), _shared_memory(server))
        assert loaded[0] == 1
        resident = []
        for _ in range(_ROUNDS):
            client.unload_model("lookup")
            client.load_model("lookup")
            assert infer(client, "lookup", ids=[[3]]).as_numpy("values").tolist() == [[30]]
            wait_until(lambda: (_stubs(server), _shared_memory(server)) == loaded)
            resident.append(server.memory_info().rss)
        growth = resident[-1] - resident[_WARM_ROUNDS]
        assert growth < _MAX_GROWTH_BYTES, resident
        client.unload_model("lookup")
        wait_until(lambda: _stubs(server) == 0)
