"""The client against a real tritonserver, over both protocols: same answers, same errors.

The models are tiny and in Python; they keep the contract of the ``ner`` and ``intent`` pipelines.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from driven_clients import THREADS_PAIRS, AnyClient, Pair
from mooring import (
    Client,
    ConnectError,
    DeadlineExceeded,
    DynamicBatching,
    Entity,
    InvalidInput,
    Label,
    ModelNotFound,
    ModelNotReady,
    MooringError,
    Overloaded,
    RetryPolicy,
    Throttled,
    ThrottlePolicy,
)
from mooring._cli import main
from mooring_serve import TritonServer
from python_models import NAMED_BACK, write_python_model

pytestmark = pytest.mark.integration

TEXTS = """
    def texts_of(request):
        texts = []
        for index, raw in enumerate(pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[:, 0]):
            if not raw:
                raise ValueError(f"text {index} is empty")
            try:
                texts.append(raw.decode("utf-8"))
            except UnicodeDecodeError as exc:
                raise ValueError(f"text {index} is not valid UTF-8 (byte {exc.start})")
            if len(texts[-1]) > 100:
                raise ValueError(f"text {index} has {len(texts[-1])} tokens, this model takes at most 100")
        return texts


    class TritonPythonModel:
        def execute(self, requests):
            responses = []
            for request in requests:
                try:
                    responses.append(pb_utils.InferenceResponse(answer(texts_of(request))))
                except ValueError as exc:
                    error = pb_utils.TritonError(str(exc), pb_utils.TritonError.INVALID_ARG)
                    responses.append(pb_utils.InferenceResponse([], error))
            return responses
"""
NER = """
    import re
    import numpy as np
    import triton_python_backend_utils as pb_utils


    def answer(texts):
        rows = [[m.span() for m in re.finditer(r"[A-ZÄÖÜ]\\w*", text)] for text in texts]
        shape = (len(texts), max(map(len, rows)))
        label, entity = np.full(shape, b"", object), np.full(shape, b"", object)
        score = np.zeros(shape, np.float32)
        start, end = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
        for i, (text, row) in enumerate(zip(texts, rows)):
            for j, (first, last) in enumerate(row):
                label[i, j], entity[i, j] = b"NAME", text[first:last].encode()
                score[i, j], start[i, j], end[i, j] = 0.75, first, last
        named = {"label": label, "score": score, "start": start, "end": end, "entity": entity}
        return [pb_utils.Tensor(name, array) for name, array in named.items()]
"""
INTENT = """
    import numpy as np
    import triton_python_backend_utils as pb_utils


    def answer(texts):
        long = np.array([len(text) / 100 for text in texts], np.float32)
        label = [[b"long", b"short"] if share > 0.5 else [b"short", b"long"] for share in long]
        score = np.sort(np.stack([long, 1 - long], axis=1), axis=1)[:, ::-1].copy()
        return [pb_utils.Tensor("label", np.array(label, object)), pb_utils.Tensor("score", score)]
"""
NER_CONFIG = """
    backend: "python"
    max_batch_size: 4
    input { name: "text" data_type: TYPE_STRING dims: [1] }
    output { name: "label" data_type: TYPE_STRING dims: [-1] }
    output { name: "score" data_type: TYPE_FP32 dims: [-1] }
    output { name: "start" data_type: TYPE_INT32 dims: [-1] }
    output { name: "end" data_type: TYPE_INT32 dims: [-1] }
    output { name: "entity" data_type: TYPE_STRING dims: [-1] }
    parameters { key: "task" value { string_value: "token-classification" } }
"""
INTENT_CONFIG = """
    backend: "python"
    max_batch_size: 4
    input { name: "text" data_type: TYPE_STRING dims: [1] }
    output { name: "label" data_type: TYPE_STRING dims: [2] }
    output { name: "score" data_type: TYPE_FP32 dims: [2] }
    parameters { key: "task" value { string_value: "text-classification" } }
