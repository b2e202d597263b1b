"""Write constraints.txt anew: the newest versions that pyproject.toml allows, torch as it is pinned now.

The pins must exist for every Python that the project supports: look at the diff, then run the tests
under each.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
# What a CUDA build of torch brings along on some machines only.
NOT_PINNED = re.compile(r"nvidia-.*|cuda-toolkit|triton|mooring")


def main() -> int:
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    header = [line for line in lines if line.startswith("#")]
    with tempfile.TemporaryDirectory() as folder:
        kept, report = Path(folder) / "kept.txt", Path(folder) / "report.json"
        kept.write_text("\n".join(line for line in lines if line.startswith("torch==")), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "--constraint", str(kept), ".[all]", "--group", "dev"]
        subprocess.run(command, cwd=ROOT, check=True)
        resolved = json.loads(report.read_text(encoding="utf-8"))["install"]
    pins = {}
    for item in resolved:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        if not NOT_PINNED.fullmatch(name):
            # A local label such as +cpu names one build of a version; any build will do.
            pins[name] = item["metadata"]["version"].partition("+")[0]
    body = [f"{name}=={version}" for name, version in sorted(pins.items())]
    CONSTRAINTS.write_text("\n".join([*header, *body, ""]), encoding="utf-8")
    print(f"{CONSTRAINTS.name}: {len(pins)} pins")
    return 0


if __name__ == "__main__":
    sys.exit(main())
