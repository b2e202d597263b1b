"""Folders of the cache that are built once and never changed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from mooring import ConfigError
from mooring._wheels import make_cache_folder


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
    if target.is_dir():
        return target
    make_cache_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as scratch:
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
