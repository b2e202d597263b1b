"""Make the client for threads from the one for coroutines: client/mooring/_async to client/mooring/_sync.

    python .ci/generate_sync.py            writes
    python .ci/generate_sync.py --check    says which files differ; exit status 1 if one does

unasync replaces the tokens; documentation strings, which it leaves alone, follow the same names here.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "client" / "mooring" / "_async"
TARGET = ROOT / "client" / "mooring" / "_sync"
HEADER = "# Generated from mooring/{} by .ci/generate_sync.py; change that file.\n"

NAMES = {
    "_async": "_sync",
    "_async_work": "_sync_work",
    "aclose": "close",
    "asend": "send",
    "astream": "stream",
    "open_async_transport": "open_transport",
    "AsyncWork": "SyncWork",
    "AsyncSource": "Source",
}
_NAME = re.compile(r"\bAsync[A-Z]\w*")
_GENERATOR = re.compile(r"\bAsyncGenerator\[(.+), None\]")


def generate(source: Path, target: Path) -> None:
    """Write the synchronous twin of every module of a folder into another one."""
    paths = sorted(source.glob("*.py"))
    found = {name for path in paths for name in _NAME.findall(path.read_text(encoding="utf-8"))}
    standard = {"AsyncIterable", "AsyncIterator", "AsyncGenerator"}
    names = {name: name.removeprefix("Async") for name in found - standard} | NAMES
    with tempfile.TemporaryDirectory() as scratch:
        copies = Path(scratch, "_async")
        copies.mkdir()
        for path in paths:
            # A generator of threads can be sent a value and can return one.
            text = _GENERATOR.sub(r"AsyncGenerator[\1, None, None]", path.read_text(encoding="utf-8"))
            (copies / path.name).write_text(text, encoding="utf-8")
        rule = unasync.Rule(f"{scratch}/_async", f"{scratch}/_sync", additional_replacements=names)
        unasync.unasync_files([str(copies / path.name) for path in paths], [rule])
        target.mkdir(exist_ok=True)
        for path in paths:
            text = Path(scratch, "_sync", path.name).read_text(encoding="utf-8")
            text = _translate_documentation(text, names)
            text = HEADER.format(f"_async/{path.name}") + text
            (target / path.name).write_text(text, encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--config", str(ROOT / "pyproject.toml"), "--quiet", str(target)]
    # UP028 is "yield from", which coroutines lack.
    fixes = ["--fix-only", "--unsafe-fixes", "--extend-select", "UP028"]
    subprocess.run([*ruff, "check", *fixes, *options], check=True)
    subprocess.run([*ruff, "format", *options], check=True)


def _translate_documentation(text: str, names: dict[str, str]) -> str:
    text = text.replace("for coroutines", "for threads").replace(" (``async with`` in coroutines)", "")
    text = text.replace("Iterable[ItemT] | Iterable[ItemT]", "Iterable[ItemT]")
    for name, plain in names.items():
        text = re.sub(rf"\b{name}\b", plain, text)
    return text


def main() -> int:
    """Generate, or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, say what differs")
    if not parser.parse_args().check:
        generate(SOURCE, TARGET)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch, "_sync")
        generate(SOURCE, fresh)
        names = {path.name for folder in (fresh, TARGET) for path in folder.glob("*.py")}
        different = [
            name
            for name in sorted(names)
            if not (fresh / name).is_file()
            or not (TARGET / name).is_file()
            or (fresh / name).read_bytes() != (TARGET / name).read_bytes()
        ]
    for name in different:
        print(f"client/mooring/_sync/{name} is not what .ci/generate_sync.py makes; run it", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
