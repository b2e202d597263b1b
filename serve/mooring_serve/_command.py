"""Options of one server and the command line that they make."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

from mooring import ConfigError
from mooring_serve._installation import Installation
from mooring_serve._platform import check_path

ModelControlMode = Literal["none", "explicit", "poll"]

# Set by Mooring itself; a second value would be ignored or contradict the first.
_OWN_OPTIONS = (
    "--model-repository", "--model-store", "--model-control-mode", "--http-address", "--http-port",
    "--grpc-address", "--grpc-port", "--metrics-address", "--metrics-port", "--strict-readiness",
    "--exit-on-error", "--exit-timeout-secs", "--backend-directory", "--cache-directory", "--id",
    "--allow-http", "--allow-grpc", "--allow-metrics",
)  # fmt: skip
# Backends that run in stubs, each with shared-memory regions of its own.
_STUB_BACKENDS = ("python", "onnxruntime", "pytorch")
# Memory that a stub and its server share from the start. tritonserver 2.51 gives 1 MiB and grows it on
# demand; under 32 concurrent requests that ended in a crash of both (a stub wrote beyond its mapping, the
# server met a lock_exception), as in https://github.com/triton-inference-server/server/issues/8882.
STUB_MEMORY_BYTES = 16 * 1024 * 1024
# For the answers of all models whose config asks to have them kept.
_CACHE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What a caller asks of a server; ports may still be 0."""

    model_repository: Path
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    host: str = "127.0.0.1"
    #: ``"none"`` loads every model at start and no other later, ``"explicit"`` also obeys load and unload
    #: requests, ``"poll"`` follows the repository's files.
    model_control_mode: ModelControlMode = "none"
    #: Whether the server is ready only when every model is; by polling a repository of which some models are
    #: not built, only its start waits for the others.
    strict_readiness: bool = True
    #: Time for everything to load, in seconds.
    start_timeout_s: float = 120.0
    #: Time for running requests and models to finish, in seconds; then the server is killed.
    stop_timeout_s: float = 10.0
    #: More options of tritonserver, such as ``"--log-verbose=1"``.
    extra_args: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.model_control_mode not in get_args(ModelControlMode):
            known = ", ".join(map(repr, get_args(ModelControlMode)))
            raise ConfigError(f"model_control_mode is {self.model_control_mode!r}: it must be one of {known}")
        for name in ("start_timeout_s", "stop_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be a number above 0")
        for argument in self.extra_args:
            if argument.partition("=")[0] in _OWN_OPTIONS:
                raise ConfigError(
                    f"extra_args holds {argument!r}, which Mooring sets: use TritonServer's own arguments"
                )

    def ports(self) -> dict[str, int]:
        """Ports by the names of their options."""
        return {"http_port": self.http_port, "grpc_port": self.grpc_port, "metrics_port": self.metrics_port}


def check_repository(options: ServerOptions) -> None:
    """Refuse a repository from which nothing could be served.

    Raises:
        ConfigError: it doesn't exist, it or a model in it can't be read, nothing in it is built and
            nothing can be loaded later, or its path would be taken apart.
    """
    repository = options.model_repository
    check_path("the model repository", repository)
    folders = _model_folders(repository)
    if not folders and not repository.is_dir():
        raise ConfigError(
            f"there is no model repository at {repository}: run 'mooring build', or give another folder"
        )
    if options.model_control_mode == "none" and not any(map(_has_version, folders)):
        raise ConfigError(
            f"the model repository {repository} holds no built model: run 'mooring build' first"
        )


def models_to_load(options: ServerOptions) -> set[str]:
    """Names of the models that the server loads when it starts: those named, or all that are built."""
    named = _named_models(options) - {"*"}
    folders = _model_folders(options.model_repository)
    return named or {folder.name for folder in folders if _has_version(folder)}


def unbuilt_models(options: ServerOptions) -> set[str]:
    """Names of the models that have no version folder, only a config that says how they will be served."""
    return {folder.name for folder in _model_folders(options.model_repository) if not _has_version(folder)}


def _has_folders_without_version(options: ServerOptions) -> bool:
    """Whether Triton would take for failed models what has no version: models that are not built, and hidden
    folders, as it takes ``.git`` for a model of the backend ``git``."""
    folders = _folders(options.model_repository)
    return any(folder.name.startswith(".") for folder in folders) or bool(unbuilt_models(options))


