"""Run publishes that are interrupted at one file operation after the other; a program of its own.

Usage: ``python publish_interrupter.py FOLDER kill|full_disk RECIPE_JSON STRIDE``. The folder holds
``before``, a model repository, and ``release.pickle``, the release that is published into copies of it; case
``n`` is interrupted at operation ``n * STRIDE``. Each copy is left as ``case-<n>``; the last one's publish
ran through. Prints as JSON how each ended.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from mooring import PublishError
from mooring_build.publish import Release, publish_release
from mooring_build.recipe import Recipe

_OPERATIONS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod"}


def main(folder: Path, how: str, recipe: Recipe, stride: int) -> None:
    release: Release = pickle.loads((folder / "release.pickle").read_bytes())
    # The kernel keeps what a killed process wrote: only a power cut would need this, and it is slow.
    os.fsync = lambda descriptor: None
    endings: list[str] = []
    while not endings or endings[-1] != "published":
        repository = folder / f"case-{len(endings)}"
        shutil.copytree(folder / "before", repository)
        child = os.fork()
        if child == 0:
            _interrupt(repository, how, len(endings) * stride)
            _publish(repository, recipe, release)
        _, status = os.waitpid(child, 0)
        endings.append(_ending(status))
    print(json.dumps(endings))


def _interrupt(repository: Path, how: str, allowed: int) -> None:
    """Let ``allowed`` operations on the repository pass, then kill this process or fail all that follow."""
    passed = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal passed
        if event not in _OPERATIONS or not str(arguments[0]).startswith(str(repository)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        passed += 1
        if passed > allowed:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    sys.addaudithook(hook)


def _publish(repository: Path, recipe: Recipe, release: Release) -> None:
    try:
        publish_release(repository, recipe, release)
    except PublishError as exc:
        os._exit(1 if os.strerror(errno.ENOSPC) in str(exc) else 2)
    else:
        os._exit(0)
    finally:
        os._exit(3)  # whatever was raised: a forked child must not run on in its parent's code


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return {0: "published", 1: "PublishError"}.get(os.WEXITSTATUS(status), f"exit {os.WEXITSTATUS(status)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Recipe.model_validate_json(sys.argv[3]), int(sys.argv[4]))
