"""What a release needs is in the container: the standard library, numpy, pillow, tokenizers, Triton's
module."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import mooring_build.served
from mooring_build.recipe import load_recipe
from mooring_build.release import version_files
from mooring_build.stages import SHARED_SOURCES
from tiny_release import make_release

ALLOWED = {"PIL", "numpy", "tokenizers", "triton_python_backend_utils"}
ENTRY_POINTS = Path(mooring_build.served.__file__).parent
SERVED = sorted([*ENTRY_POINTS.glob("*.py"), *SHARED_SOURCES.glob("*.py")])


def test_served_sources_are_found() -> None:
    names = {path.name for path in SERVED}
    assert {
        "tokenizer_model.py",
        "entities_model.py",
        "classifier_model.py",
        "image_decoder_model.py",
    } <= names
    assert {"encoding.py", "entities.py", "classification.py", "images.py", "softmax.py", "texts.py"} <= names


def test_served_models_import_nothing_else() -> None:
    imported = set()
    for path in SERVED:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add((node.module or "").partition(".")[0])
    assert "numpy" in imported
    assert imported - set(sys.stdlib_module_names) <= ALLOWED


def test_served_modules_run_on_the_oldest_python_of_a_container() -> None:
    for path in SERVED:
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


def test_each_version_folder_has_what_its_modules_import(tmp_path: Path) -> None:
    parts = {
        "ner": ("tokenizer", "postprocessor"),
        "intent": ("tokenizer", "postprocessor"),
        "image": ("decoder", "postprocessor"),
        "tabular": ("postprocessor",),
    }
    for shipped, suffixes in parts.items():
        recipe = load_recipe(shipped)
        files = version_files(recipe, make_release(tmp_path / shipped, recipe))
        for part in suffixes:
            folder = files[f"{shipped}_{part}"]
            sources = {name: path for name, path in folder.items() if isinstance(path, Path)}
            imported = {
                f"{node.module}.py"
                for name, path in sources.items()
                if name.endswith(".py")
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.ImportFrom) and node.level == 1
            }
            assert imported == {name for name in sources if name.endswith(".py")} - {"model.py"}
