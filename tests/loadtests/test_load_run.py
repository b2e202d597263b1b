from __future__ import annotations

import contextlib
import importlib.util
import json
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from load_results import load_result
from mooring import ConfigError, ConnectError, DurationStatistics, ModelStatistics, MooringError
from mooring._commands import Credentials
from mooring_loadtests import demo, load_run, server_times
from mooring_loadtests.load_changes import incomparable
from mooring_loadtests.load_profile import load_profile
from mooring_loadtests.load_result import LoadResult
from mooring_loadtests.load_run import Workers, _environment, _generate, run_load

# Nothing listens on port 1.
NO_SERVER = "grpc://127.0.0.1:1"


def _run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_the_package_alone_imports_no_locust() -> None:
    code = (
        "import sys, mooring_loadtests, mooring_loadtests.demo, mooring_loadtests.load_run; "
        "print([name for name in sys.modules if name.split('.')[0] in ('locust', 'gevent', 'torch')])"
    )
    assert _run_python(code) == "[]\n"


def test_without_locust_the_users_name_the_extra() -> None:
    code = (
        "import sys; sys.modules['locust'] = None\n"
        "try: import mooring_loadtests.users\n"
        "except ImportError as exc: print(exc)"
    )
    assert _run_python(code) == "load tests need Locust: install Mooring's extra [loadtests]\n"


def _load(tmp_path: Path, **options: Any) -> None:
    profile = load_profile("smoke")
    options = {"grpc_url": NO_SERVER, "log": tmp_path / "new" / "ner.log", **options}
    run_load(model="ner", name="smoke", profile=profile, **options)


def test_without_locust_a_run_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"Mooring's extra \[loadtests\]"):
        _load(tmp_path)


def test_without_its_locust_file_a_run_says_where_it_belongs(tmp_path: Path) -> None:
    code = (
        "import pathlib; pathlib.Path.is_file = lambda path: False\n"
        "from mooring_loadtests.load_profile import Profile, Stage\n"
        "from mooring_loadtests.load_run import run_load\n"
        "profile = Profile(loop='closed', users=1, stages=(Stage(seconds=1),))\n"
        f"log = pathlib.Path({str(tmp_path / 'ner.log')!r})\n"
        f"try: run_load(model='ner', name='smoke', profile=profile, grpc_url={NO_SERVER!r}, log=log)\n"
        "except Exception as exc: print(type(exc).__name__, exc)"
    )
    said = _run_python(code)
    assert said.startswith("ConfigError ")
    assert "locustfile.py is missing: install Mooring again" in said


def test_a_run_needs_a_server_that_answers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the URL of a server"):
        _load(tmp_path, grpc_url=None)
    with pytest.raises(ConnectError):
        _load(tmp_path)


def test_the_demo_says_what_to_build_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--repository", str(tmp_path), "--reports", str(tmp_path / "reports")]) == 2
    assert "has no built model 'ner': run 'mooring build ner intent' first" in capsys.readouterr().err
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "1.5", "soon"])
def test_the_demo_refuses_other_lengths(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        demo.main([f"--seconds={seconds}"])
    assert stopped.value.code == 2
    assert "is no whole number from 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("processor", "words"),
    [
        ({"model name": "A", "flags": "fpu avx2 avx512_vnni fma"}, ("A", "avx2 avx512_vnni")),
        ({"Features": "fp asimd asimddp"}, (platform.machine(), "asimddp")),
        ({}, (platform.machine(), "unknown")),
    ],
)
def test_what_ran_a_load_test_tells_processors_apart(
    processor: dict[str, str], words: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_run, "_processor", lambda: processor)
    told = load_run.machine()
    assert (told["processor"], told["vector instructions"]) == words


def test_what_generates_the_load_is_told_which_variable_has_the_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []
    measured = {"seconds": [], "health": [], "errors": {}}
    answer = {"measured": measured, "began_ns": None, "crashes": [], "strangers": []}

    def run(command: list[str], *rest: Any) -> int:
        commands.append(command)
        Path(command[command.index("--results") + 1]).write_text(json.dumps(answer), encoding="utf-8")
        return 0

    class Stub:
        def __init__(self, url: str, **options: Any) -> None:
            asked.append(options)

        def __enter__(self) -> Any:
            return SimpleNamespace(server_metadata=lambda: SimpleNamespace(name="triton", version="2.51.0"))

        def __exit__(self, *exc: object) -> None: ...

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(load_run, "_run", run)
    monkeypatch.setattr(load_run, "Client", Stub)
    monkeypatch.setattr(load_run, "_try", lambda *rest: "1")
    monkeypatch.setattr(load_run, "served_settings", lambda *rest: {})
    monkeypatch.setattr(load_run, "snapshot", lambda *rest: {})
    monkeypatch.setattr(load_run, "between", lambda *rest: None)
    monkeypatch.setenv("OWN_TOKEN", "secret")
    (tmp_path / "ca.pem").touch()
    credentials = Credentials(ca_file=str(tmp_path / "ca.pem"), token_env="OWN_TOKEN")
    words = ["--ca-file", str(tmp_path / "ca.pem"), "--token-env", "OWN_TOKEN"]
    _load(tmp_path, grpc_url="grpcs://models:8001", credentials=credentials)
    (command,) = commands
    assert command[command.index("--ca-file") :][:4] == words
    assert "secret" not in command
    assert [(one["token"], one["tls"].ca_file) for one in asked] == [("secret", credentials.ca_file)] * 2
    urls = {"grpc": "grpcs://models:8001"}
    workers = Workers(count=2, host="10.0.0.5", port=5557).command("ner", "steady", [], urls, credentials)
    assert workers[workers.index("--ca-file") :][:4] == words


def test_a_run_says_what_changed_of_the_server_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Stub:
        def __init__(self, url: str, **options: Any) -> None: ...

        def __enter__(self) -> Any:
            return SimpleNamespace(server_metadata=lambda: SimpleNamespace(name="triton", version="2.51.0"))

        def __exit__(self, *exc: object) -> None: ...

    def statistics(model: str, version: str, executions: int) -> ModelStatistics:
        spent = DurationStatistics(count=9, ns=9)
        return ModelStatistics(
            name=model,
            version=version,
            last_inference_ms=0,
            inference_count=9,
            execution_count=executions,
            **dict.fromkeys(server_times._DURATIONS, spent),
            batches=(),
        )

    snapshots = [
        {"ner": statistics("ner", version, 1), "ner_onnx": statistics("ner_onnx", "7", executions)}
        for version, executions in (("3", 5), ("4", 2))
    ]
    settings = [{"ner": "ensemble", "ner_onnx": words} for words in ("1 instance", "2 instances")]
    monkeypatch.setattr(load_run, "Client", Stub)
    monkeypatch.setattr(load_run, "_try", lambda *rest: "3")
    monkeypatch.setattr(load_run, "snapshot", lambda *rest: snapshots.pop(0))
    monkeypatch.setattr(load_run, "served_settings", lambda *rest: settings.pop(0))
    monkeypatch.setattr(load_run, "_generate", lambda *rest: (load_result().recorder, None))
    complaints: list[str] = []
    result = run_load(
        model="ner",
        name="steady",
        profile=load_result().profile,
        grpc_url=NO_SERVER,
        log=tmp_path / "ner.log",
        complain=complaints.append,
    )
    changes = [
        "ner was version 3 before the run and 4 after it",
        "ner_onnx was served as '1 instance' before the run and as '2 instances' after it",
    ]
    assert (result.version, list(result.changes), result.doubts) == ("3", changes, changes)
    assert result.anew == ("ner_onnx",)
    assert [words.partition(":")[0] for words in complaints] == [
        "the server began anew during the run",
        f"{result.uncounted:,} answers are not in what the server counted, as it was started again or the "
        "URL leads to several servers",
    ]


def test_workers_are_not_taken_for_processes_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = SimpleNamespace(server_metadata=lambda: SimpleNamespace(name="triton", version="2.51.0"))
    monkeypatch.setattr(load_run, "Client", lambda *rest, **options: contextlib.nullcontext(server))
    monkeypatch.setattr(load_run, "_try", lambda *rest: "3")
    for name in ("snapshot", "served_settings"):
        monkeypatch.setattr(load_run, name, lambda *rest: {})
    monkeypatch.setattr(load_run, "between", lambda *rest: None)
    result = load_result()
    monkeypatch.setattr(load_run, "_generate", lambda *rest: (result.recorder, None))

    def load(**options: Any) -> LoadResult:
        log = tmp_path / "ner.log"
        return run_load(
            model="ner", name="steady", profile=result.profile, grpc_url=NO_SERVER, log=log, **options
        )

    a, b = load(processes=2), load(workers=Workers(count=2, host="10.0.0.5", port=5557))
    assert "machine: load comes from is None in A and 2 Locust workers in B" in incomparable(a, b)


def test_workers_with_another_profile_make_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured = {"seconds": [], "health": [], "errors": {}}
    answer = {"measured": measured, "began_ns": None, "crashes": [], "strangers": ["one", "two"]}

    def run(command: list[str], *rest: Any) -> int:
        Path(command[command.index("--results") + 1]).write_text(json.dumps(answer), encoding="utf-8")
        return 0

    monkeypatch.setattr(load_run, "_run", run)
    with pytest.raises(MooringError, match="workers on one, two sent something else: the profile and"):
        _generate("ner", load_profile("smoke"), [], 2, tmp_path / "ner.log", lambda elapsed_s: None)


def test_a_run_without_its_token_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no environment variable 'NO_TOKEN' with a token"):
        _load(tmp_path, credentials=Credentials(token_env="NO_TOKEN"))


def test_a_token_reaches_locust_whatever_its_variable_is_called() -> None:
    current = {"PATH": "/bin", "LOCUST_USERS": "900", "LOCUST_TOKEN": "secret"}
    assert _environment(current, ["locust"]) == {"PATH": "/bin"}
    command = ["locust", "--token-env", "LOCUST_TOKEN"]
    assert _environment(current, command) == {"PATH": "/bin", "LOCUST_TOKEN": "secret"}
