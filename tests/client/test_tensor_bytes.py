"""Triton's binary tensor format: there and back, and what is no tensor."""

from __future__ import annotations

import struct
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mooring._models import ModelConfig, ModelMetadata, TensorSpec
from mooring._tensor_bytes import dtype_of, narrow_to_bf16, pack, unpack, unpack_start, view, widen_bf16
from mooring._tensors import Signature, check_inputs

DTYPES = {
    "BOOL": "?",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def bytes_arrays() -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.object_, SHAPES, elements=st.binary(max_size=12), fill=st.just(b""))


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    """A data type and an array of it, often with gaps or in another order."""
    datatype = draw(st.sampled_from([*DTYPES, "BYTES"]))
    array = draw(bytes_arrays() if datatype == "BYTES" else arrays.arrays(DTYPES[datatype], SHAPES))
    if array.ndim and draw(st.booleans()):
        axes = draw(st.permutations(range(array.ndim)))
        steps = draw(st.lists(st.sampled_from([1, 2, -1]), min_size=array.ndim, max_size=array.ndim))
        array = array.transpose(axes)[tuple(slice(None, None, step) for step in steps)]
    return datatype, array


def same(came: np.ndarray, sent: np.ndarray) -> bool:
    assert isinstance(came, np.ndarray)
    assert came.dtype == sent.dtype
    assert came.shape == sent.shape
    return came.ravel().tolist() == sent.ravel().tolist() or came.tobytes() == sent.tobytes()


@given(tensors())
def test_every_tensor_comes_back(tensor: tuple[str, np.ndarray]) -> None:
    datatype, array = tensor
    assert same(unpack(pack(array, datatype), datatype, array.shape), array)
    assert same(unpack(memoryview(pack(array, datatype)), datatype, array.shape), array)


@given(tensors())
def test_a_view_holds_the_packed_bytes(tensor: tuple[str, np.ndarray]) -> None:
    datatype, array = tensor
    assert bytes(view(array, datatype)) == pack(array, datatype)


@given(tensors(), st.binary(max_size=20))
def test_a_tensor_is_read_from_the_start_of_a_buffer(tensor: tuple[str, np.ndarray], rest: bytes) -> None:
    datatype, array = tensor
    buffer = bytearray(pack(array, datatype) + rest)
    came = unpack_start(memoryview(buffer), datatype, array.shape)
    buffer[:] = b"\xaa" * len(buffer)
    assert same(came, array), "it does not share the buffer"


@pytest.mark.parametrize("datatype", DTYPES)
def test_numbers_lie_in_row_major_order_and_little_endian(datatype: str) -> None:
    array = np.arange(6).reshape(2, 3).T.astype(DTYPES[datatype])
    width = array.dtype.itemsize
    if datatype.startswith(("INT", "UINT")):
        assert pack(array, datatype) == b"".join(n.to_bytes(width, "little") for n in (0, 3, 1, 4, 2, 5))
    assert len(pack(array, datatype)) == 6 * width
    assert dtype_of(datatype) == array.dtype


def test_text_lies_behind_its_length() -> None:
    array = np.array([[b"ab", b""], [b"\x00", b"xyz"]], np.object_)
    packed = b"\x02\x00\x00\x00ab" + b"\x00" * 4 + b"\x01\x00\x00\x00\x00" + b"\x03\x00\x00\x00xyz"
    assert pack(array, "BYTES") == packed
    assert pack(array.T, "BYTES") != packed


@pytest.mark.parametrize("datatype", [*DTYPES, "BF16"])
def test_a_view_shares_memory_where_it_can(datatype: str) -> None:
    array = np.zeros((3, 4), "<u2" if datatype == "BF16" else DTYPES[datatype])
    assert np.shares_memory(np.frombuffer(view(array, datatype), np.uint8), array)
    array.setflags(write=False)
    assert memoryview(view(array, datatype)).readonly


