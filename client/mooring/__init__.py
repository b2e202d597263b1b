"""Call the models of an NVIDIA Triton server.

::

    import numpy as np
    from mooring import Client

    with Client("grpc://127.0.0.1:8001", timeout_s=5.0) as client:
        ner = client.task("ner")
        for entity in ner("Angela Merkel visited Paris."):
            print(entity.label, entity.text, entity.start, entity.end, entity.score)
        ids = np.array([[101, 102]], dtype=np.int64)  # [B, L]
        print(client.infer("ner_onnx", {"input_ids": ids, "attention_mask": np.ones_like(ids)}))

Every error is a :class:`MooringError`; :mod:`mooring.testing` has a fake server.
"""

from mooring._client import Client
from mooring._errors import (
    BuildError,
    CheckpointError,
    ConfigError,
    ConnectError,
    DataError,
    DeadlineExceeded,
    DecodeError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    MooringError,
    Overloaded,
    PublishError,
    RecipeError,
    ServerError,
    StartError,
    TransportError,
    UnsupportedPlatform,
    VerificationError,
)
from mooring._models import ModelConfig, ModelMetadata, ModelStatus, TensorSpec
from mooring._tasks import Entity, Label, TextClassifier, TokenClassifier

__all__ = [
    "BuildError",
    "CheckpointError",
    "Client",
    "ConfigError",
    "ConnectError",
    "DataError",
    "DeadlineExceeded",
    "DecodeError",
    "Entity",
    "InvalidInput",
    "Label",
    "ModelConfig",
    "ModelMetadata",
    "ModelNotFound",
    "ModelNotReady",
    "ModelStatus",
    "MooringError",
    "Overloaded",
    "PublishError",
    "RecipeError",
    "ServerError",
    "StartError",
    "TensorSpec",
    "TextClassifier",
    "TokenClassifier",
    "TransportError",
    "UnsupportedPlatform",
    "VerificationError",
]
