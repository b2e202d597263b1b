"""What goes with a request beside its tensors, against a real tritonserver: it arrives, and it acts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from driven_clients import AnyClient, Pair
from fault_proxy import FaultProxy
from mooring import InvalidInput, ModelNotFound, SequenceStep, ServerError
from mooring_serve import TritonServer
from processes import settled, wait_until
from python_models import write_python_model

pytestmark = pytest.mark.integration

MIRROR = """
    import json
    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            responses = []
            for request in requests:
                said = {
                    "id": request.request_id(),
                    "timeout_us": request.timeout(),
                    "parameters": json.loads(request.parameters()),
                }
                tensor = pb_utils.Tensor("said", np.array([json.dumps(said).encode()], object))
                responses.append(pb_utils.InferenceResponse([tensor]))
            return responses
"""
MIRROR_CONFIG = """
    backend: "python"
    input { name: "x" data_type: TYPE_FP32 dims: [1] }
    output { name: "said" data_type: TYPE_STRING dims: [1] }
    dynamic_batching {
      priority_levels: 3
      default_priority_level: 2
      default_queue_policy { allow_timeout_override: true default_timeout_microseconds: 60000000 }
    }
"""
# numpy knows no BF16, so the tensor goes from input to output as it is.
BF16 = """
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            given = [pb_utils.get_input_tensor_by_name(request, "x").to_dlpack() for request in requests]
            return [pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("y", x)]) for x in given]
"""
BF16_CONFIG = """
    backend: "python"
    max_batch_size: 4
    input { name: "x" data_type: TYPE_BF16 dims: [-1] }
    output { name: "y" data_type: TYPE_BF16 dims: [-1] }
"""
# Each of the two instances follows one sequence at a time.
RUNNING_SUM = """
    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            responses = []
            for request in requests:
                if pb_utils.get_input_tensor_by_name(request, "START").as_numpy().flat[0]:
                    self.sum = 0
                self.sum += int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy().flat[0])
                total = pb_utils.Tensor("sum", np.array([self.sum], np.int32))
                responses.append(pb_utils.InferenceResponse([total]))
            return responses
"""
RUNNING_SUM_CONFIG = """
    backend: "python"
    input { name: "x" data_type: TYPE_INT32 dims: [1] }
    output { name: "sum" data_type: TYPE_INT32 dims: [1] }
    instance_group { count: 2 kind: KIND_CPU }
    sequence_batching {
      max_sequence_idle_microseconds: 60000000
      control_input {
        name: "START"
        control { kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }
      }
    }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("requests")
    repository = write_python_model(folder / "repository")
    write_python_model(repository, "mirror", source=MIRROR, config=MIRROR_CONFIG)
    write_python_model(repository, "bf16", source=BF16, config=BF16_CONFIG)
    write_python_model(repository, "sum", source=RUNNING_SUM, config=RUNNING_SUM_CONFIG)
    # Over gRPC the server alone decides whether its answers are compressed.
    options = ("--grpc-infer-response-compression-level=low",)
    with TritonServer(repository, log_file=folder / "tritonserver.log", extra_args=options) as running:
        yield running


@pytest.fixture
def client(server: TritonServer, pair: Pair) -> Iterator[AnyClient]:
    with pair(pair.url(server)) as made:
        yield made


def test_bf16_passes(client: AnyClient) -> None:
    values = np.float32([[1.5, -2, 3.14159, np.inf], [0, 1e-3, 65504, -0.0]])
    rounded = values.astype(ml_dtypes.bfloat16)
    for sent in (values, rounded):
        answer = client.infer("bf16", {"x": sent})["y"]
        assert answer.dtype == np.float32
        np.testing.assert_array_equal(answer, rounded.astype(np.float32))


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_requests_are_compressed(server: TritonServer, pair: Pair, compression: Any) -> None:
    x = np.zeros((2, 100_000), np.float32)
    x[0, 0], x[1, -1] = 1, 2
    with FaultProxy(pair.address(server)) as proxy, pair(f"{pair.protocol}://{proxy.address}") as client:
        client.metadata("echo")
        before = proxy.bytes_to_server
        answer = client.infer("echo", {"x": x}, request_compression=compression)["y"]
        np.testing.assert_array_equal(answer, x)
        assert proxy.bytes_to_server - before < 50_000
        client.infer("echo", {"x": x})
        assert proxy.bytes_to_server - before > x.nbytes


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_answers_are_compressed(server: TritonServer, pair: Pair, compression: Any) -> None:
    x = np.zeros((2, 100_000), np.float32)
    x[0, 0], x[1, -1] = 1, 2
    with FaultProxy(pair.address(server)) as proxy, pair(f"{pair.protocol}://{proxy.address}") as client:
        answer = client.infer("echo", {"x": x}, response_compression=compression)["y"]
        np.testing.assert_array_equal(answer, x)
        assert proxy.bytes_to_client < 50_000