def test_an_unpacked_tensor_shares_its_bytes_and_is_as_writable_as_they_are() -> None:
    buffer = bytearray(pack(np.arange(4, dtype="<i4"), "INT32"))
    array = unpack(memoryview(buffer), "INT32", (2, 2))
    assert array.flags.writeable
    buffer[0] = 9
    assert array[0, 0] == 9
    assert not unpack(bytes(buffer), "INT32", (2, 2)).flags.writeable


@pytest.mark.parametrize("datatype", ["FP8", "", "fp32", "STRING"])
def test_unknown_data_types_are_named(datatype: str) -> None:
    for read in (unpack, unpack_start):
        with pytest.raises(ValueError, match=f"unknown data type '{datatype}'"):
            read(memoryview(b""), datatype, (0,))


@pytest.mark.parametrize("datatype", [*DTYPES, "BF16"])
def test_numbers_that_do_not_fill_the_shape_are_refused(datatype: str) -> None:
    raw = bytes(6 * dtype_of(datatype).itemsize)
    for shape in ((7,), (2, 2), (5,), (), (0,), (6, 0)):
        with pytest.raises(ValueError):
            unpack(raw, datatype, shape)
    for shape in ((7,), (4, 2)):
        with pytest.raises(ValueError):
            unpack_start(memoryview(raw), datatype, shape)
    if dtype_of(datatype).itemsize > 1:
        with pytest.raises(ValueError):
            unpack(raw[:-1], datatype, (6,))


def framed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


@pytest.mark.parametrize(
    ("raw", "shape", "said"),
    [
        (b"", (1,), "element 0 of 1 reaches beyond the tensor's 0 bytes"),
        (b"\x01\x00\x00", (1,), "element 0 of 1 reaches beyond the tensor's 3 bytes"),
        (b"\x01\x00\x00\x00", (1,), "element 0 of 1 reaches beyond the tensor's 4 bytes"),
        (framed(b"ab")[:-1], (1,), "element 0 of 1 reaches beyond the tensor's 5 bytes"),
        (framed(b"ab", b"c")[:-1], (2,), "element 1 of 2 reaches beyond the tensor's 10 bytes"),
        (framed(b"ab", b"c") + b"\x01", (3,), "element 2 of 3 reaches beyond the tensor's 12 bytes"),
        (b"\xff\xff\xff\xff", (1,), "element 0 of 1 reaches beyond"),
        (framed(b"ab"), (10**12,), "element 1 of 1000000000000 reaches beyond"),
        (framed(b"ab", b"c"), (1,), r"11 bytes hold more than the 1 elements of \[1\]"),
        (framed(b"ab"), (0,), r"6 bytes hold more than the 0 elements of \[0\]"),
        (framed(b"ab") + b"\x00", (), r"7 bytes hold more than the 1 elements of \[\]"),
    ],
)
def test_malformed_text_is_refused(raw: bytes, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        unpack(raw, "BYTES", shape)


@given(st.binary(max_size=40), arrays.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
def test_any_bytes_are_text_or_a_value_error(raw: bytes, shape: tuple[int, ...]) -> None:
    try:
        array = unpack(raw, "BYTES", shape)
    except ValueError:
        return
    assert pack(array, "BYTES") == raw


def test_text_from_a_short_buffer_is_refused() -> None:
    raw = memoryview(framed(b"ab", b"c"))
    assert unpack_start(raw, "BYTES", (1,)).tolist() == [b"ab"]
    with pytest.raises(ValueError, match="element 2 of 3 reaches beyond"):
        unpack_start(raw, "BYTES", (3,))


@pytest.mark.parametrize("datatype", DTYPES)
def test_callers_hand_over_little_endian_numbers(datatype: str) -> None:
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1,))
    metadata = ModelMetadata(name="m", versions=("1",), platform="", inputs=(spec,), outputs=())
    config = ModelConfig(name="m", max_batch_size=0, optional_inputs=(), parameters={})
    big = np.array([0, 1, 1], np.dtype(DTYPES[datatype]).newbyteorder(">"))
    (tensor,) = check_inputs(Signature(metadata, config), {"x": big})
    assert unpack(pack(tensor.array, datatype), datatype, (3,)).tolist() == big.tolist()


# --- bfloat16

