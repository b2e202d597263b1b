"""Decoupled models on a real tritonserver: any number of responses, errors among them, and giving up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from crashes import skipped_if_the_server_dies
from driven_clients import COROUTINES_PAIRS, AnyClient, CoroutinesClient, Pair, timed
from mooring import DeadlineExceeded, InvalidInput, ModelNotFound, ServerError
from mooring_serve import TritonServer
from processes import wait_until
from python_models import write_python_model

pytestmark = pytest.mark.integration

# Gives 0, 1, ... below n, a pause apart; a value below 0 in "fail_at" means never.
COUNT = """
    import time
    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            for request in requests:
                n, pause_ms, fail_at = (
                    int(pb_utils.get_input_tensor_by_name(request, name).as_numpy().flat[0])
                    for name in ("n", "pause_ms", "fail_at")
                )
                self.answer(request, n, pause_ms / 1000, fail_at)

        def answer(self, request, n, pause_s, fail_at):
            sender = request.get_response_sender()
            for i in range(n):
                if request.is_cancelled():
                    with open({cancelled!r}, "a") as marks:
                        marks.write(f"{{request.request_id()}} {{i}}\\n")
                    break
                if i == fail_at:
                    error = pb_utils.TritonError(f"failed at {{i}} on purpose")
                    sender.send(pb_utils.InferenceResponse([], error))
                    break
                index = pb_utils.Tensor("index", np.array([i], np.int32))
                word = pb_utils.Tensor("word", np.array([f"wörd {{i}}".encode()], object))
                sender.send(pb_utils.InferenceResponse([index, word]))
                time.sleep(pause_s)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
COUNT_CONFIG = """
    backend: "python"
    input { name: "n" data_type: TYPE_INT32 dims: [1] }
    input { name: "pause_ms" data_type: TYPE_INT32 dims: [1] }
    input { name: "fail_at" data_type: TYPE_INT32 dims: [1] }
    output { name: "index" data_type: TYPE_INT32 dims: [1] }
    output { name: "word" data_type: TYPE_STRING dims: [1] }
    model_transaction_policy { decoupled: true }
"""


