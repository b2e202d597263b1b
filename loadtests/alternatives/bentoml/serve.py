"""BentoML: hand over to its own server, which loads :mod:`alternatives.bentoml.service` in each worker."""

from __future__ import annotations

import os
import sys

from alternatives.options import HOST, parse_options

if __name__ == "__main__":
    options = parse_options()
    command = [sys.executable, "-m", "bentoml", "serve", "alternatives.bentoml.service:Classifier"]
    command += ["--host", HOST, "--port", str(options.port), "--do-not-track"]
    os.execv(command[0], command)
