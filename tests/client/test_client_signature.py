"""What a client knows of a model: asked for once, and anew when it may have changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mooring import DecodeError, InvalidInput, ModelNotFound, ModelNotReady
from mooring._operations import GetConfig, GetMetadata

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


def test_a_signature_is_asked_for_once_a_version(wired: Any) -> None:
    for _ in range(3):
        wired.client.infer("double", {"x": X})
    assert (wired.fake.count(GetMetadata), wired.fake.count(GetConfig)) == (1, 1)
    wired.client.infer("double", {"x": X}, version="1")
    wired.client.infer("double", {"x": X}, version="1")
    assert (wired.fake.count(GetMetadata), wired.fake.count(GetConfig)) == (2, 2)


def test_metadata_and_config_are_always_asked_anew(wired: Any) -> None:
    for _ in range(2):
        wired.client.metadata("double")
        wired.client.config("double")
    assert (wired.fake.count(GetMetadata), wired.fake.count(GetConfig)) == (2, 2)


def test_a_version_that_the_signature_does_not_know_makes_the_next_call_ask(wired: Any) -> None:
    wired.client.infer("double", {"x": X})
    wired.fake.version = "2"
    wired.client.infer("double", {"x": X})
    assert wired.fake.count(GetMetadata) == 1
    for _ in range(2):
        wired.client.infer("double", {"x": X})
    assert wired.fake.count(GetMetadata) == 2


def test_a_reload_with_another_type_is_found_out_before_sending(wired: Any) -> None:
    wired.client.infer("double", {"x": X})
    wired.fake.change(
        "double",
        inputs={"x": ("FP64", [-1, -1])},
        outputs={"y": ("FP64", [-1, -1])},
        optional_inputs=[],
        answer=lambda inputs: {"y": 3 * inputs["x"]},
    )
    answer = wired.client.infer("double", {"x": X.astype(np.float64)})
    np.testing.assert_array_equal(answer["y"], 3 * X)
    assert wired.fake.count(GetMetadata) == 2
    assert len(wired.fake.requests) == 2


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda fake: fake.change("double", ready=False), ModelNotReady),
        (lambda fake: fake.models_by_name.pop("double"), ModelNotFound),
    ],
    ids=["unloaded", "gone"],
)
def test_after_a_refusal_the_model_is_asked_anew(wired: Any, change: Any, error: type[Exception]) -> None:
    model = wired.fake.models_by_name["double"]
    wired.client.infer("double", {"x": X})
    change(wired.fake)
    with pytest.raises(error):
        wired.client.infer("double", {"x": X})
    wired.fake.models_by_name["double"] = model
    wired.client.infer("double", {"x": X})
    assert wired.fake.count(GetMetadata) == 2


def test_a_reloaded_model_is_asked_anew_before_the_client_says_no(wired: Any) -> None:
    client = wired.client
    large = np.zeros((5, 1), np.float32)
    with pytest.raises(InvalidInput, match="at most 3"):
        client.infer("double", {"x": large})
    client.infer("double", {"x": X})
    wired.fake.change("double", max_batch_size=5)
    assert client.infer("double", {"x": large})["y"].shape == (5, 1)


def test_a_model_reloaded_with_a_smaller_batch_costs_one_error(wired: Any) -> None:
    ner = wired.client.task("ner")

    def at_most_two(inputs: dict[str, np.ndarray]) -> Any:
        if len(inputs["text"]) > 2:
            raise InvalidInput("batch-size must be <= 2")
        return before.answer(inputs)

    before = wired.fake.models_by_name["ner"]
    wired.fake.change("ner", max_batch_size=2, answer=at_most_two)
    with pytest.raises(InvalidInput, match="batch-size must be <= 2"):
        ner(["A", "b", "C"])
    assert [len(found) for found in ner(["A", "b", "C"])] == [1, 0, 1]


def test_a_model_reloaded_without_a_batch_axis_is_told_apart(wired: Any) -> None:
    ner = wired.client.task("ner")
    refuse = wired.fake.models_by_name["refusing"].answer
    wired.fake.change("ner", max_batch_size=0, inputs={"text": ("BYTES", [1])}, answer=refuse)
    with pytest.raises(InvalidInput, match="text 0 is too long"):
        ner(["A", "b", "C"])
    with pytest.raises(InvalidInput, match=r"input 'text' has shape \[3, 1\]; expected \[1\]$"):
        ner(["A", "b", "C"])


def test_answers_that_contradict_the_signature_are_not_returned(wired: Any) -> None:
    wired.client.infer("double", {"x": X})
    wired.fake.change("double", answer=lambda inputs: {"y": inputs["x"][0]})
    with pytest.raises(DecodeError, match=r"output y FP32\[-1, -1\] came as float32\[3\]"):
        wired.client.infer("double", {"x": X})
    with pytest.raises(DecodeError, match=r"the answer lacks output 'rows'; it has \['y'\]"):
        wired.client.infer("double", {"x": X}, outputs=["rows", "y"])
