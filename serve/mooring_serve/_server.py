"""Start, watch and stop a tritonserver."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from mooring import ConfigError, StartError
from mooring_serve._command import (
    STUB_MEMORY_BYTES,
    ModelControlMode,
    ServerOptions,
    check_repository,
    models_to_load,
    server_command,
    unbuilt_models,
)
from mooring_serve._installation import Installation, find_installation
from mooring_serve._platform import check_ascii
from mooring_serve._ports import check_ports, choose_ports, port_taken, resolve_host
from mooring_serve._process import SupervisedProcess, describe_exit
from mooring_serve._server_log import last_lines, load_errors, still_loading, taken_port
from mooring_serve._status import (
    ModelState,
    ask,
    describe_failures,
    is_ready,
    load_failures,
    model_states,
)
from mooring_serve._supervisor import SHM_FOLDER

_POLL_S = 0.05
#: Tries with other free ports when another program was faster to take one.
_PORT_TRIES = 3
_TAIL_BYTES = 65536


class TritonServer:
    """A running tritonserver: the official one if it is on PATH, else the embedded one.

    Use it in a ``with`` statement, or call :meth:`start` and :meth:`stop`. Whatever happens to this
    process, the server ends with it and leaves no process and no shared memory behind.

    Args:
        model_repository: folder with one folder per model.
        http_port: port of the HTTP service; 0 chooses a free one, here and below.
        grpc_port: port of the gRPC service.
        metrics_port: port of the Prometheus metrics.
        host: IPv4 address or name on which all three listen.
        log_file: gets the server's output, at its end; ``None`` is a temporary file, kept on failure.
        start_timeout_s: time for the server to come up with every model, in seconds.
        stop_timeout_s: time for running requests and models to finish, in seconds; then the server is killed.
        model_control_mode: ``"none"`` loads every built model at start, ``"explicit"`` also obeys load and
            unload requests, ``"poll"`` follows the repository's files. Where some models are not built
            or a folder is hidden, ``"none"`` obeys such requests too: Triton can't leave them out otherwise.
        extra_args: more options of tritonserver, such as ``"--log-verbose=1"``.
        strict_readiness: whether the server calls itself ready only when every model is, and a model
            that can't be loaded fails the start. One that polls a repository of which some models are not
            built does the latter alone.

    Raises:
        ConfigError: an argument can't be right, or the repository holds no model.
    """

    def __init__(
        self,
        model_repository: Path | str,
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        host: str = "127.0.0.1",
        log_file: Path | None = None,
        start_timeout_s: float = 120.0,
        stop_timeout_s: float = 10.0,
        model_control_mode: ModelControlMode = "none",
        extra_args: Sequence[str] = (),
        strict_readiness: bool = True,
    ) -> None:
        self._options = ServerOptions(
            model_repository=Path(model_repository),
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            host=host,
            model_control_mode=model_control_mode,
            strict_readiness=strict_readiness,
            start_timeout_s=start_timeout_s,
            stop_timeout_s=stop_timeout_s,
            extra_args=tuple(extra_args),
        )
        check_ports(self._options.ports())
        self._own_log = log_file is None
        self._log_file = log_file
        self._log_start = 0
        self._server_id = ""
        self._address = ""
        self._ports: dict[str, int] = {}
        self._process: SupervisedProcess | None = None

    @property
    def http_url(self) -> str:
        """Such as ``http://127.0.0.1:43211``."""
        return self._url("http", "http_port")

    @property
    def grpc_url(self) -> str:
        """Such as ``grpc://127.0.0.1:43212``."""
        return self._url("grpc", "grpc_port")

    @property
    def metrics_url(self) -> str:
        """Such as ``http://127.0.0.1:43213/metrics``."""
        return self._url("http", "metrics_port") + "/metrics"

    @property
    def log_file(self) -> Path:
        """File with the server's output."""
        if self._log_file is None:
            raise StartError("the server has no log file yet: call start() first")
        return self._log_file

    @property
    def pid(self) -> int | None:
        """Process id of tritonserver, or ``None`` while it isn't started."""
        return self._process.pid if self._process else None

    def is_alive(self) -> bool:
        """Whether the server process runs."""
        return self._process is not None and self._process.exit_status is None

    def log_tail(self) -> str:
        """The last error lines of this start's log, or its last lines where it has no errors."""
        return last_lines(self._read_log(last_bytes=_TAIL_BYTES))

    def exit_reason(self) -> str:
        """How the server process ended, with the last errors of its log; empty while it runs."""
        if self._process is None or self._process.exit_status is None:
            return ""
        how = describe_exit(self._process.exit_status)
        return f"tritonserver {how} (log: {self._log_file}):\n{self.log_tail()}"

    def model_states(self) -> list[ModelState]:
        """State of every model in the repository; empty if the server doesn't answer."""
        return model_states(self.http_url) or []

    def unbuilt_models(self) -> list[str]:
        """Names of the models in the repository that are not served because they have no version yet."""
        return sorted(unbuilt_models(self._options))

    def start(self) -> Self:
        """Start the server and wait until it is ready; does nothing if it runs.

        Raises:
            StartError: a model failed to load, a port is taken, or the server stopped; in the server's
                own words.
            ConfigError: the repository doesn't exist, holds no model or has a path that can't be served, or
                the log file can't be written.
            UnsupportedPlatform: no official server is installed, and the embedded one can't run here.
            TransportError: the embedded one can't be downloaded.
        """
        if self.is_alive():
            return self
        self.stop()
        check_repository(self._options)
        installation = find_installation()
        if installation.embedded:
            check_ascii("the model repository", self._options.model_repository)
        for tries_left in reversed(range(_PORT_TRIES)):
            try:
                self._launch(installation)
                self._wait_until_ready()
            except _PortRaceError as exc:
                self.stop(keep_log=True)
                if not tries_left or exc.option not in self._free_choice():
                    raise StartError(str(exc)) from None
            except BaseException:
                self.stop(keep_log=True)
                raise
            else:
                break
        return self

    def stop(self, *, keep_log: bool = False) -> None:
        """Stop the server and wait until it is gone; does nothing if it isn't running.

        Args:
            keep_log: keep the log even if it is a temporary file; it is kept anyway if the server had
                ended by itself.
        """
        process, self._process = self._process, None
        if process is None:
            return
        failed = process.exit_status is not None
        process.stop()
        if self._own_log and self._log_file is not None and not keep_log and not failed:
            self._log_file.unlink(missing_ok=True)
            self._log_file = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(keep_log=exc_type is not None)

    def _url(self, scheme: str, option: str) -> str:
        if not self._ports:
            raise StartError("the server has no ports yet: call start() first")
        # "Every address" can't be called; loopback is one of them.
        address = "127.0.0.1" if self._address == "0.0.0.0" else self._address
        return f"{scheme}://{address}:{self._ports[option]}"

    def _free_choice(self) -> list[str]:
        return [option for option, port in self._options.ports().items() if port == 0]

    def _open_log(self) -> Path:
        if self._log_file is None:
            try:
                handle, name = tempfile.mkstemp(prefix="mooring-tritonserver-", suffix=".log")
            except OSError as exc:
                raise ConfigError(
                    f"can't make a temporary file for the server's log: {exc}; TMPDIR names another folder, "
                    "log_file (mooring serve --log-file) another file"
                ) from exc
            os.close(handle)
            self._log_file = Path(name)
        try:
            self._log_file.parent.mkdir(parents=True, exist_ok=True)
            with self._log_file.open("ab") as log:
                can_be_read = log.seekable()
        except OSError as exc:
            raise ConfigError(f"can't write the log file {self._log_file}: {exc}") from exc
        if not can_be_read:
            raise ConfigError(
                f"the log file {self._log_file} is a pipe or a terminal, and Mooring looks there for "
                "the server's errors: give a file ('tail -F' shows it)"
            )
        return self._log_file

    def _read_log(self, *, last_bytes: int | None = None) -> str:
        if self._log_file is None or not self._log_file.exists():
            return ""
        with self._log_file.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            # Behind the end where the file was cut off meanwhile, as logrotate's copytruncate does.
            start = self._log_start if self._log_start <= size else 0
            log.seek(start if last_bytes is None else max(start, size - last_bytes))
            return log.read().decode("utf-8", errors="replace")

    def _launch(self, installation: Installation) -> None:
        self._address = resolve_host(self._options.host)
        self._ports = choose_ports(self._address, self._options.ports())
        self._server_id = f"mooring-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._log_start = self._open_log().stat().st_size
        # What is published while it starts is not this server's to load.
        self._wanted = models_to_load(self._options)
        self._process = SupervisedProcess(
            server_command(
                installation,
                self._options,
                address=self._address,
                ports=self._ports,
                server_id=self._server_id,
            ),
            environment=installation.environment,
            log_file=self.log_file,
            shm_prefix=self._server_id,
            grace_s=self._options.stop_timeout_s,
        )

    def _wait_until_ready(self) -> None:
        timeout_s = self._options.start_timeout_s
        deadline = time.monotonic() + timeout_s
        while not self._has_started():
            if not self.is_alive():
                raise self._early_exit()
            if time.monotonic() > deadline:
                loading = ", ".join(still_loading(self._read_log())) or "no model"
                raise StartError(
                    f"tritonserver was not ready after {timeout_s:g} s, still loading: {loading} "
                    f"(log: {self.log_file}); if it only needs longer, give a larger start_timeout_s "
                    "(mooring serve --start-timeout)"
                )
            time.sleep(_POLL_S)

    def _has_started(self) -> bool:
        # Another program may have taken the port while this server was loading.
        metadata = ask(self.http_url, "")
        if not isinstance(metadata, dict) or metadata.get("name") != self._server_id:
            return False
        states = model_states(self.http_url)
        if states is None or any(state.state == "LOADING" for state in states):
            return False
        failures = load_failures(states, self._wanted, load_errors(self._read_log()))
        if failures and self._options.strict_readiness:
            raise StartError(
                f"{len(failures)} of the models could not be loaded (log: {self.log_file}):\n"
                + describe_failures(failures)
                + self._shared_memory_hint(failures)
            )
        return is_ready(self.http_url, self.metrics_url)

    def _shared_memory_hint(self, failures: Mapping[str, str]) -> str:
        """What stubs take, of which Triton says 1 MiB whatever it is."""
        if not any("shared memory" in reason.lower() for reason in failures.values()):
            return ""
        free_mib = shutil.disk_usage(SHM_FOLDER).free >> 20
        return (
            f"\nEach process of a Python model or engine takes {STUB_MEMORY_BYTES >> 20} MiB of "
            f"{SHM_FOLDER}, which has {free_mib} MiB free; a container gets more by --shm-size=1g"
        )

    def _early_exit(self) -> StartError:
        port = taken_port(self._read_log())
        for option, chosen in self._ports.items():
            if chosen == port:
                return _PortRaceError(port_taken(option, chosen, self._address), option=option)
        return StartError(self.exit_reason())


class _PortRaceError(StartError):
    """Another program took a port between the look and the start."""

    def __init__(self, message: str, *, option: str) -> None:
        super().__init__(message)
        self.option = option
