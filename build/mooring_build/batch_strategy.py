"""The compiled batching strategy that lies beside an engine whose batches are limited by their tokens."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from mooring import BuildError
from mooring_build.recipe import Recipe
from mooring_build.stages import Stage, source_digest

#: What Triton looks for in a version folder ("Custom Batching" in docs/user_guide/batcher.md of
#: triton-inference-server/server).
STRATEGY_FILE = "batchstrategy.so"
#: The same, as C, within this package.
STRATEGY_SOURCE = "served/batch_by_tokens.c"


def batch_strategy(recipe: Recipe, artifacts: Path, say: Callable[[str], None]) -> Path | None:
    """Compile the strategy with the C compiler (``$CC``, or ``cc``), unless it is there already.

    Args:
        recipe: whether it wants one (``serving.max_batch_tokens``).
        artifacts: working folder.
        say: receives a line.

    Returns:
        The library, for this machine's kind of processor; ``None`` where the recipe wants none.

    Raises:
        BuildError: there is no C compiler, or it fails.
    """
    if not recipe.serving.max_batch_tokens:
        return None
    inputs = {"source": source_digest(STRATEGY_SOURCE), "machine": platform.machine()}
    stage = Stage(artifacts, recipe.name, "batching", inputs)
    library = stage.folder / STRATEGY_FILE
    if stage.result() is None:
        stage.folder.mkdir(parents=True, exist_ok=True)
        _compile(Path(__file__).resolve().parent / STRATEGY_SOURCE, library)
        stage.finish({})
        say(f"batching    by tokens, at most {recipe.serving.max_batch_tokens} a batch")
    return library


def _compile(source: Path, library: Path) -> None:
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        raise BuildError(
            f"serving.max_batch_tokens needs a C compiler, and {compiler[0]!r} is not one: install gcc or "
            "clang, name one in CC, or leave the key out"
        )
    command = [*compiler, "-std=c11", "-O2", "-fPIC", "-shared", "-o", str(library), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)} failed ({done.returncode}):\n{done.stderr.strip()}")
