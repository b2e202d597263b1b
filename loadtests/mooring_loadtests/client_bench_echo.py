"""The trivial model of the client's benchmark: it returns what it gets, so that the client's part shows."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import numpy as np

ECHO = "echo"
#: The payload, ``[1, 8]``.
ROW = np.arange(8, dtype=np.float32)[np.newaxis]

_SOURCE = """
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            tensors = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
            return [pb_utils.InferenceResponse([pb_utils.Tensor("y", tensor)]) for tensor in tensors]
"""


def write_echo(repository: Path) -> Path:
    """Write the model: FP32 ``x`` ``[B, L]`` comes back as ``y``.

    Returns:
        The repository.
    """
    # Not at the top: what only reads the names above needs no protobuf.
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    config = pb.ModelConfig(
        name=ECHO,
        backend="python",
        max_batch_size=8,
        input=[pb.ModelInput(name="x", data_type=pb.TYPE_FP32, dims=[-1])],
        output=[pb.ModelOutput(name="y", data_type=pb.TYPE_FP32, dims=[-1])],
    )
    version = repository / ECHO / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(dedent(_SOURCE), encoding="utf-8")
    (version.parent / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    return repository
