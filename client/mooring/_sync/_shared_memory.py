# Generated from mooring/_async/_shared_memory.py by .ci/generate_sync.py; change that file.
"""Inputs and outputs through memory that client and server share."""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from mooring._errors import ConfigError, DecodeError, InvalidInput, MooringError, ServerError, TransportError
from mooring._log import LOG, describe_error
from mooring._memory_regions import MemoryRegion, make_region
from mooring._operations import Infer, InferAnswer, MemorySlice
from mooring._retry import may_go_on
from mooring._sync_work import sleep
from mooring._tensor_bytes import unpack_start, view
from mooring._tensors import Signature

if TYPE_CHECKING:
    from mooring._sync._client import Client

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_REMOVAL_PAUSES_S = (0.01, 0.05, 0.2, 0.5, 1.0)
# Slices begin at a cache line, which suits every data type.
_ALIGNMENT = 64


class Loan:
    """The region, lent to one request."""

    def __init__(self, region: MemoryRegion, request: Infer) -> None:
        self._region = region
        self._request = request

    def collect(self, answer: InferAnswer) -> dict[str, np.ndarray]:
        """All outputs of the answer, those in the region copied out of it.

        Raises:
            DecodeError: an output does not fit its part of the region.
        """
        outputs = dict(answer.outputs)
        for name, (datatype, shape) in answer.in_memory.items():
            part = self._request.output_memory[name]
            try:
                outputs[name] = unpack_start(self._region.read(part.offset, part.byte_size), datatype, shape)
            except ValueError as exc:
                raise DecodeError(f"output {name!r} in shared memory can't be read: {exc}") from exc
        return outputs


class SharedMemory:
    """A region of memory that a server on the same machine maps too; the client's ``shared_memory`` makes it.

    In its ``with`` block the server knows it; one request at a time may use it, and none after one that was
    given up, which the server may still be carrying out.
    """

    def __init__(
        self,
        client: Client,
        *,
        kind: str,
        name: str | None,
        input_bytes: int,
        output_bytes: Mapping[str, int],
        device_id: int,
    ) -> None:
        if kind not in ("system", "cuda"):
            raise ConfigError(f"the kind of shared memory must be 'system' or 'cuda', got {kind!r}")
        for what, size in (("input_bytes", input_bytes), *output_bytes.items()):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ConfigError(f"shared memory needs a whole number of bytes, got {what} {size!r}")
        if name is not None and not _NAME.fullmatch(name):
            raise ConfigError(f"a region's name must match {_NAME.pattern}, got {name!r}")
        self.kind = kind
        #: Under which the server knows it. A process's number alone names several: each container has its own
        #: number 1, and they may share the host's memory.
        self.name = name or f"mooring-{os.getpid()}-{secrets.token_hex(8)}"
        self._client = client
        self._device_id = device_id
        self._input_bytes = input_bytes
        self._outputs: dict[str, MemorySlice] = {}
        end = _aligned(input_bytes)
        for output, size in output_bytes.items():
            self._outputs[output] = MemorySlice(self.name, end, size)
            end += _aligned(size)
        self._byte_size = end
        self._region: MemoryRegion | None = None
        #: One that the server may know although its registration failed.
        self._left: MemoryRegion | None = None
        self._in_use = threading.Lock()
        #: Whether a server may still read or write it for a request that was given up.
        self._spent = False

    def __repr__(self) -> str:
        return f"SharedMemory({self.name!r}, {self.kind}, {self._byte_size} bytes)"

    def __enter__(self) -> Self:
        self._left = None
        region = make_region(self.kind, self.name, self._byte_size, device_id=self._device_id)
        try:
            self._register(region)
        except BaseException as error:
            region.close()
            if may_go_on(error):
                self._left = region
                self._client._work.spawn(partial(self._remove_later, region))
            raise
        self._region, self._spent = region, False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        region, self._region = self._region, None
        if region is None:
            return
        try:
            # A server that is gone has let go of it already.
            with suppress(TransportError):
                self._remove(region)
        finally:
            region.close()

    def _remove(self, region: MemoryRegion) -> None:
        """Let the server let go; it may say no for a moment after it has answered the last request."""
        for pause_s in _REMOVAL_PAUSES_S:
            try:
                self._client._call(region.removal(), None)
            except ServerError as error:
                said = describe_error(error)
                LOG.debug("%s is not unregistered yet: %s", self.name, said)
                sleep(pause_s)
            else:
                return
        LOG.warning("%s stays registered on the server: %s", self.name, said)

    def _remove_later(self, region: MemoryRegion) -> None:
        """As :meth:`_remove`, where the server may register it yet; not once the block is entered again."""
        with suppress(MooringError):
            sleep(_REMOVAL_PAUSES_S[1])
            if self._left is region:
                self._remove(region)

    def _register(self, region: MemoryRegion) -> None:
        # A crashed client may have left a registration of memory that is no longer this one.
        with suppress(ServerError):
            self._client._call(region.removal(), None)
        try:
            self._client._call(region.registration(), None)
        except ServerError as exc:
            raise ServerError(
                f"{exc}: the server does not take shared memory {self.name!r}. It must run on this machine "
                "(a container with --ipc=host), since release 26.05 started with --allow-client-shm=true",
                code=exc.code,
            ) from exc

    @contextmanager
    def _lend(self, request: Infer, signature: Signature) -> Iterator[Loan]:
        """Put the request's inputs into the region while the block runs."""
        if self._region is None:
            raise ConfigError(f"{self!r} is not open: use it in a with block")
        if not self._in_use.acquire(blocking=False):
            raise ConfigError(f"{self!r} is in use: it serves one request at a time")
        try:
            if self._spent:
                raise ConfigError(
                    f"{self!r}: an earlier request was given up and may still use it: open another region"
                )
            self._place(self._region, request, signature)
            yield Loan(self._region, request)
        except BaseException as error:
            self._spent = self._spent or may_go_on(error)
            raise
        finally:
            self._in_use.release()

    def _place(self, region: MemoryRegion, request: Infer, signature: Signature) -> None:
        begin = 0
        for tensor in request.inputs:
            raw = view(tensor.array, tensor.datatype)
            if begin + len(raw) > self._input_bytes:
                raise InvalidInput(
                    f"model {request.model!r}: input {tensor.name!r} of {len(raw)} bytes does not fit: "
                    f"{self._input_bytes - begin} of {self._input_bytes} input_bytes are left"
                )
            if raw:
                region.write(begin, raw)
                tensor.memory = MemorySlice(self.name, begin, len(raw))
            begin += _aligned(len(raw))
        names = [spec.name for spec in signature.metadata.outputs]
        unknown = [name for name in self._outputs if name not in names]
        if unknown:
            raise InvalidInput(f"model {request.model!r}: there is no output {unknown[0]!r}, only {names}")
        wanted = names if request.outputs is None else request.outputs
        request.outputs = tuple(wanted)
        request.output_memory = {name: self._outputs[name] for name in wanted if name in self._outputs}


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
