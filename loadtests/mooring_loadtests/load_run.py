"""Run a load test: the users headless in processes of their own, as Locust patches the one it runs in."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mooring import Client, ConfigError, MooringError
from mooring._commands import Credentials
from mooring_loadtests.cores import usable_cores
from mooring_loadtests.load_profile import Profile
from mooring_loadtests.load_result import LoadResult
from mooring_loadtests.payloads import endless_items, items_sha256
from mooring_loadtests.recorder import Recorder
from mooring_loadtests.served_settings import changed, served_settings
from mooring_loadtests.server_times import between, loaded_anew, snapshot, switched
from mooring_loadtests.traces import Began, slowest

_PACKAGE = Path(__file__).resolve().parent
#: In a wheel it lies inside the package, in a folder of its own, as Locust puts that on ``sys.path``.
_LOCUSTFILES = (_PACKAGE / "locustfile" / "locustfile.py", _PACKAGE.parent / "locustfile.py")
_LOCUSTFILE = next((path for path in _LOCUSTFILES if path.is_file()), None)
_POLL_S = 0.2
#: Time for Locust to start, stop and write its report, on top of the run itself.
_OVERHEAD_S = 60.0
#: Time for a run that is given up to end in order, on top of a request's.
_STOP_S = 10.0
_PROTOCOLS = {"grpc": "GrpcUser", "http": "HttpUser"}
#: How long a run waits for its workers.
_WORKERS_WAIT_S = 300
#: What decides how much faster int8 is than fp32, as Linux calls it on x86 and on Arm.
_VECTORS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Locust workers that generate the load, on machines of their own, and where they find this one."""

    count: int
    host: str
    port: int

    def command(
        self,
        model: str,
        profile: str,
        overrides: Sequence[str],
        urls: Mapping[str, str | None],
        credentials: Credentials = Credentials(),  # noqa: B008 (frozen)
    ) -> list[str]:
        """What to run for each of them, in a checkout of the project.

        Args:
            model: name of the model.
            profile: its file or name, as each worker finds it.
            overrides: keys of the profile that are changed.
            urls: of the server by protocol; workers take over the master's.
            credentials: likewise; files and the token's variable must be there.
        """
        command = ["locust", "-f", "loadtests/locustfile.py", "--worker"]
        command += ["--master-host", self.host, "--master-port", str(self.port)]
        command += ["--generators", str(self.count), "--model", model, "--load-profile", profile]
        command += [word for override in overrides for word in ("--set", override)]
        return [*command, *credentials.words(), *_users(urls)]


