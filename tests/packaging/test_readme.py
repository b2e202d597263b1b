from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Made by running the project, not part of it.
MADE = {"artifacts", "dist", "reports"}


def _blocks() -> list[str]:
    return [block for _, block in re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", README)]


def _tree() -> list[str]:
    """Paths of the folder tree: the code block whose lines begin with a path and whose first line is one."""
    for block in _blocks():
        lines = [line for line in block.splitlines() if line.strip()]
        if lines and all(re.match(r"[│├└─ ]*[\w.*/-]+(/|\s|$)", line) for line in lines) and "├" in block:
            return _paths(lines)
    raise AssertionError("README.md has no code block with a folder tree (drawn with ├── and └──)")


def _paths(lines: list[str]) -> list[str]:
    parents: list[str] = []
    paths = []
    for line in lines:
        drawn = re.match(r"[│├└─ ]*", line)[0]
        depth = len(drawn) // 4
        name = line[len(drawn) :].split()[0].rstrip("/")
        parents[depth:] = [name]
        paths.append("/".join(parents))
    return paths


def test_every_line_of_the_tree_exists() -> None:
    tree = _tree()
    # The first line is the project's own folder.
    missing = [path for path in tree[1:] if not list(ROOT.glob(path.partition("/")[2]))]
    assert missing == []


def test_the_tree_lists_every_folder_at_the_top() -> None:
    listed = {path.split("/")[1] for path in _tree()[1:]}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert folders - MADE <= listed


def test_the_tree_says_something_of_each_line() -> None:
    block = next(block for block in _blocks() if "├" in block)
    silent = [line for line in block.splitlines()[1:] if line.strip() and len(line.split()) < 4]
    assert silent == []


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8")))
    code = "\n".join(re.findall(r"(?s)```.*?```|`[^`]+`", README))
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)\b", code))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_the_readme_shows_real_output() -> None:
    assert not re.findall(r"[A-Z]+_OUTPUT\b", README)
