"""Published releases answer text on a real server, also after publishes that were killed."""

from __future__ import annotations

import io
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from PIL import Image
from tritonclient.utils import InferenceServerException

from brightness_model import brightness_release
from mooring import Client
from mooring._served.softmax import softmax
from mooring_build.publish import Release, publish_release, released_version, roll_back
from mooring_build.recipe import Recipe
from mooring_serve import TritonServer
from processes import settled
from tiny_release import LABELS, LOGIT, make_release, padded_recipe

pytestmark = pytest.mark.integration

NER_ANSWERS = {
    "anna": "B-PER",
    "smith": "I-PER",
    "porto": "B-LOC",
    "new": "B-LOC",
    "york": "I-LOC",
}
INTENT_ANSWERS = {"refund": "refund", "card": "card"}
CHEAP = ["serving.instance_count=1", "text.max_length=24"]
# What the tables' logits mean: five labels, one of which has LOGIT.
SURE = float(softmax(np.array([LOGIT, 0, 0, 0, 0])).max())

Infer = Callable[[str, list[bytes]], dict[str, np.ndarray]]


def _publish(repository: Path, files: Path, *overrides: str, answers: dict[str, str] = NER_ANSWERS) -> Recipe:
    shipped = "intent" if answers is INTENT_ANSWERS else "ner"
    recipe = padded_recipe(shipped, [*CHEAP, *overrides])
    publish_release(repository, recipe, make_release(files, recipe, answers, runnable=True))
    return recipe


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """``ner`` on the ONNX engine, ``ner_ts`` on TorchScript, and ``intent``, which truncates."""
    folder = tmp_path_factory.mktemp("serving")
    repository = folder / "repository"
    onnx, torchscript = 'export.formats=["onnx"]', 'export.formats=["torchscript"]'
    _publish(repository, folder / "a", onnx)
    _publish(repository, folder / "b", "name=ner_ts", torchscript, "export.engine=torchscript")
    truncating = ["text.truncation=true", "text.top_k=2"]
    _publish(repository, folder / "c", onnx, *truncating, answers=INTENT_ANSWERS)
    with TritonServer(repository, log_file=folder / "log") as running:
        yield running


def _input(protocol: Any, texts: list[bytes]) -> Any:
    tensor = protocol.InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text] for text in texts], dtype=object))
    return tensor


def _arrays(protocol: Any, result: Any) -> dict[str, np.ndarray]:
    response = result.get_response()
    outputs = response["outputs"] if protocol is triton_http else response.outputs
    names = [output["name"] if protocol is triton_http else output.name for output in outputs]
    return {name: result.as_numpy(name) for name in names}


@pytest.fixture(scope="module", params=["http", "grpc"])
def infer(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Infer]:
    protocol: Any = triton_http if request.param == "http" else triton_grpc
    url = server.http_url if request.param == "http" else server.grpc_url
    client = protocol.InferenceServerClient(url.split("://")[1])

    def call(model: str, texts: list[bytes]) -> dict[str, np.ndarray]:
        return _arrays(protocol, client.infer(model, [_input(protocol, texts)]))

    yield call
    client.close()


@pytest.mark.parametrize("model", ["ner", "ner_ts"])
def test_entities_of_a_batch(infer: Infer, model: str) -> None:
    texts = ["Anna Smith visits New York.", "nothing", "\U0001f469\u200d\U0001f469 e\u0301 Porto"]
    arrays = infer(model, [text.encode() for text in texts])
    assert arrays["label"].tolist() == [[b"PER", b"LOC"], [b"", b""], [b"LOC", b""]]
    assert arrays["entity"].tolist() == [[b"Anna Smith", b"New York"], [b"", b""], [b"Porto", b""]]
    assert arrays["start"].tolist() == [[0, 18], [-1, -1], [7, -1]]
    assert arrays["end"].tolist() == [[10, 26], [-1, -1], [12, -1]]
    assert arrays["score"] == pytest.approx(np.array([[SURE, SURE], [0, 0], [SURE, 0]]), abs=1e-6)


