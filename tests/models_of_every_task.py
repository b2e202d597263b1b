"""A tiny model of each task for Triton's Python backend: whatever it is asked, it answers the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from opinion_models import write_opinion_model
from python_models import write_python_model
from service_model import write_service_model
from text_models import write_text_models

_TEXT = 'input { name: "text" data_type: TYPE_STRING dims: [1] }'
_LABELS = {"label": [b"a"], "score": [1.0]}
#: Input and the values of each output's row, by task.
_TASKS: Mapping[str, tuple[str, Mapping[str, list[bytes] | list[float]]]] = {
    "text-multi-classification": (_TEXT, {"topic": [b"a"], "topic_score": [1.0]}),
    "feature-extraction": (_TEXT, {"embedding": [0.5, 0.5]}),
    "text-ranking": (_TEXT, {"item": [b"1"], "score": [1.0], "answer": [b"yes"]}),
    "recommendation": (
        'input { name: "history" data_type: TYPE_STRING dims: [-1] }',
        {"item": [b"1"], "score": [1.0]},
    ),
    "image-classification": ('input { name: "image" data_type: TYPE_STRING dims: [1] }', _LABELS),
    "tabular-classification": ('input { name: "features" data_type: TYPE_FP32 dims: [3] }', _LABELS),
}
_SOURCE = """
    import numpy as np
    import triton_python_backend_utils as pb_utils

    ROWS = {rows!r}
    TYPES = {{bytes: np.object_, float: np.float32}}


    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(len(request.inputs()[0].as_numpy())) for request in requests]

        def answer(self, count):
            return pb_utils.InferenceResponse([
                pb_utils.Tensor(name, np.array([row] * count, TYPES[type(row[0])]))
                for name, row in ROWS.items()
            ])
"""
_PARAMETERS = """
    parameters { key: "task" value { string_value: "%s" } }
    parameters { key: "heads" value { string_value: "{\\"topic\\": [\\"a\\"]}" } }
"""


def write_models_of_every_task(repository: Path) -> dict[str, str]:
    """Write the models; returns the name of each by its task."""
    write_text_models(repository)
    write_service_model(repository)
    write_opinion_model(repository)
    models = {
        "token-classification": "ner",
        "text-classification": "intent",
        "customer-service": "customer_service",
        "opinion-monitoring": "opinion_monitor",
    }
    for task, (inputs, rows) in _TASKS.items():
        outputs = "\n".join(
            f'output {{ name: "{name}" data_type: TYPE_{"STRING" if isinstance(row[0], bytes) else "FP32"} '
            "dims: [-1] }"
            for name, row in rows.items()
        )
        models[task] = task.replace("-", "_")
        config = f'backend: "python"\nmax_batch_size: 8\n{inputs}\n{outputs}\n'
        config += "instance_group { count: 1 kind: KIND_CPU }\n" + _PARAMETERS % task
        write_python_model(repository, models[task], source=_SOURCE.format(rows=dict(rows)), config=config)
    return models
