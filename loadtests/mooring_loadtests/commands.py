"""How the commands of this room end."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

from mooring import ConfigError, MooringError


def count(text: str) -> int:
    """The number of an option such as ``--rounds 3``."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def number(text: str) -> float:
    """The number of an option such as ``--minutes 2.5``."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return found


def exit_code(run: Callable[[], int]) -> int:
    """What a command returns to the shell.

    Returns:
        ``run``'s own answer; 1 if it failed, 2 if something needed is missing, 130 after Ctrl-C or
        SIGTERM, both of which let it clean up.
    """
    try:
        from mooring_serve.cli import sigterm_as_ctrl_c

        with sigterm_as_ctrl_c():
            return run()
    except (MooringError, ImportError) as exc:
        print(f"mooring: error: {exc}", file=sys.stderr)
        return 2 if isinstance(exc, ConfigError | ImportError) else 1
    except KeyboardInterrupt:
        return 130
