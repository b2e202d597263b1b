from __future__ import annotations

import subprocess
import sys

import mooring_serve


def test_public_names() -> None:
    assert mooring_serve.__all__ == ["TritonServer"]


def test_the_command_imports_nothing_heavy() -> None:
    program = "import sys, mooring_serve.cli; print(*{'torch', 'onnxruntime'} & set(sys.modules))"
    seen = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == []
