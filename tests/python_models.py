"""Write tiny models for Triton's Python backend into a repository."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

ECHO = """
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            tensors = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", tensor)]) for tensor in tensors]
"""
ECHO_CONFIG = """
    backend: "python"
    max_batch_size: 8
    input { name: "x" data_type: TYPE_FP32 dims: [-1] }
    output { name: "y" data_type: TYPE_FP32 dims: [-1] }
"""
#: Returns each input under its name with "out_" before it.
NAMED_BACK = """
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            return [
                pb_utils.InferenceResponse(
                    [pb_utils.Tensor("out_" + given.name(), given.as_numpy()) for given in request.inputs()]
                )
                for request in requests
            ]
"""


def write_python_model(
    repository: Path, name: str = "echo", *, source: str = ECHO, config: str = ECHO_CONFIG
) -> Path:
    """Write version 1 of a model; by default one that returns its input ``x`` as ``y``.

    Returns:
        The repository.
    """
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(dedent(source), encoding="utf-8")
    (repository / name / "config.pbtxt").write_text(dedent(config), encoding="utf-8")
    return repository
