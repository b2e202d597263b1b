"""Tensors checked against a model's signature, before sending and after receiving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mooring._errors import DecodeError, InvalidInput
from mooring._models import ModelConfig, ModelMetadata, TensorSpec
from mooring._operations import Tensor
from mooring._tensor_bytes import narrow_to_bf16

#: Triton's data type of each numpy dtype, by the dtype's name (``bfloat16`` is that of ml_dtypes).
_DATATYPE_OF_DTYPE = {
    "bool": "BOOL",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
# By the dtype itself: making its name takes microseconds, which every tensor would pay.
_DATATYPE_CACHE = {
    np.dtype(name): datatype for name, datatype in _DATATYPE_OF_DTYPE.items() if name != "bfloat16"
}
_DTYPE_OF_DATATYPE = {datatype: dtype for dtype, datatype in _DATATYPE_OF_DTYPE.items()}
_DTYPE_OF_DATATYPE["BYTES"] = "str, bytes or object"
_DTYPE_OF_DATATYPE["BF16"] = "float32, or bfloat16 of ml_dtypes"


@dataclass(frozen=True)
class Signature:
    """What requests to and answers of one model look like."""

    metadata: ModelMetadata
    config: ModelConfig
    #: By name; made once, as every call looks its tensors up.
    inputs: Mapping[str, TensorSpec] = field(init=False, repr=False, compare=False)
    outputs: Mapping[str, TensorSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs"):
            object.__setattr__(self, name, {spec.name: spec for spec in getattr(self.metadata, name)})


def check_inputs(signature: Signature, inputs: Mapping[str, np.ndarray]) -> tuple[Tensor, ...]:
    """Check a request's inputs and make them ready to be written.

    Args:
        signature: of the model.
        inputs: arrays by input name, each with the batch axis where the model has one.

    Returns:
        The tensors in the signature's order; text encoded, numbers little-endian.

    Raises:
        InvalidInput: a name, type, shape, batch size or text that the model does not take.
    """
    metadata, config = signature.metadata, signature.config
    if not isinstance(inputs, Mapping):
        raise _invalid(metadata, f"inputs must map names to numpy arrays, got {type(inputs).__name__}")
    for name in inputs:
        if name not in signature.inputs:
            raise _invalid(metadata, f"there is no input {name!r}; expected {_listed(metadata.inputs)}")
    tensors = []
    for spec in metadata.inputs:
        if spec.name in inputs:
            tensors.append(_check_input(signature, spec, inputs[spec.name]))
        elif spec.name not in config.optional_inputs:
            raise _invalid(metadata, f"input {spec.name!r} is missing; expected {_listed(metadata.inputs)}")
    if len(tensors) > 1 and config.max_batch_size > 0:
        batches = {tensor.name: tensor.array.shape[0] for tensor in tensors}
        if len(set(batches.values())) > 1:
            raise _invalid(metadata, f"the inputs must have one batch size, got {batches}")
    return tuple(tensors)


def check_requested(signature: Signature, outputs: Sequence[str] | None) -> tuple[str, ...] | None:
    """Check the names of the wanted outputs; ``None`` asks for all.

    Raises:
        InvalidInput: the model has no such output, or the list is empty.
    """
    if outputs is None:
        return None
    specs = signature.metadata.outputs
    if isinstance(outputs, str) or not outputs:
        raise _invalid(signature.metadata, f"outputs must be None or a list of some of {_listed(specs)}")
    for name in outputs:
        if name not in signature.outputs:
            raise _invalid(signature.metadata, f"there is no output {name!r}, only {_listed(specs)}")
    return tuple(outputs)


def check_outputs(
    signature: Signature,
    requested: Sequence[str] | None,
    answer: Mapping[str, np.ndarray],
    *,
    partial: bool = False,
) -> dict[str, np.ndarray]:
    """Check an answer and return the wanted outputs by name; a ``partial`` one may lack some.

    Raises:
        DecodeError: an output is missing or unknown, or has another type or shape than the model says.
    """
    model = signature.metadata.name
    for name in () if partial else requested or ():
        if name not in answer:
            raise DecodeError(f"model {model!r}: the answer lacks output {name!r}; it has {sorted(answer)}")
    for name, array in answer.items():
        spec = signature.outputs.get(name)
        if spec is None:
            raise DecodeError(f"model {model!r}: the answer has an unknown output {name!r}")
        arrives_as = "FP32" if spec.datatype == "BF16" else spec.datatype
        if _datatype_of(array.dtype) != arrives_as or not _fits(array.shape, spec.shape):
            raise DecodeError(f"model {model!r}: output {spec} came as {array.dtype.name}{list(array.shape)}")
    if requested is None:
        return dict(answer)
    return {name: answer[name] for name in requested if name in answer}


def _check_input(signature: Signature, spec: TensorSpec, array: np.ndarray) -> Tensor:
    metadata, limit = signature.metadata, signature.config.max_batch_size
    if not isinstance(array, np.ndarray):
        raise _invalid(metadata, f"input {spec.name!r} must be a numpy array, got {type(array).__name__}")
    if type(array) is not np.ndarray:
        array = _plain(metadata, spec, array)
    given = array.dtype
    is_text = given.kind in "OSU"
    datatype = "BYTES" if is_text else _datatype_of(given)
    if spec.datatype == "BF16" and datatype == "FP32":
        array, datatype = narrow_to_bf16(array), "BF16"
    elif datatype == "BF16":
        array = array.view(np.uint16)
    if datatype != spec.datatype:
        dtype = _DTYPE_OF_DATATYPE.get(spec.datatype, "no numpy type")
        raise _invalid(metadata, f"input {spec.name!r} is {given}; expected {spec.datatype} ({dtype})")
    if not _fits(array.shape, spec.shape):
        axis = f"; the first axis is the batch, 1 to {limit}" if limit > 0 else ""
        raise _invalid(
            metadata, f"input {spec.name!r} has shape {list(array.shape)}; expected {list(spec.shape)}{axis}"
        )
    if limit > 0 and array.shape[0] == 0:
        raise _invalid(metadata, f"input {spec.name!r} holds an empty batch; expected 1 to {limit} rows")
    if limit > 0 and array.shape[0] > limit:
        raise _invalid(metadata, f"input {spec.name!r} holds {array.shape[0]} rows; expected at most {limit}")
    if is_text:
        array = _encode_texts(metadata, spec, array)
    elif array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return Tensor(spec.name, datatype, array)


def _plain(metadata: ModelMetadata, spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """An array of a subclass as one of numpy's own; ``np.matrix`` never has one axis, for example."""
    if isinstance(array, np.ma.MaskedArray):
        raise _invalid(
            metadata,
            f"input {spec.name!r} is a masked array, and a request has no masks; give array.filled(value), "
            "or array.data",
        )
    return np.asarray(array)