"""
SLOW = """
    import time
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            tensors = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
            time.sleep(float(tensors[0].max()))
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", tensor)]) for tensor in tensors]
"""
SLOW_CONFIG = """
    backend: "python"
    max_batch_size: 1
    input { name: "x" data_type: TYPE_FP32 dims: [1] }
    output { name: "y" data_type: TYPE_FP32 dims: [1] }
    instance_group { count: 1 kind: KIND_CPU }
    dynamic_batching { default_queue_policy { max_queue_size: 1 } }
"""
OPTIONAL_CONFIG = """
    backend: "python"
    input { name: "x" data_type: TYPE_FP32 dims: [-1] }
    input { name: "unused" data_type: TYPE_STRING dims: [-1, 2] optional: true }
    output { name: "y" data_type: TYPE_FP32 dims: [-1] }
"""
LIMITED_CONFIG = """
    backend: "python"
    max_batch_size: 4
    input { name: "x" data_type: TYPE_FP32 dims: [1] }
    output { name: "y" data_type: TYPE_FP32 dims: [1] }
    instance_group { count: 1 kind: KIND_CPU rate_limiter { resources { name: "cores" count: 1 } } }
    dynamic_batching {
        preferred_batch_size: [2, 4]
        max_queue_delay_microseconds: 500
        default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 700 max_queue_size: 16 }
    }
    response_cache { enable: true }
