"""Triton's backend ``pytorch`` for the embedded server, as a Python-based backend.

Serves the same TorchScript models and configurations as the official C++ backend, with the ``torch`` package
of the server's Python. Configurations are not completed: TorchScript does not keep what they need. It differs
in this:

- Every instance is a process with its own weights: ``ENABLE_WEIGHT_SHARING`` changes nothing.
- When a batch fails, only the requests that fail by themselves get the error.
- Strings of a batch are cut by request; the official backend gives every request the first ones.
- Inputs that don't name every argument of ``forward()`` once are refused at load.
- Implicit state of sequences and a decoupled transaction policy are refused at load, and output strings that
  are not UTF-8 when they come.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import mooring_stub
from mooring_model_config import Instance, ModelConfig
from mooring_torch_threads import shorten_waiting

if TYPE_CHECKING:
    from mooring_torch_engine import TorchEngine


class TritonPythonModel:
    """One instance of one model; its methods are called by the stub."""

    _config: ModelConfig
    _engine: TorchEngine

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model and check that its configuration fits."""
        with mooring_stub.load_errors():
            self._config = ModelConfig.parse(json.loads(args["model_config"]))
            shorten_waiting(self._config, cores=len(os.sched_getaffinity(0)), environment=os.environ)
            # A stub that only looks for auto_complete_config() need not wait for PyTorch.
            from mooring_torch_engine import TorchEngine

            self._engine = TorchEngine(self._config, Instance.parse(args))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer one dynamic batch."""
        return mooring_stub.execute(self._config, requests, self._engine.run)

    def finalize(self) -> None:
        """Release the module."""
        del self._engine
