"""Shared memory with a real tritonserver: the values, the limits, and what is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http

from driven_clients import AnyClient, Pair
from mooring import ConfigError, InvalidInput, MooringError, ServerError
from mooring._memory_regions import SystemRegion, make_region
from mooring_serve import TritonServer
from processes import all_gone, family, wait_until
from python_models import NAMED_BACK, write_python_model
from recording_models import write_recorder

pytestmark = pytest.mark.integration

MIXED_CONFIG = """
    backend: "python"
    max_batch_size: 4
    input { name: "numbers" data_type: TYPE_FP64 dims: [-1] }
    input { name: "texts" data_type: TYPE_STRING dims: [-1] }
    output { name: "out_numbers" data_type: TYPE_FP64 dims: [-1] }
    output { name: "out_texts" data_type: TYPE_STRING dims: [-1] }
"""
NUMBERS = np.float64([[1, -2.5, np.pi], [0, np.inf, 1e300]])
TEXTS = np.array([[b"\xff\x00", b"", "grün".encode()], [b"a" * 300, b"b", b"c"]], np.object_)
INPUTS = {"numbers": NUMBERS, "texts": TEXTS}
NAME = "mooring-test-region"
#: Holds a region until it is killed.
HOLDER = f"""
import sys, time
from mooring import Client
client = Client(sys.argv[1])
with client.shared_memory(input_bytes=64, name={NAME!r}):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("memory")
    repository = folder / "repository"
    write_python_model(repository, "mixed", source=NAMED_BACK, config=MIXED_CONFIG)
    write_recorder(repository)
    with TritonServer(repository, log_file=folder / "tritonserver.log") as running:
        yield running


@pytest.fixture
def client(server: TritonServer, pair: Pair) -> Iterator[AnyClient]:
    with pair(pair.url(server)) as made:
        yield made
    # The server lets go of a region when it has let go of the last request, a moment after its answer.
    wait_until(lambda: registered(server) == [])
    assert left_behind() == []


def registered(server: TritonServer) -> list[str]:
    """Regions that the server has, in its own words."""
    asked = tritonclient.http.InferenceServerClient(server.http_url.partition("://")[2])
    try:
        return [region["name"] for region in asked.get_system_shared_memory_status()]
    finally:
        asked.close()


def left_behind() -> list[str]:
    """Memory of this process's clients; the server's own has longer names."""
    ours = re.compile(rf"mooring-{os.getpid()}-[0-9a-f]+|{NAME}")
    return [path.name for path in Path("/dev/shm").iterdir() if ours.fullmatch(path.name)]


