"""Whether the embedded server can run here, and where its Python library is.

Every check takes the facts as arguments, so that tests can state any platform; :func:`current_platform`
collects the real ones.
"""

from __future__ import annotations

import platform
import re
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mooring import ConfigError, UnsupportedPlatform

_INSTEAD = "or serve the repository with NVIDIA's container (deploy/container)"
#: The wheel is tagged manylinux_2_35.
_OLDEST_GLIBC = (2, 35)
#: Minor versions for which Mooring is tested and the wheel holds a stub.
_PYTHON_MINORS = (11, 12, 13)
#: The wheel was repaired under this version, so its libraries hold that version's libpython.
_BUNDLED_LIBPYTHON = (3, 13)


@dataclass(frozen=True, kw_only=True)
class PlatformFacts:
    """What the embedded server's needs are held against."""

    #: As ``sys.platform``, such as ``"linux"``.
    system: str
    #: As ``os.uname().machine``, such as ``"x86_64"``.
    machine: str
    #: Name and version of the C library, such as ``("glibc", "2.36")``; empty where there is none.
    libc: tuple[str, str]
    #: Such as ``"cpython"``.
    implementation: str
    #: Major and minor version of the running Python.
    python: tuple[int, int]


def current_platform() -> PlatformFacts:
    """Facts of the running interpreter."""
    return PlatformFacts(
        system=sys.platform,
        machine=platform.machine(),
        libc=platform.libc_ver(),
        implementation=sys.implementation.name,
        python=sys.version_info[:2],
    )


def check_platform(facts: PlatformFacts) -> None:
    """Refuse a platform on which the server of the wheel can't run.

    Raises:
        UnsupportedPlatform: names the first need that is not met and the way out.
    """
    if facts.system != "linux" or facts.machine != "x86_64":
        raise UnsupportedPlatform(
            f"the embedded tritonserver runs on Linux x86_64 only, this is {facts.system} {facts.machine}: "
            f"use such a machine, {_INSTEAD}"
        )
    name, version = facts.libc
    if name != "glibc" or _version_pair(version) < _OLDEST_GLIBC:
        found = f"{name} {version}" if name else "another C library"
        raise UnsupportedPlatform(
            f"the embedded tritonserver needs glibc 2.35 or newer, this system has {found}: "
            f"use Ubuntu 22.04, Debian 12 or newer, {_INSTEAD}"
        )
    major, minor = facts.python
    if facts.implementation != "cpython" or major != 3 or minor not in _PYTHON_MINORS:
        known = ", ".join(f"3.{minor}" for minor in _PYTHON_MINORS)
        raise UnsupportedPlatform(
            f"the embedded tritonserver has Python backends for CPython {known}, this is "
            f"{facts.implementation} {major}.{minor}: run Mooring under one of those, {_INSTEAD}"
        )


def _version_pair(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def libpython_candidates() -> list[Path]:
    """Folders in which the running interpreter's shared library may be, likeliest first."""
    libdir = sysconfig.get_config_var("LIBDIR")
    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders = [Path(libdir)] if libdir else []
    folders.append(Path(sys.base_prefix) / "lib")
    if multiarch:
        folders += [folder / multiarch for folder in folders] + [Path("/usr/lib") / multiarch]
    return folders


def find_libpython(folders: Iterable[Path], python: tuple[int, int]) -> Path | None:
    """Folder of the shared ``libpython`` that the Python backend's stub is linked to.

    Args:
        folders: where to look, likeliest first.
        python: major and minor version.

    Returns:
        The folder, or ``None`` if the stub for this version brings the library along.

    Raises:
        UnsupportedPlatform: no folder holds it, as with Pythons built without ``--enable-shared``.
    """
    if python == _BUNDLED_LIBPYTHON:
        return None
    version = f"{python[0]}.{python[1]}"
    name = f"libpython{version}.so.1.0"
    looked = list(dict.fromkeys(folders))
    for folder in looked:
        if (folder / name).is_file():
            return folder
    raise UnsupportedPlatform(
        f"the embedded tritonserver needs {name}, which is in none of {', '.join(map(str, looked))}: "
        f"install it (Debian, Ubuntu: 'apt-get install libpython{version}'), build this Python with it "
        f"(pyenv: 'PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install --force {version}'), {_INSTEAD}"
    )


def check_path(what: str, path: Path) -> None:
    """Refuse a path that a shell takes apart, as Triton's Python backend starts its stubs by one, unquoted.

    Raises:
        ConfigError: with the path.
    """
    if re.search(r"""[ \t\n|&;<>(){}$`\\"']""", str(path)):
        raise ConfigError(
            f"{what} is {str(path)!r}: Triton's Python backend hands it to a shell as it is; use a path "
            "without spaces, quotes and other characters that mean something there"
        )


def check_ascii(what: str, path: Path) -> None:
    """Refuse a path whose files the embedded server's stubs don't find: their Python takes names of files for
    ASCII, as pybind11 starts it in isolation, which leaves the locale aside.

    Raises:
        ConfigError: with the path.
    """
    if not str(path).isascii():
        raise ConfigError(
            f"{what} is {str(path)!r}: Python in the embedded tritonserver finds no files there, as it takes "
            "their names for ASCII; use a path of such characters alone, as a link's or a relative one's"
        )


def check_python_command(executable: Path) -> None:
    """Make sure that ``python3`` beside the interpreter is the interpreter.

    The stub finds its packages through the first ``python3`` on PATH, and Mooring puts the folder of the
    running interpreter there.

    Raises:
        UnsupportedPlatform: ``python3`` is missing there or belongs to another Python.
    """
    python3 = executable.parent / "python3"
    if not python3.exists() or not python3.samefile(executable):
        raise UnsupportedPlatform(
            f"models on the Python backend take their packages from {python3}, which is not {executable}, "
            "the Python that runs Mooring: use a virtual environment"
        )
