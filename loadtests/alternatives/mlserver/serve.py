"""MLServer with its Hugging Face runtime: write its two settings files, hand over to its own server.

Adaptive batching happens in the main process, the model runs on PyTorch in MLServer's parallel workers. The
runtime's other engine, ONNX Runtime (``optimum_model``), can't be used: the optimum that it requires does not
export beside the pinned PyTorch.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

from alternatives.options import HOST, Options, parse_options


def write_settings(options: Options, folder: Path) -> None:
    """Write ``settings.json`` and ``model-settings.json``."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind((HOST, 0))
        grpc_port = free.getsockname()[1]
    server = {
        "host": HOST,
        "http_port": options.port,
        "grpc_port": grpc_port,
        "metrics_endpoint": None,
        "parallel_workers": options.workers,
        "debug": False,
        "gzip_enabled": False,
    }
    model = {
        "name": "classifier",
        "implementation": "alternatives.mlserver.runtime.Runtime",
        "max_batch_size": options.max_batch_size,
        "max_batch_time": options.max_wait_ms / 1000.0,
        "parameters": {
            "extra": {
                "task": options.task,
                "pretrained_model": options.checkpoint,
                "framework": "pt",
                "device": "cpu",
                "intra_op_threads": options.threads,
            }
        },
    }
    for name, settings in (("settings", server), ("model-settings", model)):
        (folder / f"{name}.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


if __name__ == "__main__":
    served = Path(sys.prefix) / "served"
    write_settings(parse_options(), served)
    # It makes folders where it runs, and reads a file .env there.
    os.chdir(served)
    start = "import sys; from mlserver.cli import main; sys.argv[0] = 'mlserver'; main()"
    os.execv(sys.executable, [sys.executable, "-c", start, "start", str(served)])
