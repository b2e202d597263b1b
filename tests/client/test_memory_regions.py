"""Regions of POSIX shared memory, without a server."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mooring import ConfigError
from mooring._memory_regions import SystemRegion

PLACE = Path("/dev/shm")
NAME = f"mooring-test-{os.getpid()}"


def test_more_than_there_is_room_for_is_refused_and_not_written_to() -> None:
    size = shutil.disk_usage(PLACE).total + 4096
    with pytest.raises(ConfigError, match=rf"'{NAME}' of {size} bytes can't be made: .*No space left"):
        SystemRegion(NAME, size)
    assert not (PLACE / NAME).exists()


def test_an_interrupted_beginning_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "posix_fallocate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        SystemRegion(NAME, 64)
    assert not (PLACE / NAME).exists()


@pytest.mark.parametrize("left_behind", [b"", b"something"])
def test_what_was_left_behind_is_replaced(left_behind: bytes) -> None:
    (PLACE / NAME).write_bytes(left_behind)
    region = SystemRegion(NAME, 64)
    try:
        region.write(0, b"mine")
        assert bytes(region.read(0, 64)) == b"mine".ljust(64, b"\0")
    finally:
        region.close()
    assert not (PLACE / NAME).exists()
