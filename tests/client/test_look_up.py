"""Addresses of host names."""

from __future__ import annotations

import subprocess
import sys

ENDING = """
from mooring._look_up import look_up

class Late:
    look_up = staticmethod(look_up)

    def __del__(self):
        self.look_up("localhost", 80, timeout_s=5.0)

late = Late()
"""


def test_a_look_up_while_the_program_ends_fails_and_does_not_hang() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0
    assert "OSError: the program is ending" in done.stderr
