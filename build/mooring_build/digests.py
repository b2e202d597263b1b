"""SHA-256 digests of files, sets of files and JSON values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mooring._wheels import file_sha256


def digest_files(files: Iterable[Path], *, root: Path) -> str:
    """Digest over the files' paths relative to ``root`` and their contents, in path order."""
    lines = [f"{path.relative_to(root).as_posix()} {file_sha256(path)}\n" for path in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest_of(value: Any) -> str:
    """Digest of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