def count_to(n: int, *, pause_ms: int = 0, fail_at: int = -1) -> dict[str, np.ndarray]:
    values = {"n": n, "pause_ms": pause_ms, "fail_at": fail_at}
    return {name: np.int32([value]) for name, value in values.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[TritonServer]:
    source = COUNT.format(cancelled=str(folder / "cancelled"))
    repository = write_python_model(folder / "repository", "count", source=source, config=COUNT_CONFIG)
    write_python_model(repository)
    with TritonServer(repository, log_file=folder / "tritonserver.log") as running:
        yield running


@pytest.fixture
def client(server: TritonServer, pair: Pair) -> Iterator[AnyClient]:
    with pair(pair.url(server)) as made:
        yield made


def cancelled_at(folder: Path, request_id: str) -> int | None:
    """How many responses the server had made when it saw that the request was given up."""
    marks = folder / "cancelled"
    for line in marks.read_text().splitlines() if marks.exists() else ():
        name, _, responses = line.partition(" ")
        if name == request_id:
            return int(responses)
    return None


def test_all_responses_in_order(client: AnyClient) -> None:
    responses, error = client.collect("count", count_to(50))
    assert error is None
    assert [int(response["index"][0]) for response in responses] == list(range(50))
    assert [response["word"].tolist() for response in responses] == [
        [f"wörd {i}".encode()] for i in range(50)
    ]
    assert {response["index"].dtype for response in responses} == {np.dtype(np.int32)}


def test_one_response_and_none(client: AnyClient) -> None:
    assert client.collect("count", count_to(0)) == ([], None)
    (response,), error = client.collect("count", count_to(1))
    assert (response["index"].tolist(), error) == ([0], None)


def test_wanted_outputs_only(client: AnyClient) -> None:
    responses, error = client.collect("count", count_to(2), outputs=["word"])
    assert error is None
    assert [set(response) for response in responses] == [{"word"}, {"word"}]
    _, error = client.collect("count", count_to(2), outputs=["words"])
    assert isinstance(error, InvalidInput)


@skipped_if_the_server_dies
def test_responses_come_as_they_are_made(client: AnyClient, server: TritonServer) -> None:
    """The first one is there long before the last: the whole stream would take half an hour."""
    responses, error = client.collect("count", count_to(20_000, pause_ms=100), limit=1, timeout_s=20)
    assert (len(responses), error) == (1, None)


def test_an_error_in_the_midst(client: AnyClient) -> None:
    responses, error = client.collect("count", count_to(10, fail_at=3))
    assert [int(response["index"][0]) for response in responses] == [0, 1, 2]
    assert type(error) is ServerError
    assert str(error).startswith("model 'count': failed at 3 on purpose")
    assert client.counters().retries == 0


def test_an_error_at_the_start(client: AnyClient) -> None:
    responses, error = client.collect("count", count_to(10, fail_at=0))
    assert responses == []
    assert isinstance(error, ServerError)
    assert "failed at 0 on purpose" in str(error)


@skipped_if_the_server_dies
def test_closing_early_cancels_on_the_server(
    client: AnyClient, server: TritonServer, folder: Path, request: pytest.FixtureRequest
) -> None:
    request_id = f"early-{request.node.callspec.id}"
    inputs = count_to(1000, pause_ms=20)
    responses, error = client.collect("count", inputs, limit=3, request_id=request_id)
    assert (len(responses), error) == (3, None)
    wait_until(lambda: cancelled_at(folder, request_id) is not None)
    assert (cancelled_at(folder, request_id) or 0) < 900
    assert client.collect("count", count_to(2))[1] is None


@skipped_if_the_server_dies
def test_a_deadline_in_the_midst_cancels_on_the_server(
    client: AnyClient, server: TritonServer, folder: Path, request: pytest.FixtureRequest
) -> None:
    request_id = f"deadline-{request.node.callspec.id}"
    inputs = count_to(1000, pause_ms=20)
    client.collect("count", count_to(1))
    ended = timed(lambda: client.collect("count", inputs, request_id=request_id, timeout_s=1), timeout_s=1)
    responses, error = ended.value
    assert 1 <= len(responses) < 500
    assert isinstance(error, DeadlineExceeded)
    wait_until(lambda: cancelled_at(folder, request_id) is not None)


@pytest.mark.parametrize("pair", COROUTINES_PAIRS, ids=str)
@skipped_if_the_server_dies
def test_cancelling_a_task_cancels_on_the_server(
    client: CoroutinesClient, server: TritonServer, folder: Path, request: pytest.FixtureRequest
) -> None:
    request_id = f"task-{request.node.callspec.id}"
    begun = threading.Event()

    async def read() -> None:
        async for _ in client.client.stream("count", count_to(1000, pause_ms=20), request_id=request_id):
            begun.set()

    task = asyncio.run_coroutine_threadsafe(read(), client.loop)
    assert begun.wait(20)
    task.cancel()
    wait_until(lambda: cancelled_at(folder, request_id) is not None)


def test_infer_refuses_a_decoupled_model(client: AnyClient) -> None:
    with pytest.raises(InvalidInput, match="'count' answers with any number of responses: call stream"):
        client.infer("count", count_to(1))


def test_streaming_a_model_with_one_response(client: AnyClient, pair: Pair) -> None:
    responses, error = client.collect("echo", {"x": np.float32([[1, 2]])})
    assert error is None
    assert [response["y"].tolist() for response in responses] == [[[1, 2]]]


def test_streaming_what_there_is_not(client: AnyClient) -> None:
    responses, error = client.collect("nope", {})
    assert responses == []
    assert isinstance(error, ModelNotFound)


def test_http_streams_no_larger_shapes(client: AnyClient, pair: Pair) -> None:
    x = np.zeros((2, 3), np.float32)
    responses, error = client.collect("echo", {"x": x})
    if pair.protocol == "grpc":
        np.testing.assert_array_equal(responses[0]["y"], x)
    else:
        assert isinstance(error, InvalidInput)
        assert "can't be streamed over HTTP; use grpc://" in str(error)
