"""The synchronous client."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from mooring._deadline import Deadline, check_timeout
from mooring._errors import ConfigError, DecodeError, InvalidInput, ModelNotFound, ModelNotReady
from mooring._models import ModelConfig, ModelMetadata, ModelStatus
from mooring._tasks import TextClassifier, TokenClassifier, make_task
from mooring._tensors import Signature, check_inputs, check_outputs, check_requested
from mooring._transport import InferRequest, Transport
from mooring._transports import open_transport
from mooring._url import parse_url

#: Empty, or what tritonserver takes for a version.
_VERSION = re.compile(r"([1-9][0-9]{0,17})?")


class Client:
    """Calls the models of one Triton server.

    Connects with the first call. Threads may share a client. Arrays in answers may be read-only
    views of the received bytes; copy one to change it.

    Args:
        url: ``grpc://host:port`` or ``http://host:port``.
        timeout_s: time budget of a call in seconds, whatever it needs on the way; each method takes
            its own ``timeout_s`` as well.
        transport: answers in place of the wire, such as :class:`mooring.testing.FakeTransport`; the
            client closes it.

    Raises:
        ConfigError: ``url`` or ``timeout_s`` can't be right.

    Every method that calls the server raises ``ConfigError`` once the client is closed,
    ``TransportError`` when no answer came (``ConnectError``, ``DeadlineExceeded``), ``ServerError``
    when the server said no, and ``DecodeError`` when its answer makes no sense.
    """

    def __init__(self, url: str, *, timeout_s: float = 60.0, transport: Transport | None = None) -> None:
        endpoint = parse_url(url)
        #: The server's URL.
        self.url = str(endpoint)
        #: Time budget of a call, in seconds.
        self.timeout_s = check_timeout(timeout_s)
        self._transport = open_transport(endpoint) if transport is None else transport
        self._closed = False
        # By model and version. A lost update between threads costs one more question to the server.
        self._signatures: dict[tuple[str, str], Signature] = {}

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections; may be called again."""
        self._closed = True
        self._transport.close()

    def server_ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether the server, with the models that it must have, can answer."""
        deadline = self._begin(timeout_s)
        return self._transport.server_ready(timeout_s=deadline.left_s())

    def ready(self, model: str, *, version: str = "", timeout_s: float | None = None) -> bool:
        """Whether the model can answer; ``False`` also where the server does not know it."""
        _check_names(model, version)
        deadline = self._begin(timeout_s)
        return self._transport.model_ready(model, version, timeout_s=deadline.left_s())

    def metadata(self, model: str, *, version: str = "", timeout_s: float | None = None) -> ModelMetadata:
        """The model's signature, asked anew.

        Raises:
            ModelNotFound: the server does not know the model or the version.
            ModelNotReady: no version of it is loaded.
        """
        _check_names(model, version)
        deadline = self._begin(timeout_s)
        return self._transport.metadata(model, version, timeout_s=deadline.left_s())

    def config(self, model: str, *, version: str = "", timeout_s: float | None = None) -> ModelConfig:
        """The model's configuration, asked anew.

        Raises:
            ModelNotFound: the server does not know the model or the version.
            ModelNotReady: no version of it is loaded.
        """
        _check_names(model, version)
        deadline = self._begin(timeout_s)
        return self._transport.config(model, version, timeout_s=deadline.left_s())

    def models(self, *, timeout_s: float | None = None) -> list[ModelStatus]:
        """Every model and version in the server's repositories, with its state."""
        deadline = self._begin(timeout_s)
        return self._transport.models(timeout_s=deadline.left_s())

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        outputs: Sequence[str] | None = None,
        version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> dict[str, np.ndarray]:
        """Run a model once.

        The model's signature is asked for at the first call, kept, and checked against before
        anything is sent; when it says no, it is asked for anew first.

        Args:
            model: name of the model.
            inputs: arrays by input name, ``[B, ...]`` with ``1 <= B <= max_batch_size`` where the
                model batches. ``BYTES`` takes arrays of ``str``, ``bytes`` or of objects of both;
                numpy drops zero bytes at the end of its fixed-width ``S`` elements.
            outputs: names of the wanted outputs; ``None`` for all.
            version: version of the model; empty for the server's choice.
            timeout_s: time budget of the call in seconds; ``None`` for the client's.
            request_id: shown in the server's logs and errors; empty for none.

        Returns:
            Arrays by output name, ``[B, ...]`` where the model batches; ``BYTES`` as object arrays
            of ``bytes``. Arrays may be read-only.

        Raises:
            InvalidInput: the model does not take such inputs or give such outputs.
            ModelNotFound: the server does not know the model or the version.
            ModelNotReady: no version of it is loaded.
            Overloaded: the server refused because of load.
            DecodeError: the answer contradicts the model's signature.
        """
        _check_names(model, version)
        _check_text("request_id", request_id)
        deadline = self._begin(timeout_s)
        try:
            signature, request = self._prepare(deadline, model, version, inputs, outputs, request_id)
            answer = self._transport.infer(request, timeout_s=deadline.left_s())
            return check_outputs(signature, request.outputs, answer)
        except (DecodeError, InvalidInput, ModelNotFound, ModelNotReady):
            # What is known of the model may be out of date.
            self._signatures.pop((model, version), None)
            raise

    def task(
        self, model: str, *, version: str = "", timeout_s: float | None = None
    ) -> TokenClassifier | TextClassifier:
        """The typed call that the model describes in its config (``parameters.task``).

        Args:
            model: name of the model.
            version: version of the model; empty for the server's choice at each call.
            timeout_s: time budget for asking the model, in seconds; ``None`` for the client's.

        Returns:
            A :class:`TokenClassifier` for ``token-classification``, a :class:`TextClassifier` for
            ``text-classification``.

        Raises:
            ConfigError: the model names no task, or one that this client does not know.
            DecodeError: the model's signature is not that of its task.
            ModelNotFound: the server does not know the model or the version.
            ModelNotReady: no version of it is loaded.
        """
        _check_names(model, version)
        deadline = self._begin(timeout_s)
        signature = self._ask_signature(deadline, model, version)
        return make_task(self, signature.metadata, signature.config, model=model, version=version)

    def _begin(self, timeout_s: float | None) -> Deadline:
        if self._closed:
            raise ConfigError(f"the client of {self.url} is closed; make a new one")
        return Deadline(self.timeout_s if timeout_s is None else timeout_s)

    def _prepare(
        self,
        deadline: Deadline,
        model: str,
        version: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None,
        request_id: str,
    ) -> tuple[Signature, InferRequest]:
        known_before = (model, version) in self._signatures
        signature = self._signature(deadline, model, version)
        try:
            tensors, requested = check_inputs(signature, inputs), check_requested(signature, outputs)
        except InvalidInput:
            if not known_before:
                raise
            # The model may have been reloaded with another signature.
            signature = self._ask_signature(deadline, model, version)
            tensors, requested = check_inputs(signature, inputs), check_requested(signature, outputs)
        request = InferRequest(
            model=model, version=version, inputs=tensors, outputs=requested, request_id=request_id
        )
        return signature, request

    def _signature(self, deadline: Deadline, model: str, version: str) -> Signature:
        return self._signatures.get((model, version)) or self._ask_signature(deadline, model, version)

    def _ask_signature(self, deadline: Deadline, model: str, version: str) -> Signature:
        signature = Signature(
            metadata=self._transport.metadata(model, version, timeout_s=deadline.left_s()),
            config=self._transport.config(model, version, timeout_s=deadline.left_s()),
        )
        self._signatures[(model, version)] = signature
        return signature


def _check_names(model: str, version: str) -> None:
    _check_text("model", model)
    if not model:
        raise ConfigError("the model name is empty; Client.models lists what the server has")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise ConfigError(f"version must be a positive whole number as text, or empty, got {version!r}")


def _check_text(what: str, value: str) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{what} must be a str, got {value!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ConfigError(f"{what} {value!r} can't be written as UTF-8 (character {exc.start})") from exc
