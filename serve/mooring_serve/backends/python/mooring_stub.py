"""The side of the embedded backends that talks to Triton's Python stub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import triton_python_backend_utils as pb_utils
from mooring_batch import Answer, Request, Run, answer_requests
from mooring_model_config import BackendError, ModelConfig


def execute(config: ModelConfig, requests: Sequence[Any], run: Run) -> list[Any]:
    """Answer the stub's requests with the stub's responses."""
    parsed = [
        Request(
            {tensor.name(): tensor.as_numpy() for tensor in request.inputs()},
            request.requested_output_names(),
        )
        for request in requests
    ]
    return [_response(answer) for answer in answer_requests(config, parsed, run)]


def _response(answer: Answer) -> Any:
    if isinstance(answer, BackendError):
        error = pb_utils.TritonError(str(answer), getattr(pb_utils.TritonError, answer.code))
        return pb_utils.InferenceResponse(error=error)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in answer.items()])


@contextmanager
def load_errors() -> Iterator[None]:
    """Turn a BackendError into the exception whose text Triton reports as the model's load error."""
    try:
        yield
    except BackendError as error:
        raise pb_utils.TritonModelException(str(error)) from error