def run_load(
    *,
    model: str,
    name: str,
    profile: Profile,
    grpc_url: str | None = None,
    http_url: str | None = None,
    processes: int = 1,
    workers: Workers | None = None,
    credentials: Credentials = Credentials(),  # noqa: B008 (frozen)
    trace: Path | None = None,
    log: Path,
    progress: Callable[[float], None] = lambda elapsed_s: None,
    complain: Callable[[str], None] = lambda words: None,
) -> LoadResult:
    """Load a model as a profile says, over each protocol that has a URL; they share the load.

    The model is asked one item first over each protocol, so that a mistake shows before anything is measured.
    What was measured is kept where the server can't be asked afterwards, or left no traces.

    Args:
        model: name of the model.
        name: of the profile.
        profile: the load.
        grpc_url: as in ``mooring.Client``; ``None`` leaves the protocol out.
        http_url: likewise.
        processes: processes of this machine that generate the load.
        workers: what generates it instead; they are waited for.
        credentials: of all that ask the server.
        trace: where the server writes traces, on this machine.
        log: receives what Locust says.
        complain: receives what is missing in the result.
        progress: receives the seconds since the start, several times a second.

    Raises:
        ImportError: Locust is not installed.
        ConfigError: neither URL is given, nothing can be asked of the model, or the Locust file, a
            certificate or the token is missing.
        MooringError: the model does not answer, Locust stopped early, or its users crashed.
    """
    if importlib.util.find_spec("locust") is None:
        raise ImportError("load tests need Locust: install Mooring's extra [loadtests]")
    if _LOCUSTFILE is None:
        raise ConfigError(f"{_LOCUSTFILES[0]} is missing: install Mooring again")
    urls = {"grpc": grpc_url, "http": http_url}
    protocols = [protocol for protocol, url in urls.items() if url is not None]
    if not protocols:
        raise ConfigError("a load test needs the URL of a server")
    options = {"timeout_s": 30.0, **credentials.client_options()}
    log.parent.mkdir(parents=True, exist_ok=True)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    for url in (urls[protocol] or "" for protocol in protocols):
        with Client(url, **options) as client:
            version = _try(client, model, profile)
    items = items_sha256(profile.payload)
    server_times = slowest_times = None
    changes: list[str] = []
    anew: list[str] = []
    with Client(urls[protocols[0]] or "", **options) as client:
        server = client.server_metadata()
        settings = served_settings(client, model)
        began, before = Began.now(), snapshot(client, model)
        asked = [*credentials.words(), *_users(urls)]
        recorder, generated_ns = _generate(model, profile, asked, workers or processes, log, progress)
        try:
            after = snapshot(client, model)
            server_times, anew = between(model, before, after), loaded_anew(before, after)
            changes = [*switched(before, after), *changed(settings, served_settings(client, model))]
        except MooringError as exc:
            complain(f"no times of the server's steps, nor whether it served the same to the end: {exc}")
    if trace is not None:
        try:
            spans = () if generated_ns is None else began.measured(profile, generated_ns)
            slowest_times = slowest(trace, model, since=began, spans=spans)
        except MooringError as exc:
            complain(f"no times of the slowest requests: {exc}")
        else:
            if slowest_times is None:
                complain(f"no times of the slowest requests: {trace} has none of this run yet")
    elsewhere = {} if workers is None else {"load comes from": f"{workers.count} Locust workers"}
    result = LoadResult(
        name=name,
        model=model,
        version=version,
        started=started,
        profile=profile,
        processes=processes if workers is None else workers.count,
        machine=machine() | elsewhere,
        versions=_versions() | {server.name: server.version},
        settings=settings,
        recorder=recorder,
        server=server_times,
        slowest=slowest_times,
        items=items,
        urls=tuple(urls[protocol] or "" for protocol in protocols),
        changes=tuple(changes),
        anew=tuple(anew),
    )
    if anew:
        complain(
            f"the server began anew during the run: times of its steps and sizes of its batches "
            f"({', '.join(anew)}) are of what came after that"
        )
    if result.others:
        complain(
            f"the server answered {result.others:,} requests of others meanwhile: times of its steps and "
            "sizes of its batches are of these, too"
        )
    if result.uncounted:
        complain(
            f"{result.uncounted:,} answers are not in what the server counted, as it was started again or "
            "the URL leads to several servers: do not trust the times of its steps and sizes of its batches"
        )
    return result


def _try(client: Client, model: str, profile: Profile) -> str:
    """Ask the model one item; returns its version."""
    config, metadata = client.config(model), client.metadata(model)
    client.task(model)(next(endless_items(profile.payload, config, metadata, source=0)))
    return max(metadata.versions, key=int, default="")


