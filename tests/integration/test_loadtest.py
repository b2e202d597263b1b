from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mooring_loadtests.demo import main
from mooring_loadtests.load_run import run_load
from mooring_serve import TritonServer
from text_models import write_text_models

pytestmark = pytest.mark.integration

DOCKERFILE = Path(__file__).resolve().parents[2] / "deploy" / "container" / "Dockerfile"


def test_the_demo_serves_asks_loads_and_sums_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository, reports = write_text_models(tmp_path / "models"), tmp_path / "reports"
    status = main(["--repository", str(repository), "--reports", str(reports), "--seconds", "3"])
    shown = capsys.readouterr()
    assert (status, shown.err) == (0, "")
    for title in ("Trained", "Exported", "Answers: gRPC and HTTP agree", "Load: 8 users for 3 s", "Report"):
        assert f"\n{title}" in shown.out
    assert re.search(r"ner +version 1 +entity F1 0\.910 ", shown.out)
    assert re.search(r"PER +Maria \[0:5\] +0\.750 +0\.750\n", shown.out)
    for protocol in ("grpc", "http"):
        assert re.search(rf"ner {protocol} +[\d,]+ +[\d.]+ +[\d.]+ +[\d.]+ +0\n", shown.out)
    report = (reports / "ner.html").read_text(encoding="utf-8")
    assert "ner grpc" in report
    assert "ner http" in report


def test_failures_are_counted_and_the_rest_is_answered(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    server = make_server(write_text_models(tmp_path / "models", refused="?"))
    load = run_load(
        model="ner",
        grpc_url=server.grpc_url,
        http_url=server.http_url,
        seconds=4,
        reports=tmp_path / "reports",
        users=4,
    )
    assert [result.name for result in load.protocols] == ["ner grpc", "ner http"]
    for result in load.protocols:
        assert 0 < result.failures < result.requests
    assert not load.passed
    assert sum(count for _, count in load.errors) == load.failures
    assert all("InvalidInput" in error and "no text with '?'" in error for error, _ in load.errors)


def test_the_containers_health_check_asks_the_model(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed; the container has it")
    server = make_server(write_text_models(tmp_path / "models", refused="refuse"))
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text(encoding="utf-8"))
    command = json.loads(re.search(r"^HEALTHCHECK .*? CMD (\[.*\])$", text, re.MULTILINE)[1])
    settings = dict(
        setting.split("=", 1)
        for setting in shlex.split(re.search(r"^ENV (PROBE_.*)$", text, re.MULTILINE)[1])
    )
    command = [word.replace("http://127.0.0.1:8000", server.http_url) for word in command]
    assert any(server.http_url in word for word in command)

    def probe(**changes: str) -> int:
        environment = {**os.environ, **settings, **changes}
        return subprocess.run(command, env=environment, check=False, timeout=30).returncode

    assert probe() == 0
    assert probe(PROBE_MODEL="intent") == 0
    assert probe(PROBE_MODEL="missing") == 1
    assert probe(PROBE_REQUEST='{"text": "refuse this"}') == 1
    server.stop()
    assert probe() == 1
