# Generated from mooring/_async/_local_tasks.py by .ci/generate_sync.py; change that file.
"""A task's requests with ``tokenize="client"``: token ids to the engine, logits back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mooring._deadline import Deadline
from mooring._errors import ConfigError, InvalidInput, ModelNotFound, ModelNotReady
from mooring._local_pipeline import (
    PROBE,
    SETTINGS,
    TOKENIZER,
    LocalPipeline,
    PipelineParts,
    make_encoder,
    probe_ids,
    read_tokenizer,
    require_tokenizers,
)
from mooring._sync_work import run_apart
from mooring._tensors import Signature

if TYPE_CHECKING:
    from mooring._served.encoding import TextEncoder
    from mooring._sync._client import Client


class LocalPipelines:
    """Asks the engine of the release that an ensemble pins.

    What is made of one release stays together: tokenizer, engine version and labels. So an earlier release
    answers for as long as the server keeps it; when it is gone, the ensemble is asked which one it pins now,
    once a request. A repository that was deleted and made anew counts its versions from 1 again, which can't
    be noticed: make a new task.

    Args:
        client: asks the server.
        model: name of the ensemble.
        version: of the ensemble; empty for the server's choice.
        tokenizer: folder with ``tokenizer.json``; ``None`` asks the server for it.

    Raises:
        ImportError: ``tokenizers`` is not installed.
    """

    _current: LocalPipeline

    def __init__(
        self, client: Client, *, model: str, version: str, tokenizer: str | os.PathLike[str] | None
    ) -> None:
        require_tokenizers()
        self._client = client
        self._model = model
        self._version = version
        self._folder = tokenizer

    def load(self, signature: Signature, deadline: Deadline) -> None:
        """Make ready for the release that the ensemble's signature names; comes before the first request.

        Raises:
            ConfigError: the ensemble or the tokenizer can't be used here.
        """
        parts = PipelineParts.of(signature)
        try:
            self._current = self._make(parts, deadline)
        except (ModelNotFound, ModelNotReady):
            # Replaced just now?
            newer = self._ask_parts(deadline)
            if newer == parts:
                raise
            self._current = self._make(newer, deadline)

    def ask(self, texts: Sequence[Any], *, timeout_s: float | None) -> dict[str, np.ndarray]:
        """The ensemble's outputs for checked texts.

        Raises:
            InvalidInput: the model does not take a text.
            DecodeError: the engine's answer makes no sense.
        """
        deadline = self._client._begin(timeout_s)
        pipeline = self._current
        try:
            return self._run(pipeline, texts, deadline)
        except (ModelNotFound, ModelNotReady):
            # Unless another request was faster.
            if self._current is pipeline:
                parts = self._ask_parts(deadline)
                if parts == pipeline.parts:
                    raise
                self._current = self._make(parts, deadline)
        return self._run(self._current, texts, deadline)

    def _run(
        self, pipeline: LocalPipeline, texts: Sequence[str], deadline: Deadline
    ) -> dict[str, np.ndarray]:
        parts = pipeline.parts
        encoded = pipeline.encode(texts)
        answer = self._client.infer(
            parts.engine,
            encoded.inputs,
            outputs=[parts.logits_name],
            version=parts.engine_version,
            timeout_s=deadline.left_s(),
        )
        return pipeline.decode(encoded, answer[parts.logits_name])

    def _ask_parts(self, deadline: Deadline) -> PipelineParts:
        return PipelineParts.of(self._client._ask_signature(deadline, self._model, self._version))

    def _make(self, parts: PipelineParts, deadline: Deadline) -> LocalPipeline:
        if self._folder is None:
            files = self._ask_tokenizer(parts, [TOKENIZER, SETTINGS], deadline)
            content = files[TOKENIZER][0, 0]
            source = f"that of model {parts.tokenizer!r} version {parts.tokenizer_version}"
        else:
            files = self._ask_tokenizer(parts, [SETTINGS], deadline)
            content = read_tokenizer(self._folder)
            source = f"tokenizer.json in {os.fspath(self._folder)!r}"
        # A large vocabulary takes up to a second.
        encoder = run_apart(partial(make_encoder, content, files[SETTINGS][0, 0], source=source))
        if self._folder is not None:
            self._compare(parts, encoder, source, deadline)
        return LocalPipeline(parts, encoder, model=self._model)

    def _compare(self, parts: PipelineParts, encoder: TextEncoder, source: str, deadline: Deadline) -> None:
        """Refuse a folder's tokenizer that is not the one which the engine was trained with."""
        here = probe_ids(encoder)
        there: list[int] | str
        try:
            answer = self._ask_tokenizer(parts, ["input_ids"], deadline)
        except InvalidInput as exc:
            # The text does not fit the model; then it must not fit here either.
            there = here if isinstance(here, str) and here in str(exc) else str(exc)
        else:
            there = answer["input_ids"][0].tolist()
        if here != there:
            raise ConfigError(
                f"tokenizer: {source} is not that of model {parts.tokenizer!r} version "
                f"{parts.tokenizer_version}: {PROBE!r} gives {here} here and {there} there"
            )

    def _ask_tokenizer(
        self, parts: PipelineParts, outputs: list[str], deadline: Deadline
    ) -> Mapping[str, np.ndarray]:
        known = self._client._signature(deadline, parts.tokenizer, parts.tokenizer_version)
        missing = set(outputs) - {spec.name for spec in known.metadata.outputs}
        if missing:
            raise ConfigError(
                f"model {parts.tokenizer!r} version {parts.tokenizer_version} can't give its "
                f"{' and '.join(sorted(missing))}: it was published by an older Mooring; publish it anew"
            )
        return self._client.infer(
            parts.tokenizer,
            {"text": np.array([[PROBE]], np.object_)},
            outputs=outputs,
            version=parts.tokenizer_version,
            timeout_s=deadline.left_s(),
        )
