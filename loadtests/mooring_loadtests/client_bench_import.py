"""What ``import mooring`` takes and brings along, in interpreters of their own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass

from mooring import MooringError

#: Packages that a program which only calls models must not pay for, and the other rooms.
HEAVY = (
    "gevent",
    "locust",
    "mooring_build",
    "mooring_loadtests",
    "mooring_serve",
    "onnx",
    "onnxruntime",
    "pandas",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
)

_CODE = """
import json, sys, time
began_s = time.perf_counter()
import mooring
lasted_s = time.perf_counter() - began_s
print(json.dumps({"seconds": lasted_s, "modules": sorted(sys.modules)}))
"""


@dataclass(frozen=True, kw_only=True)
class ImportCost:
    """Of ``import mooring``."""

    #: Median, with the bytecode compiled and the files in the page cache.
    seconds: float
    #: Those of :data:`HEAVY` that were loaded.
    heavy: tuple[str, ...]


def measure_import(runs: int) -> ImportCost:
    """Import it in so many fresh interpreters, after one that is not counted.

    Raises:
        MooringError: it can't be imported.
    """
    seconds: list[float] = []
    loaded: set[str] = set()
    for _ in range(runs + 1):
        done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise MooringError(f"import mooring failed:\n{done.stderr.strip()}")
        said = json.loads(done.stdout)
        seconds.append(said["seconds"])
        loaded |= {module.partition(".")[0] for module in said["modules"]}
    return ImportCost(seconds=statistics.median(seconds[1:]), heavy=tuple(sorted(loaded & set(HEAVY))))
