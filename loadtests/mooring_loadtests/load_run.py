"""Run the users headless in a process of their own: Locust patches the one it runs in."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mooring import ConfigError, MooringError
from mooring_loadtests.results import LoadResult, read_results

_LOCUSTFILE = Path(__file__).resolve().parent.parent / "locustfile.py"
_POLL_S = 0.2
#: Time for Locust to start, stop and write its report, on top of the run itself.
_OVERHEAD_S = 60.0


def run_load(
    *,
    model: str,
    grpc_url: str,
    http_url: str,
    seconds: int,
    reports: Path,
    users: int = 8,
    progress: Callable[[float], None] = lambda elapsed_s: None,
) -> LoadResult:
    """Load a model over both protocols and leave ``<model>.html``, ``.json`` and ``.log`` in ``reports``.

    Args:
        model: model that takes texts; the users are shared out evenly between the protocols.
        grpc_url: as in ``mooring.Client``.
        http_url: likewise.
        seconds: length of the run.
        reports: folder; created where it is missing.
        users: callers that each wait for an answer before they send the next text.
        progress: receives the seconds since the start, several times a second.

    Raises:
        ImportError: Locust is not installed.
        ConfigError: the Locust file is not there, as in an installation from a wheel.
        MooringError: Locust stopped early; the message has the end of its log.
    """
    if importlib.util.find_spec("locust") is None:
        raise ImportError("load tests need Locust: pip install 'mooring[loadtests]'")
    if not _LOCUSTFILE.is_file():
        raise ConfigError(f"{_LOCUSTFILE} is missing: run load tests from a checkout of the project")
    reports.mkdir(parents=True, exist_ok=True)
    results, log = reports / f"{model}.json", reports / f"{model}.log"
    # Else those of an earlier run could pass for this one's.
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "locust", "--locustfile", str(_LOCUSTFILE)]
    command += ["--headless", "--only-summary"]
    command += ["--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds}s"]
    command += ["--html", str(reports / f"{model}.html")]
    command += ["--results", str(results)]
    command += ["--model", model, "--grpc-url", grpc_url, "--http-url", http_url]
    with log.open("wb") as output:
        status = _run(command, output.fileno(), seconds + _OVERHEAD_S, progress)
    if not results.is_file():
        end = log.read_text(encoding="utf-8", errors="replace").strip()[-1000:]
        raise MooringError(f"Locust stopped with exit status {status} and no results (log: {log}):\n{end}")
    return read_results(results)


def _run(command: list[str], output: int, limit_s: float, progress: Callable[[float], None]) -> int:
    began_s = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=_environment(os.environ)
    )
    try:
        while process.poll() is None:
            elapsed_s = time.monotonic() - began_s
            if elapsed_s > limit_s:
                raise MooringError(f"Locust did not stop within {limit_s:.0f} s")
            progress(elapsed_s)
            time.sleep(_POLL_S)
        return process.returncode
    finally:
        process.kill()
        process.wait()


def _environment(current: os._Environ[str]) -> dict[str, str]:
    """Without ``LOCUST_*``, which would change the run behind the options' back."""
    return {name: value for name, value in current.items() if not name.startswith("LOCUST_")}
