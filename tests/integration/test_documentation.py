"""The code of the guides and the examples, run as it stands there against tiny releases on a real server."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mooring
from mooring_build.publish import publish_release
from mooring_build.recipe import load_recipe
from mooring_serve import TritonServer
from tiny_release import make_release

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ANSWERS = {
    "ner": {"anna": "B-PER", "smith": "I-PER", "porto": "B-LOC", "new": "B-LOC", "york": "I-LOC"},
    "intent": {"refund": "refund", "card": "card"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("documentation")
    for name, answers in ANSWERS.items():
        recipe = load_recipe(name, ["serving.instance_count=1", 'export.formats=["onnx"]'])
        release = make_release(folder / name, recipe, answers, runnable=True)
        publish_release(folder / "repository", recipe, release)
    with TritonServer(folder / "repository", log_file=folder / "log") as running:
        yield running


def _run_blocks(guide: str, server: TritonServer) -> str:
    """Run a guide's Python blocks in order, in one namespace; returns what they print."""
    text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
    port = server.grpc_url.rpartition(":")[2]
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", text)
    assert blocks
    namespace: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for number, block in enumerate(blocks, start=1):
            code = block.replace(":8001", f":{port}")
            exec(compile(code, f"{guide}, block {number}", "exec"), namespace)
    return printed.getvalue()


def test_the_guide_to_the_client_runs(server: TritonServer) -> None:
    printed = _run_blocks("client.md", server)
    assert "PER Anna Smith 0 10" in printed
    assert "(1, 3, 5)" in printed
    assert "text 1: model 'ner': text 1 is empty" in printed
    assert "['New York']" in printed
    assert "card refund" in printed
    assert "Client('https://triton.example:8443')" in printed
    assert "from-a-vault" not in printed


def test_the_guide_to_errors_runs_and_lists_every_error(server: TritonServer) -> None:
    printed = _run_blocks("errors.md", server)
    assert "this text can't be classified: model 'intent': text 0 is empty" in printed
    guide = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    listed = {name for row in re.findall(r"(?m)^\| (`.+?) \|", guide) for name in re.findall(r"`(\w+)`", row)}
    public = {
        name
        for name in mooring.__all__
        if isinstance(kind := getattr(mooring, name), type) and issubclass(kind, mooring.MooringError)
    }
    assert listed == public - {"MooringError"}


def _run_example(path: Path, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", str(path), *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_examples_run(server: TritonServer, tmp_path: Path, protocol: str) -> None:
    url = server.grpc_url if protocol == "grpc" else server.http_url
    texts = tmp_path / "texts.txt"
    texts.write_text("Anna Smith visits Porto\n\nmy card\nNew York\n", encoding="utf-8")
    assert _run_example(ROOT / "examples" / "entities.py", str(texts), url).splitlines() == [
        "0\tPER\tAnna Smith",
        "0\tLOC\tPorto",
        "2\tLOC\tNew York",
    ]
    printed = _run_example(ROOT / "examples" / "async_service.py", url)
    assert "my card: card\n" in printed
    assert "where is my refund: refund\n" in printed
    printed = _run_example(ROOT / "examples" / "tensors.py", url)
    assert "logits (1, 4, 5)" in printed
    assert "refused: model 'ner_onnx': input 'input_ids' is float32; expected INT64" in printed


def test_the_example_of_a_fake_server_passes() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    done = subprocess.run(
        [*command, str(ROOT / "examples" / "fake_server_test.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_the_examples_stay_few_and_short() -> None:
    assert 0 < len(EXAMPLES) <= 5
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 40 for path in EXAMPLES)
    run_here = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name}"' in run_here for path in EXAMPLES)
