"""Call a running server and look into it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from mooring_serve import TritonServer
from processes import settled

Array = npt.NDArray[Any]
Client = triton_grpc.InferenceServerClient


def connect(server: TritonServer) -> Client:
    """Open a gRPC client."""
    return Client(server.grpc_url.removeprefix("grpc://"))


def infer(client: Client, model: str, *, outputs: Sequence[str] | None = None, **inputs: Any) -> Any:
    """Send one request; inputs are arrays, or lists of which NumPy makes arrays."""
    tensors = []
    for name, value in inputs.items():
        array = np.asarray(value)
        tensor = triton_grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    wanted = None if outputs is None else [triton_grpc.InferRequestedOutput(name) for name in outputs]
    return client.infer(model, tensors, outputs=wanted)


def infer_together(client: Client, model: str, requests: Sequence[dict[str, Any]]) -> list[Any]:
    """Send all requests at once; where one fails, its exception takes the place of the result."""

    def send(inputs: dict[str, Any]) -> Any:
        try:
            return infer(client, model, **inputs)
        except InferenceServerException as error:
            return error

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(send, requests))


def count(client: Client, model: str, statistic: str) -> int:
    """Read a counter of the model's statistics, such as ``execution_count``."""
    (statistics,) = settled(lambda: client.get_inference_statistics(model, as_json=True))["model_stats"]
    return int(statistics.get(statistic, 0))


def load_error(server: TritonServer, model: str) -> str:
    """Return why a model isn't loaded."""
    (state,) = [state for state in server.model_states() if state.name == model]
    assert state.state == "UNAVAILABLE", state
    return state.reason
