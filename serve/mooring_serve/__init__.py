"""Run a real ``tritonserver`` from Python, with no Docker and no GPU.

:class:`TritonServer` uses the official server where one is installed (NVIDIA's container), and the one
inside the PyPI wheel ``nvidia-pytriton`` elsewhere.
"""

from __future__ import annotations

from mooring_serve._server import TritonServer
from mooring_serve._status import ModelState

__all__ = ["ModelState", "TritonServer"]
