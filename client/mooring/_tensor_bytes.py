"""Tensors to the bytes of Triton's binary tensor format and back.

Numbers lie in row-major order, little-endian. An element of ``BYTES`` is its length (4 bytes) and itself.
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

from __future__ import annotations

import math
import struct

import numpy as np

#: numpy's dtype of each of Triton's data types as it arrives.
_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype("?"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_LENGTH = struct.Struct("<I")


def dtype_of(datatype: str) -> np.dtype:
    """numpy's dtype of the numbers of a Triton data type.

    Raises:
        ValueError: there is none.
    """
    if datatype not in _DTYPES:
        raise ValueError(f"unknown data type {datatype!r}")
    return _DTYPES[datatype]


def pack(array: np.ndarray, datatype: str) -> bytes:
    """Write a checked tensor: ``BYTES`` as an object array of ``bytes``, ``BF16`` as ``uint16``."""
    if datatype != "BYTES":
        return array.tobytes()
    parts: list[bytes] = []
    for element in array.ravel().tolist():
        parts += (_LENGTH.pack(len(element)), element)
    return b"".join(parts)


def view(array: np.ndarray, datatype: str) -> bytes | memoryview:
    """As :func:`pack`, without a copy where the array's own memory will do."""
    if datatype != "BYTES" and array.flags.c_contiguous and array.size:
        return array.reshape(-1).view(np.uint8).data
    return pack(array, datatype)


def unpack(raw: bytes | memoryview, datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read a tensor; the array shares ``raw`` and is read-only where ``raw`` is.

    Raises:
        ValueError: the bytes do not fit the data type and shape.
    """
    if datatype == "BYTES":
        elements, end = _unpack_elements(bytes(raw), math.prod(shape))
        if end != len(raw):
            raise ValueError(f"{len(raw)} bytes hold more than the {len(elements)} elements of {list(shape)}")
        return _bytes_array(elements, shape)
    array = np.frombuffer(raw, dtype_of(datatype)).reshape(shape)
    return widen_bf16(array) if datatype == "BF16" else array


def unpack_start(raw: memoryview, datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read a tensor from the start of a longer buffer, which it does not share.

    Raises:
        ValueError: the buffer is too short.
    """
    if datatype == "BYTES":
        return _bytes_array(_unpack_elements(bytes(raw), math.prod(shape))[0], shape)
    size = math.prod(shape) * dtype_of(datatype).itemsize
    return unpack(bytes(raw[:size]), datatype, shape)


def _unpack_elements(raw: bytes, count: int) -> tuple[list[bytes], int]:
    elements: list[bytes] = []
    begin, size = 0, len(raw)
    while len(elements) < count:
        (length,) = _LENGTH.unpack_from(raw, begin) if begin + 4 <= size else (size,)
        begin += 4 + length
        if begin > size:
            raise ValueError(f"element {len(elements)} of {count} reaches beyond the tensor's {size} bytes")
        elements.append(raw[begin - length : begin])
    return elements, begin


def _bytes_array(elements: list[bytes], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape)


def narrow_to_bf16(array: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bfloat16, ties to even; returned as its bits, ``uint16``, same shape."""
    # Without an axis numpy would work on scalars, and warn where their bits overflow.
    bits = np.atleast_1d(array.astype("<f4", copy=False)).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # Rounding could carry a NaN's bits over into infinity; one set bit keeps it a NaN.
    narrow = np.where(np.isnan(array), (bits >> np.uint32(16)) | np.uint32(0x40), rounded)
    return narrow.astype("<u2").reshape(array.shape)


def widen_bf16(bits: np.ndarray) -> np.ndarray:
    """Read bfloat16 bits (``uint16``) as float32, same shape; exact."""
    wide = np.atleast_1d(bits).astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32).reshape(bits.shape)
