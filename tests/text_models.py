"""Write tiny text models for Triton's Python backend: they answer like the pipelines of real releases."""

from __future__ import annotations

import json
from pathlib import Path

from python_models import write_python_model

NER_CONFIG = """
    backend: "python"
    max_batch_size: 8
    input { name: "text" data_type: TYPE_STRING dims: [1] }
    output { name: "label" data_type: TYPE_STRING dims: [-1] }
    output { name: "score" data_type: TYPE_FP32 dims: [-1] }
    output { name: "start" data_type: TYPE_INT32 dims: [-1] }
    output { name: "end" data_type: TYPE_INT32 dims: [-1] }
    output { name: "entity" data_type: TYPE_STRING dims: [-1] }
    instance_group { count: 1 kind: KIND_CPU }
    dynamic_batching {}
    parameters { key: "task" value { string_value: "token-classification" } }
"""
# Every text's first word is a person; a text with REFUSED in it is an error.
_NER_SOURCE = """
    import numpy as np
    import triton_python_backend_utils as pb_utils

    REFUSED = {refused!r}


    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(request) for request in requests]

        def answer(self, request):
            column = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[:, 0]
            texts = [raw.decode() for raw in column]
            if REFUSED and any(REFUSED in text for text in texts):
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(
                    f"no text with {{REFUSED!r}}", pb_utils.TritonError.INVALID_ARG))
            words = [text.split()[0] for text in texts]
            rows = len(texts)
            return pb_utils.InferenceResponse([
                pb_utils.Tensor("label", np.array([[b"PER"]] * rows, dtype=np.object_)),
                pb_utils.Tensor("score", np.full((rows, 1), 0.75, dtype=np.float32)),
                pb_utils.Tensor("start", np.zeros((rows, 1), dtype=np.int32)),
                pb_utils.Tensor("end", np.array([[len(word)] for word in words], dtype=np.int32)),
                pb_utils.Tensor("entity", np.array([[word.encode()] for word in words], dtype=np.object_)),
            ])
"""
INTENT_CONFIG = """
    backend: "python"
    max_batch_size: 8
    input { name: "text" data_type: TYPE_STRING dims: [1] }
    output { name: "label" data_type: TYPE_STRING dims: [-1] }
    output { name: "score" data_type: TYPE_FP32 dims: [-1] }
    instance_group { count: 1 kind: KIND_CPU }
    parameters { key: "task" value { string_value: "text-classification" } }
"""
_INTENT_SOURCE = """
    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(request) for request in requests]

        def answer(self, request):
            rows = len(pb_utils.get_input_tensor_by_name(request, "text").as_numpy())
            return pb_utils.InferenceResponse([
                pb_utils.Tensor("label", np.array([[b"track_order", b"refund"]] * rows, dtype=np.object_)),
                pb_utils.Tensor("score", np.array([[0.75, 0.25]] * rows, dtype=np.float32)),
            ])
"""


def write_text_models(repository: Path, *, refused: str = "") -> Path:
    """Write ``ner`` and ``intent``, each with a manifest.

    Args:
        repository: folder that receives both.
        refused: ``ner`` answers texts that hold this with an error; empty for none.

    Returns:
        The repository.
    """
    write_python_model(repository, "ner", source=_NER_SOURCE.format(refused=refused), config=NER_CONFIG)
    write_python_model(repository, "intent", source=_INTENT_SOURCE, config=INTENT_CONFIG)
    for name, metrics in (("ner", {"entity_f1": 0.91}), ("intent", {"accuracy": 0.93})):
        manifest = {
            "base_checkpoint": {"name": "tiny"},
            "data": {"train_examples": 10, "evaluation_examples": 5},
            "metrics": metrics,
            "recipe": {"serving": {"mixed_lengths": "none"}},
            "parity": {"onnx": {"max_abs_difference": 2e-6, "tolerance": 1e-4, "cases": 3}},
        }
        (repository / name / "1" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return repository
