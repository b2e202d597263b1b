"""How many cores a process may use, which in a container are fewer than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

#: Of this process's control group: microseconds of processor time in a period, and the period.
#: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores that this process may run on, no more than its quota of processor time, rounded up."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
    except OSError:
        return count
    return count if quota == "max" else max(1, min(count, math.ceil(int(quota) / int(period))))
