"""Stages of a build on disk: each is done once per content of its inputs.

A stage lives in ``<artifacts>/<recipe>/<stage>-<key>/``, where the key is a digest of everything that
the stage depends on. It is finished when ``stage.json`` is there, which is written last, and the files
that it lists are as they were written; so neither an interrupted stage nor a damaged file is mistaken for
a result, and nothing depends on timestamps.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import mooring._served
from mooring_build.digests import digest_files, digest_of, file_sha256

_RECORD = "stage.json"
_SOURCES = Path(__file__).resolve().parent
#: Modules of which releases hold copies, and which the client runs for callers that tokenize themselves.
SHARED_SOURCES = Path(mooring._served.__file__).resolve().parent


class StepFiles(NamedTuple):
    """What a release holds besides engines and a tokenizer."""

    #: Digest of what the files came from; ``None`` where there are none.
    key: str | None
    #: By suffix of the step and file name, the file to copy or the text to write.
    files: Mapping[str, Mapping[str, Path | str]]
    #: What was measured with them; goes into the manifest.
    metrics: Mapping[str, Any] = MappingProxyType({})


class Stage:
    """One stage of one recipe.

    Args:
        artifacts: folder of all recipes' stages.
        recipe_name: the recipe.
        name: what is made, such as ``trained`` or ``onnx``.
        inputs: everything the result depends on, as JSON values.
    """

    def __init__(self, artifacts: Path, recipe_name: str, name: str, inputs: dict[str, Any]) -> None:
        self.key = digest_of(inputs)
        self.folder = artifacts / recipe_name / f"{name}-{self.key[:12]}"

    def result(self) -> dict[str, Any] | None:
        """What :meth:`finish` recorded; ``None`` while the stage is not finished or a file is damaged."""
        try:
            record = json.loads((self.folder / _RECORD).read_text(encoding="utf-8"))
            files = {name: file_sha256(self.folder / name) for name in record["files"]}
        except (FileNotFoundError, ValueError, KeyError):
            return None
        if record.get("key") != self.key or files != record["files"]:
            return None
        # For newest_stage: what is used again is what the newest release was made of.
        (self.folder / _RECORD).touch()
        return record["result"]

    def finish(self, result: dict[str, Any]) -> None:
        """Record the stage as done, with the files that lie in its folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"{_RECORD}.new"
        # What an earlier attempt recorded, in whole or in part, is no part of the result.
        for path in (self.folder / _RECORD, unfinished):
            path.unlink(missing_ok=True)
        digests = {path.name: file_sha256(path) for path in self.folder.iterdir() if path.is_file()}
        record = {"key": self.key, "files": digests, "result": result}
        unfinished.write_text(json.dumps(record, indent=2), encoding="utf-8")
        unfinished.replace(self.folder / _RECORD)


def newest_stage(artifacts: Path, recipe_name: str, name: str) -> Path:
    """Folder of a recipe's stage that was finished or used last.

    Raises:
        ValueError: none was.
    """
    records = (artifacts / recipe_name).glob(f"{name}-*/{_RECORD}")
    return max(records, key=lambda path: path.stat().st_mtime).parent


def source_digest(*modules: str) -> str:
    """SHA-256 over source files or folders of this package: a changed step is done again."""
    return digest_files(_sources(modules), root=_SOURCES)


def shared_digest() -> str:
    """The same of the modules that server and client share (``mooring._served``)."""
    return digest_files(SHARED_SOURCES.glob("*.py"), root=SHARED_SOURCES)


def library_versions(*names: str) -> dict[str, str]:
    """Installed versions by distribution name."""
    return {name: importlib.metadata.version(name) for name in names}


def git_commit(folder: Path) -> str | None:
    """Commit of the checkout that a recipe's folder lies in, or ``None`` outside of one."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _sources(modules: Iterable[str]) -> Iterable[Path]:
    for module in modules:
        path = _SOURCES / module
        yield from path.glob("*.py") if path.is_dir() else [path]
