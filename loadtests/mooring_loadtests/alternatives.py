"""Other servers for the same checkpoint, each in an environment of its own, to measure beside Mooring's.

::

    python = install(LITSERVE.requirements, Path("artifacts/alternatives"))
    options = {"task": "text-classification", "settings": candidate_settings(2)[0], "log_file": log}
    with serve(LITSERVE, python, checkpoint=folder, **options) as url:
        ask(LITSERVE, url, "Where is my parcel?")  # [("track_order", 0.94)]

:func:`install` and :func:`serve` raise a :class:`MooringError` whose text is the reason why an alternative
can't be measured here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mooring import ConfigError, MooringError
from mooring_serve._process import SupervisedProcess, describe_exit

#: Of every request of an alternative.
HEADERS = {"Content-Type": "application/json"}
TASKS = ("text-classification", "token-classification")
Answer = list[tuple[str, float]]

_HOST = "127.0.0.1"
_FOLDER = Path(__file__).resolve().parent.parent / "alternatives"
#: In an environment: its Python, and what it was made from.
_PYTHON, _STAMP = Path("bin", "python"), "made-from.sha256"
_INSTALL_LIMIT_S = 1800.0
_START_LIMIT_S = 240.0
_GRACE_S = 15.0
_POLL_S = 0.25
_LOADED = b"model loaded in process "
_FIRST_TEXT = "A first text."
# What of the caller's environment would change a server behind its options' back, or have it write elsewhere
# than below its own HOME; by how it begins.
_NOT_INHERITED = ("PYTHON", "VIRTUAL_ENV", "XDG_", "RAY_", "MLSERVER_", "BENTOML_", "PYTRITON_", "HF_")
# No look-ups, no reports of usage; the same of every alternative.
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """What is set alike in every alternative, where it has such a thing."""

    #: Copies of the model that answer at the same time.
    workers: int
    #: Threads of one copy.
    threads: int
    #: Most texts in one batch; 1 turns dynamic batching off.
    max_batch_size: int = 1
    #: Longest wait for further texts before a batch starts, in milliseconds.
    max_wait_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another server, and how to talk to it."""

    #: As in reports.
    name: str
    #: Its folder in ``loadtests/alternatives``.
    folder: str
    #: Path and JSON body of the POST that asks for a text.
    request: Callable[[str], tuple[str, bytes]]
    #: Label and score from the body of the answer: the best label of the text, or one pair for each entity.
    read: Callable[[bytes], Answer]
    tasks: tuple[str, ...] = TASKS
    #: Whether each copy of the model says when it is loaded; the others answer only when all are.
    says_loaded: bool = False
    #: Added to its environment.
    environment: Mapping[str, str] | None = None

    @property
    def requirements(self) -> Path:
        """Exact pins of everything in its environment."""
        return _FOLDER / self.folder / "requirements.txt"

    def command(
        self, python: Path, *, checkpoint: Path, task: str, port: int, settings: ServingSettings
    ) -> list[str]:
        """Program and arguments that serve a checkpoint on the loopback address."""
        command = [str(python), "-m", f"alternatives.{self.folder}.serve"]
        command += ["--checkpoint", str(checkpoint.resolve()), "--task", task, "--port", str(port)]
        command += ["--workers", str(settings.workers), "--threads", str(settings.threads)]
        command += ["--max-batch-size", str(settings.max_batch_size)]
        return [*command, "--max-wait-ms", str(settings.max_wait_ms)]


def post_text(
    model: str, text: str, *, name: str = "text", shape: Sequence[int] = (1, 1)
) -> tuple[str, bytes]:
    """Path and body of the request that asks an HTTP service such as Triton's about a text."""
    tensor = {"name": name, "shape": shape, "datatype": "BYTES", "data": [text]}
    return f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode("utf-8")


def _text_to(path: str) -> Callable[[str], tuple[str, bytes]]:
    return lambda text: (path, json.dumps({"text": text}).encode("utf-8"))


def _read_answers(body: bytes) -> Answer:
    return _pairs(json.loads(body)["answers"])


def _pairs(answers: list[Mapping[str, Any]]) -> Answer:
    return [(answer.get("entity_group") or answer["label"], float(answer["score"])) for answer in answers]


def _ask_bentoml(text: str) -> tuple[str, bytes]:
    return "/answer", json.dumps({"text": [text]}).encode("utf-8")


def _read_bentoml(body: bytes) -> Answer:
    return _pairs(json.loads(body)[0]["answers"])


