"""Join the requests of one dynamic batch, and cut the model's outputs apart again.

Follows Triton's C++ backends (``backend_input_collector.cc`` and ``backend_output_responder.cc`` in
https://github.com/triton-inference-server/backend), except that a batch which fails is run again in parts,
so that one bad request does not take its neighbours along.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from mooring_model_config import BackendError, BatchInput, BatchOutput, ModelConfig

Array = npt.NDArray[Any]
#: Runs the model: inputs by name and the names of the wanted outputs in, outputs by name out.
#: Raises BackendError when the engine fails.
Run = Callable[[Mapping[str, Array], Sequence[str]], Mapping[str, Array]]

_BATCH_INPUT_DTYPES = {"TYPE_INT32": np.int32, "TYPE_FP32": np.float32}


@dataclass(frozen=True)
class Request:
    """One request: its tensors by name, and the names of the outputs that it wants."""

    inputs: Mapping[str, Array]
    outputs: Collection[str]

    @property
    def batch_size(self) -> int:
        """Number of batch items; all inputs of a request have the same."""
        return int(next(iter(self.inputs.values())).shape[0])


Answer = Mapping[str, Array] | BackendError


def answer_requests(config: ModelConfig, requests: Sequence[Request], run: Run) -> list[Answer]:
    """Answer every request: its outputs by name, or the error that it alone gets.

    Args:
        config: configuration of the model.
        requests: at least one request. With ``max_batch_size`` above 0 they run as one batch; inputs have
            the shape [b, …] with the request's own b.
        run: the engine.

    Returns:
        One answer for each request, in order.
    """
    if not config.max_batch_size:
        return [answer for request in requests for answer in _answer_batch(config, [request], run)]
    return _answer_batch(config, requests, run)


def _answer_batch(config: ModelConfig, requests: Sequence[Request], run: Run) -> list[Answer]:
    wanted = {name for request in requests for name in request.outputs}
    try:
        outputs = run(join_inputs(config, requests), sorted(wanted))
    except BackendError as error:
        if len(requests) == 1:
            return [error]
        half = len(requests) // 2
        return _answer_batch(config, requests[:half], run) + _answer_batch(config, requests[half:], run)
    return split_outputs(config, requests, outputs)


def join_inputs(config: ModelConfig, requests: Sequence[Request]) -> dict[str, Array]:
    """Concatenate the requests' inputs and add the batch inputs.

    Returns:
        Tensors of shape [total batch, …] by name; ragged ones [total elements]. Views for one request.

    Raises:
        BackendError: shapes differ in an input that is not ragged.
    """
    ragged = config.ragged_inputs
    joined: dict[str, Array] = {}
    for name in requests[0].inputs:
        parts = [request.inputs[name] for request in requests]
        if name in ragged:
            parts = [part.reshape(-1) for part in parts]
        try:
            joined[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        except ValueError as error:
            raise BackendError(f"input '{name}': {error}") from error
    for entry in config.batch_inputs:
        shapes = [request.inputs[entry.source_input].shape for request in requests]
        values = make_batch_input(entry, shapes)
        joined[entry.target_name] = values
    return joined


def make_batch_input(entry: BatchInput, shapes: Sequence[tuple[int, ...]]) -> Array:
    """Compute one batch input from the source input's shape in every request.

    Args:
        entry: what to compute.
        shapes: one shape [b, …] for each request. Element counts are those of whole requests, b included.

    Returns:
        The tensor; its shape depends on the kind:
        ``BATCH_ELEMENT_COUNT`` and ``BATCH_ACCUMULATED_ELEMENT_COUNT`` [requests],
        ``…_WITH_ZERO`` [requests + 1], ``BATCH_MAX_ELEMENT_COUNT_AS_SHAPE`` [largest count] (content 0),
        ``BATCH_ITEM_SHAPE`` [items, rank - 1], ``BATCH_ITEM_SHAPE_FLATTEN`` [items * (rank - 1)].

    Raises:
        BackendError: unknown kind or data type.
    """
    dtype = _BATCH_INPUT_DTYPES.get(entry.data_type)
    if dtype is None:
        raise BackendError(
            f"batch_input '{entry.target_name}': data type {entry.data_type} is neither TYPE_INT32 nor "
            "TYPE_FP32"
        )
    counts = list(map(math.prod, shapes))
    values: Any
    match entry.kind:
        case "BATCH_ELEMENT_COUNT":
            values = counts
        case "BATCH_ACCUMULATED_ELEMENT_COUNT":
            values = np.cumsum(counts)
        case "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO":
            values = np.cumsum([0, *counts])
        case "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE":
            values = np.zeros(max(counts))
        case "BATCH_ITEM_SHAPE":
            values = _item_shapes(shapes)
        case "BATCH_ITEM_SHAPE_FLATTEN":
            values = _item_shapes(shapes).reshape(-1)
        case _:
            raise BackendError(f"batch_input '{entry.target_name}': unknown kind {entry.kind}")
    return np.asarray(values, dtype=dtype)


def _item_shapes(shapes: Sequence[tuple[int, ...]]) -> Array:
    return np.repeat([shape[1:] for shape in shapes], [shape[0] for shape in shapes], axis=0)


def split_outputs(
    config: ModelConfig, requests: Sequence[Request], outputs: Mapping[str, Array]
) -> list[Answer]:
    """Give every request its part of the outputs.

    An output too short for all requests is an error for those that get nothing; surplus rows are dropped, as
    the C++ backends do.

    Args:
        config: configuration of the model.
        requests: the requests that ran together.
        outputs: whole outputs by name, [total batch, …] or, with ``batch_output``, any shape.
    """
    answers: list[Answer] = [{} for _ in requests]
    for name, value in outputs.items():
        batch_output = config.batch_outputs.get(name)
        if batch_output is not None:
            parts = _scatter(batch_output, requests, value)
        elif config.max_batch_size:
            parts = _rows(name, requests, value)
        else:
            parts = [value]
        for index, (request, part) in enumerate(zip(requests, parts, strict=True)):
            answer = answers[index]
            if name not in request.outputs or isinstance(answer, BackendError):
                continue
            answers[index] = part if isinstance(part, BackendError) else {**answer, name: part}
    return answers


def _rows(name: str, requests: Sequence[Request], value: Array) -> list[Array | BackendError]:
    """Cut along the batch axis."""
    if value.ndim == 0:
        error = BackendError(f"output '{name}' is a scalar, which can't be split over a batch")
        return [error for _ in requests]
    parts: list[Array | BackendError] = []
    end = 0
    for request in requests:
        start, end = end, end + request.batch_size
        if end > len(value):
            parts.append(
                BackendError(
                    f"failed to split the output tensor '{name}': expected a batch size of at least {end} in "
                    f"the model's output, got {len(value)}",
                    code="UNSUPPORTED",
                )
            )
        else:
            parts.append(value[start:end])
    return parts


def _scatter(entry: BatchOutput, requests: Sequence[Request], value: Array) -> list[Array | BackendError]:
    """Cut one after the other, each part as large as its request's input says."""
    flat = value.reshape(-1)
    parts: list[Array | BackendError] = []
    end = 0
    for request in requests:
        source = request.inputs[entry.source_input].shape
        shape = tuple(source[axis] if dim == -1 else dim for axis, dim in enumerate(entry.shape))
        start, end = end, end + math.prod(shape)
        if end > flat.size:
            parts.append(
                BackendError(
                    f"failed to scatter the output tensor '{entry.target_name}': by input "
                    f"'{entry.source_input}' the batch needs at least {end} elements, the model gave "
                    f"{flat.size}",
                    code="UNSUPPORTED",
                )
            )
        else:
            parts.append(flat[start:end].reshape(shape))
    return parts
