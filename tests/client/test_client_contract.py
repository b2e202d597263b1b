"""The same cases for every client over every transport: same answers, same errors."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from mooring import (
    BatchStatistics,
    ConfigError,
    DurationStatistics,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    ModelStatus,
    Overloaded,
    ServerError,
    ServerMetadata,
    TensorSpec,
)
from mooring._operations import GetMetadata, LoadModel, UnloadModel
from mooring._transport import AsyncTransport, Transport
from mooring._wires._grpc import GrpcTransport
from mooring._wires._grpc_aio import AsyncGrpcTransport
from mooring._wires._http import HttpTransport
from mooring._wires._http_aio import AsyncHttpTransport
from mooring.testing import FakeTransport
from wire_models import in_memory

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


@pytest.mark.parametrize(
    ("seam", "kinds"),
    [
        (Transport, (FakeTransport, GrpcTransport, HttpTransport)),
        (AsyncTransport, (FakeTransport, AsyncGrpcTransport, AsyncHttpTransport)),
    ],
    ids=["threads", "coroutines"],
)
def test_transports_have_the_methods_of_the_seam_with_the_same_parameters(seam: Any, kinds: Any) -> None:
    methods = [name for name in vars(seam) if not name.startswith("_")]
    assert len(methods) == 4
    for kind in kinds:
        for name in methods:
            assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(seam, name)), name


def test_infer_gives_every_output_by_name(wired: Any) -> None:
    answer = wired.client.infer("double", {"x": X})
    assert set(answer) == {"y", "rows"}
    assert answer["y"].dtype == np.float32
    np.testing.assert_array_equal(answer["y"], 2 * X)
    np.testing.assert_array_equal(answer["rows"], [[0], [1]])


def test_infer_gives_only_the_outputs_asked_for(wired: Any) -> None:
    assert set(wired.client.infer("double", {"x": X}, outputs=["rows"])) == {"rows"}
    assert wired.fake.requests[-1].outputs == ("rows",)


def test_optional_input_may_be_given_or_left_out(wired: Any) -> None:
    answer = wired.client.infer("double", {"x": X, "bias": np.float32([[10], [20]])})
    np.testing.assert_array_equal(answer["y"], 2 * X + [[10], [20]])
    assert [tensor.name for tensor in wired.fake.requests[-1].inputs] == ["x", "bias"]


@pytest.mark.parametrize(
    "array", [X.T.copy().T, X[:, ::-1], X.astype(">f4")], ids=["fortran", "reversed", "big-endian"]
)
def test_memory_layout_and_byte_order_do_not_matter(wired: Any, array: np.ndarray) -> None:
    np.testing.assert_array_equal(wired.client.infer("double", {"x": array})["y"], 2 * array)


@pytest.mark.parametrize(
    "array",
    [
        np.array(["grüße", "", "日本", "🙂"]),
        np.array(["grüße", b"", "日本", "🙂".encode()], np.object_),
        np.char.encode(np.array(["grüße", "", "日本", "🙂"]), "utf-8"),
    ],
    ids=["str", "object", "bytes"],
)
def test_text_arrives_as_bytes_from_any_text_array(wired: Any, array: np.ndarray) -> None:
    answer = wired.client.infer("echo", {"t": array})["t"]
    assert answer.dtype == np.object_
    assert answer.tolist() == ["grüße".encode(), b"", "日本".encode(), "🙂".encode()]


def test_bytes_that_are_no_text_pass_unchanged(wired: Any) -> None:
    payload = [b"\xff\x00\xfe", b"\x00", np.bytes_(b"x"), b"a" * 70_000]
    assert wired.client.infer("echo", {"t": np.array(payload, np.object_)})["t"].tolist() == payload


def test_zero_elements_pass_where_the_model_does_not_batch(wired: Any) -> None:
    assert wired.client.infer("echo", {"t": np.empty(0, np.object_)})["t"].shape == (0,)


def test_request_id_and_version_are_sent(wired: Any) -> None:
    wired.client.infer("double", {"x": X}, version="1", request_id="order-7")
    assert (wired.fake.requests[-1].version, wired.fake.requests[-1].request_id) == ("1", "order-7")


BAD_INPUTS = [
    ({"z": X}, r"there is no input 'z'; expected x FP32\[-1, -1\], bias FP32\[-1, 1\]"),
    ({}, r"input 'x' is missing; expected x FP32\[-1, -1\]"),
    ({"x": X.astype(np.float64)}, r"input 'x' is float64; expected FP32 \(float32\)"),
    ({"x": X.astype(str)}, r"input 'x' is <U32; expected FP32"),
    ({"x": X[0]}, r"input 'x' has shape \[3\]; expected \[-1, -1\]; the first axis is the batch, 1 to 3"),
    ({"x": X, "bias": X}, r"input 'bias' has shape \[2, 3\]; expected \[-1, 1\]"),
    ({"x": X[:0]}, r"input 'x' holds an empty batch; expected 1 to 3 rows"),
    ({"x": np.zeros((4, 1), np.float32)}, r"input 'x' holds 4 rows; expected at most 3"),
    ({"x": X, "bias": X[:1, :1]}, r"one batch size, got \{'x': 2, 'bias': 1\}"),
    ({"x": X.tolist()}, r"input 'x' must be a numpy array, got list"),
    ([X], r"inputs must map names to numpy arrays, got list"),
]


@in_memory
@pytest.mark.parametrize(("inputs", "said"), BAD_INPUTS, ids=range(len(BAD_INPUTS)))
def test_inputs_that_contradict_the_metadata_are_not_sent(wired: Any, inputs: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^model 'double': .*{said}") as caught:
        wired.client.infer("double", inputs)
    assert caught.value.model == "double"
    assert wired.fake.requests == []


@in_memory
@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array(["ok", "a\ud800"], np.object_), r"element 1 can't be written as UTF-8 \(character 1\)"),
        (np.array(["ok", 7], np.object_), r"element 1 is int; expected str or bytes"),
        (np.array([["ok"]]), r"has shape \[1, 1\]; expected \[-1\]$"),
        (np.array([1]), r"is int64; expected BYTES \(str, bytes or object\)"),
    ],
)
def test_texts_that_can_not_be_sent_are_not(wired: Any, array: np.ndarray, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        wired.client.infer("echo", {"t": array})
    assert wired.fake.requests == []


@in_memory
@pytest.mark.parametrize("outputs", [[], "y", ["y", "z"]])
def test_outputs_that_the_model_lacks_are_not_asked_for(wired: Any, outputs: Any) -> None:
    with pytest.raises(InvalidInput, match=r"y FP32\[-1, -1\], rows INT64\[-1, 1\]"):
        wired.client.infer("double", {"x": X}, outputs=outputs)
    assert wired.fake.requests == []


CALLS_OF_A_MODEL = {
    "infer": lambda client, model, **version: client.infer(model, {}, **version),
    "metadata": lambda client, model, **version: client.metadata(model, **version),
    "config": lambda client, model, **version: client.config(model, **version),
    "task": lambda client, model, **version: client.task(model, **version),
    "stream": lambda client, model, **version: next(client.stream(model, {}, **version)),
    "infer_many": lambda client, model, **version: next(client.infer_many(model, [{}], **version)).unwrap(),
}


@pytest.mark.parametrize("call", CALLS_OF_A_MODEL.values(), ids=CALLS_OF_A_MODEL.keys())
def test_unknown_models_and_versions_and_unloaded_models_have_their_errors(wired: Any, call: Any) -> None:
    with pytest.raises(ModelNotFound, match=r"^model 'nope': .*'nope' is not found") as caught:
        call(wired.client, "nope")
    assert (caught.value.model, caught.value.version) == ("nope", None)
    assert caught.value.code == {"fake": "NOT_FOUND", "grpc": "NOT_FOUND", "http": "404"}[wired.wire]
    with pytest.raises(ModelNotFound, match=r"^model 'ner' version 9: ") as caught:
        call(wired.client, "ner", version="9")
    assert (caught.value.model, caught.value.version) == ("ner", "9")
    with pytest.raises(ModelNotReady, match=r"^model 'unloaded': .* has no available versions"):
        call(wired.client, "unloaded")


@in_memory
@pytest.mark.parametrize("call", CALLS_OF_A_MODEL.values(), ids=CALLS_OF_A_MODEL.keys())
@pytest.mark.parametrize("version", ["x", "0", "-1", "1.0", "１", 1])  # noqa: RUF001 - a full-width digit
def test_versions_that_are_no_positive_number_are_refused(wired: Any, call: Any, version: Any) -> None:
    with pytest.raises(
        ConfigError, match=f"version must be a positive whole number as text.* got {version!r}"
    ):
        call(wired.client, "ner", version=version)


@in_memory
@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("", "the model name is empty"),
        ("a\udcff", r"model 'a\\udcff' can't be written as UTF-8 \(character 1\)"),
        (3, "model must be a str, got 3"),
        (None, "model must be a str, got None"),
    ],
)
def test_impossible_model_names_are_refused(wired: Any, model: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        wired.client.ready(model)


@pytest.mark.parametrize("model", ["a/b", "a b?c#d", "ü", "..", "%2F"])
def test_odd_model_names_reach_the_server_whole(wired: Any, model: str) -> None:
    wired.fake.models_by_name[model] = wired.fake.models_by_name["double"]
    assert wired.client.ready(model)


def test_a_full_queue_is_overload(wired: Any) -> None:
    with pytest.raises(Overloaded, match="Exceeds maximum queue size") as caught:
        wired.client.infer("overloaded", {"x": np.float32([1])})
    assert len(wired.fake.requests) == 3
    assert [type(error) for error in caught.value.attempts] == [Overloaded] * 3
    assert caught.value.attempts[-1] is caught.value
    counters = wired.client.counters()
    # Two of the requests asked for the signature.
    assert (counters.calls, counters.failed_calls, counters.requests, counters.retries) == (3, 1, 5, 2)


def test_readiness_of_server_and_models(wired: Any) -> None:
    assert wired.client.ready("ner")
    assert wired.client.ready("ner", version="1")
    assert not wired.client.ready("ner", version="2")
    assert not wired.client.ready("unloaded")
    assert not wired.client.ready("nope")
    assert not wired.client.server_ready()
    del wired.fake.models_by_name["unloaded"]
    assert wired.client.server_ready()


def test_metadata_config_and_index_are_typed(wired: Any) -> None:
    metadata = wired.client.metadata("double")
    assert (metadata.name, metadata.versions) == ("double", ("1",))
    assert metadata.inputs == (
        TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),
        TensorSpec(name="bias", datatype="FP32", shape=(-1, 1)),
    )
    assert [str(spec) for spec in metadata.outputs] == ["y FP32[-1, -1]", "rows INT64[-1, 1]"]
    config = wired.client.config("double")
    assert (config.max_batch_size, config.optional_inputs, config.parameters) == (3, ("bias",), {})
    assert wired.client.config("echo").max_batch_size == 0
    assert wired.client.config("ner").parameters == {"task": "token-classification"}
    states = {status.name: status for status in wired.client.models()}
    assert states["ner"] == ModelStatus(name="ner", version="1", state="READY", reason="")
    assert states["unloaded"].state == "UNAVAILABLE"


def test_the_server_describes_itself(wired: Any) -> None:
    said = wired.client.server_metadata()
    assert said == ServerMetadata(name="fake", version="0.0.0", extensions=())


def test_statistics_are_typed(wired: Any) -> None:
    wired.client.infer("double", {"x": X})
    [found] = wired.client.statistics("double", version="1")
    took = DurationStatistics(count=2, ns=3_000_000)
    assert (found.name, found.version) == ("double", "1")
    assert (found.inference_count, found.execution_count, found.success.count) == (1, 1, 1)
    assert found.last_inference_ms == 1_700_000_000_000
    assert (found.queue, found.fail) == (took, DurationStatistics(count=0, ns=0))
    assert found.queue.mean_ms == 1.5
    assert found.fail.mean_ms == 0
    assert found.batches == (
        BatchStatistics(batch_size=8, compute_input=took, compute_infer=took, compute_output=took),
    )


def test_statistics_of_all_models_and_of_none(wired: Any) -> None:
    del wired.fake.models_by_name["unloaded"]
    assert {one.name for one in wired.client.statistics()} == set(wired.fake.models_by_name)
    with pytest.raises(ModelNotFound, match=r"^model 'nope': "):
        wired.client.statistics("nope")
    with pytest.raises(ConfigError, match="the model name is empty"):
        wired.client.statistics(version="1")


def test_models_are_loaded_and_unloaded(wired: Any) -> None:
    files = {"1/model.bin": b"\x00\xff"}
    assert wired.client.load("unloaded", config='{"name": "unloaded"}', files=files) is None
    assert wired.client.ready("unloaded")
    assert wired.client.unload("unloaded", unload_dependents=True) is None
    assert not wired.client.ready("unloaded")
    [load] = [operation for operation in wired.fake.operations if isinstance(operation, LoadModel)]
    assert (load.model, load.config) == ("unloaded", '{"name": "unloaded"}')
    assert load.files == files
    [unload] = [operation for operation in wired.fake.operations if isinstance(operation, UnloadModel)]
    assert unload.unload_dependents
    wired.client.load("unloaded")
    assert wired.fake.operations[-1].config is None


def test_what_can_not_be_loaded_says_so(wired: Any) -> None:
    with pytest.raises(ServerError, match=r"^model 'nope': .*failed to load 'nope'") as caught:
        wired.client.load("nope")
    assert type(caught.value) is ServerError
    with pytest.raises(ConfigError, match="files need a config"):
        wired.client.load("ner", files={"1/model.bin": b""})


def test_loading_and_unloading_forget_the_signature(wired: Any) -> None:
    for switch in (wired.client.load, wired.client.unload):
        wired.client.load("double")
        wired.client.infer("double", {"x": X})
        before = wired.fake.count(GetMetadata)
        switch("double")
        wired.client.load("double")
        wired.client.infer("double", {"x": X})
        assert wired.fake.count(GetMetadata) == before + 1


def test_a_decoupled_model_is_not_inferred(wired: Any) -> None:
    with pytest.raises(InvalidInput, match="model 'count' answers with any number of responses: call stream"):
        wired.client.infer("count", {"n": np.int32([1])})
    assert wired.fake.requests == []
