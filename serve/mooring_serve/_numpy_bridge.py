"""Make a Python-backend stub that was built for NumPy 1 work with NumPy 2.

This module runs inside the stub process, not in Mooring's: it is copied into the backend directory and
applied by the last line of the copied ``triton_python_backend_utils.py``.

Why it is needed
    The wheel's stubs hold pybind11 2.10, which knows NumPy 1's ``PyArray_Descr`` only: it reads an element's
    size as a C ``int`` at byte 32. NumPy 2 has the size at byte 40 and at byte 32 the flags, which are 0 for
    numbers (``_PyArray_DescrNumPy2`` in numpy/ndarraytypes.h). So every array that the stub makes gets
    strides of 0, and of every array that it takes it sees 0 bytes.
    https://numpy.org/doc/2.0/numpy_2_0_migration_guide.html#the-pyarray-descr-struct-has-been-changed
    https://github.com/pybind/pybind11/pull/5050

What it does
    *Arrays that the stub makes* (a request's inputs) go through ``PyArray_NewFromDescr``, whose address
    pybind11 takes from the table in ``numpy.core.multiarray._ARRAY_API``. The bridge puts a copy of the
    table there whose entry drops strides of 0, upon which NumPy computes those of a C-ordered array.

    *Arrays that the stub takes* (``Tensor(name, array)``) are handed over as a view with a data type
    object of its own, made for this one call, into whose byte 32 the element size is lent while the
    constructor runs. Nobody else holds that object, so no other thread meets it. NumPy looks at the flags
    where it copies or frees elements, and the constructor does neither: what is not contiguous is copied
    before.

When it can go
    When the embedded server is a release after 24.10, whose Python backend has pybind11 2.12.
    https://github.com/triton-inference-server/python_backend/pull/384
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import threading
from collections.abc import Callable, MutableMapping
from typing import Any

import numpy as np

# Where NumPy 1's PyArray_Descr has the element size, and NumPy 2's the lower half of the flags.
_ELSIZE_OFFSET = 32
# Index of PyArray_NewFromDescr in the API table; pybind11 before 2.12 uses none above 282.
_NEW_FROM_DESCR = 94
_TABLE_LENGTH = 283
_STRIDE = ctypes.sizeof(ctypes.c_ssize_t)
_NewFromDescr = ctypes.PYFUNCTYPE(
    ctypes.c_void_p,  # the new array
    ctypes.c_void_p,  # subtype
    ctypes.c_void_p,  # descr
    ctypes.c_int,  # nd
    ctypes.c_void_p,  # dims
    ctypes.c_void_p,  # strides
    ctypes.c_void_p,  # data
    ctypes.c_int,  # flags
    ctypes.c_void_p,  # obj
)


def apply(utils: MutableMapping[str, Any]) -> None:
    """Bridge the stub that runs this, if its NumPy is version 2.

    Args:
        utils: namespace of ``triton_python_backend_utils``.
    """
    if int(np.__version__.partition(".")[0]) < 2:
        return
    stub = importlib.import_module("c_python_backend_utils")
    lender = _Lender(utils["serialize_byte_tensor"])
    utils["serialize_byte_tensor"] = lender.serialize_byte_tensor
    stub.Tensor.__init__ = lender.wrap_init(stub.Tensor.__init__)
    _replace_api_table()


def _replace_api_table() -> None:
    # NumPy 2 keeps this module for old pickles and for pybind11, with the table as its own.
    legacy: Any = importlib.import_module("numpy.core.multiarray")
    address_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
        ("PyCapsule_New", ctypes.pythonapi)
    )
    table = (ctypes.c_void_p * _TABLE_LENGTH).from_address(address_of(legacy._ARRAY_API, None))
    copy = (ctypes.c_void_p * _TABLE_LENGTH).from_buffer_copy(table)
    entry = _new_from_descr(ctypes.cast(ctypes.c_void_p(table[_NEW_FROM_DESCR]), _NewFromDescr))
    copy[_NEW_FROM_DESCR] = ctypes.cast(entry, ctypes.c_void_p).value
    legacy._ARRAY_API = new_capsule(ctypes.addressof(copy), None, None)
    # C code holds both by address for the life of the process.
    legacy._mooring_keeps = (copy, entry)


def _new_from_descr(original: Callable[..., int | None]) -> Any:
    """Return a C function like the original one, which takes strides of 0 for none."""

    def without_zero_strides(
        subtype: int, descr: int, nd: int, dims: int, strides: int | None, data: int, flags: int, obj: int
    ) -> int | None:
        if nd > 0 and strides and ctypes.c_ssize_t.from_address(strides + (nd - 1) * _STRIDE).value == 0:
            strides = None
        return original(subtype, descr, nd, dims, strides, data, flags, obj)

    return _NewFromDescr(without_zero_strides)


class _Lender:
    """Lends element sizes to the stub while its ``Tensor`` constructor runs."""

    def __init__(self, serialize: Any) -> None:
        self._serialize = serialize
        # Loans of the constructor call in progress, for each thread on its own.
        self._calls = threading.local()

    def wrap_init(self, plain_init: Any) -> Any:
        """Return a constructor that lends each array's element size to the given one."""
        calls = self._calls

        @functools.wraps(plain_init)
        def init(tensor: Any, name: str, array: Any) -> None:
            array = np.asarray(array)
            if not array.flags.c_contiguous:
                array = np.ascontiguousarray(array)
            outer = getattr(calls, "loans", None)
            loans: list[_Loan] = []
            calls.loans = loans
            try:
                # Of strings the stub takes the serialized form instead, below.
                plain_init(tensor, name, array if array.dtype.kind in "OSU" else _lend(array, loans))
            finally:
                calls.loans = outer
                for field, value, _ in loans:
                    field.value = value

        return init

    def serialize_byte_tensor(self, array: Any) -> Any:
        """As the wheel's, but a form that the constructor can take if it is the constructor that asks."""
        raw = self._serialize(array)
        loans = getattr(self._calls, "loans", None)
        if not raw or loans is None:
            return raw
        return _lend(np.frombuffer(raw, np.uint8), loans)


#: Where an element size was lent to, what was there before, and the object that it is in.
_Loan = tuple[ctypes.c_int32, int, Any]


def _lend(array: Any, loans: list[_Loan]) -> Any:
    lent = array.view(np.dtype(array.dtype, copy=True))
    field = ctypes.c_int32.from_address(id(lent.dtype) + _ELSIZE_OFFSET)
    loans.append((field, field.value, lent.dtype))
    field.value = lent.dtype.itemsize
    return lent
