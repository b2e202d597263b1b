"""The GPU that tests marked ``gpu`` run on, if there is one."""

from __future__ import annotations

import warnings

import torch


def compute_capability() -> tuple[int, int]:
    """Of the first CUDA device that PyTorch can use; ``(0, 0)`` where there is none."""
    with warnings.catch_warnings():
        # Of a driver that is too old, which is as good as none.
        warnings.simplefilter("ignore")
        return torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