def test_texts_without_entities_have_rows_without_columns(infer: Infer) -> None:
    arrays = infer("ner", [b"my card", b"is"])
    assert sorted(arrays) == ["end", "entity", "label", "score", "start"]
    assert {array.shape for array in arrays.values()} == {(2, 0)}


def test_labels_of_a_batch(infer: Infer) -> None:
    arrays = infer("intent", [b"where is my card", b"refund"])
    assert arrays["label"].tolist() == [[b"card", b"refund"], [b"refund", b"balance"]]
    expected = softmax(np.array([[LOGIT, 0, 0]]))[:, :2]
    assert arrays["score"] == pytest.approx(np.repeat(expected, 2, axis=0), abs=1e-6)


def test_truncation_answers_what_is_left(infer: Infer) -> None:
    arrays = infer("intent", [b"card " + b"is " * 300 + b"refund refund"])
    assert arrays["label"].tolist() == [[b"card", b"refund"]]


def test_a_text_over_the_limit_is_refused_with_its_length(infer: Infer) -> None:
    message = "text 1 has 25 tokens, this model takes at most 24: shorten it, or build with text.truncation"
    with pytest.raises(InferenceServerException, match=message):
        infer("ner", [b"anna", b"anna " * 23])


@pytest.mark.parametrize("model", ["ner", "ner_ts", "intent"])
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([b""], "text 0 is empty"),
        ([b"anna", b" \n"], "text 1 is empty: it has only white space"),
        ([b"anna", b"ok", b"ann\xff"], "text 2 is not valid UTF-8 (byte 3)"),
        ([b"\0"], "text 0 has no tokens: the tokenizer drops every character of it"),
    ],
)
def test_an_unusable_text_is_named(infer: Infer, model: str, texts: list[bytes], message: str) -> None:
    with pytest.raises(InferenceServerException) as refused:
        infer(model, texts)
    assert refused.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert message in refused.value.message()


def test_a_bad_text_fails_its_own_request_alone(server: TritonServer) -> None:
    texts = [b"", b"anna in new york", b"porto", b"is " * 40, b"my card", b"anna smith"] * 15
    answers = {
        b"anna in new york": ["anna", "new york"],
        b"porto": ["porto"],
        b"my card": [],
        b"anna smith": ["anna smith"],
    }
    # gRPC's client is safe to share between threads, HTTP's is not.
    with triton_grpc.InferenceServerClient(server.grpc_url.split("://")[1]) as client:

        def ask(text: bytes) -> list[str] | str:
            try:
                result = client.infer("ner", [_input(triton_grpc, [text])])
            except InferenceServerException as exc:
                return exc.message()
            return [surface.decode() for surface in result.as_numpy("entity")[0]]

        with ThreadPoolExecutor(16) as pool:
            for text, answer in zip(texts, pool.map(ask, texts), strict=True):
                if text in answers:
                    assert answer == answers[text]
                else:
                    assert "text 0 is empty" in answer or "text 0 has 42 tokens" in answer


_KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from mooring_build.publish import publish_steps
repository, recipe, release, last = pickle.loads(Path(sys.argv[1]).read_bytes())
for step in publish_steps(repository, recipe, release):
    if step == last:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("last", "labels", "answer"),
    [
        ("staged ner_onnx", 5, b"PER"),
        ("placed ner", 5, b"PER"),
        ("opened ner_onnx", 5, b"PER"),
        ("opened ner_postprocessor", 7, b"PER"),
        ("committed", 5, b"LOC"),
        ("committed", 7, b"LOC"),
        ("narrowed ner_tokenizer", 5, b"LOC"),
    ],
)
def test_a_killed_publish_leaves_a_pipeline_that_answers(
    tmp_path: Path, make_server: Callable[..., TritonServer], last: str, labels: int, answer: bytes
) -> None:
    repository = tmp_path / "repository"
    # Both engines where the number of labels changes, as it is part of their configs.
    formats = ['export.formats=["onnx"]'] if labels == 5 else []
    recipe = padded_recipe("ner", [*CHEAP, *formats, "serving.warm_up=false"])
    old = make_release(tmp_path / "old", recipe, {"anna": "B-PER"}, runnable=True)
    more = [*LABELS["token-classification"], "B-ORG", "I-ORG"][:labels]
    new = make_release(
        tmp_path / "new", recipe, {"anna": "B-LOC"}, labels=more, inputs_digest="b", runnable=True
    )
    publish_release(repository, recipe, old)
    _publish_until(last, repository, recipe, new, tmp_path / "publish.pickle")
    assert _ask(make_server(repository)) == answer
    assert publish_release(repository, recipe, new) == 2
    assert released_version(repository, "ner") == 2


