"""Resident memory of a program that does nothing but call ``infer``: does it grow?

It runs in a process of its own, where nothing else has left room that growth could hide in::

    python -m mooring_loadtests.client_bench_memory --url grpc://127.0.0.1:8001 --requests 100000
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import psutil

from mooring import Client, MooringError
from mooring_loadtests.client_bench_echo import ECHO, ROW

_THREADS = 8
#: Memory is read after every tenth of the requests; the first one counts as warm-up.
_PARTS = 10
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Resident memory, in MiB, after each tenth of the requests."""

    requests: int
    rss_mib: tuple[float, ...]

    @property
    def growth_mib(self) -> float:
        """How far it was above that after the first tenth, at most; 0 if it never was."""
        return max(self.rss_mib) - self.rss_mib[0]


def measure_memory(url: str, requests: int) -> MemoryUse:
    """Send so many requests to the echo model from 8 threads of a new process.

    Raises:
        MooringError: it failed.
    """
    command = [sys.executable, "-m", "mooring_loadtests.client_bench_memory"]
    command += ["--url", url, "--requests", str(requests)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MooringError(f"the process whose memory is measured failed:\n{done.stderr.strip()[-1000:]}")
    said = json.loads(done.stdout)
    return MemoryUse(requests=said["requests"], rss_mib=tuple(said["rss_mib"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Be that process."""
    parser = argparse.ArgumentParser(prog="python -m mooring_loadtests.client_bench_memory")
    parser.add_argument("--url", required=True)
    parser.add_argument("--requests", type=int, required=True)
    args = parser.parse_args(argv)
    try:
        use = _use_memory(args.url, args.requests)
    except MooringError as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(use)))
    return 0


def _use_memory(url: str, requests: int) -> MemoryUse:
    # Every thread does the same number in each part.
    each = -(-requests // (_PARTS * _THREADS))
    rss_mib: list[float] = []
    with Client(url) as client, ThreadPoolExecutor(_THREADS) as pool:

        def ask(requests: int) -> None:
            for _ in range(requests):
                client.infer(ECHO, {"x": ROW})

        for _ in range(_PARTS):
            list(pool.map(ask, [each] * _THREADS))
            # What was freed is not given back to the system by hand.
            gc.collect()
            rss_mib.append(psutil.Process().memory_info().rss / _MIB)
    return MemoryUse(requests=each * _PARTS * _THREADS, rss_mib=tuple(rss_mib))


if __name__ == "__main__":
    sys.exit(main())
