"""A Triton model repository on disk: reading releases, and writing so that a crash leaves nothing half.

Files are replaced and folders appear in one step (``os.replace``), after their content is on the disk
(``fsync``). What is not finished lies under names that start with ``.staging-``, which Triton does not take
for versions.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from mooring import PublishError
from mooring_build.digests import file_sha256
from mooring_build.triton_config import loads_config

CONFIG = "config.pbtxt"
MANIFEST = "manifest.json"
STAGING = ".staging-"

_LOCK = ".publish.lock"
# A publish takes seconds; one that holds the lock for longer hangs.
_LOCK_TIMEOUT_S = 60.0


def read_config(repository: Path, model: str) -> pb.ModelConfig | None:
    """Read a model's config; ``None`` where there is none.

    Raises:
        PublishError: the file is not a Triton configuration.
    """
    path = repository / model / CONFIG
    text = read_text(path)
    try:
        return None if text is None else loads_config(text)
    except ValueError as exc:
        raise PublishError(f"{path} is {exc}") from exc


def read_text(path: Path) -> str | None:
    """Read a file; ``None`` where there is none.

    Raises:
        PublishError: it is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as exc:
        raise PublishError(f"{path} is no text: {exc}") from exc


def versions_of(repository: Path, model: str) -> set[int]:
    """Versions of a model on disk, whether Triton loads them or not."""
    return {int(path.name) for path in (repository / model).glob("[0-9]*") if path.name.isdecimal()}


def pinned_version(config: pb.ModelConfig | None) -> int | None:
    """The one version that an ensemble's config pins, whether it is on disk or not."""
    pinned = config.version_policy.specific.versions if config is not None else []
    return pinned[0] if len(pinned) == 1 else None


def released_version(repository: Path, name: str) -> int | None:
    """The version that answers under a recipe's name; ``None`` while there is no whole release.

    Raises:
        PublishError: the ensemble's config is not a Triton configuration.
    """
    config = read_config(repository, name)
    version = pinned_version(config)
    if config is None or version is None:
        return None
    # A step without a version is another recipe's pipeline, in whichever version that has released.
    parts = [
        (step.model_name, step.model_version)
        for step in config.ensemble_scheduling.step
        if step.model_version > 0
    ]
    folders = [repository / model / str(number) for model, number in [*parts, (name, version)]]
    return version if all((folder / MANIFEST).is_file() for folder in folders) else None


def joining_pipelines(repository: Path, name: str) -> dict[str, pb.ModelConfig]:
    """The config of each pipeline on disk that has the pipeline ``name`` for a step.

    Triton loads no ensemble that takes larger batches than its steps, or outputs that they don't have.
    """
    found = {}
    for path in sorted(repository.glob(f"*/{CONFIG}")):
        try:
            config = loads_config(path.read_text(encoding="utf-8"))
        except ValueError:
            # Not Mooring's, and for Triton to complain about.
            continue
        joins = any(step.model_name == name for step in config.ensemble_scheduling.step)
        if joins and versions_of(repository, path.parent.name):
            found[path.parent.name] = config
    return found


def decided_with_others(repository: Path, name: str, version: int) -> list[str]:
    """Pipelines that join the pipeline ``name`` and found their thresholds with another of its versions."""
    found = []
    for joining in joining_pipelines(repository, name):
        released = released_version(repository, joining)
        manifest = read_manifest(repository, joining, released) if released is not None else {}
        parts = manifest.get("composed_of", {}).values()
        # One without figures decides nothing.
        if manifest.get("metrics") and (name, version) not in [
            (part["model"], part["version"]) for part in parts
        ]:
            found.append(joining)
    return found


def read_manifest(repository: Path, model: str, version: int) -> dict[str, Any]:
    """Read what a version was made from and how it was verified.

    Raises:
        PublishError: the version has no readable manifest.
    """
    path = repository / model / str(version) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise PublishError(f"{path} can't be read: {exc}") from exc
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise PublishError(f"{path} is no manifest: it lists no files")
    return manifest


