"""Feed an engine with ragged inputs as Triton does, by the config that is published with it.

Triton takes an output's width from the config alone: a wrong one loads and answers with other texts' values.
So verification runs an engine through this, and what it compares is engine and config together.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import numpy as np
from tritonclient.grpc import model_config_pb2 as pb

from mooring_build.engines import Engine

#: Texts of one request and of the next: alone without padding, in twos with padding inside.
_REQUEST_SIZES = (1, 2)


class RaggedEngine:
    """Takes padded batches as other engines do, and hands them on as requests that Triton has joined.

    Args:
        engine: takes packed ``input_ids`` and ``attention_mask`` ``[T]`` and lengths ``[B, 1]``.
        config: of its Triton model, as Mooring writes it.
    """

    def __init__(self, engine: Engine, config: pb.ModelConfig) -> None:
        self._engine = engine
        (output,) = config.output
        self._output = output.name
        #: Shape of one text's part; -1: as long as the text.
        self._dims = tuple(output.dims)
        self._scattered = bool(config.batch_output)

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """Answer ``input_ids`` and ``attention_mask``, ``[B, L]`` each.

        Raises:
            ValueError: the engine gives more or less than the config says.
        """
        input_ids, attention_mask = inputs
        requests = list(_requests(attention_mask))
        packed = [
            np.concatenate([array[rows, :width].reshape(-1) for rows, width in requests])
            for array in (input_ids, attention_mask)
        ]
        shapes = [[width] for rows, width in requests for _ in range(rows.start, rows.stop)]
        answer = self._engine(*packed, np.array(shapes, np.int32))
        return self._scatter(answer, requests, input_ids.shape) if self._scattered else answer

    def _scatter(
        self, answer: np.ndarray, requests: list[tuple[slice, int]], shape: tuple[int, ...]
    ) -> np.ndarray:
        """Cut ``[T, …]`` by the config's dims; ``[B, L, …]``, zeros under the padding."""
        parts = [(rows, width, (rows.stop - rows.start, width, *self._dims[1:])) for rows, width in requests]
        needed = sum(int(np.prod(part)) for _, _, part in parts)
        if answer.size != needed:
            raise ValueError(
                f"output {self._output!r} of shape {list(answer.shape)} holds {answer.size} values for "
                f"{sum(width for _, width in requests)} tokens in {len(requests)} requests; "
                f"the config's dims {list(self._dims)} make {needed}"
            )
        flat, start = answer.reshape(-1), 0
        whole = np.zeros((*shape, *self._dims[1:]), answer.dtype)
        for rows, width, part in parts:
            end = start + int(np.prod(part))
            whole[rows, :width] = flat[start:end].reshape(part)
            start = end
        return whole


def _requests(attention_mask: np.ndarray) -> Iterator[tuple[slice, int]]:
    """Rows of each request, and how long its longest text is."""
    lengths = attention_mask.shape[1] - attention_mask[:, ::-1].argmax(1)
    start = 0
    for size in cycle(_REQUEST_SIZES):
        if start >= len(lengths):
            return
        rows = slice(start, min(start + size, len(lengths)))
        yield rows, int(lengths[rows].max())
        start = rows.stop
