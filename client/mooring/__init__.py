"""Call the models of an NVIDIA Triton server.

::

    import numpy as np
    from mooring import Client

    with Client("grpc://127.0.0.1:8001", timeout_s=5.0) as client:
        ner = client.task("ner")
        for entity in ner("Angela Merkel visited Paris."):
            print(entity.label, entity.text, entity.start, entity.end, entity.score)
        ids = np.array([[101, 102]], dtype=np.int64)  # [B, L]
        print(client.infer("ner_onnx_ragged", {"input_ids": ids, "attention_mask": np.ones_like(ids)}))

:class:`AsyncClient` is the same for coroutines. Every error is a :class:`MooringError`;
:mod:`mooring.testing` has a fake server.
"""

from mooring._async._client import AsyncClient
from mooring._async._shared_memory import AsyncSharedMemory
from mooring._async._tasks import (
    AsyncCustomerService,
    AsyncEmbedder,
    AsyncImageClassifier,
    AsyncOpinionClassifier,
    AsyncRecommender,
    AsyncTabularClassifier,
    AsyncTextClassifier,
    AsyncTextMultiClassifier,
    AsyncTextRanker,
    AsyncTokenClassifier,
)
from mooring._counters import ClientCounters, EndpointStatus
from mooring._errors import (
    AccessDenied,
    BuildError,
    CheckpointError,
    CircuitOpen,
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
    Throttled,
    TransportError,
    UnsupportedPlatform,
    VerificationError,
)
from mooring._models import (
    BatchStatistics,
    DurationStatistics,
    DynamicBatching,
    EnsembleStep,
    ModelConfig,
    ModelMetadata,
    ModelStatistics,
    ModelStatus,
    ServerMetadata,
    TensorSpec,
)
from mooring._operations import SequenceStep
from mooring._outcomes import Outcome
from mooring._policies import (
    CircuitPolicy,
    ConnectionPolicy,
    HedgePolicy,
    RetryPolicy,
    ThrottlePolicy,
    TlsConfig,
)
from mooring._service_kinds import CustomerServiceAnswer
from mooring._sync._client import Client
from mooring._sync._shared_memory import SharedMemory
from mooring._sync._tasks import (
    CustomerService,
    Embedder,
    ImageClassifier,
    OpinionClassifier,
    Recommender,
    TabularClassifier,
    TextClassifier,
    TextMultiClassifier,
    TextRanker,
    TokenClassifier,
)
from mooring._task_kind import Label, RankedAnswer, RankedItem
from mooring._task_kinds import Entity, Opinion

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "AsyncCustomerService",
    "AsyncEmbedder",
    "AsyncImageClassifier",
    "AsyncOpinionClassifier",
    "AsyncRecommender",
    "AsyncSharedMemory",
    "AsyncTabularClassifier",
    "AsyncTextClassifier",
    "AsyncTextMultiClassifier",
    "AsyncTextRanker",
    "AsyncTokenClassifier",
    "BatchStatistics",
    "BuildError",
    "CheckpointError",
    "CircuitOpen",
    "CircuitPolicy",
    "Client",
    "ClientCounters",
    "ConfigError",
    "ConnectError",
    "ConnectionPolicy",
    "CustomerService",
    "CustomerServiceAnswer",
    "DataError",
    "DeadlineExceeded",
    "DecodeError",
    "DurationStatistics",
    "DynamicBatching",
    "Embedder",
    "EndpointStatus",
    "EnsembleStep",
    "Entity",
    "HedgePolicy",
    "ImageClassifier",
    "InvalidInput",
    "Label",
    "ModelConfig",
    "ModelMetadata",
    "ModelNotFound",
    "ModelNotReady",
    "ModelStatistics",
    "ModelStatus",
    "MooringError",
    "Opinion",
    "OpinionClassifier",
    "Outcome",
    "Overloaded",
    "PublishError",
    "RankedAnswer",
    "RankedItem",
    "RecipeError",
    "Recommender",
    "RetryPolicy",
    "SequenceStep",
    "ServerError",
    "ServerMetadata",
    "SharedMemory",
    "StartError",
    "TabularClassifier",
    "TensorSpec",
    "TextClassifier",
    "TextMultiClassifier",
    "TextRanker",
    "ThrottlePolicy",
    "Throttled",
    "TlsConfig",
    "TokenClassifier",
    "TransportError",
    "UnsupportedPlatform",
    "VerificationError",
]
