"""Fetch one pinned wheel into Mooring's cache, for the rooms that take files out of a wheel.

pip does the download, so the user's own package index, proxy and certificates apply, and pip refuses
a file whose sha256 is not the pinned one. Nothing is installed into the running environment.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from mooring._errors import ConfigError, TransportError

_NO_ROOM = ("No space left on device", "Disk quota exceeded")
# Words with which pip (26 and older) reports that the index could not be reached at all.
_NO_ANSWER = ("Retrying (Retry(", "Connection broken", "ConnectionError", "Could not fetch URL", "timed out")


def cache_root() -> Path:
    """Folder in which every room keeps what it can fetch or build again; it may not be there yet."""
    # Imported here: a plain client fetches nothing.
    from platformdirs import user_cache_path

    return user_cache_path("mooring")


def make_cache_folder(folder: Path) -> None:
    """Make a folder of the cache where something is about to be kept.

    Raises:
        ConfigError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as exc:
        raise ConfigError(
            f"can't write into the cache folder {folder}: {exc}; "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from exc


def fetch_wheel(requirement: str, sha256: str, *, cache_dir: Path | None = None) -> Path:
    """Return the path of a pinned wheel; pip downloads it on the first call.

    Any number of processes may ask at once, and one that dies leaves no half file behind: a wheel
    appears in the cache in one step, and a cached file is used only if it still has its hash.

    Args:
        requirement: an exact requirement such as ``"nvidia-pytriton==0.7.0"``.
        sha256: lower-case hex digest of the wheel file.
        cache_dir: folder that keeps the wheels; ``None`` is the user's cache folder for Mooring.

    Returns:
        Path of the ``.whl`` file, under its original name.

    Raises:
        ConfigError: this Python has no pip, or pip found no such wheel for this Python and platform,
            or only one with another hash; or the cache can't be written.
        TransportError: the package index can't be reached.
    """
    folder = (cache_dir if cache_dir is not None else cache_root()) / "wheels" / sha256
    for wheel in folder.glob("*.whl"):
        if file_sha256(wheel) == sha256:
            return wheel
    make_cache_folder(folder)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as scratch:
        _pip_download(requirement, sha256, Path(scratch))
        (fetched,) = Path(scratch).glob("*.whl")
        wheel = folder / fetched.name
        # Same file system, so the rename is one step; the loser of a race replaces like with like.
        fetched.replace(wheel)
    return wheel


def file_sha256(path: Path) -> str:
    """Lower-case hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pip_download(requirement: str, sha256: str, folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"fetching {requirement} needs pip, which {sys.executable} lacks: run "
            f"'{sys.executable} -m ensurepip' (in an environment made by uv: 'uv pip install pip')"
        )
    pins = folder / "requirements.txt"
    pins.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    command += ["--dest", str(folder), "--requirement", str(pins)]
    # pip draws its progress bar on its standard output; ours may be piped, so it goes to the terminal
    # behind standard error. Its errors are kept for the exception.
    progress = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=progress, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        failure = subprocess.CalledProcessError(done.returncode, command, None, done.stderr)
        raise _explained(requirement, sha256, failure) from failure


def _explained(requirement: str, sha256: str, failure: subprocess.CalledProcessError) -> Exception:
    text = str(failure.stderr)
    errors = [line.removeprefix("ERROR: ") for line in text.splitlines() if line.startswith("ERROR: ")]
    said = "; ".join(errors) or text.strip()[-500:] or f"exit status {failure.returncode}"
    if "DO NOT MATCH THE HASHES" in text:
        return ConfigError(
            f"the wheel that pip found for {requirement} is not the pinned one (sha256 {sha256}): the "
            f"configured index or PIP_FIND_LINKS serves another file. pip said: {said}"
        )
    for line in text.splitlines():
        if any(symptom in line for symptom in _NO_ROOM):
            return ConfigError(
                f"there is no room for the wheel of {requirement}: TMPDIR names another folder to download "
                f"into, XDG_CACHE_HOME one to keep it in. pip said: {line.strip()}"
            )
    way_out = (
        "fetch it where the index can be reached ('pip download --no-deps "
        f"{requirement}'), and set PIP_FIND_LINKS to the folder that holds it"
    )
    if any(symptom in text for symptom in _NO_ANSWER):
        message = (
            f"can't reach the package index for {requirement}: check the network and pip's configuration"
        )
        return TransportError(f"{message} ('pip config list'), or {way_out}. pip said: {said}")
    here = f"Python {platform.python_version()}, {platform.platform()}"
    return ConfigError(
        f"pip found no wheel of {requirement} that fits this platform ({here}): the configured index lacks "
        f"it, or holds it for other platforms only. Otherwise {way_out}. pip said: {said}"
    )
