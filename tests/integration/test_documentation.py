"""The code of the guides and the examples, run as it stands there against tiny releases on a real server."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import mooring
from brightness_model import publish_brightness_model
from engine_models import onnx_model
from mooring_build.publish import publish_release
from mooring_build.recipe import load_recipe
from mooring_serve import TritonServer
from opinion_models import write_opinion_model
from service_model import write_service_model
from shelf_model import publish_shelf_model
from tiny_release import VOCABULARY, make_release, padded_recipe

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
        load = load_recipe if name == "ner" else padded_recipe
        recipe = load(name, ["serving.instance_count=1", 'export.formats=["onnx"]'])
        release = make_release(folder / name, recipe, answers, runnable=True)
        publish_release(folder / "repository", recipe, release)
    write_opinion_model(folder / "repository")
    write_service_model(folder / "repository")
    publish_brightness_model(folder / "repository", folder / "image")
    publish_shelf_model(folder / "repository", folder / "shelf")
    _publish_sum_model(folder / "repository", folder / "sum")
    _publish_two_answers(folder / "repository", folder / "answers")
    with TritonServer(folder / "repository", log_file=folder / "log") as running:
        yield running


def _publish_sum_model(repository: Path, folder: Path) -> None:
    """Publish ``tabular``: a row of two numbers is ``much`` where they are more than 0 together."""
    changes = ["features.count=2", "serving.instance_count=1", 'export.formats=["onnx"]']
    recipe = load_recipe("tabular", changes)
    release = make_release(folder, recipe)
    model = onnx_model(
        [helper.make_node("MatMul", ["features", "weights"], ["logits"])],
        [("features", TensorProto.FLOAT, ["batch", 2])],
        [("logits", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor("weights", TensorProto.FLOAT, [2, 2], [-1, 1, -1, 1])],
    )
    onnx.save(model, release.engines["onnx"].path)
    publish_release(repository, recipe, release)


def _publish_two_answers(repository: Path, folder: Path) -> None:
    """Publish ``faq``: a knowledge base of two answers, and a word for each."""
    changes = ["catalogue.dimension=2", "serving.instance_count=1", 'export.formats=["onnx"]']
    recipe = padded_recipe("faq", changes)
    release = make_release(folder, recipe, labels=["-"])
    table = np.zeros((len(VOCABULARY), 2), np.float32)
    table[VOCABULARY.index("refund")] = 0.75, 0.25
    table[VOCABULARY.index("card")] = 0.25, 0.5
    model = onnx_model(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
            helper.make_node("Mul", ["rows", "column"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "second"], ["embedding"], keepdims=0),
        ],
        [(name, TensorProto.INT64, ["batch", "length"]) for name in ("input_ids", "attention_mask")],
        [("embedding", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(table, "table"),
            helper.make_tensor("last", TensorProto.INT64, [1], [2]),
            helper.make_tensor("second", TensorProto.INT64, [1], [1]),
        ],
    )
    onnx.save(model, release.engines["onnx"].path)
    np.savez(folder / "catalogue.npz", vectors=np.eye(2, dtype=np.float32), owners=np.arange(2))
    names = {"items": ["refund-time", "card-declined"], "answers": ["In five days.", "Ask your bänk."]}
    files = {"catalogue.npz": folder / "catalogue.npz", "catalogue.json": json.dumps(names)}
    publish_release(repository, recipe, replace(release, step_files={"catalogue": files}))


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
    assert "card\nout of scope\n" in printed
    assert "Client('https://triton.example:8443')" in printed
    assert "from-a-vault" not in printed


def test_the_guide_to_the_monitor_runs(
    server: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = _run_blocks("monitor.md", server)
    guide = (ROOT / "docs" / "monitor.md").read_text(encoding="utf-8")
    said = re.search(r"(?ms)^```\n(\{.*?)^```", guide)
    assert said is not None
    assert printed.startswith(said[1])
    assert (tmp_path / "timeline.png").is_file()
    assert "2160 texts, 0 failed" in printed
    assert "[NAME] wrote from [EMAIL]" in printed
    assert "the alert_ended on banks was not sent: no answer: [Errno 111] Connection refused" in printed


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


def _headline(time_s: int) -> str:
    """One in ten is bad; from hour 50 to 55 eight in ten are."""
    number = time_s // 120
    is_bad = number % 10 < 8 if 50 <= time_s // 3600 < 55 else number % 10 == 0
    return f"oil {'bad' if is_bad else 'good'} news"


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
    news = tmp_path / "news.csv"
    rows = [f"{time_s},{_headline(time_s)}\n" for time_s in range(0, 60 * 3600, 120)]
    news.write_text("time,text\n" + "".join(rows), encoding="utf-8")
    picture = tmp_path / "timeline.png"
    printed = _run_example(ROOT / "examples" / "monitor_opinions.py", str(news), url, str(picture))
    assert printed.startswith("oil: negative share from 10% to ")
    assert "such as 'oil bad news'\noil: subsided, at most 80%\n" in printed
    assert "counted=1800" in printed
    assert picture.is_file()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (60, 40), "white").save(pictures / "a.jpg")
    Image.new("L", (28, 28), 0).save(pictures / "b.png")
    (pictures / "c.png").write_bytes((pictures / "b.png").read_bytes()[:45])
    printed = _run_example(ROOT / "examples" / "classify_images.py", str(pictures), url)
    bright, dark, refused, array = printed.splitlines()
    assert bright.startswith("a.jpg\tbright\t0.9")
    assert dark.startswith("b.png\tdark\t0.")
    assert refused.startswith("c.png\t(refused)\t")
    assert "image 0 is damaged or cut off" in refused
    assert array == "(array)\tbright"
    events, items = tmp_path / "events.csv", tmp_path / "items.csv"
    events.write_text("user,item,time\nann,bread,2\nann,tea,1\nbob,milk,1\n", encoding="utf-8")
    items.write_text("item,text\ncoffee,Coffee with milk\n", encoding="utf-8")
    printed = _run_example(ROOT / "examples" / "recommend_items.py", str(events), str(items), url)
    *ranked, refused = printed.splitlines()
    assert ranked == [
        "(new)\tcoffee\t0.40\tCoffee with milk",
        "(new)\tcheese\t0.30\t",
        "(new)\tbread\t0.20\t",
        "ann\tcoffee\t1.40\tCoffee with milk",
        "ann\tcheese\t1.30\t",
    ]
    assert refused.startswith("bob\t(refused)\t")
    assert "history 0 names item 'milk', which is not among the 4 items of this model" in refused
    letters = tmp_path / "letters.txt"
    letters.write_text("Where is my parcel?\n\nIt rains.\n", encoding="utf-8")
    assert _run_example(ROOT / "examples" / "answer_customers.py", str(letters), url).splitlines() == [
        "",
        "< Where is my parcel?",
        "> We look for it.",
        "See the link.",
        "  track 0.75, parcel 0.75",
        "",
        "< It rains.",
        "> A colleague takes over.",
        "  track 0.25, parcel 0.25",
        "  a person takes over",
    ]
    printed = _run_example(ROOT / "examples" / "tensors.py", url)
    assert "logits (1, 4, 5)" in printed
    assert "refused: model 'ner_onnx_ragged': input 'input_ids' is float32; expected INT64" in printed


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_examples_of_rows_and_of_questions_run(
    server: TritonServer, tmp_path: Path, protocol: str
) -> None:
    url = server.grpc_url if protocol == "grpc" else server.http_url
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("0.5, 0.5\n\n-1,-1e0\n1,many\n1,2,3\nnan,0\n2,0\n", encoding="utf-8")
    printed = _run_example(ROOT / "examples" / "classify_rows.py", str(numbers), url)
    much, little, word, wide, nan, last = printed.splitlines()
    assert (much, little, last) == ("0\tmuch\t0.88", "1\tlittle\t0.98", "5\tmuch\t0.98")
    assert word == "2\t(refused)\tmodel 'tabular': row 2, number 1 is str, expected a number"
    assert wide.startswith("3\t(refused)\tmodel 'tabular': ")
    assert "input 'features' has shape [1, 3]; expected [-1, 2]" in wide
    assert nan.startswith("4\t(refused)\tmodel 'tabular': row 4, number 0 is nan, expected one that is")
    printed = _run_example(ROOT / "examples" / "classify_rows.py", "-3e0", "1", url)
    assert printed == "0\tlittle\t0.98\n"

    questions = ROOT / "examples" / "answer_questions.py"
    sure = ["refund-time\t0.75\tIn five days.", "card-declined\t0.25\tAsk your bänk."]
    assert _run_example(questions, "Where is my refund?", url).splitlines() == sure
    assert _run_example(questions, "--threshold", "0.9", "my refund", url).splitlines() == [
        "(no sure answer: the best score is below 0.9)",
        *sure,
    ]
    assert _run_example(questions, "my card", url).splitlines() == [
        "card-declined\t0.50\tAsk your bänk.",
        "refund-time\t0.25\tIn five days.",
    ]
    assert _run_example(questions, "Anna visits Porto", url).startswith("(no sure answer: ")


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
    assert 0 < len(EXAMPLES) <= 10
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 40 for path in EXAMPLES)
    run_here = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name}"' in run_here for path in EXAMPLES)
