"""What every alternative's server is told: on its command line, then to its workers by environment."""

from __future__ import annotations

import argparse
import json
import os
import threading
from dataclasses import asdict, dataclass

HOST = "127.0.0.1"
#: Name of the environment variable that hands the options on to workers in processes of their own.
_VARIABLE = "MOORING_ALTERNATIVE_OPTIONS"


@dataclass(frozen=True, kw_only=True)
class Options:
    #: Folder with config.json, tokenizer.json and safetensors weights.
    checkpoint: str
    #: text-classification or token-classification.
    task: str
    #: Port on the loopback address.
    port: int
    #: Copies of the model that answer at the same time.
    workers: int = 1
    #: Threads of one copy.
    threads: int = 1
    #: Most texts in one batch; 1 turns dynamic batching off.
    max_batch_size: int = 1
    #: Longest wait for further texts before a batch starts, in milliseconds.
    max_wait_ms: float = 0.0


def parse_options() -> Options:
    """Read the command line; processes started from here find the options in their environment."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--task", choices=["text-classification", "token-classification"], required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=Options.workers)
    parser.add_argument("--threads", type=int, default=Options.threads)
    parser.add_argument("--max-batch-size", type=int, default=Options.max_batch_size)
    parser.add_argument("--max-wait-ms", type=float, default=Options.max_wait_ms)
    options = Options(**vars(parser.parse_args()))
    os.environ[_VARIABLE] = json.dumps(asdict(options))
    return options


def options_from_environment() -> Options:
    """Read in a worker what :func:`parse_options` read in the process that started it."""
    return Options(**json.loads(os.environ[_VARIABLE]))


def say_loaded() -> None:
    """Print the line that the caller counts to know that every copy of the model is there."""
    print(f"model loaded in process {os.getpid()} thread {threading.get_native_id()}", flush=True)
