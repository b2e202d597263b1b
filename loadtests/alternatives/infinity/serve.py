"""Infinity with ONNX Runtime, which its authors recommend on CPUs: export, hand over to its own server.

It has one copy of the model and its own threads, so ``--workers`` and ``--threads`` change nothing; nor does
``--max-wait-ms``, as it batches what has come in while the batch before was computed.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer

from alternatives.options import HOST, parse_options

if __name__ == "__main__":
    options = parse_options()
    if options.task != "text-classification":
        sys.exit(f"Infinity answers no {options.task}")
    binaries = Path(sys.prefix) / "bin"
    # It keeps graphs that it has optimised, and would take those of another checkpoint for this one's.
    exported, optimised = Path(sys.prefix) / "exported", Path(sys.prefix) / "optimised"
    for folder in (exported, optimised):
        shutil.rmtree(folder, ignore_errors=True)
    os.environ["HF_HUB_CACHE"] = str(optimised)
    model = ORTModelForSequenceClassification.from_pretrained(options.checkpoint, export=True)
    model.save_pretrained(exported)
    AutoTokenizer.from_pretrained(options.checkpoint).save_pretrained(exported)
    # Optimum takes a graph's name from within the folder alone.
    os.chdir(exported)
    command = [str(binaries / "infinity_emb"), "v2", "--host", HOST, "--port", str(options.port)]
    command += ["--model-id", ".", "--served-model-name", "classifier"]
    command += ["--engine", "optimum", "--device", "cpu", "--dtype", "float32"]
    # Its warm-up sends a text over the model's length, which this engine does not cut off.
    command += ["--no-model-warmup"]
    command += ["--batch-size", str(options.max_batch_size), "--log-level", "warning"]
    os.execv(command[0], command)
