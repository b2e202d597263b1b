"""Regions of shared memory in this process: POSIX ones, and CUDA ones through tritonclient."""

from __future__ import annotations

import os
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any, Protocol

from mooring._errors import ConfigError
from mooring._operations import (
    Operation,
    RegisterCudaMemory,
    RegisterSystemMemory,
    UnregisterCudaMemory,
    UnregisterSystemMemory,
)


class MemoryRegion(Protocol):
    """Memory that a server on the same machine can map."""

    def write(self, offset: int, raw: bytes | memoryview) -> None:
        """Copy bytes in."""

    def read(self, offset: int, byte_size: int) -> memoryview:
        """Copy bytes out."""

    def registration(self) -> Operation[None]:
        """What makes the server map it."""

    def removal(self) -> Operation[None]:
        """What makes the server let go of it."""

    def close(self) -> None:
        """Remove it."""


class SystemRegion:
    """POSIX shared memory; one of the same name that somebody left behind is replaced."""

    def __init__(self, name: str, byte_size: int) -> None:
        self._name = name
        self._byte_size = byte_size
        try:
            self._memory = _create(name, byte_size)
        except (OSError, ValueError) as exc:
            raise ConfigError(f"shared memory {name!r} of {byte_size} bytes can't be made: {exc}") from exc

    @property
    def _bytes(self) -> memoryview:
        buffer = self._memory.buf
        assert buffer is not None  # only after close
        return buffer

    def write(self, offset: int, raw: bytes | memoryview) -> None:
        self._bytes[offset : offset + len(raw)] = raw

    def read(self, offset: int, byte_size: int) -> memoryview:
        return memoryview(bytes(self._bytes[offset : offset + byte_size]))

    def registration(self) -> Operation[None]:
        return RegisterSystemMemory(name=self._name, key=f"/{self._name}", byte_size=self._byte_size)

    def removal(self) -> Operation[None]:
        return UnregisterSystemMemory(name=self._name)

    def close(self) -> None:
        self._memory.close()
        self._memory.unlink()


def _create(name: str, byte_size: int) -> shared_memory.SharedMemory:
    path = Path("/dev/shm", name)
    try:
        memory = shared_memory.SharedMemory(name, create=True, size=byte_size)
    except FileExistsError:
        path.unlink()
        memory = shared_memory.SharedMemory(name, create=True, size=byte_size)
    try:
        # Where there is less room, the first write beyond it would kill the process.
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, byte_size)
    except BaseException:
        memory.close()
        memory.unlink()
        raise
    return memory


class CudaRegion:
    """CUDA memory of one GPU."""

    def __init__(self, name: str, byte_size: int, device_id: int) -> None:
        self._name = name
        self._byte_size = byte_size
        self._device_id = device_id
        self._handle: Any = None
        try:
            from tritonclient.utils import cuda_shared_memory

            self._cuda = cuda_shared_memory
            self._handle = cuda_shared_memory.create_shared_memory_region(name, byte_size, device_id)
        except Exception as exc:
            # tritonclient says only what failed; the CUDA error behind it says why.
            reason = exc if exc.__cause__ is None else f"{exc} ({exc.__cause__})"
            raise ConfigError(f"CUDA shared memory can't be made on GPU {device_id}: {reason}") from exc

    def write(self, offset: int, raw: bytes | memoryview) -> None:
        import numpy as np

        # tritonclient writes at the start of a region only, so everything before goes along.
        before = self.read(0, offset)
        whole = np.frombuffer(b"".join((before, raw)), np.uint8)
        self._cuda.set_shared_memory_region(self._handle, [whole])

    def read(self, offset: int, byte_size: int) -> memoryview:
        whole = self._cuda.get_contents_as_numpy(self._handle, "uint8", [offset + byte_size])
        return memoryview(whole.tobytes())[offset:]

    def registration(self) -> Operation[None]:
        import base64

        return RegisterCudaMemory(
            name=self._name,
            raw_handle=base64.b64decode(self._cuda.get_raw_handle(self._handle)),
            device_id=self._device_id,
            byte_size=self._byte_size,
        )

    def removal(self) -> Operation[None]:
        return UnregisterCudaMemory(name=self._name)

    def close(self) -> None:
        self._cuda.destroy_shared_memory_region(self._handle)


def make_region(kind: str, name: str, byte_size: int, *, device_id: int) -> MemoryRegion:
    """Make a region.

    Raises:
        ConfigError: it can't be made.
    """
    if kind == "cuda":
        return CudaRegion(name, byte_size, device_id)
    return SystemRegion(name, byte_size)
