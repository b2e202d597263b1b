"""PyTriton: Triton's dynamic batcher in front of Python functions, one for each copy of the model."""

from __future__ import annotations

import json
import os
import sysconfig

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from alternatives.models import BatchedModel
from alternatives.options import HOST, parse_options


class Instance:
    """One copy of the model as PyTriton calls it."""

    def __init__(self, model: BatchedModel) -> None:
        self._model = model

    @batch
    def answer(self, text: np.ndarray) -> dict[str, np.ndarray]:
        """Answer bytes ``[b, 1]`` with JSON as bytes ``[b, 1]``."""
        found = self._model([row.decode("utf-8") for row in text[:, 0]])
        return {"answers": np.array([[json.dumps(answers).encode("utf-8")] for answers in found])}


if __name__ == "__main__":
    options = parse_options()
    # Its Python stub must load the libpython of the Python that runs it, not the system's.
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    batcher = DynamicBatcher(max_queue_delay_microseconds=round(options.max_wait_ms * 1000.0))
    addresses = TritonConfig(
        http_address=HOST, http_port=options.port, allow_grpc=False, allow_metrics=False, exit_timeout_secs=5
    )
    with Triton(config=addresses) as triton:
        triton.bind(
            model_name="classifier",
            infer_func=[Instance(BatchedModel(options)).answer for _ in range(options.workers)],
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answers", dtype=bytes, shape=(1,))],
            config=ModelConfig(max_batch_size=max(options.max_batch_size, 1), batcher=batcher),
        )
        triton.serve()
