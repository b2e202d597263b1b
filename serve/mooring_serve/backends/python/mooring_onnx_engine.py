"""Run an ONNX model as the official onnxruntime backend does."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from mooring_batch import Array
from mooring_model_config import BackendError, Instance, ModelConfig, check_model_file
from mooring_onnx_options import execution_providers, run_options, session_options
from mooring_onnx_signature import Signature

_DEFAULT_FILENAME = "model.onnx"
# Strings may take so many times their own bytes, and so many more.
_PADDING_FACTOR = 16
_PADDING_BYTES = 64 * 1024 * 1024


class OnnxEngine:
    """One ONNX Runtime session.

    Attributes:
        signature: what the model takes and gives.

    Args:
        config: configuration of the model.
        instance: where it runs.
        flags: what ``--backend-config`` set for the backend.

    Raises:
        BackendError: the file is missing or damaged, an option is wrong, a provider is not available.
    """

    def __init__(self, config: ModelConfig, instance: Instance, flags: Mapping[str, str]) -> None:
        path = _find_file(config, instance.folder)
        providers = execution_providers(config, instance)
        options = session_options(config, providers, flags)
        if any(name == "CUDAExecutionProvider" for name, _ in providers):
            # The loader does not look where pip puts NVIDIA's libraries.
            ort.preload_dlls()
        try:
            self._session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:
            raise BackendError(
                f"failed to load model '{config.name}' from '{path}': {_engine_message(error)}",
                code="INTERNAL",
            ) from error
        # A provider that can't start is otherwise replaced by the CPU with a line in the log, which is right
        # for a GPU that only Triton chose.
        for name, _ in providers:
            if name == "CUDAExecutionProvider" and not instance.gpu_wanted:
                continue
            if name not in self._session.get_providers():
                raise BackendError(
                    f"model '{config.name}': ONNX Runtime has {name}, but it could not start; "
                    "the server's log says why",
                    code="UNAVAILABLE",
                )
        if instance.kind == "GPU" and "CUDAExecutionProvider" not in self._session.get_providers():
            print(
                f"model '{config.name}': ONNX Runtime runs it on the CPU, where Triton has a GPU for it; "
                "onnxruntime-gpu in place of onnxruntime can use one",
                file=sys.stderr,
                flush=True,
            )
        self.signature = Signature.read(self._session)
        self._scalar_inputs = {tensor.name for tensor in self.signature.inputs if not tensor.dims}
        scalars = {tensor.name for tensor in self.signature.outputs if not tensor.dims}
        self._scalar_outputs = {
            tensor.name: tensor.model_dims for tensor in config.outputs if tensor.name in scalars
        }
        self._run_options = run_options(config)

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Run the model once.

        Args:
            inputs: tensors by name; strings as object arrays of bytes.
            wanted: names of the outputs to compute.

        Raises:
            BackendError: with the message of ONNX Runtime, or of NumPy where an input can't be reshaped; or
                strings would take too much memory.
        """
        try:
            feeds = {name: self._feed(name, value) for name, value in inputs.items()}
            values = self._session.run(wanted, feeds, self._run_options)
        except BackendError:
            raise
        except UnicodeDecodeError as error:
            raise BackendError(
                "the model gave a string that is not valid UTF-8, which the embedded server can't return: "
                f"{error}",
                code="UNSUPPORTED",
            ) from error
        except Exception as error:
            raise BackendError(_engine_message(error), code="INTERNAL") from error
        outputs = dict(zip(wanted, values, strict=True))
        for name in self._scalar_outputs.keys() & outputs.keys():
            # ONNX Runtime says the same of outputs of unknown rank.
            if outputs[name].ndim == 0:
                outputs[name] = outputs[name].reshape(self._scalar_outputs[name])
        return outputs

    def _feed(self, name: str, value: Array) -> Array:
        if value.dtype == np.object_:
            value = _to_c_strings(name, value)
        return value.reshape(()) if name in self._scalar_inputs else value


def _to_c_strings(name: str, value: Array) -> Array:
    """Strings as the official backend passes them, so that content which is not UTF-8 gets through."""
    lengths = [len(text) for text in value.flat]
    # One byte more than the longest: ONNX Runtime reads on to a NUL, into what lies behind.
    width = max(lengths, default=0) + 1
    total, padded = sum(lengths), width * len(lengths)
    if padded > _PADDING_FACTOR * total + _PADDING_BYTES:
        raise BackendError(
            f"input '{name}': {len(lengths)} strings of {total} bytes, the longest of {width - 1}, would "
            f"take {padded} bytes, as all are padded to the longest; send long strings apart from short ones"
        )
    return value.astype(f"S{width}")


def _find_file(config: ModelConfig, folder: Path) -> Path:
    path = folder / (config.model_filename or _DEFAULT_FILENAME)
    # A model with external weights may come as a folder with its own model.onnx.
    return check_model_file(config, path / _DEFAULT_FILENAME if path.is_dir() else path)


def _engine_message(error: Exception) -> str:
    """Write ONNX Runtime's message as the official backend does: ``onnx runtime error 2: …``."""
    match = re.match(r"\[ONNXRuntimeError\] : (\d+) : \w+ : (.*)", str(error), re.DOTALL)
    return f"onnx runtime error {match[1]}: {match[2]}" if match else str(error)