def damaged_files(repository: Path, model: str, version: int) -> list[Path]:
    """Files of a version that are missing or are not what its manifest says.

    Raises:
        PublishError: the version has no readable manifest.
    """
    folder = repository / model / str(version)
    digests = read_manifest(repository, model, version)["files"]
    return [
        folder / name
        for name, digest in digests.items()
        if not (folder / name).is_file() or file_sha256(folder / name) != digest
    ]


def write_file(path: Path, text: str) -> None:
    """Give a file new content in one step; the old content stays until then."""
    if read_text(path) == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f"{STAGING}{path.name}")
    staged.write_text(text, encoding="utf-8")
    _sync(staged)
    staged.replace(path)
    _sync(path.parent)


def stage_version(
    folder: Path, version: int, files: Mapping[str, Path | str], manifest: Mapping[str, Any]
) -> str:
    """Write a whole version next to where it will appear; its files can't be written again.

    Args:
        folder: the model's folder.
        version: number under which :func:`place_version` shows it.
        files: by name, the file to copy or the text to write.
        manifest: goes into ``manifest.json``, with the digest of every file added under ``files``.

    Returns:
        The digest of ``manifest.json``.
    """
    staged = folder / f"{STAGING}{version}"
    staged.mkdir(parents=True)
    for name, source in files.items():
        if isinstance(source, Path):
            shutil.copyfile(source, staged / name)
        else:
            (staged / name).write_text(source, encoding="utf-8")
    digests = {name: file_sha256(staged / name) for name in sorted(files)}
    text = json.dumps({**manifest, "files": digests}, indent=2, ensure_ascii=False, allow_nan=False)
    (staged / MANIFEST).write_text(f"{text}\n", encoding="utf-8")
    for path in staged.iterdir():
        path.chmod(0o444)
        _sync(path)
    _sync(staged)
    return file_sha256(staged / MANIFEST)


def place_version(folder: Path, version: int) -> None:
    """Show a staged version under its number, in one step.

    Raises:
        PublishError: the version exists.
    """
    final = folder / str(version)
    if final.exists():
        raise PublishError(f"{final} exists: a version is written once and never changed")
    (folder / f"{STAGING}{version}").replace(final)
    _sync(folder)


def remove_version(folder: Path, version: int) -> None:
    """Take a version away: hidden from Triton in one step, then deleted."""
    final = folder / str(version)
    if final.exists():
        final.replace(folder / f"{STAGING}{version}")
    remove_staged(folder)


def remove_staged(folder: Path) -> None:
    """Delete what an interrupted writer left unfinished, and the model's folder if nothing else is in it."""
    for path in folder.glob(f"{STAGING}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


@dataclass(frozen=True)
class Journal:
    """What a publish is about to do, written down before it does it; lives in the lock file.

    An empty journal, or a first plan that was cut off while it was written, means that nothing was shown yet.
    """

    _descriptor: int

    def write(self, plan: dict[str, Any]) -> None:
        """Replace the content by ``plan``; an empty one closes the journal."""
        content = json.dumps(plan).encode()
        if not plan or not self.read():
            os.ftruncate(self._descriptor, 0)
        # One plan follows another in place, which takes no room on the disk: JSON does not mind spaces.
        content = content.ljust(os.fstat(self._descriptor).st_size)
        if os.pwrite(self._descriptor, content, 0) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), _LOCK)
        os.fsync(self._descriptor)

    def read(self) -> dict[str, Any]:
        """The plan of a publish that was interrupted; otherwise empty."""
        content = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        try:
            return dict(json.loads(content))
        except ValueError:
            return {}


@contextmanager
def locked(repository: Path) -> Iterator[Journal]:
    """Keep other publishers out of a repository; the lock of a killed process is free at once.

    Raises:
        PublishError: another process holds the lock for longer than a minute.
    """
    repository.mkdir(parents=True, exist_ok=True)
    path = repository / _LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise PublishError(
                    f"{path} has been held by another publish for {_LOCK_TIMEOUT_S:.0f} s: "
                    "wait for it or end it"
                )
            time.sleep(0.05)
        yield Journal(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
