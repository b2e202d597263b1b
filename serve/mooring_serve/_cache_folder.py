"""Folders of the cache that are built once and never changed."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mooring import ConfigError
from mooring._wheels import make_cache_folder

_PREFIX = ".building-"
# Longer than any build takes.
_ABANDONED_AFTER_S = 24 * 60 * 60


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return ``target``, after building it where it doesn't exist yet.

    The folder gets its name in one rename: a half built one is never seen, whoever dies when, and of
    several processes that build at once one wins and all get the same folder.

    Args:
        target: folder whose name says all that its content depends on.
        build: fills the empty folder that it is given.

    Raises:
        ConfigError: it has to be built, and nothing, or not all of it, can be written there.
    """
    # What may not be looked at can't be written to, either, which is said next.
    with suppress(PermissionError):
        if target.is_dir():
            return target
    make_cache_folder(target.parent)
    _remove_abandoned(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=target.parent) as scratch:
            complete = Path(scratch) / target.name
            complete.mkdir()
            build(complete)
            try:
                complete.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    except OSError as exc:
        raise ConfigError(
            f"{target} can't be made: {exc}; XDG_CACHE_HOME names another folder for caches"
        ) from exc
    return target


def _remove_abandoned(folder: Path) -> None:
    """Remove what processes left behind that were killed while they built."""
    for scratch in folder.glob(f"{_PREFIX}*"):
        # Another process may remove it, too.
        with suppress(FileNotFoundError):
            if time.time() - scratch.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(scratch, ignore_errors=True)
