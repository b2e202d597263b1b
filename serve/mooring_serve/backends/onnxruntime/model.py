"""Triton's backend ``onnxruntime`` for the embedded server, as a Python-based backend.

Serves the same models and configurations as the official C++ backend, with the ``onnxruntime`` package of
the server's Python. It differs in this:

- Every instance is a process with its own session: ``share_session_between_instances`` changes nothing.
- Threads don't spin on CPU; see ``mooring_onnx_options``.
- When a batch fails, only the requests that fail by themselves get the error.
- Implicit state of sequences and a decoupled transaction policy are refused at load, and output strings that
  are not UTF-8 when they come.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mooring_stub
import triton_python_backend_utils as pb_utils
from mooring_backend_flags import read_backend_flags
from mooring_model_config import Instance, ModelConfig
from mooring_onnx_signature import check_signature, complete_config, needs_completion

if TYPE_CHECKING:
    from mooring_onnx_engine import OnnxEngine

_BACKEND = "onnxruntime"
# Triton's own default, see "Default Max Batch Size" in the official backend's README.
_DEFAULT_MAX_BATCH_SIZE = "4"


class TritonPythonModel:
    """One instance of one model; its methods are called by the stub."""

    _config: ModelConfig
    _engine: OnnxEngine

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Fill in batching, inputs and outputs from the model, where the configuration has none."""
        config = auto_complete_model_config.as_dict()
        if needs_completion(config):
            # ONNX Runtime takes long to import, and most configurations are complete.
            from mooring_onnx_engine import OnnxEngine

            with mooring_stub.load_errors():
                flags = read_backend_flags(_BACKEND)
                instance = Instance(kind="CPU", device_id=0, folder=Path(pb_utils.get_model_dir()))
                engine = OnnxEngine(ModelConfig.parse(config), instance, flags)
                default = int(flags.get("default-max-batch-size", _DEFAULT_MAX_BATCH_SIZE))
                # The dictionary is the configuration itself: its add_input() knows no reshape.
                complete_config(config, engine.signature, default)
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model and check that its configuration fits."""
        from mooring_onnx_engine import OnnxEngine

        with mooring_stub.load_errors():
            self._config = ModelConfig.parse(json.loads(args["model_config"]))
            self._engine = OnnxEngine(self._config, Instance.parse(args), read_backend_flags(_BACKEND))
            check_signature(self._config, self._engine.signature)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer one dynamic batch."""
        return mooring_stub.execute(self._config, requests, self._engine.run)

    def finalize(self) -> None:
        """Release the session."""
        del self._engine
