"""The GPU that tests marked ``gpu`` run on, if there is one."""

from __future__ import annotations

import warnings

import torch

with warnings.catch_warnings(record=True) as _said:
    # Of a driver that is too old, which is as good as none.
    warnings.simplefilter("always")
    _AVAILABLE = torch.cuda.is_available()
#: Why tests are skipped where PyTorch finds no GPU.
NO_DEVICE = f"needs a CUDA device, PyTorch {torch.__version__} finds none" + "".join(
    f": {warning.message}" for warning in _said
)


def compute_capability() -> tuple[int, int]:
    """Of the first CUDA device that PyTorch can use; ``(0, 0)`` where there is none."""
    return torch.cuda.get_device_capability() if _AVAILABLE else (0, 0)