@pytest.mark.parametrize(
    "last", ["opened image_decoder", "opened image_onnx", "committed", "narrowed image_decoder"]
)
def test_a_killed_publish_of_pictures_of_another_size_leaves_one_of_them(
    tmp_path: Path, make_server: Callable[..., TritonServer], last: str
) -> None:
    repository = tmp_path / "repository"
    publish_release(repository, *brightness_release(tmp_path / "old"))
    _publish_until(
        last, repository, *brightness_release(tmp_path / "new", size=20), tmp_path / "publish.pickle"
    )
    picture = io.BytesIO()
    Image.new("L", (40, 30), color=255).save(picture, "png")
    with Client(make_server(repository).grpc_url) as client:
        assert client.task("image")(picture.getvalue())[0].label == "bright"


def _publish_until(last: str, repository: Path, recipe: Recipe, release: Release, scratch: Path) -> None:
    """Publish, and be killed after this step."""
    scratch.write_bytes(pickle.dumps((repository, recipe, release, last)))
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(scratch)], check=False)
    assert killed.returncode == -signal.SIGKILL


def _ask(server: TritonServer) -> bytes:
    with triton_grpc.InferenceServerClient(server.grpc_url.split("://")[1]) as client:
        result = client.infer("ner", [_input(triton_grpc, [b"Anna"])])
    label: bytes = result.as_numpy("label")[0, 0]
    return label


def test_answers_are_kept_and_runs_take_turns_where_the_recipe_says_so(tmp_path: Path) -> None:
    keys = ["serving.response_cache=true", "serving.resources={cores = 1}"]
    cheap = ['export.formats=["onnx"]', "serving.warm_up=false"]
    _publish(tmp_path / "repository", tmp_path / "files", *keys, *cheap)
    extra = ["--rate-limit-resource=cores:1"]
    with TritonServer(tmp_path / "repository", extra_args=extra) as server, Client(server.grpc_url) as client:
        ner = client.task("ner")
        first, again, other = ner("Anna Smith"), ner("Anna Smith"), ner("Porto")
        assert first == again != other
        (pipeline,) = settled(lambda: client.statistics("ner"))
        (engine,) = client.statistics("ner_onnx")
    assert (pipeline.cache_hit.count, pipeline.cache_miss.count) == (1, 2)
    assert engine.inference_count == 2


def test_a_running_server_takes_up_the_version_that_was_rolled_back_to(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    repository = tmp_path / "repository"
    recipe = padded_recipe("ner", [*CHEAP, "serving.warm_up=false"])
    for name, answer, labels in (("a", "B-PER", 5), ("b", "B-LOC", 7)):
        known = [*LABELS["token-classification"], "B-ORG", "I-ORG"][:labels]
        files = make_release(
            tmp_path / name, recipe, {"anna": answer}, labels=known, inputs_digest=name, runnable=True
        )
        publish_release(repository, recipe, files)
    explicit = {"model_control_mode": "explicit", "extra_args": ["--load-model=ner"]}
    server = make_server(repository, **explicit)
    assert _ask(server) == b"LOC"
    roll_back(repository, "ner")
    with Client(server.grpc_url) as client:
        client.load("ner")
    assert _ask(server) == b"PER"