def _encode_texts(metadata: ModelMetadata, spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    encoded = np.empty(array.shape, dtype=np.object_)
    flat = encoded.reshape(-1)
    for i, element in enumerate(array.reshape(-1).tolist()):
        where = f"input {spec.name!r}, element {i}"
        if isinstance(element, str):
            try:
                flat[i] = element.encode("utf-8")
            except UnicodeEncodeError as exc:
                raise _invalid(
                    metadata, f"{where} can't be written as UTF-8 (character {exc.start})"
                ) from exc
        elif isinstance(element, bytes):
            flat[i] = bytes(element)
        else:
            raise _invalid(metadata, f"{where} is {type(element).__name__}; expected str or bytes")
    return encoded


def _datatype_of(dtype: np.dtype) -> str | None:
    # The second look-up is for big-endian dtypes and for ml_dtypes' bfloat16.
    return _DATATYPE_CACHE.get(dtype) or _DATATYPE_OF_DTYPE.get(dtype.name)


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    if len(shape) != len(expected):
        return False
    for size, want in zip(shape, expected, strict=True):  # noqa: SIM110 - a generator costs twice as much
        if want != size and want != -1:
            return False
    return True


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(str(spec) for spec in specs) or "none"


def _invalid(metadata: ModelMetadata, message: str) -> InvalidInput:
    return InvalidInput(f"model {metadata.name!r}: {message}", model=metadata.name)
