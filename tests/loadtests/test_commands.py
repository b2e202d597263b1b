"""How the benchmarks, demos and checks end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mooring import ConfigError, MooringError
from mooring_loadtests.commands import exit_code

# Says when it may be ended, and that it has cleaned up.
_WAITING = """
import sys, time
from mooring_loadtests.commands import exit_code

def run():
    try:
        print("runs", flush=True)
        time.sleep(60)
    finally:
        print("cleans up", flush=True)

sys.exit(exit_code(run))
"""


@pytest.mark.parametrize(
    ("error", "code"), [(MooringError("no"), 1), (ConfigError("no"), 2), (ImportError("no"), 2)]
)
def test_a_failure_is_told_and_has_its_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> int:
        raise error

    assert exit_code(run) == code
    assert capsys.readouterr().err == "mooring: error: no\n"
    assert exit_code(lambda: 3) == 3


def test_what_sigterm_ends_cleans_up() -> None:
    command = [sys.executable, "-c", _WAITING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.terminate()
        assert process.stdout.read() == "cleans up\n"
    assert process.returncode == 130