def test_what_goes_with_a_request_arrives(client: AnyClient) -> None:
    x = {"x": np.float32([1])}

    def said(**options: Any) -> Any:
        return json.loads(client.infer("mirror", x, **options)["said"][0])

    assert said(timeout_s=20, request_id="aß-1")["id"] == "aß-1"
    assert 15_000_000 < said(timeout_s=20)["timeout_us"] <= 20_000_000
    given = {"yes": True, "no": False, "count": 7, "big": -(2**60), "share": 0.25, "text": "ü"}
    arrived = said(parameters=given, priority=1)["parameters"]
    assert {name: arrived[name] for name in given} == given
    assert [type(arrived[name]) for name in given] == [bool, bool, int, int, float, str]


def test_a_priority_that_the_model_does_not_have(client: AnyClient) -> None:
    x = {"x": np.float32([1])}
    assert client.infer("mirror", x, priority=3)
    # tritonserver takes what is out of range for the default.
    assert client.infer("mirror", x, priority=4)


@pytest.mark.parametrize("ids", [(11, 12), ("one", "two")])
def test_interleaved_sequences(client: AnyClient, ids: tuple[int | str, int | str]) -> None:
    def add(index: int, value: int, **step: bool) -> int:
        sequence = SequenceStep(id=ids[index], **step)
        answer = client.infer("sum", {"x": np.int32([value])}, sequence=sequence)
        return int(answer["sum"][0])

    assert [add(0, 1, start=True), add(1, 10, start=True)] == [1, 10]
    assert [add(0, 2), add(1, 20), add(1, 30), add(0, 3)] == [3, 30, 60, 6]
    assert [add(1, 40, end=True), add(0, 4, end=True)] == [100, 10]
    with pytest.raises(InvalidInput, match="must specify the START flag"):
        add(0, 5)


def test_a_sequence_model_without_a_sequence(client: AnyClient) -> None:
    with pytest.raises(InvalidInput, match="must specify a non-zero or non-empty correlation ID"):
        client.infer("sum", {"x": np.int32([1])})


def test_statistics_count_calls(client: AnyClient) -> None:
    def counted() -> tuple[int, int, int]:
        (entry,) = client.statistics("echo", version="1")
        return entry.inference_count, entry.execution_count, entry.success.count

    before = settled(counted)
    for batch in (1, 3):
        client.infer("echo", {"x": np.zeros((batch, 2), np.float32)})
    wait_until(lambda: np.subtract(counted(), before).tolist() == [4, 2, 2])
    (entry,) = client.statistics("echo")
    assert {batch.batch_size for batch in entry.batches} >= {1, 3}
    assert entry.last_inference_ms > 1.7e12
    assert entry.success.mean_ms > 0
    assert {entry.name for entry in client.statistics()} == {"bf16", "echo", "mirror", "sum"}
    with pytest.raises(ModelNotFound, match=r"^model 'nope': requested model 'nope' is not available"):
        client.statistics("nope")
    with pytest.raises(ModelNotFound, match=r"^model 'echo' version 7: .* version is not available"):
        client.statistics("echo", version="7")


def test_the_server_describes_itself(client: AnyClient) -> None:
    said = client.server_metadata()
    assert said.name.startswith("mooring-")  # the server's --id
    assert said.version == "2.51.0"
    assert {"sequence", "schedule_policy", "system_shared_memory"} <= set(said.extensions)


def test_counters_count(client: AnyClient) -> None:
    x = np.zeros((2, 10), np.float32)
    for _ in range(3):
        client.infer("echo", {"x": x})
    with pytest.raises(ModelNotFound):
        client.metadata("nope")
    counters = client.counters()
    # Metadata and config once, three inferences, and the unknown model.
    assert (counters.calls, counters.failed_calls, counters.requests, counters.retries) == (6, 1, 6, 0)
    assert counters.sent_bytes == counters.received_bytes == 3 * x.nbytes
    assert [(one.circuit, one.outstanding, one.failures) for one in counters.endpoints] == [("closed", 0, 0)]


def test_loading_that_the_server_does_not_allow(client: AnyClient) -> None:
    for change in (client.load, client.unload):
        with pytest.raises(
            ServerError, match="start tritonserver with --model-control-mode=explicit"
        ) as caught:
            change("echo")
        assert type(caught.value) is ServerError
    assert client.counters().retries == 0
    assert client.ready("echo")
