"""Lines of a file or of standard input, as they come."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Protocol, TypeVar

T = TypeVar("T")

_CHUNK_BYTES = 65536
_PAUSE_S = 0.05


class Readable(Protocol):
    """An unbuffered binary file."""

    def read(self, size: int, /) -> bytes | None:
        """Up to so many bytes, as soon as there are some; none at the end, ``None`` where it can't wait."""


async def read_lines(stream: Readable) -> AsyncGenerator[bytes, None]:
    """Lines without their ends; no more is read than is asked for, but for the rest of a chunk.

    Raises:
        OSError: the file can't be read.
    """
    rest: list[bytes] = []
    while (chunk := await _in_thread(lambda: stream.read(_CHUNK_BYTES))) != b"":
        if chunk is None:
            # Another program made it non-blocking.
            await asyncio.sleep(_PAUSE_S)
            continue
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for other in others:
            yield b"".join(rest).removesuffix(b"\r")
            rest = [other]
    if any(rest):
        yield b"".join(rest).removesuffix(b"\r")


async def _in_thread(work: Callable[[], T]) -> T:
    # asyncio.to_thread would let the process end only after the next line: its threads are waited for.
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]  # None only where T includes it
        else:
            done.set_exception(error)

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except (OSError, ValueError) as exc:
            error = exc
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=run, name="mooring-lines", daemon=True).start()
    return await done
