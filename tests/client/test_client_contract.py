"""The same cases over every transport: same answers, same errors."""

from __future__ import annotations

import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from mooring import (
    Client,
    ConfigError,
    DecodeError,
    Entity,
    InvalidInput,
    Label,
    ModelNotFound,
    ModelNotReady,
    ModelStatus,
    Overloaded,
    TensorSpec,
    TextClassifier,
    TokenClassifier,
)
from mooring._transport import Transport
from mooring._transports._grpc import GrpcTransport
from mooring._transports._http import HttpTransport
from mooring.testing import FakeModel, FakeTransport

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


def test_transports_have_the_methods_of_the_seam_with_the_same_parameters() -> None:
    methods = [name for name in vars(Transport) if not name.startswith("_")]
    assert len(methods) == 7
    for kind in (FakeTransport, GrpcTransport, HttpTransport):
        for name in methods:
            assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(Transport, name)), name


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


@pytest.mark.parametrize(("inputs", "said"), BAD_INPUTS, ids=range(len(BAD_INPUTS)))
def test_inputs_that_contradict_the_metadata_are_not_sent(wired: Any, inputs: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^model 'double': .*{said}") as caught:
        wired.client.infer("double", inputs)
    assert caught.value.model == "double"
    assert wired.fake.requests == []


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
}


@pytest.mark.parametrize("call", CALLS_OF_A_MODEL.values(), ids=CALLS_OF_A_MODEL.keys())
def test_unknown_models_and_versions_and_unloaded_models_have_their_errors(wired: Any, call: Any) -> None:
    with pytest.raises(ModelNotFound, match=r"^model 'nope': .*'nope' is not found") as caught:
        call(wired.client, "nope")
    assert (caught.value.model, caught.value.version) == ("nope", None)
    assert caught.value.code == {"fake": "NOT_FOUND", "grpc": "NOT_FOUND", "http": "404"}[wired.protocol]
    with pytest.raises(ModelNotFound, match=r"^model 'ner' version 9: ") as caught:
        call(wired.client, "ner", version="9")
    assert (caught.value.model, caught.value.version) == ("ner", "9")
    with pytest.raises(ModelNotReady, match=r"^model 'unloaded': .* has no available versions"):
        call(wired.client, "unloaded")


@pytest.mark.parametrize("call", CALLS_OF_A_MODEL.values(), ids=CALLS_OF_A_MODEL.keys())
@pytest.mark.parametrize("version", ["x", "0", "-1", "1.0", "１", 1])  # noqa: RUF001 - a full-width digit
def test_versions_that_are_no_positive_number_are_refused(wired: Any, call: Any, version: Any) -> None:
    with pytest.raises(
        ConfigError, match=f"version must be a positive whole number as text.* got {version!r}"
    ):
        call(wired.client, "ner", version=version)


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
    with pytest.raises(Overloaded, match="Exceeds maximum queue size"):
        wired.client.infer("overloaded", {"x": np.float32([1])})


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


def test_token_classifier_finds_entities_in_characters(wired: Any) -> None:
    ner = wired.client.task("ner")
    assert isinstance(ner, TokenClassifier)
    text = "🙂 Ähre und Zoë"
    found = ner(text)
    assert found == [
        Entity(label="NAME", score=0.75, start=2, end=6, text="Ähre"),
        Entity(label="NAME", score=0.75, start=11, end=14, text="Zoë"),
    ]
    assert all(entity.text == text[entity.start : entity.end] for entity in found)


def test_text_classifier_gives_labels_best_first(wired: Any) -> None:
    intent = wired.client.task("intent")
    assert isinstance(intent, TextClassifier)
    assert intent("x" * 75) == [Label(label="long", score=0.75), Label(label="short", score=0.25)]
    assert [row[0].label for row in intent(["x", "x" * 100])] == ["short", "long"]


def test_more_texts_than_a_batch_are_split_and_keep_their_order(wired: Any) -> None:
    ner = wired.client.task("ner")
    texts = [f"{'none' if i % 3 else 'Name'} of {'A' * i}" for i in range(1, 12)]
    assert ner(texts) == [ner(text) for text in texts]
    assert [len(request.inputs[0].array) for request in wired.fake.requests[:3]] == [4, 4, 3]


def test_one_text_gives_one_result_and_a_sequence_a_list(wired: Any) -> None:
    ner = wired.client.task("ner")
    assert ner("nothing here") == []
    assert ner(["nothing here"]) == [[]]
    assert ner(("Some", "none")) == [ner("Some"), []]


BAD_TEXTS = [
    ([], "the list of texts is empty"),
    ("", "text 0 is empty"),
    (["a", ""], "text 1 is empty"),
    (["a", None], "text 1 is NoneType, expected str"),
    (["a", b"b"], "text 1 is bytes, expected str"),
    (b"ab", "expected a str or a sequence of str, got bytes"),
    (5, "expected a str or a sequence of str, got int"),
    (iter(["a"]), "expected a str or a sequence of str, got list_iterator"),
    (["a", "b\ud800"], r"text 1 can't be written as UTF-8 \(character 1\)"),
]


@pytest.mark.parametrize("model", ["ner", "intent"])
@pytest.mark.parametrize(("texts", "said"), BAD_TEXTS, ids=range(len(BAD_TEXTS)))
def test_texts_that_no_model_takes_are_not_sent(wired: Any, model: str, texts: Any, said: str) -> None:
    task = wired.client.task(model)
    with pytest.raises(InvalidInput, match=f"^model '{model}': {said}$"):
        task(texts)
    assert wired.fake.requests == []


