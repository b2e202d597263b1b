"""A tiny customer-service model: ``where`` asks for a parcel, and of all else a person takes care."""

from __future__ import annotations

from pathlib import Path

from python_models import write_python_model

_CONFIG = """
    backend: "python"
    max_batch_size: 8
    input { name: "text" data_type: TYPE_STRING dims: [1] }
    output { name: "intent" data_type: TYPE_STRING dims: [1] }
    output { name: "intent_score" data_type: TYPE_FP32 dims: [1] }
    output { name: "item" data_type: TYPE_STRING dims: [-1] }
    output { name: "item_score" data_type: TYPE_FP32 dims: [-1] }
    output { name: "answer" data_type: TYPE_STRING dims: [-1] }
    output { name: "reply" data_type: TYPE_STRING dims: [1] }
    output { name: "handover" data_type: TYPE_BOOL dims: [1] }
    instance_group { count: 1 kind: KIND_CPU }
    parameters { key: "task" value { string_value: "customer-service" } }
"""
_SOURCE = """
    import numpy as np
    import triton_python_backend_utils as pb_utils

    REPLIES = {True: b"We look for it.\\nSee the link.", False: b"A colleague takes over."}


    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(request) for request in requests]

        def answer(self, request):
            column = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[:, 0]
            asks = [b"where" in raw.lower() for raw in column]
            scores = np.array([[0.75 if known else 0.25] for known in asks], np.float32)
            tensors = {
                "intent": [[b"track"]] * len(asks),
                "intent_score": scores,
                "item": [[b"parcel"]] * len(asks),
                "item_score": scores,
                "answer": [[b"See the link."]] * len(asks),
                "reply": [[REPLIES[known]] for known in asks],
                "handover": np.array([[not known] for known in asks]),
            }
            return pb_utils.InferenceResponse([
                pb_utils.Tensor(name, rows if isinstance(rows, np.ndarray) else np.array(rows, np.object_))
                for name, rows in tensors.items()
            ])
"""


def write_service_model(repository: Path, name: str = "customer_service") -> Path:
    """Write the model for a real server; returns the repository."""
    return write_python_model(repository, name, source=_SOURCE, config=_CONFIG)
