"""What a release needs is in the container: the standard library, numpy, tokenizers, Triton's module."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import mooring_build.served

ALLOWED = {"numpy", "tokenizers", "triton_python_backend_utils"}
SERVED = sorted(Path(mooring_build.served.__file__).parent.glob("*.py"))


def test_served_sources_are_found() -> None:
    assert {"tokenizer_model.py", "entities_model.py", "classifier_model.py"} <= {
        path.name for path in SERVED
    }


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
