from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import mooring_serve
from mooring import ConfigError
from mooring_serve.cli import add_command, run


def test_public_names() -> None:
    assert mooring_serve.__all__ == ["ModelState", "TritonServer"]


def test_the_command_imports_nothing_heavy() -> None:
    program = "import sys, mooring_serve.cli; print(*{'torch', 'onnxruntime'} & set(sys.modules))"
    seen = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == []


def test_the_commands_defaults() -> None:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    assert vars(parser.parse_args(["serve"])) == {
        "model_repository": Path("model_repository"),
        "http_port": 8000,
        "grpc_port": 8001,
        "metrics_port": 8002,
        "host": "127.0.0.1",
        "log_file": None,
        "allow_load": False,
        "trace": None,
        "trace_rate": 10,
        "resource": [],
        "start_timeout": 120.0,
        "stop_timeout": 10.0,
        "run": run,
    }


def test_resources_as_tritonserver_takes_them(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    args = parser.parse_args(["serve", "--resource", "cores=2", "--resource", "memory=10"])
    assert args.resource == ["cores:2", "memory:10"]
    for wrong in ("cores", "cores=0", "cores=two", "=2", "a b=1"):
        with pytest.raises(SystemExit):
            parser.parse_args(["serve", "--resource", wrong])
        assert f"{wrong!r} is not of the form NAME=COUNT" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["0", "-1", "ten"])
def test_a_trace_rate_that_would_trace_nothing(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["serve", f"--trace-rate={wrong}"])
    assert f"--trace-rate: '{wrong}' is not a whole number above 0" in capsys.readouterr().err


def test_the_folder_for_traces_is_made(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    file = tmp_path / "traces" / "of" / "today.json"
    args = parser.parse_args(["serve", str(tmp_path / "absent"), "--trace", str(file)])
    with pytest.raises(ConfigError, match="there is no model repository at"):
        run(args)
    assert file.parent.is_dir()


def test_a_folder_for_traces_that_can_not_be_made(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    (tmp_path / "file").touch()
    args = parser.parse_args(["serve", str(tmp_path), "--trace", str(tmp_path / "file" / "today.json")])
    with pytest.raises(
        ConfigError, match=r"^--trace .*/file/today\.json: its folder can't be made: .*File exists"
    ):
        run(args)
