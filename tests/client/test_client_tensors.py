"""Every data type of Triton through a client and back."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mooring import DecodeError, InvalidInput
from mooring.testing import FakeModel
from wire_models import in_memory

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
    "BF16": ml_dtypes.bfloat16,
    "FP32": np.float32,
    "FP64": np.float64,
}


def echo_model(datatype: str, shape: list[int], **options: Any) -> FakeModel:
    tensor = {"t": (datatype, shape)}
    return FakeModel(inputs=tensor, outputs=tensor, answer=dict, **options)


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_numeric_type_comes_back_bit_for_bit(wired: Any, datatype: str) -> None:
    wired.fake.models_by_name["typed"] = echo_model(datatype, [-1, 2])
    dtype = np.dtype(DTYPES[datatype])
    sent = np.frombuffer(bytes(range(0, 8 * dtype.itemsize)), np.uint8)
    sent = (sent % 2).astype(bool) if datatype == "BOOL" else sent.view(dtype)
    sent = sent.reshape(-1, 2)
    came = wired.client.infer("typed", {"t": sent})["t"]
    if datatype == "BF16":  # which numpy lacks; every value of it is one of float32
        sent = sent.astype(np.float32)
    assert came.dtype == sent.dtype
    assert came.shape == sent.shape
    assert came.tobytes() == sent.tobytes()


def test_float32_is_rounded_to_the_nearest_bfloat16(wired: Any) -> None:
    wired.fake.models_by_name["typed"] = echo_model("BF16", [-1])
    below, above = np.float32(1.0), np.float32(1.0078125)  # neighbours in bfloat16
    tie, past_tie = np.float32(1.00390625), np.nextafter(np.float32(1.00390625), np.float32(2))
    sent = np.float32([1.5, tie, past_tie, above + (tie - below), -tie, 3.4e38, np.inf, -0.0])
    came = wired.client.infer("typed", {"t": sent})["t"]
    assert came.tolist()[:5] == [1.5, below, above, 1.015625, -below]
    assert came.tolist()[5:7] == [np.inf, np.inf]
    assert np.signbit(came[7])
    np.testing.assert_array_equal(came, sent.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.isnan(wired.client.infer("typed", {"t": np.float32([np.nan])})["t"]).all()


def test_big_endian_and_strided_numbers_arrive_as_they_look(wired: Any) -> None:
    for datatype, dtype in DTYPES.items():
        if datatype in ("BOOL", "BF16"):
            continue
        wired.fake.models_by_name[datatype] = echo_model(datatype, [-1, -1])
        array = np.arange(12).reshape(3, 4).astype(np.dtype(dtype).newbyteorder(">"))[::-1, ::2]
        came = wired.client.infer(datatype, {"t": array})["t"]
        assert came.dtype == np.dtype(dtype), datatype
        np.testing.assert_array_equal(came, array)


@pytest.mark.parametrize("datatype", ["INT32", "BF16", "BYTES"])
def test_a_matrix_is_sent_as_an_array(wired: Any, datatype: str) -> None:
    wired.fake.models_by_name["typed"] = echo_model(datatype, [-1, -1])
    array = np.arange(6).reshape(2, 3).astype({"INT32": "i4", "BF16": "f4", "BYTES": "S1"}[datatype])
    came = wired.client.infer("typed", {"t": array.view(np.matrix)})["t"]
    np.testing.assert_array_equal(came, array)


@in_memory
def test_a_masked_array_is_refused(wired: Any) -> None:
    wired.fake.models_by_name["typed"] = echo_model("FP32", [-1])
    masked = np.ma.masked_array(np.float32([1, 2]), mask=[True, False])
    with pytest.raises(InvalidInput, match=r"input 't' is a masked array, .*; give array\.filled\(value\)"):
        wired.client.infer("typed", {"t": masked})
    assert wired.fake.requests == []


@in_memory
@pytest.mark.parametrize("datatype", DTYPES)
def test_every_other_numpy_type_is_refused(wired: Any, datatype: str) -> None:
    wired.fake.models_by_name["typed"] = echo_model(datatype, [-1])
    others = [dtype for name, dtype in DTYPES.items() if name != datatype]
    if datatype == "BF16":
        others.remove(np.float32)
    for dtype in [*others, np.complex64, np.dtype("datetime64[s]"), np.object_, "S3", "U3", "V3"]:
        with pytest.raises(InvalidInput, match=f"expected {datatype} "):
            wired.client.infer("typed", {"t": np.zeros(2, dtype)})
    assert wired.fake.requests == []


# The fixture's server is shared by the examples on purpose: each sends its own request.
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=arrays.arrays(
        np.object_, arrays.array_shapes(min_dims=2, max_dims=2, min_side=0), elements=st.text() | st.binary()
    )
)
def test_any_text_or_bytes_of_any_shape_come_back(wired: Any, texts: np.ndarray) -> None:
    wired.fake.models_by_name["typed"] = echo_model("BYTES", [-1, -1])
    expected = [text.encode() if isinstance(text, str) else text for text in texts.reshape(-1).tolist()]
    came = wired.client.infer("typed", {"t": texts})["t"]
    assert came.shape == texts.shape
    assert came.reshape(-1).tolist() == expected


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"t": np.zeros((), np.float32)}, r"output t FP32\[1\] came as float32\[\]"),
        ({"t": np.zeros(2, np.float32)}, r"came as float32\[2\]"),
        ({"t": np.zeros((1, 1), np.float32)}, r"came as float32\[1, 1\]"),
        ({"t": np.zeros(1, np.float32), "u": np.zeros(1, np.float32)}, "unknown output 'u'"),
    ],
)
def test_outputs_unlike_the_signature_are_decode_errors(wired: Any, answer: Any, said: str) -> None:
    tensor = {"t": ("FP32", [1])}
    wired.fake.models_by_name["odd"] = FakeModel(inputs=tensor, outputs=tensor, answer=lambda inputs: answer)
    with pytest.raises(DecodeError, match=said):
        wired.client.infer("odd", {"t": np.zeros(1, np.float32)})


def test_an_output_of_another_type_is_a_decode_error(side: Any, fake: Any) -> None:
    tensor = {"t": ("FP32", [1])}
    wrong = {"t": np.zeros(1, np.float64)}
    fake.models_by_name["odd"] = FakeModel(inputs=tensor, outputs=tensor, answer=lambda inputs: wrong)
    with pytest.raises(DecodeError, match=r"output t FP32\[1\] came as float64\[1\]"):
        side.client("grpc://fake:1", transport=fake).infer("odd", {"t": np.zeros(1, np.float32)})


def test_an_answer_need_not_be_writeable_and_the_input_is_not_changed(wired: Any) -> None:
    wired.fake.models_by_name["typed"] = echo_model("INT64", [-1])
    sent = np.arange(5)
    came = wired.client.infer("typed", {"t": sent})["t"]
    np.copyto(came.copy(), 7)
    np.testing.assert_array_equal(sent, np.arange(5))