def _generate(
    model: str,
    profile: Profile,
    asked: Sequence[str],
    generators: int | Workers,
    log: Path,
    progress: Callable[[float], None],
) -> tuple[Recorder, int | None]:
    """What was measured, and when its clock began: nanoseconds since 1970.

    ``asked`` are Locust's options that say which server is asked, and how.
    """
    with tempfile.TemporaryDirectory() as folder:
        exact, results = Path(folder) / "profile.json", Path(folder) / "results.json"
        exact.write_text(profile.model_dump_json(exclude_none=True), encoding="utf-8")
        command = [sys.executable, "-m", "locust", "--locustfile", str(_LOCUSTFILE), "--headless"]
        command += [
            "--only-summary",
            "--load-profile",
            str(exact),
            "--results",
            str(results),
            "--model",
            model,
        ]
        # What users ask before it begins, its last requests, and users that end it late.
        limit_s = profile.seconds + 5 * profile.timeout_s + _OVERHEAD_S
        if isinstance(generators, Workers):
            command += ["--generators", str(generators.count), "--master"]
            command += ["--expect-workers", str(generators.count)]
            command += ["--expect-workers-max-wait", str(_WORKERS_WAIT_S)]
            command += ["--master-bind-host", generators.host, "--master-bind-port", str(generators.port)]
            limit_s += _WORKERS_WAIT_S
        else:
            command += ["--generators", str(generators)]
            if generators > 1:
                command += ["--processes", str(generators), *_own_port()]
        with log.open("wb") as output:
            stop_s = profile.timeout_s + _STOP_S
            status = _run([*command, *asked], output.fileno(), limit_s, stop_s, progress)
        if not results.is_file():
            end = log.read_text(encoding="utf-8", errors="replace").strip()[-1000:]
            raise MooringError(
                f"Locust stopped with exit status {status} and no results (log: {log}):\n{end}"
            )
        written = json.loads(results.read_text(encoding="utf-8"))
    if written["crashes"]:
        raise MooringError(
            f"{len(written['crashes'])} kinds of crashes among the users:\n{written['crashes'][0]}"
        )
    if written["strangers"]:
        raise MooringError(
            f"workers on {', '.join(written['strangers'])} sent something else: the profile and the file "
            "that it replays must be the same there as here"
        )
    recorder = Recorder()
    recorder.add(written["measured"])
    return recorder, written["began_ns"]


def _own_port() -> list[str]:
    """Locust's options for a free port of this machine: others would join at its usual one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
    return ["--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port]


def _users(urls: Mapping[str, str | None]) -> list[str]:
    """Locust's options for the servers, and the classes of users that call them."""
    known = {protocol: url for protocol, url in urls.items() if url is not None}
    options = [word for protocol, url in known.items() for word in (f"--{protocol}-url", url)]
    return [*options, *(_PROTOCOLS[protocol] for protocol in known)]


def _run(
    command: Sequence[str], output: int, limit_s: float, stop_s: float, progress: Callable[[float], None]
) -> int:
    began_s = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=_environment(os.environ, command),
    )
    try:
        while process.poll() is None:
            elapsed_s = time.monotonic() - began_s
            if elapsed_s > limit_s:
                raise MooringError(f"Locust did not stop within {limit_s:.0f} s")
            progress(elapsed_s)
            time.sleep(_POLL_S)
        return process.returncode
    finally:
        # A master tells its workers to stop.
        process.terminate()
        try:
            process.wait(stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(current: Mapping[str, str], command: Sequence[str]) -> dict[str, str]:
    """Without ``LOCUST_*``, which would change the run behind the options' back, but with a token."""
    token = {command[place + 1] for place, word in enumerate(command) if word == "--token-env"}
    return {name: value for name, value in current.items() if not name.startswith("LOCUST_") or name in token}


def machine() -> dict[str, str]:
    """What ran a load test, in words."""
    processor = _processor()
    flags = (processor.get("flags") or processor.get("Features") or "").split()
    words: dict[str, Any] = {
        "system": platform.platform(),
        "processor": processor.get("model name") or platform.machine(),
        "vector instructions": " ".join(name for name in _VECTORS if name in flags) or "unknown",
        "cores": usable_cores(),
        "load average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }
    return {key: str(value) for key, value in words.items()}


def _processor() -> dict[str, str]:
    """What Linux says of the first processor."""
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _versions() -> dict[str, str]:
    names = ("mooring", "locust", "gevent", "grpcio", "tritonclient")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
