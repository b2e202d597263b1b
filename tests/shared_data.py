"""The real data sets, which lie beside the checkout and are never part of it."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data(name: str) -> Path:
    """Folder of a data set; skips the test, with the reason, where it is missing."""
    folder = FOLDER / name
    if not folder.is_dir():
        pytest.skip(f"needs the data set {name}, which is not at {folder}")
    return folder
