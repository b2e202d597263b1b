"""The NumPy bridge, seen by something that reads arrays as a stub built for NumPy 1 does."""

from __future__ import annotations

import ctypes
import importlib
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mooring_serve import _numpy_bridge

pytestmark = pytest.mark.skipif(
    int(np.__version__.partition(".")[0]) < 2, reason="the bridge is for NumPy 2, this is NumPy 1"
)


def elsize_of_numpy1(array: np.ndarray[Any, Any]) -> int:
    """The element size that code built for NumPy 1 sees."""
    return ctypes.c_int32.from_address(id(array.dtype) + 32).value


class FakeStub(types.ModuleType):
    """Stands in for c_python_backend_utils; its Tensor measures arrays like the stub's."""

    def __init__(self, utils: dict[str, Any]) -> None:
        super().__init__("c_python_backend_utils")

        class Tensor:
            def __init__(self, name: str, array: Any) -> None:
                if name == "":
                    raise ValueError("a tensor needs a name")
                self.array = array
                if array.dtype.kind in "OS":
                    array = utils["serialize_byte_tensor"](array)
                    self.raw = bytes(array)
                self.nbytes = len(array) and array.size * elsize_of_numpy1(array)
                self.contiguous = not len(array) or array.flags.c_contiguous

        self.Tensor = Tensor


def serialize(array: Any) -> bytes | tuple[()]:
    return b"".join(array.ravel().tolist()) if array.size else ()


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    namespace: dict[str, Any] = {"serialize_byte_tensor": serialize}
    stub = FakeStub(namespace)
    monkeypatch.setitem(sys.modules, "c_python_backend_utils", stub)
    monkeypatch.setattr(_numpy_bridge, "_replace_api_table", lambda: None)
    _numpy_bridge.apply(namespace)
    namespace["Tensor"] = stub.Tensor
    return namespace


@pytest.mark.parametrize("dtype", ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_sizes_are_lent_for_the_call_only(utils: dict[str, Any], dtype: str) -> None:
    array = np.ones((2, 3), dtype)
    made = utils["Tensor"]("x", array)
    assert made.nbytes == array.nbytes
    assert made.array.base is array
    assert made.array.dtype == array.dtype
    assert elsize_of_numpy1(made.array) == elsize_of_numpy1(array) == 0


def test_other_layouts_are_copied(utils: dict[str, Any]) -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    for view in (array.T, array[::-1], array[:, 1:], np.broadcast_to(array[:1], (4, 3))):
        made = utils["Tensor"]("x", view)
        assert made.contiguous
        assert made.nbytes == view.size * 2
        np.testing.assert_array_equal(made.array, view)


def test_what_is_no_array_becomes_one(utils: dict[str, Any]) -> None:
    assert utils["Tensor"]("x", [[1.5], [2.5]]).nbytes == 16


@pytest.mark.parametrize(
    "array", [np.array([[b"ab", b""], [b"c", b"\xff"]], dtype=object), np.array([b"abc\xff"])]
)
def test_strings_go_serialized(utils: dict[str, Any], array: Any) -> None:
    made = utils["Tensor"]("x", array)
    assert made.raw == b"abc\xff"
    assert made.nbytes == 4
    assert made.array is array


def test_no_strings(utils: dict[str, Any]) -> None:
    assert utils["Tensor"]("x", np.empty((0, 2), dtype=object)).nbytes == 0


def test_serializing_outside_of_a_constructor_lends_nothing(utils: dict[str, Any]) -> None:
    assert utils["serialize_byte_tensor"](np.array([b"ab"], dtype=object)) == b"ab"


def test_a_refused_tensor_gives_back_what_was_lent(utils: dict[str, Any]) -> None:
    array = np.ones(3, np.float64)
    seen: list[Any] = []
    plain = FakeStub(utils).Tensor.__init__

    def refuse(self: Any, name: str, lent: Any) -> None:
        seen.append(lent)
        assert elsize_of_numpy1(lent) == 8
        plain(self, "", lent)

    lender = _numpy_bridge._Lender(serialize)
    with pytest.raises(ValueError, match="needs a name"):
        lender.wrap_init(refuse)(object(), "x", array)
    assert elsize_of_numpy1(seen[0]) == 0


def test_threads_do_not_end_each_others_loans(utils: dict[str, Any]) -> None:
    lender = _numpy_bridge._Lender(serialize)
    inside, leave = threading.Event(), threading.Event()
    sizes: list[int] = []

    def slow(self: Any, name: str, lent: Any) -> None:
        inside.set()
        assert leave.wait(20)
        sizes.append(elsize_of_numpy1(lent))

    thread = threading.Thread(target=lender.wrap_init(slow), args=(object(), "slow", np.ones(3)))
    thread.start()
    assert inside.wait(20)
    lender.wrap_init(lambda self, name, lent: sizes.append(elsize_of_numpy1(lent)))(
        object(), "x", np.ones(3, "i2")
    )
    leave.set()
    thread.join()
    assert sizes == [2, 8]


def test_arrays_with_strides_of_zero_get_those_of_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    legacy: Any = importlib.import_module("numpy.core.multiarray")
    monkeypatch.setattr(legacy, "_ARRAY_API", legacy._ARRAY_API)
    monkeypatch.setattr(legacy, "_mooring_keeps", None, raising=False)
    _numpy_bridge._replace_api_table()

    address_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    table = (ctypes.c_void_p * 95).from_address(address_of(legacy._ARRAY_API, None))
    new_from_descr = ctypes.PYFUNCTYPE(
        ctypes.py_object, ctypes.py_object, ctypes.py_object, ctypes.c_int, ctypes.c_void_p,
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p,
    )(table[94])  # fmt: skip
    data = np.arange(6, dtype=np.int32)
    dims, zeros, own = ((ctypes.c_ssize_t * 2)(*pair) for pair in [(2, 3), (0, 0), (4, 8)])

    def new(strides: Any) -> Any:
        dtype = np.dtype(np.int32)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(dtype))  # the call takes a reference over
        return new_from_descr(np.ndarray, dtype, 2, dims, strides, data.ctypes.data, 0x0400, None)

    np.testing.assert_array_equal(new(zeros), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(new(None), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(new(own), [[0, 2, 4], [1, 3, 5]])


def test_numpy_1_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "__version__", "1.26.4")
    namespace: dict[str, Any] = {"serialize_byte_tensor": serialize}
    _numpy_bridge.apply(namespace)
    assert namespace == {"serialize_byte_tensor": serialize}
