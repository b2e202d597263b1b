"""Options of an inference call: what is taken, and what is said of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mooring import ConfigError, SequenceStep
from mooring._operations import Infer, Tensor
from mooring._requests import check_names, check_text, make_request

INPUTS = (Tensor("x", "FP32", np.zeros((3, 2), np.float32)),)


def make(**options: Any) -> Infer:
    plain: dict[str, Any] = {
        "model": "double",
        "version": "",
        "inputs": INPUTS,
        "outputs": None,
        "request_id": "",
        "priority": 0,
        "parameters": None,
    }
    return make_request(**plain | options)


def test_a_plain_request_carries_the_tensors_and_nothing_else() -> None:
    request = make()
    assert (request.model, request.version, request.inputs, request.outputs) == ("double", "", INPUTS, None)
    assert (request.request_id, request.priority, request.sequence) == ("", 0, None)
    assert (request.parameters, request.output_memory, request.timeout_s) == ({}, {}, 0.0)
    assert (request.request_compression, request.response_compression) == (None, None)
    assert request.batch_size == 0


def test_the_batch_is_noted_where_the_model_has_one() -> None:
    assert make(batched=True).batch_size == 3
    assert make(batched=True, inputs=()).batch_size == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("version", "7"),
        ("outputs", ("y",)),
        ("request_id", "abc-ü"),
        ("priority", 1),
        ("priority", 2**32 - 1),
        ("sequence", SequenceStep(id=1, start=True)),
        ("sequence", SequenceStep(id=2**63 - 1)),
        ("sequence", SequenceStep(id="talk-7", end=True)),
        ("parameters", {"a": "text", "b": True, "c": 1.5, "d": -(2**63), "e": 2**63 - 1, "": ""}),
        ("request_compression", "gzip"),
        ("request_compression", "deflate"),
        ("response_compression", "gzip"),
        ("response_compression", "deflate"),
    ],
)
def test_good_options_travel_as_they_are(option: str, value: Any) -> None:
    assert getattr(make(**{option: value}), option) == value


def test_parameters_are_the_requests_own() -> None:
    parameters = {"a": 1}
    request = make(parameters=parameters)
    parameters["a"] = 2
    assert request.parameters == {"a": 1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"request_id": b"abc"}, r"request_id must be a str, got b'abc'"),
        ({"request_id": 7}, "request_id must be a str, got 7"),
        ({"request_id": "a\ud800"}, r"request_id 'a\\ud800' can't be written as UTF-8 \(character 1\)"),
        ({"priority": -1}, "priority must be a whole number from 0, got -1"),
        ({"priority": 2**32}, "priority must be a whole number from 0, got 4294967296"),
        ({"priority": 1.5}, r"priority must be a whole number from 0, got 1\.5"),
        ({"priority": True}, "priority must be a whole number from 0, got True"),
        ({"priority": "1"}, "priority must be a whole number from 0, got '1'"),
        ({"sequence": 7}, "sequence must be a SequenceStep, got 7"),
        ({"sequence": {"id": 7}}, r"sequence must be a SequenceStep, got \{'id': 7\}"),
        ({"sequence": SequenceStep(id=0)}, r"SequenceStep\.id must be a number above 0 or a text, got 0"),
        ({"sequence": SequenceStep(id=-1)}, r"SequenceStep\.id must be a number above 0 or a text, got -1"),
        ({"sequence": SequenceStep(id=2**63)}, r"SequenceStep\.id must be a number above 0 or a text"),
        ({"sequence": SequenceStep(id="")}, r"SequenceStep\.id must be a number above 0 or a text, got ''"),
        ({"sequence": SequenceStep(id=True)}, r"SequenceStep\.id must be .*, got True"),
        ({"sequence": SequenceStep(id="\udc00")}, r"SequenceStep\.id '\\udc00' can't be written as UTF-8"),
        ({"request_compression": "br"}, "request_compression must be None or one of gzip, deflate, got 'br'"),
        ({"response_compression": ""}, "response_compression must be None or one of gzip, deflate, got ''"),
        ({"response_compression": ["gzip"]}, r"response_compression must be None or one of .*\['gzip'\]"),
        ({"parameters": {1: "a"}}, "a parameter's name must be a str, got 1"),
        ({"parameters": {"\ud800": 1}}, "a parameter's name .* can't be written as UTF-8"),
        ({"parameters": {"a": None}}, "parameter 'a' must be a str, bool, int or float, got None"),
        ({"parameters": {"a": b"x"}}, "parameter 'a' must be a str, bool, int or float, got b'x'"),
        ({"parameters": {"a": np.int64(1)}}, "parameter 'a' must be a str, bool, int or float"),
        ({"parameters": {"a": "\ud800"}}, "parameter 'a' .* can't be written as UTF-8"),
        ({"parameters": {"a": 2**63}}, "parameter 'a' does not fit 64 bits: 9223372036854775808"),
        ({"parameters": {"a": -(2**63) - 1}}, "parameter 'a' does not fit 64 bits"),
    ],
)
def test_bad_options_are_named_with_their_value(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(**options)


@pytest.mark.parametrize("sequence_id", [None, 1.5, b"a", [1]])
def test_a_sequence_id_of_another_type_is_refused(sequence_id: Any) -> None:
    with pytest.raises(ConfigError, match=r"SequenceStep\.id must be a number above 0 or a text, got "):
        make(sequence=SequenceStep(id=sequence_id))


@pytest.mark.parametrize("parameters", [[("a", 1)], "a=1", {"a"}, 7])
def test_parameters_that_are_no_mapping_are_refused(parameters: Any) -> None:
    said = f"parameters must map names to values, got {type(parameters).__name__}"
    with pytest.raises(ConfigError, match=said):
        make(parameters=parameters)


@pytest.mark.parametrize(
    ("key", "argument"),
    [
        ("timeout", "timeout_s"),
        ("priority", "priority"),
        ("sequence_id", "sequence"),
        ("sequence_start", "sequence"),
        ("sequence_end", "sequence"),
        ("binary_data_output", "outputs"),
    ],
)
def test_reserved_parameters_name_their_argument(key: str, argument: str) -> None:
    with pytest.raises(ConfigError, match=f"parameter '{key}' is set by the argument {argument}$"):
        make(parameters={"fine": 1, key: 1})


@pytest.mark.parametrize("version", ["", "1", "10", "999999999999999999"])
def test_versions_are_whole_numbers_as_text(version: str) -> None:
    check_names("double", version)


@pytest.mark.parametrize("version", ["0", "01", "-1", "1.0", "v1", " 1", "1\n", "²", "9" * 19, 1, None])
def test_other_versions_are_refused(version: Any) -> None:
    with pytest.raises(ConfigError, match="version must be a positive whole number as text, or empty, got "):
        check_names("double", version)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("", r"the model name is empty; the client's models\(\) lists"),
        (7, "model must be a str, got 7"),
        (None, "model must be a str, got None"),
        ("a\udfff", r"model 'a\\udfff' can't be written as UTF-8 \(character 1\)"),
    ],
)
def test_names_that_are_none_are_refused(model: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_names(model, "")


@pytest.mark.parametrize("text", ["", "a", "日本", "\x00", "🐍"])
def test_any_text_of_utf_8_is_fine(text: str) -> None:
    check_text("it", text)
