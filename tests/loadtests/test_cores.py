"""How many cores a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mooring_loadtests import cores
from mooring_loadtests.cores import usable_cores
from mooring_loadtests.load_run import machine


@pytest.mark.parametrize(
    ("quota", "count"),
    [
        (None, 8),
        ("max 100000\n", 8),
        ("1600000 100000\n", 8),
        ("400000 100000\n", 4),
        # Rounded up.
        ("150000 100000\n", 2),
        ("10000 100000\n", 1),
    ],
)
@pytest.mark.parametrize("outer", [True, False], ids=["container", "service"])
def test_a_container_has_what_its_quota_allows(
    outer: bool, quota: str | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").write_text(f"1:cpu:/\n0::/{'' if outer else 'system.slice/load.service'}\n")
    folder = tmp_path if outer else tmp_path / "system.slice" / "load.service"
    folder.mkdir(parents=True, exist_ok=True)
    if quota is not None:
        (folder / "cpu.max").write_text(quota)
    monkeypatch.setattr(cores, "_GROUPS", tmp_path)
    monkeypatch.setattr(cores, "_OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == count
    assert machine()["cores"] == f"{count}"