def test_a_text_that_the_server_refuses_is_found_in_the_call(wired: Any) -> None:
    ner = wired.client.task("refusing")
    with pytest.raises(InvalidInput, match="text 0 is too long") as caught:
        ner(["a"])
    assert "of the call" not in str(caught.value)
    refusing = wired.fake.models_by_name["refusing"]
    first_batch_passes = FakeModel(
        **{
            **vars(refusing),
            "answer": lambda inputs: (
                refusing if len(inputs["text"]) < 4 else wired.fake.models_by_name["ner"]
            ).answer(inputs),
        }
    )
    wired.fake.models_by_name["refusing"] = first_batch_passes
    with pytest.raises(
        InvalidInput, match=r"text 0 is too long.* \(text 0 of that request is text 4 of the call\)"
    ):
        ner(["a"] * 5)


def test_a_model_without_a_known_task_is_refused_with_the_known_ones(wired: Any) -> None:
    known = "text-classification, token-classification"
    with pytest.raises(ConfigError, match=rf"model 'double' does not say its task .*known tasks: {known}\."):
        wired.client.task("double")
    wired.fake.models_by_name["odd"] = FakeModel(
        inputs={}, outputs={}, answer=dict, parameters={"task": "telepathy"}
    )
    with pytest.raises(ConfigError, match=f"model 'odd' says task 'telepathy', .*known tasks: {known}$"):
        wired.client.task("odd")


def test_a_reloaded_model_is_asked_anew_before_the_client_says_no(wired: Any) -> None:
    client, models = wired.client, wired.fake.models_by_name
    large = np.zeros((5, 1), np.float32)
    with pytest.raises(InvalidInput, match="at most 3"):
        client.infer("double", {"x": large})
    client.infer("double", {"x": X})
    models["double"] = FakeModel(**{**vars(models["double"]), "max_batch_size": 5})
    assert client.infer("double", {"x": large})["y"].shape == (5, 1)


def test_a_model_reloaded_with_a_smaller_batch_costs_one_error(wired: Any) -> None:
    models = wired.fake.models_by_name
    ner = wired.client.task("ner")

    def at_most_two(inputs: dict[str, np.ndarray]) -> Any:
        if len(inputs["text"]) > 2:
            raise InvalidInput("batch-size must be <= 2")
        return before.answer(inputs)

    before = models["ner"]
    models["ner"] = FakeModel(**{**vars(before), "max_batch_size": 2, "answer": at_most_two})
    with pytest.raises(InvalidInput, match="batch-size must be <= 2"):
        ner(["A", "b", "C"])
    assert [len(found) for found in ner(["A", "b", "C"])] == [1, 0, 1]


def test_a_model_reloaded_without_a_batch_axis_is_told_apart(wired: Any) -> None:
    models = wired.fake.models_by_name
    ner = wired.client.task("ner")
    unbatched = {"max_batch_size": 0, "inputs": {"text": ("BYTES", [1])}, "answer": models["refusing"].answer}
    models["ner"] = FakeModel(**{**vars(models["ner"]), **unbatched})
    with pytest.raises(InvalidInput, match="text 0 is too long"):
        ner(["A", "b", "C"])
    with pytest.raises(InvalidInput, match=r"input 'text' has shape \[3, 1\]; expected \[1\]$"):
        ner(["A", "b", "C"])


def test_answers_that_contradict_the_signature_are_not_returned(wired: Any) -> None:
    models = wired.fake.models_by_name
    wired.client.infer("double", {"x": X})
    models["double"] = FakeModel(**{**vars(models["double"]), "answer": lambda inputs: {"y": inputs["x"][0]}})
    with pytest.raises(DecodeError, match=r"output y FP32\[-1, -1\] came as float32\[3\]"):
        wired.client.infer("double", {"x": X})
    with pytest.raises(DecodeError, match=r"the answer lacks output 'rows'; it has \['y'\]"):
        wired.client.infer("double", {"x": X}, outputs=["rows", "y"])


def test_threads_may_share_a_client(wired: Any) -> None:
    barrier = threading.Barrier(16)

    def work(seed: int) -> None:
        barrier.wait()
        for i in range(20):
            x = np.full((1, 8), 100 * seed + i, np.float32)
            np.testing.assert_array_equal(wired.client.infer("double", {"x": x}, outputs=["y"])["y"], 2 * x)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert len(wired.fake.requests) == 16 * 20


def test_close_is_idempotent_and_later_calls_say_so(wired: Any) -> None:
    client: Client = wired.client
    ner = client.task("ner")
    client.close()
    client.close()
    for call in (
        client.server_ready,
        client.models,
        lambda: client.infer("double", {"x": X}),
        lambda: ner("A"),
    ):
        with pytest.raises(ConfigError, match=r"the client of \w+://[\w.:]+ is closed; make a new one"):
            call()


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), 1e9, "5", True])
def test_timeouts_that_can_not_be_right_are_refused(wired: Any, timeout_s: Any) -> None:
    for call in (
        lambda: Client("grpc://127.0.0.1:8001", timeout_s=timeout_s),
        lambda: wired.client.server_ready(timeout_s=timeout_s),
        lambda: wired.client.task("ner")("A", timeout_s=timeout_s),
    ):
        with pytest.raises(ConfigError, match="timeout_s must be"):
            call()