def _named_models(options: ServerOptions) -> set[str]:
    """Names given by ``--load-model=NAME`` and ``--load-model NAME``."""
    named = set()
    for argument, following in pairwise([*options.extra_args, ""]):
        option, equals, value = argument.partition("=")
        if option == "--load-model":
            named.add(value if equals else following)
    return named


def _model_folders(repository: Path) -> list[Path]:
    return [folder for folder in _folders(repository) if not folder.name.startswith(".")]


def _folders(repository: Path) -> list[Path]:
    try:
        # Not a volume's own, which only root may read.
        return [entry for entry in repository.iterdir() if entry.is_dir() and entry.name != "lost+found"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise ConfigError(f"the model repository {repository} can't be read: {exc}") from exc


def _has_version(model: Path) -> bool:
    try:
        return any(entry.is_dir() and entry.name.isdecimal() for entry in model.iterdir())
    except FileNotFoundError:
        # A publish that took back what it began.
        return False
    except OSError as exc:
        raise ConfigError(f"the model {model} can't be read: {exc.strerror}") from exc


def server_command(
    installation: Installation,
    options: ServerOptions,
    *,
    address: str,
    ports: Mapping[str, int],
    server_id: str,
) -> list[str]:
    """Command line that starts the server.

    Args:
        installation: the server.
        options: what the caller asks for.
        address: IPv4 address on which the server listens.
        ports: the chosen ports, by option name.
        server_id: name under which the server answers, and start of the names of its shared-memory regions.
    """
    command = [
        str(installation.executable),
        f"--id={server_id}",
        f"--model-repository={options.model_repository}",
        *_control_arguments(options),
    ]
    for service in ("http", "grpc", "metrics"):
        command += [f"--{service}-address={address}", f"--{service}-port={ports[f'{service}_port']}"]
    # By polling Triton takes these for models that are not ready, and is never ready itself.
    waits = options.model_control_mode == "poll" and _has_folders_without_version(options)
    command += [
        f"--strict-readiness={str(options.strict_readiness and not waits).lower()}",
        # A server that lives on after a failed load can be asked for the reasons of all failed models.
        "--exit-on-error=false",
        # Less than the time after which the server is killed, so that it can still end its stubs itself.
        f"--exit-timeout-secs={max(1, int(options.stop_timeout_s) - 2)}",
    ]
    if installation.embedded:
        command += [
            f"--backend-directory={installation.backend_directory}",
            f"--cache-directory={installation.cache_directory}",
        ]
    for backend in _STUB_BACKENDS if installation.embedded else _STUB_BACKENDS[:1]:
        command.append(f"--backend-config={backend},shm-region-prefix-name={server_id}")
        command.append(f"--backend-config={backend},shm-default-byte-size={STUB_MEMORY_BYTES}")
    return [*command, *_asked_by_configs(options), *options.extra_args]


def _asked_by_configs(options: ServerOptions) -> list[str]:
    """What some model's config needs of the server; without it Triton ignores the config's wish."""
    # By the config's text: this room has no protobuf of Triton's configs.
    wishes = [
        (r"response_cache\s*:?\s*{\s*enable\s*:\s*true", ("--cache-config", f"local,size={_CACHE_BYTES}")),
        (r"rate_limiter\s*:?\s*{", ("--rate-limit", "execution_count")),
    ]
    configs = []
    for folder in _model_folders(options.model_repository):
        with suppress(OSError):
            text = (folder / "config.pbtxt").read_text(encoding="utf-8", errors="replace")
            configs.append(re.sub(r"#.*", "", text))
    given = {argument.partition("=")[0] for argument in options.extra_args}
    if "--response-cache-byte-size" in given:
        given.add("--cache-config")
    return [
        f"{option}={value}"
        for pattern, (option, value) in wishes
        if option not in given and any(re.search(pattern, config) for config in configs)
    ]


def _control_arguments(options: ServerOptions) -> list[str]:
    """What is loaded. Triton takes a folder without a version for a model that failed, so where there is one
    the models that are built are named, which only its explicit mode allows."""
    mode = options.model_control_mode
    if mode == "poll" or _named_models(options):
        return [f"--model-control-mode={mode}"]
    if _has_folders_without_version(options):
        names = sorted(models_to_load(options))
        return ["--model-control-mode=explicit", *(f"--load-model={name}" for name in names)]
    return [f"--model-control-mode={mode}", *(["--load-model=*"] if mode == "explicit" else [])]
