"""The command ``mooring serve``."""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mooring import ConfigError, StartError

if TYPE_CHECKING:
    from mooring_serve import TritonServer
    from mooring_serve._status import ModelState

_WATCH_S = 0.5
#: Services, what their ports are of, and the usual ports.
_PORTS = (
    ("http", "the HTTP service", 8000),
    ("grpc", "the gRPC service", 8001),
    ("metrics", "the Prometheus metrics", 8002),
)


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``serve`` to the ``mooring`` command."""
    parser = subparsers.add_parser(
        "serve",
        help="run a tritonserver on a model repository",
        description="Run a tritonserver on a model repository until Ctrl-C. The official server is used if "
        "it is on PATH, else the one in the PyPI wheel nvidia-pytriton, which is downloaded once. Exit code: "
        "0 it was stopped, 1 it did not start or ended by itself, 2 the input was wrong.",
    )
    parser.add_argument(
        "model_repository",
        nargs="?",
        type=Path,
        default=Path("model_repository"),
        metavar="REPOSITORY",
        help="folder into which models were built (default: %(default)s)",
    )
    for service, what, port in _PORTS:
        parser.add_argument(
            f"--{service}-port",
            type=int,
            default=port,
            metavar="PORT",
            help=f"port of {what}; 0 chooses a free one (default: %(default)s)",
        )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="IPv4 address or name; 0.0.0.0 is every address (default: %(default)s)",
    )
    parser.add_argument(
        "--log-file", type=Path, metavar="FILE", help="gets the server's output; else a temporary file"
    )
    parser.add_argument(
        "--allow-load",
        action="store_true",
        help="let clients load and unload models (Triton's explicit model control)",
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write what requests spend their time on, as Triton's traces",
    )
    parser.add_argument(
        "--trace-rate",
        type=_rate,
        default=10,
        metavar="N",
        help="one of N requests is traced (default: %(default)s)",
    )
    add_resource_option(
        parser, "how many there are of what recipes take by serving.resources (else as many as one run takes)"
    )
    parser.add_argument(
        "--start-timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds for every model to load (default: %(default)g)",
    )
    parser.add_argument(
        "--stop-timeout",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds for the server to stop; running requests have two less (default: %(default)g)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        StartError: the server did not start, or ended by itself.
        ConfigError: an option can't be right.
    """
    from mooring_serve import TritonServer

    if args.trace is not None:
        # tritonserver makes no folders, and serves on where it can't write traces.
        try:
            args.trace.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"--trace {args.trace}: its folder can't be made: {exc}") from exc
    server = TritonServer(
        args.model_repository,
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        metrics_port=args.metrics_port,
        host=args.host,
        log_file=args.log_file,
        model_control_mode="explicit" if args.allow_load else "none",
        start_timeout_s=args.start_timeout,
        stop_timeout_s=args.stop_timeout,
        extra_args=[
            *([] if args.trace is None else trace_arguments(args.trace, rate=args.trace_rate)),
            *resource_arguments(args.resource),
        ],
    )
    with sigterm_as_ctrl_c():
        try:
            print("mooring: starting tritonserver ...", flush=True)
            server.start()
            print(_summary(server, args.model_repository), flush=True)
            while server.is_alive():
                time.sleep(_WATCH_S)
            raise StartError(server.exit_reason())
        except KeyboardInterrupt:
            print("mooring: stopping", flush=True)
        finally:
            server.stop()
    return 0


def _rate(text: str) -> int:
    """A number that Triton does not take for "never", as it does 0 and what is below."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def add_resource_option(parser: argparse.ArgumentParser, words: str) -> None:
    """Add ``--resource``, the values of which :func:`resource_arguments` takes; ``words`` is its help."""
    parser.add_argument(
        "--resource", type=_resource, action="append", default=[], metavar="NAME=COUNT", help=words
    )


def _resource(text: str) -> str:
    """``cores=2`` as tritonserver writes it, ``cores:2``."""
    name, _, count = text.partition("=")
    if not name.isidentifier() or not count.isdecimal() or int(count) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=COUNT, such as cores=2")
    return f"{name}:{int(count)}"


def resource_arguments(resources: Sequence[str]) -> list[str]:
    """tritonserver's arguments for resources, ``name:count`` each."""
    return [f"--rate-limit-resource={one}" for one in resources]


def trace_arguments(file: Path, *, rate: int) -> list[str]:
    """tritonserver's arguments that trace one of ``rate`` requests.

    Traces go to ``FILE.0``, ``FILE.1`` and so on, each as soon as it has a hundred of them.
    https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/trace.html
    """
    settings = [
        f"triton,file={file}",
        "triton,log-frequency=100",
        f"rate={rate}",
        "level=TIMESTAMPS",
        "count=-1",
    ]
    return [f"--trace-config={setting}" for setting in settings]


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let a command that is ended by SIGTERM clean up as after Ctrl-C: by a :class:`KeyboardInterrupt`."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _summary(server: TritonServer, repository: Path) -> str:
    states = [state for state in server.model_states() if state.state]
    unbuilt = without_parts(repository, server.unbuilt_models())
    width = max((len(state.name) for state in states), default=0)
    models = [f"  {state.name:<{width}}  {state.version:>4}  {state.state}" for state in states]
    return "\n".join(
        [
            "models:",
            *models,
            *([f"not built, left out: {', '.join(unbuilt)} (mooring build RECIPE)"] if unbuilt else []),
            f"http:    {server.http_url}",
            f"grpc:    {server.grpc_url}",
            f"metrics: {server.metrics_url}",
            f"log:     {server.log_file}",
            f"try:     {_example(server, states)}",
            "Ctrl-C stops the server.",
        ]
    )


def without_parts(repository: Path, models: Sequence[str]) -> list[str]:
    """Models that are no parts of others: ``ner`` stands for ``ner_tokenizer`` and its like too."""
    pipelines = set()
    for name in models:
        # A publish may just have taken back what it began.
        with suppress(OSError):
            text = (repository / name / "config.pbtxt").read_text(encoding="utf-8", errors="replace")
            if 'platform: "ensemble"' in text:
                pipelines.add(name)
    return [
        name
        for name in models
        if name in pipelines or not any(name.startswith(f"{other}_") for other in pipelines)
    ]


def _example(server: TritonServer, states: Sequence[ModelState]) -> str:
    """A request that works: one to a model that takes a text, if there is one."""
    from mooring_serve._status import ask

    for state in states:
        path = f"/models/{quote(state.name, safe='')}"
        config = ask(server.http_url, f"{path}/config") if state.state == "READY" else None
        if config and config.get("platform") == "ensemble":
            inputs = config["input"]
            if [(tensor["name"], tensor["data_type"]) for tensor in inputs] == [("text", "TYPE_STRING")]:
                body = json.dumps({"text": "Where is my parcel from Lisbon?"})
                return f"curl -s {server.http_url}/v2{path}/generate -d '{body}'"
    return f"curl -s {server.http_url}/v2"
