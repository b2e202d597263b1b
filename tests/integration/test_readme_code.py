"""The README's calls, run as they stand there against models that answer like the shipped ones."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mooring._cli import main
from mooring_serve import TritonServer
from text_models import write_text_models

pytestmark = pytest.mark.integration

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def readme(tmp_path: Path, make_server: Callable[..., TritonServer]) -> str:
    """The README with the addresses of a running server in place of the usual ones."""
    server = make_server(write_text_models(tmp_path / "models"))
    text = README
    for shown, running in (
        ("grpc://127.0.0.1:8001", server.grpc_url),
        ("http://127.0.0.1:8000", server.http_url),
    ):
        assert shown in text
        text = text.replace(shown, running)
    return text


def test_calls_from_python_curl_and_the_command_line(readme: str, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"(?ms)^```python\n(.*?)^```", readme)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(program, "README.md", "exec"), {})
    assert printed.getvalue().startswith("PER Maria")

    (call,) = re.findall(r"(?m)^curl .*/generate .*$", readme)
    answer = subprocess.run(shlex.split(call), capture_output=True, text=True, check=True).stdout
    assert "PER" in json.loads(answer)["label"]

    (predict,) = re.findall(r"(?m)^\.venv/bin/mooring (predict .*)$", readme)
    (url,) = set(re.findall(r"grpc://[\d.:]+", readme))
    assert main([*shlex.split(predict), "--url", url]) == 0
    assert "PER" in capsys.readouterr().out