def _ask_mlserver(text: str) -> tuple[str, bytes]:
    return post_text("classifier", text, name="array_inputs", shape=[1])


def _read_mlserver(body: bytes) -> Answer:
    answers = json.loads(json.loads(body)["outputs"][0]["data"][0])
    return _pairs(answers if isinstance(answers, list) else [answers])


def _ask_infinity(text: str) -> tuple[str, bytes]:
    return "/classify", json.dumps({"model": "classifier", "input": [text]}).encode("utf-8")


def _read_infinity(body: bytes) -> Answer:
    return [max(_pairs(json.loads(body)["data"][0]), key=lambda pair: pair[1])]


def _ask_pytriton(text: str) -> tuple[str, bytes]:
    return post_text("classifier", text)


def _read_pytriton(body: bytes) -> Answer:
    return _pairs(json.loads(json.loads(body)["outputs"][0]["data"][0]))


FASTAPI = Alternative(
    name="FastAPI + transformers pipeline",
    folder="fastapi",
    request=_text_to("/answer"),
    read=_read_answers,
    says_loaded=True,
)
LITSERVE = Alternative(
    name="LitServe", folder="litserve", request=_text_to("/predict"), read=_read_answers, says_loaded=True
)
BENTOML = Alternative(
    name="BentoML", folder="bentoml", request=_ask_bentoml, read=_read_bentoml, says_loaded=True
)
MLSERVER = Alternative(name="MLServer", folder="mlserver", request=_ask_mlserver, read=_read_mlserver)
INFINITY = Alternative(
    name="Infinity", folder="infinity", request=_ask_infinity, read=_read_infinity, tasks=TASKS[:1]
)
PYTRITON = Alternative(
    name="PyTriton", folder="pytriton", request=_ask_pytriton, read=_read_pytriton, says_loaded=True
)
RAY_SERVE = Alternative(
    name="Ray Serve",
    folder="ray_serve",
    request=_text_to("/answer"),
    read=_read_answers,
    # Its documented switch for throughput; and as on macOS, where it keeps its own ports on the loopback
    # address: https://github.com/ray-project/ray/issues/18730.
    environment={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
)
ALTERNATIVES = (FASTAPI, LITSERVE, BENTOML, MLSERVER, INFINITY, PYTRITON, RAY_SERVE)

#: Not a server: ONNX Runtime with OpenVINO, for the embedded server's processes.
OPENVINO = _FOLDER / "openvino" / "requirements.txt"


def candidate_settings(cores: int) -> list[ServingSettings]:
    """Settings worth trying on a CPU; which is best differs by alternative, so each gets its best."""
    spread = [ServingSettings(workers=cores, threads=1)]
    spread += [ServingSettings(workers=cores, threads=1, max_batch_size=8, max_wait_ms=2.0)]
    return [*spread, ServingSettings(workers=1, threads=cores, max_batch_size=8, max_wait_ms=2.0)]


def install(requirements: Path, cache: Path) -> Path:
    """Make an environment in ``cache``, unless it is there and its pins are the same.

    Args:
        requirements: the pins; the environment gets the name of their folder.
        cache: folder of all such environments.

    Returns:
        Path of its Python.

    Raises:
        ConfigError: there are no requirements, as in an installation from a wheel.
        MooringError: pip failed; the message has what pip said.
    """
    environment = cache.resolve() / requirements.parent.name
    python = environment / _PYTHON
    if is_installed(requirements, cache):
        return python
    # Links, as ``python -m venv`` makes them: a copy of the program may not find its shared library.
    try:
        venv.EnvBuilder(clear=True, symlinks=True, with_pip=True).create(environment)
    except subprocess.CalledProcessError as exc:
        raise MooringError(f"not installed: no environment in {environment}: {exc}") from exc
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--requirement", str(requirements)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S
        )
    except subprocess.TimeoutExpired as exc:
        raise MooringError(f"not installed: pip took longer than {_INSTALL_LIMIT_S:.0f} s") from exc
    if done.returncode:
        said = done.stderr.splitlines()
        errors = [line for line in said if line.startswith("ERROR:")]
        # Without a network the errors are about versions that were not found.
        warnings = [line for line in said if line.startswith("WARNING: Retrying")]
        raise MooringError("not installed: " + " ".join([*warnings[-1:], *errors] or said[-3:])[:600])
    (environment / _STAMP).write_text(_digest(requirements, environment), encoding="utf-8")
    return python