EDGES = [
    0x00000000,  # 0
    0x80000000,  # -0
    0x00000001,  # the least subnormal
    0x007FFFFF,  # the greatest subnormal
    0x00008000,  # a tie to even, down to 0
    0x00018000,  # a tie to even, up
    0x3F808000,  # a tie to even, down to 1
    0x3F818000,  # a tie to even, up
    0x3F808001,  # just above a tie
    0x3F807FFF,  # just below one
    0x7F7FFFFF,  # the greatest number: rounds to infinity
    0x7F7F7FFF,  # the greatest that does not
    0x7F800000,  # infinity
    0xFF800000,
    0x7F800001,  # NaN whose payload is below bfloat16's bits
    0xFF80FFFF,
    0x7FC00000,
    0x7FFFFFFF,  # NaN that rounding would carry over
    0xFFFFFFFF,
    0xFFFF8000,
]


def assert_rounded_as_ml_dtypes(bits: np.ndarray) -> None:
    numbers = bits.view(np.float32)
    ours = narrow_to_bf16(numbers)
    with np.errstate(invalid="ignore"):
        theirs = numbers.astype(ml_dtypes.bfloat16)
    assert ours.dtype == np.uint16
    assert ours.shape == numbers.shape
    nan = np.isnan(numbers)
    assert np.array_equal(ours[~nan], theirs.view(np.uint16)[~nan])
    # The payload of a NaN is nobody's business, its sign and being one are.
    assert np.isnan(ours.view(ml_dtypes.bfloat16)[nan]).all()
    assert np.array_equal(ours[nan] >> 15, bits[nan] >> 31)


def test_bfloat16_rounds_edges_as_ml_dtypes_does() -> None:
    assert_rounded_as_ml_dtypes(np.array(EDGES, np.uint32))


def test_bfloat16_rounds_random_bits_as_ml_dtypes_does() -> None:
    assert_rounded_as_ml_dtypes(np.random.default_rng(7).integers(0, 2**32, 200_000, np.uint32))


@given(arrays.arrays(np.uint32, arrays.array_shapes(max_dims=3), elements=st.integers(0, 2**32 - 1)))
def test_bfloat16_rounds_any_bits_as_ml_dtypes_does(bits: np.ndarray) -> None:
    assert_rounded_as_ml_dtypes(bits)


def test_every_bfloat16_is_widened_exactly_and_comes_back() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    wide = widen_bf16(bits)
    theirs = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    nan = np.isnan(theirs)
    assert wide.dtype == np.float32
    assert np.array_equal(wide[~nan], theirs[~nan])
    assert np.isnan(wide[nan]).all()
    assert np.array_equal(narrow_to_bf16(wide)[~nan], bits[~nan])


@pytest.mark.parametrize("bits", [0x3F800000, 0xFFFF8000, 0xFFFFFFFF])
def test_a_single_number_without_axes_is_rounded_too(bits: int) -> None:
    number = np.array(bits, np.uint32).view(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        narrow = narrow_to_bf16(number)
    assert narrow.shape == ()
    came = unpack(pack(narrow, "BF16"), "BF16", ())
    assert isinstance(came, np.ndarray)
    assert came.shape == ()
    assert np.array_equal(came, np.float32(1.0) if bits == 0x3F800000 else np.float32("nan"), equal_nan=True)


@pytest.mark.parametrize(
    "change", [lambda a: a[::2], lambda a: a.T, lambda a: a.astype(">f4"), np.asfortranarray]
)
def test_bfloat16_rounds_numbers_wherever_they_lie(change: Any) -> None:
    numbers = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
    changed = change(numbers)
    plain = np.ascontiguousarray(changed.astype("<f4"))
    assert np.array_equal(narrow_to_bf16(changed), plain.astype(ml_dtypes.bfloat16).view(np.uint16))


def test_bfloat16_comes_back_through_bytes() -> None:
    numbers = np.array([[1.0, -2.5], [np.inf, 0.0]], np.float32)
    came = unpack(pack(narrow_to_bf16(numbers), "BF16"), "BF16", (2, 2))
    assert same(came, numbers)