"""
DTYPES = {
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "STRING": np.object_,
}


def typed_config() -> str:
    tensors = "".join(
        f'{kind} {{ name: "{name}{datatype}" data_type: TYPE_{datatype} dims: [-1] }}\n'
        for datatype in DTYPES
        for kind, name in (("input", ""), ("output", "out_"))
    )
    return f'backend: "python"\nmax_batch_size: 4\n{tensors}'


def write_models(repository: Path) -> Path:
    write_python_model(repository, "ner", source=NER + TEXTS, config=NER_CONFIG)
    write_python_model(repository, "intent", source=INTENT + TEXTS, config=INTENT_CONFIG)
    write_python_model(repository, "slow", source=SLOW, config=SLOW_CONFIG)
    write_python_model(repository, "typed", source=NAMED_BACK, config=typed_config())
    write_python_model(repository, "optional", config=OPTIONAL_CONFIG)
    write_python_model(repository, "limited", config=LIMITED_CONFIG)
    write_python_model(repository, "broken", source="raise ValueError('broken on purpose')")
    return repository


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("client")
    log_file = folder / "tritonserver.log"
    with TritonServer(
        write_models(folder / "repository"), log_file=log_file, strict_readiness=False
    ) as running:
        yield running


@pytest.fixture
def client(server: TritonServer, pair: Pair) -> Iterator[AnyClient]:
    with pair(pair.url(server)) as made:
        yield made


def test_entities_and_labels(client: AnyClient) -> None:
    text = "🙂 Ähre und Zoë"
    assert client.ask("ner", [text, "nichts"]) == [
        [
            Entity(label="NAME", score=0.75, start=2, end=6, text="Ähre"),
            Entity(label="NAME", score=0.75, start=11, end=14, text="Zoë"),
        ],
        [],
    ]
    assert client.ask("ner", "nichts") == []
    assert client.ask("intent", "x" * 75) == [
        Label(label="long", score=0.75),
        Label(label="short", score=0.25),
    ]


def test_more_texts_than_a_batch(client: AnyClient) -> None:
    texts = [f"{'A' * i} and {'B' * (i % 7)}b" for i in range(1, 12)]
    answers = client.ask("ner", texts)
    assert answers == [client.ask("ner", text) for text in texts]
    assert [answer[0].text for answer in answers] == ["A" * i for i in range(1, 12)]


def test_texts_that_the_server_refuses(client: AnyClient) -> None:
    with pytest.raises(
        InvalidInput, match=r"^model 'ner': text 1 has 101 tokens, this model takes at most 100"
    ) as e:
        client.ask("ner", ["short", "x" * 101])
    assert e.value.code in ("INVALID_ARGUMENT", "400")
    with pytest.raises(
        InvalidInput, match=r"text 1 has 101 .* \(text 0 of that request is text 4 of the call\)"
    ):
        client.ask("ner", ["short"] * 5 + ["x" * 101])
    raw = np.array([[b"gr\xfc\xdfe"]], np.object_)
    with pytest.raises(InvalidInput, match=r"text 0 is not valid UTF-8 \(byte 2\)"):
        client.infer("ner", {"text": raw})
    with pytest.raises(InvalidInput, match="text 0 is empty"):
        client.infer("ner", {"text": np.array([[b""]], np.object_)})


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("", "text 0 is empty"),
        ([], "the list of texts is empty"),
        (["a", "\ud800"], "text 1 can't be written as"),
    ],
)
def test_texts_that_are_not_sent(client: AnyClient, texts: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        client.ask("ner", texts)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (
            {"text": np.array(["a"])},
            r"has shape \[1\]; expected \[-1, 1\]; the first axis is the batch, 1 to 4",
        ),
        ({"text": np.array([["a"]] * 5)}, "holds 5 rows; expected at most 4"),
        ({"text": np.array([[1]])}, "is int64; expected BYTES"),
        ({"words": np.array([["a"]])}, r"there is no input 'words'; expected text BYTES\[-1, 1\]"),
    ],
)
def test_tensors_that_are_not_sent(client: AnyClient, inputs: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        client.infer("ner", inputs)


def test_unknown_and_unloaded_models(client: AnyClient) -> None:
    x = {"x": np.float32([[1]])}
    with pytest.raises(ModelNotFound, match=r"^model 'nope': Request for unknown model: 'nope' is not found"):
        client.infer("nope", x)
    with pytest.raises(ModelNotFound, match=r"^model 'ner' version 7: .* version 7 is not found"):
        client.task("ner", version="7")
    with pytest.raises(ModelNotReady, match=r"^model 'broken': .*has no available versions"):
        client.infer("broken", x)
    assert not client.ready("nope")
    assert not client.ready("broken")
    assert not client.ready("ner", version="7")
    assert client.ready("ner", version="1")
    assert client.server_ready()


def test_a_model_without_a_task(client: AnyClient) -> None:
    with pytest.raises(MooringError, match=r"^model 'slow' does not say its task .*: customer-service, "):
        client.task("slow")


def test_descriptions_are_the_same_over_both_protocols(server: TritonServer) -> None:
    with Client(server.grpc_url) as grpc, Client(server.http_url) as http:
        for model in ("ner", "intent", "slow", "typed", "optional", "limited"):
            assert grpc.metadata(model) == http.metadata(model)
            assert grpc.config(model) == http.config(model)
        assert grpc.config("optional").optional_inputs == ("unused",)
        assert grpc.config("ner").parameters == {"task": "token-classification"}
        limited = grpc.config("limited")
        assert (limited.instance_count, limited.instance_kinds) == (1, ("KIND_CPU",))
        assert limited.dynamic_batching == DynamicBatching(
            preferred_batch_sizes=(2, 4), max_queue_delay_us=500, max_queue_size=16, queue_timeout_us=700
        )
        assert limited.resources == {"cores": 1}
        assert limited.response_cache
        assert sorted(grpc.models(), key=str) == sorted(http.models(), key=str)
        states = {model.name: model for model in http.models()}
        assert (states["ner"].state, states["ner"].version) == ("READY", "1")
        assert states["broken"].state == "UNAVAILABLE"
        assert "broken on purpose" in states["broken"].reason


def test_every_data_type_passes(client: AnyClient) -> None:
    inputs = {
        name: np.array([[b"\xff\x00", b""], [b"a", "ü".encode()]], dtype)
        if name == "STRING"
        else np.array([[0, 1], [1, 0]], dtype)
        for name, dtype in DTYPES.items()
    }
    answer = client.infer("typed", inputs)
    assert set(answer) == {f"out_{name}" for name in DTYPES}
    for name, sent in inputs.items():
        assert answer[f"out_{name}"].dtype == sent.dtype
        np.testing.assert_array_equal(answer[f"out_{name}"], sent)
    some = client.infer("typed", inputs, outputs=["out_STRING", "out_BOOL"], request_id="some", version="1")
    assert set(some) == {"out_STRING", "out_BOOL"}
    with pytest.raises(InvalidInput, match=r"input 'FP16' is bfloat16; expected FP16 \(float16\)"):
        client.infer("typed", {**inputs, "FP16": np.zeros((2, 2), ml_dtypes.bfloat16)})


def test_optional_inputs_and_models_that_do_not_batch(client: AnyClient) -> None:
    x = np.arange(3, dtype=np.float32)
    assert client.infer("optional", {"x": x})["y"].tolist() == [0, 1, 2]
    assert client.infer("optional", {"x": x, "unused": np.array([["a", "b"]])})["y"].tolist() == [0, 1, 2]


def test_a_full_queue(client: AnyClient) -> None:
    wait = {"x": np.float32([[0.5]])}
    client.infer("slow", {"x": np.float32([[0]])})

    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(client.infer, "slow", wait) for _ in range(6)]
    errors = [call.exception() for call in calls]
    assert {type(error) for error in errors} == {type(None), Overloaded}
    assert {"Exceeds maximum queue size" in str(error) for error in errors if error} == {True}


def test_a_full_queue_is_spared_by_a_client_that_throttles(server: TritonServer, pair: Pair) -> None:
    wait = {"x": np.float32([[0.1]])}
    policies: dict[str, Any] = {"throttle": ThrottlePolicy(window_s=60), "retry": RetryPolicy(max_retries=0)}
    with pair(pair.url(server), **policies) as client:
        client.infer("slow", {"x": np.float32([[0]])})
        before = client.counters().requests
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(client.infer, "slow", wait) for _ in range(200)]
        kinds = Counter(type(call.exception()) for call in calls)
        assert set(kinds) == {type(None), Overloaded, Throttled}
        counters = client.counters()
        (endpoint,) = counters.endpoints
        # After few requests nine of ten are held back.
        assert endpoint.throttled == kinds[Throttled] > 100
        assert counters.requests - before == kinds[type(None)] + kinds[Overloaded]


def test_a_deadline(client: AnyClient) -> None:
    client.infer("slow", {"x": np.float32([[0]])})
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.\d+ s"):
        client.infer("slow", {"x": np.float32([[1]])}, timeout_s=0.2)
    assert client.infer("slow", {"x": np.float32([[0]])})["y"].tolist() == [[0]]


def test_a_closed_port(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"{pair.protocol}://127.0.0.1:{port}"
    with (
        pair(url) as client,
        pytest.raises(ConnectError, match=f"^{url}: can't connect; is the server running"),
    ):
        client.task("ner")


def test_the_port_of_the_other_protocol(server: TritonServer, pair: Pair) -> None:
    other = server.http_url if pair.protocol == "grpc" else server.grpc_url
    url = f"{pair.protocol}://{other.partition('://')[2]}"
    with (
        pair(url, timeout_s=10) as client,
        pytest.raises(MooringError, match=r"HTTP port|gRPC port|can't connect"),
    ):
        client.server_ready()


@pytest.mark.parametrize("pair", THREADS_PAIRS, ids=str)
def test_predict_command(server: TritonServer, pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "ner", "Anna in Bonn", "--url", pair.url(server)]) == 0
    assert capsys.readouterr().out == (
        "Anna in Bonn\n  NAME  0.7500        0:4  Anna\n  NAME  0.7500       8:12  Bonn\n"
    )
    assert main(["predict", "ner", "x" * 101, "--url", pair.url(server)]) == 2
    assert "text 0 has 101 tokens" in capsys.readouterr().err