def is_installed(requirements: Path, cache: Path) -> bool:
    """Whether :func:`install` would have nothing to do."""
    environment = cache.resolve() / requirements.parent.name
    stamp, digest = environment / _STAMP, _digest(requirements, environment)
    made = (environment / _PYTHON).exists() and stamp.is_file()
    return made and stamp.read_text(encoding="utf-8") == digest


def _digest(requirements: Path, environment: Path) -> str:
    if not requirements.is_file():
        raise ConfigError(f"{requirements} is missing: run this from a checkout of the project")
    # An environment neither moves nor outlives the Python that it was made with.
    made_from = f"{environment}\n{sys.version}\n".encode() + requirements.read_bytes()
    return hashlib.sha256(made_from).hexdigest()


@contextmanager
def serve(
    alternative: Alternative,
    python: Path,
    *,
    checkpoint: Path,
    task: str,
    settings: ServingSettings,
    log_file: Path,
) -> Iterator[str]:
    """Serve a checkpoint until the block ends; it answers texts when the block begins.

    Args:
        python: from :func:`install`.
        checkpoint: folder with config.json, tokenizer.json and safetensors weights.
        task: one of ``TASKS``.
        log_file: what the server prints; written anew.

    Yields:
        URL of the server, with no path.

    Raises:
        ConfigError: there is no checkpoint.
        MooringError: it does not do the task, or did not start; the message has the last error of its log.
    """
    if task not in alternative.tasks:
        raise MooringError(f"{alternative.name} has no {task}")
    if not (checkpoint / "config.json").is_file():
        raise ConfigError(f"checkpoint {checkpoint} has no config.json: give the folder of save_pretrained")
    with socket.socket() as free:
        free.bind((_HOST, 0))
        port = free.getsockname()[1]
    command = alternative.command(python, checkpoint=checkpoint, task=task, port=port, settings=settings)
    log_file.unlink(missing_ok=True)
    # BentoML, PyTriton and others keep files in the user's folder. Its path has to be short: PyTriton puts a
    # Unix socket below it.
    with tempfile.TemporaryDirectory(prefix="mooring-", ignore_cleanup_errors=True) as home:
        process = SupervisedProcess(
            command,
            environment={**_environment(alternative, python, settings), "HOME": home, "RAY_TMPDIR": home},
            log_file=log_file,
            shm_prefix=f"mooring-alternative-{os.getpid()}-{port}",
            grace_s=_GRACE_S,
        )
        url = f"http://{_HOST}:{port}"
        try:
            _await_answers(alternative, url, process, settings.workers, log_file)
            yield url
        finally:
            process.stop()


def ask(alternative: Alternative, url: str, text: str, *, timeout_s: float = 60.0) -> Answer:
    """Ask once, on a connection of its own; load generators keep theirs and use ``request`` and ``read``."""
    path, body = alternative.request(text)
    with urllib.request.urlopen(
        urllib.request.Request(url + path, body, HEADERS), timeout=timeout_s
    ) as answer:
        return alternative.read(answer.read())


def _environment(alternative: Alternative, python: Path, settings: ServingSettings) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    return {
        **kept,
        **_QUIET,
        **(alternative.environment or {}),
        "OMP_NUM_THREADS": str(settings.threads),
        "PYTHONPATH": str(_FOLDER.parent),
        # For programs that a server starts by name.
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def _await_answers(
    alternative: Alternative, url: str, process: SupervisedProcess, workers: int, log_file: Path
) -> None:
    deadline_s = time.monotonic() + _START_LIMIT_S
    problem = "nothing listens"
    while process.exit_status is None:
        if time.monotonic() > deadline_s:
            raise MooringError(f"no answer within {_START_LIMIT_S:.0f} s: {problem} (log: {log_file})")
        time.sleep(_POLL_S)
        loaded = log_file.read_bytes().count(_LOADED) if alternative.says_loaded else workers
        if loaded < workers:
            # Connections of now would stay with the copies that are there by now.
            problem = f"{loaded} of {workers} copies of the model loaded"
            continue
        try:
            ask(alternative, url, _FIRST_TEXT, timeout_s=10.0)
        except (OSError, ValueError, LookupError, TypeError) as exc:
            problem = str(exc)
        else:
            return
    reason = _reason(log_file.read_text(encoding="utf-8", errors="replace").strip())
    raise MooringError(f"it {describe_exit(process.exit_status)} (log: {log_file}): {reason}")


def _reason(log: str) -> str:
    """The last exception that a log tells of, else its end."""
    errors = re.findall(r"(?m)^[\w.]*(?:Error|Exception): .*", log)
    return (errors[-1] if errors else log[-300:])[:600]
