"""Every data type of Triton through a client and back."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mooring import Client, DecodeError, InvalidInput
from mooring.testing import FakeModel

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
    assert came.dtype == dtype
    assert came.shape == sent.shape
    assert came.tobytes() == sent.tobytes()


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_other_numpy_type_is_refused(wired: Any, datatype: str) -> None:
    wired.fake.models_by_name["typed"] = echo_model(datatype, [-1])
    others = [dtype for name, dtype in DTYPES.items() if name != datatype]
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
        ({"t": np.zeros(1, np.float64)}, r"output t FP32\[1\] came as float64\[1\]"),
        ({"t": np.zeros(2, np.float32)}, r"came as float32\[2\]"),
        ({"t": np.zeros((1, 1), np.float32)}, r"came as float32\[1, 1\]"),
        ({"t": np.zeros(1, np.float32), "u": np.zeros(1, np.float32)}, "unknown output 'u'"),
    ],
)
def test_outputs_unlike_the_signature_are_decode_errors(fake: Any, answer: Any, said: str) -> None:
    tensor = {"t": ("FP32", [1])}
    fake.models_by_name["odd"] = FakeModel(inputs=tensor, outputs=tensor, answer=lambda inputs: answer)
    with pytest.raises(DecodeError, match=said):
        Client("grpc://fake:1", transport=fake).infer("odd", {"t": np.zeros(1, np.float32)})
