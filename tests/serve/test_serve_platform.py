from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mooring import ConfigError, UnsupportedPlatform
from mooring_serve._platform import (
    PlatformFacts,
    check_ascii,
    check_platform,
    check_python_command,
    current_platform,
    find_libpython,
)

GOOD = PlatformFacts(
    system="linux",
    machine="x86_64",
    libc=("glibc", "2.35"),
    implementation="cpython",
    python=(3, 11),
)


@pytest.mark.parametrize("python", [(3, 11), (3, 12), (3, 13)])
@pytest.mark.parametrize("glibc", ["2.35", "2.36", "2.100", "3.0"])
def test_supported(python: tuple[int, int], glibc: str) -> None:
    check_platform(replace(GOOD, python=python, libc=("glibc", glibc)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": "darwin"}, "Linux x86_64 only, this is darwin x86_64"),
        ({"machine": "aarch64"}, "Linux x86_64 only, this is linux aarch64"),
        ({"libc": ("glibc", "2.34")}, r"glibc 2\.35 or newer, this system has glibc 2\.34: use Ubuntu"),
        ({"libc": ("glibc", "1.99")}, r"has glibc 1\.99"),
        ({"libc": ("", "")}, "has another C library: use Ubuntu"),
        ({"python": (3, 10)}, r"CPython 3\.11, 3\.12, 3\.13, this is cpython 3\.10: run"),
        ({"python": (3, 14)}, r"this is cpython 3\.14"),
        ({"implementation": "pypy"}, r"this is pypy 3\.11"),
    ],
)
def test_unsupported_with_a_way_out(change: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedPlatform, match=message) as raised:
        check_platform(replace(GOOD, **change))
    assert "NVIDIA's container" in str(raised.value)


def test_current_platform_has_this_python() -> None:
    facts = current_platform()
    assert facts.implementation == "cpython"
    assert facts.python >= (3, 11)


def test_libpython_in_the_first_folder_that_has_it(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("without", "with", "later")]
    for folder in folders:
        folder.mkdir()
    for folder in folders[1:]:
        (folder / "libpython3.12.so.1.0").touch()
    (folders[0] / "libpython3.11.so.1.0").touch()
    assert find_libpython(folders, (3, 12)) == folders[1]


def test_libpython_missing(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedPlatform) as raised:
        find_libpython([tmp_path, tmp_path / "absent", tmp_path], (3, 12))
    message = str(raised.value)
    assert f"libpython3.12.so.1.0, which is in none of {tmp_path}, {tmp_path / 'absent'}:" in message
    assert "apt-get install libpython3.12'" in message
    assert "PYTHON_CONFIGURE_OPTS=--enable-shared" in message


def test_libpython_is_bundled_for_313(tmp_path: Path) -> None:
    assert find_libpython([tmp_path], (3, 13)) is None


def test_python3_is_this_python(tmp_path: Path) -> None:
    python = tmp_path / "python3.11"
    python.touch()
    with pytest.raises(UnsupportedPlatform, match=r"python3, which is not .*3\.11.*virtual environment"):
        check_python_command(python)
    (tmp_path / "python3").symlink_to(python)
    check_python_command(python)
    (tmp_path / "python3").unlink()
    (tmp_path / "python3").touch()
    with pytest.raises(UnsupportedPlatform, match="virtual environment"):
        check_python_command(python)


def test_a_path_that_python_in_the_server_does_not_find(tmp_path: Path) -> None:
    check_ascii("the model repository", tmp_path)
    with pytest.raises(ConfigError, match=r"the model repository is '/home/josé': .* finds no files there"):
        check_ascii("the model repository", Path("/home/josé"))
