"""Models that write down what they ran."""

from __future__ import annotations

from pathlib import Path

from python_models import write_python_model

# One write of one line: instances are processes, and O_APPEND keeps their lines apart.
_SOURCE = """
    import os
    import time
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def initialize(self, args):
            self.record = os.open({record!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def execute(self, requests):
            responses = []
            for request in requests:
                os.write(self.record, (request.request_id() + "\\n").encode())
                x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
                time.sleep(float(x.flat[0]))
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]))
            return responses
"""
_CONFIG = """
    backend: "python"
    max_batch_size: 1
    input {{ name: "x" data_type: TYPE_FP32 dims: [-1] }}
    output {{ name: "y" data_type: TYPE_FP32 dims: [-1] }}
    instance_group {{ count: {instances} kind: KIND_CPU }}
    {more}
"""
#: More of a config: a request may say how long it is willing to wait; that takes a default above 0.
QUEUE = """
    dynamic_batching {
      default_queue_policy {
        timeout_action: REJECT
        allow_timeout_override: true
        default_timeout_microseconds: 60000000
      }
    }
"""


def write_recorder(
    repository: Path, name: str = "recorder", *, instances: int = 1, more_config: str = ""
) -> Path:
    """Write a model that notes each request's id, sleeps ``x[0, 0]`` seconds and returns ``x`` as ``y``.

    Returns:
        The file that it appends a line to for each request.
    """
    record = repository.parent / f"{name}.record"
    write_python_model(
        repository,
        name,
        source=_SOURCE.format(record=str(record)),
        config=_CONFIG.format(instances=instances, more=more_config),
    )
    return record


def executions(record: Path) -> list[str]:
    """Ids of the requests that the model ran, in the order in which it began them."""
    return record.read_text(encoding="utf-8").splitlines()
