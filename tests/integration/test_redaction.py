"""Where texts go on a real server: into no log, and names come out of them through a served ``ner``."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from mooring import Client, InvalidInput
from mooring.redaction import Redactor
from mooring_build.publish import publish_release
from mooring_serve import TritonServer
from tiny_release import make_release, padded_recipe

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SECRET = "xyzzy@example.com"


@pytest.fixture
def served(tmp_path: Path, make_server: Callable[..., TritonServer]) -> TritonServer:
    answers = {"anna": "B-PER", "smith": "I-PER", "porto": "B-LOC"}
    recipe = padded_recipe("ner", ["serving.instance_count=1", 'export.formats=["onnx"]'])
    publish_release(
        tmp_path / "repository", recipe, make_release(tmp_path / "ner", recipe, answers, runnable=True)
    )
    return make_server(tmp_path / "repository")


def generate(server: TritonServer, text: str) -> int:
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/ner/generate", data=json.dumps({"text": text}).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)


def test_the_server_logs_no_text_whether_it_answers_or_refuses(served: TritonServer, tmp_path: Path) -> None:
    too_long = f"{SECRET} " * 100
    for url in (served.grpc_url, served.http_url):
        with Client(url) as client:
            ner = client.task("ner")
            assert ner(f"Anna {SECRET}")[0].text == "Anna"
            with pytest.raises(InvalidInput, match="tokens, this model takes at most"):
                ner(too_long)
    assert generate(served, f"Anna {SECRET}") == 200
    assert generate(served, too_long) >= 400
    log = (tmp_path / "tritonserver.log").read_text(encoding="utf-8")
    assert "ner" in log
    assert "xyzzy" not in log


def test_names_through_a_served_model(served: TritonServer, tmp_path: Path) -> None:
    lines = ["Anna Smith visits Porto", "", f"where is my card, asks Anna at {SECRET}"]
    with Client(served.grpc_url) as client:
        redact = Redactor(names=client.task("ner"))
        assert [redact(line).text for line in lines] == [
            "[NAME] visits Porto",
            "",
            "where is my card, asks [NAME] at [EMAIL]",
        ]
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "mooring",
        "redact",
        str(path),
        "--names",
        "ner",
        "--url",
        served.http_url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "found 1 EMAIL, 2 NAME\n")
    assert done.stdout == "[NAME] visits Porto\n\nwhere is my card, asks [NAME] at [EMAIL]\n"


def test_the_guide_to_privacy_runs(tmp_path: Path, make_server: Callable[..., TritonServer]) -> None:
    answers = {"ner": {"anna": "B-PER", "smith": "I-PER", "porto": "B-LOC"}, "intent": {"card": "card"}}
    for name, table in answers.items():
        recipe = padded_recipe(name, ["serving.instance_count=1", 'export.formats=["onnx"]'])
        publish_release(
            tmp_path / "repository", recipe, make_release(tmp_path / name, recipe, table, runnable=True)
        )
    server = make_server(tmp_path / "repository")
    guide = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", guide)
    namespace: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for number, block in enumerate(blocks, start=1):
            code = block.replace("grpc://127.0.0.1:8001", server.grpc_url)
            exec(compile(code, f"privacy.md, block {number}", "exec"), namespace)
    assert "EMAIL 15 30\nCARD 37 56\nPHONE 63 79\n" in printed.getvalue()
    assert "[NAME] visits Porto\nmy card\nTrue " in printed.getvalue()