def check(answer: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(answer["out_numbers"], NUMBERS)
    np.testing.assert_array_equal(answer["out_texts"], TEXTS)
    assert (answer["out_numbers"].dtype, answer["out_texts"].dtype) == (np.float64, np.object_)


def test_inputs_in_shared_memory(client: AnyClient, server: TritonServer) -> None:
    with client.shared_memory(input_bytes=1000) as memory:
        assert registered(server) == [memory.name]
        for _ in range(2):
            check(client.infer("mixed", INPUTS, shared_memory=memory))
    assert client.counters().sent_bytes == 0
    assert client.counters().received_bytes > 2 * NUMBERS.nbytes


def test_outputs_in_shared_memory(client: AnyClient) -> None:
    sizes = {"out_numbers": NUMBERS.nbytes, "out_texts": 1000}
    with client.shared_memory(input_bytes=1000, output_bytes=sizes) as memory:
        kept = client.infer("mixed", INPUTS, shared_memory=memory)
        other = {"numbers": NUMBERS * 2, "texts": TEXTS[:, ::-1]}
        client.infer("mixed", other, shared_memory=memory)
        check(kept)  # an answer does not change with the next request
        only = client.infer("mixed", INPUTS, outputs=["out_texts"], shared_memory=memory)
        assert set(only) == {"out_texts"}
    check(kept)
    assert client.counters().received_bytes == 0


def test_some_outputs_in_shared_memory(client: AnyClient) -> None:
    with client.shared_memory(input_bytes=1000, output_bytes={"out_texts": 1000}) as memory:
        check(client.infer("mixed", INPUTS, shared_memory=memory))
    assert client.counters().received_bytes == NUMBERS.nbytes


def test_large_tensors(client: AnyClient) -> None:
    numbers = np.random.default_rng(0).normal(size=(4, 500_000))
    inputs = {"numbers": numbers, "texts": np.full((4, 1), b"x", np.object_)}
    sizes = {"out_numbers": numbers.nbytes}
    with client.shared_memory(input_bytes=numbers.nbytes + 100, output_bytes=sizes) as memory:
        answer = client.infer("mixed", inputs, shared_memory=memory)
    np.testing.assert_array_equal(answer["out_numbers"], numbers)


def test_what_does_not_fit(client: AnyClient) -> None:
    with (
        client.shared_memory(input_bytes=50) as memory,
        pytest.raises(InvalidInput, match=r"input 'texts' of \d+ bytes does not fit|'numbers' of 48 bytes"),
    ):
        client.infer("mixed", INPUTS, shared_memory=memory)
    with client.shared_memory(input_bytes=1000, output_bytes={"out_numbers": 47}) as memory:
        with pytest.raises(ServerError, match=r"shared memory|byte size|out_numbers"):
            client.infer("mixed", INPUTS, shared_memory=memory)
        fewer = {name: array[:1] for name, array in INPUTS.items()}
        answer = client.infer("mixed", fewer, shared_memory=memory)
        np.testing.assert_array_equal(answer["out_numbers"], NUMBERS[:1])
    with (
        client.shared_memory(input_bytes=1000, output_bytes={"nope": 8}) as memory,
        pytest.raises(InvalidInput, match="there is no output 'nope'"),
    ):
        client.infer("mixed", INPUTS, shared_memory=memory)


def test_a_region_serves_one_request_at_a_time(client: AnyClient) -> None:
    slow, quick = {"x": np.float32([[1]])}, {"x": np.float32([[0]])}
    with client.shared_memory(input_bytes=100) as memory, ThreadPoolExecutor(8) as pool:
        client.infer("recorder", quick, shared_memory=memory)
        calls = [pool.submit(client.infer, "recorder", slow, shared_memory=memory) for _ in range(8)]
        errors = [error for call in calls if (error := call.exception()) is not None]
        assert len(errors) == 7
        assert {type(error) for error in errors} == {ConfigError}
        assert "is in use: it serves one request at a time" in str(errors[0])
        client.infer("recorder", quick, shared_memory=memory)


def test_a_closed_region(client: AnyClient) -> None:
    memory = client.shared_memory(input_bytes=1000)
    with pytest.raises(ConfigError, match="is not open: use it in a with block"):
        client.infer("mixed", INPUTS, shared_memory=memory)
    with memory:
        pass
    with pytest.raises(ConfigError, match="is not open"):
        client.infer("mixed", INPUTS, shared_memory=memory)


def test_a_killed_clients_region_is_replaced(client: AnyClient, pair: Pair, server: TritonServer) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, pair.url(server)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "ready\n"
    processes = family(holder.pid)  # one of them would remove the memory once the client is dead
    for pid in reversed(processes):
        os.kill(pid, signal.SIGKILL)
    holder.wait()
    assert all_gone([holder.pid])
    assert registered(server) == [NAME]
    assert Path("/dev/shm", NAME).stat().st_size == 64
    with client.shared_memory(input_bytes=1000, output_bytes={"out_texts": 1000}, name=NAME) as memory:
        check(client.infer("mixed", INPUTS, shared_memory=memory))
        assert registered(server) == [NAME]


def test_an_error_in_the_block_leaves_nothing_behind(client: AnyClient) -> None:
    with pytest.raises(KeyError), client.shared_memory(input_bytes=100):
        raise KeyError("on purpose")


def test_a_server_that_died_leaves_nothing_behind(tmp_path: Path, pair: Pair) -> None:
    repository = write_python_model(tmp_path / "repository")
    with (
        TritonServer(repository, log_file=tmp_path / "tritonserver.log") as server,
        pair(pair.url(server), timeout_s=5) as client,
        client.shared_memory(input_bytes=100, name=NAME) as memory,
    ):
        client.infer("echo", {"x": np.float32([[1]])}, shared_memory=memory)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.is_alive())
        with pytest.raises(MooringError):
            client.infer("echo", {"x": np.float32([[1]])}, shared_memory=memory)
    assert left_behind() == []


def test_memory_that_the_server_can_not_map(
    client: AnyClient, server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that has a /dev/shm of its own."""
    registration: Any = SystemRegion.registration

    def elsewhere(region: SystemRegion) -> Any:
        operation = registration(region)
        operation.key = "/mooring-test-nowhere"
        return operation

    monkeypatch.setattr(SystemRegion, "registration", elsewhere)
    with (
        pytest.raises(ServerError, match=r"must run on this machine .*--allow-client-shm=true"),
        client.shared_memory(input_bytes=100),
    ):
        raise AssertionError("it was registered")


def _gpu_missing() -> str:
    """Why CUDA memory can't be shared here; empty where it can."""
    try:
        make_region("cuda", "mooring-test-cuda", 64, device_id=0).close()
    except ConfigError as error:
        return str(error)
    return ""


def test_cuda_memory_without_a_gpu(client: AnyClient) -> None:
    if not _gpu_missing():
        pytest.skip("there is a GPU here")
    with (
        pytest.raises(ConfigError, match=r"CUDA shared memory can't be made on GPU 0: .*CUDA|cuda-python"),
        client.shared_memory(input_bytes=100, kind="cuda"),
    ):
        raise AssertionError("it was made")


@pytest.mark.gpu
def test_cuda_memory(client: AnyClient) -> None:
    reason = _gpu_missing()
    if reason:
        pytest.skip(reason)
    with client.shared_memory(input_bytes=1000, output_bytes={"out_texts": 1000}, kind="cuda") as memory:
        check(client.infer("mixed", INPUTS, shared_memory=memory))
