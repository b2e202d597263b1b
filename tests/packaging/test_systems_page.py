"""The page of systems shows what is served."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mooring_build.recipe import shipped_recipes

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")


def test_the_pictures_are_those_of_the_layouts() -> None:
    command = [sys.executable, str(ROOT / ".ci" / "draw_pipelines.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_recipe_has_its_section() -> None:
    for name in shipped_recipes():
        assert f"`{name}`" in PAGE
        assert f"](../build/recipes/{name}.toml)" in PAGE
