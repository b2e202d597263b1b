"""Assemble the folder that tritonserver gets as ``--backend-directory``.

::

    backends-3.11-<digest>/
    ├── python/                  the wheel's Python backend, with the stub for the running Python
    │   ├── triton_python_backend_utils.py   the wheel's, plus one line that applies the bridge
    │   ├── _mooring_numpy_bridge.py         see mooring_serve._numpy_bridge
    │   └── mooring_*.py         modules that the backends below share; this folder is on their module path
    ├── onnxruntime/model.py     Mooring's Python-based backends
    └── pytorch/model.py

Its name holds a digest of what it is made from, so that another wheel, Python or backend source makes
another folder, and running servers keep theirs. The files are copies or hard links: tritonserver
refuses symbolic links that lead out of the folder.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from mooring import ConfigError
from mooring_serve._cache_folder import build_once

_HERE = Path(__file__).resolve().parent
_BACKENDS = _HERE / "backends"
_BRIDGE = _HERE / "_numpy_bridge.py"
_BRIDGE_NAME = "_mooring_numpy_bridge"
_LIBRARY = "libtriton_python.so"
_UTILS = "triton_python_backend_utils.py"
_APPLY_BRIDGE = f"""

# Added by Mooring: makes this stub work with NumPy 2; see the module's docstring.
import {_BRIDGE_NAME}

{_BRIDGE_NAME}.apply(globals())
"""


def assemble_backend_directory(
    server: Path, python: tuple[int, int], cache_dir: Path, *, sources: Path = _BACKENDS
) -> Path:
    """Return the backend directory for one server, Python version and state of the backends' sources.

    Args:
        server: the wheel's ``tritonserver`` folder.
        python: major and minor version of the interpreter whose packages the models use.
        cache_dir: where the folder is kept.
        sources: folder whose Python files are copied, each to the same place.

    Raises:
        ConfigError: a part of the server is missing or can't be read, or the folder can't be made.
    """
    version = f"{python[0]}.{python[1]}"
    python_backend = server / "backends" / "python"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    backends = {str(path.relative_to(sources)): path for path in sorted(sources.rglob("*.py"))}
    digest = hashlib.sha256()
    read = {
        **{path.name: path for path in (stub, python_backend / _LIBRARY, python_backend / _UTILS, _BRIDGE)},
        **backends,
    }
    for name, path in read.items():
        try:
            content = path.read_bytes()
        except OSError as exc:
            raise ConfigError(
                f"the unpacked server can't be used: {exc}; remove {server.parents[1]}, so that it is "
                "unpacked anew, or let XDG_CACHE_HOME name another folder"
            ) from exc
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    digest.update(_APPLY_BRIDGE.encode())

    def build(folder: Path) -> None:
        (folder / "python").mkdir()
        for path in (stub, python_backend / _LIBRARY):
            # No links: Triton changes the mode of a stub that does not start.
            shutil.copy2(path, folder / "python" / path.name)
        utils = (python_backend / _UTILS).read_text(encoding="utf-8")
        (folder / "python" / _UTILS).write_text(utils + _APPLY_BRIDGE, encoding="utf-8")
        shutil.copyfile(_BRIDGE, folder / "python" / f"{_BRIDGE_NAME}.py")
        for name, path in backends.items():
            copy = folder / name
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)

    return build_once(cache_dir / f"backends-{version}-{digest.hexdigest()[:16]}", build)
