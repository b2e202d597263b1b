"""``tokenize="client"`` on a real tritonserver: the same answers and refusals as the pipeline's."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from driven_clients import PAIRS, AnyClient, CoroutinesClient, Pair
from mooring import Client, Entity, Label, MooringError
from mooring_build.publish import publish_release
from mooring_serve import TritonServer
from processes import settled, wait_until
from python_models import write_python_model
from random_texts import random_texts
from recording_models import QUEUE, executions, write_recorder
from tiny_release import make_release, padded_recipe

pytestmark = pytest.mark.integration

CHEAP = ["serving.instance_count=1", "text.max_length=24"]
NER_ANSWERS = {"anna": "B-PER", "smith": "I-PER", "porto": "B-LOC", "new": "B-LOC", "york": "I-LOC"}
INTENT_ANSWERS = {"refund": "refund", "card": "card", "where": "balance"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenize")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[TritonServer]:
    """``ner`` on ONNX, which refuses long texts, and ``intent`` on TorchScript, which truncates them."""
    ner = padded_recipe("ner", [*CHEAP, 'export.formats=["onnx"]'])
    truncating = ["text.truncation=true", "text.top_k=2", "export.engine=torchscript"]
    intent = padded_recipe("intent", [*CHEAP, *truncating, 'export.formats=["torchscript"]'])
    for recipe, answers in ((ner, NER_ANSWERS), (intent, INTENT_ANSWERS)):
        release = make_release(folder / recipe.name, recipe, answers, runnable=True)
        publish_release(folder / "repository", recipe, release)
    with TritonServer(folder / "repository", log_file=folder / "tritonserver.log") as running:
        yield running


@pytest.fixture
def client(server: TritonServer, pair: Pair) -> Iterator[AnyClient]:
    with pair(pair.url(server)) as made:
        yield made


def answer(client: AnyClient, task: Any, items: Any) -> Any:
    """The task's answer, or its error."""
    try:
        called = task(items)
        return client.run(called) if isinstance(client, CoroutinesClient) else called
    except MooringError as error:
        return error


def words(error: MooringError) -> str:
    """An error's message without what the way through the server adds to it."""
    return re.sub(r"in ensemble '\w+', | \[(INVALID_ARGUMENT|400)\]", "", str(error))


def assert_same(local: Any, served: Any) -> None:
    """The same labels, places and errors; scores but for rounding in the engine's batches."""
    assert type(local) is type(served), (local, served)
    if isinstance(served, MooringError):
        assert words(local) == words(served)
    elif isinstance(served, list):
        assert len(local) == len(served), (local, served)
        for one, other in zip(local, served, strict=True):
            assert_same(one, other)
    else:
        assert isinstance(served, Entity | Label)
        assert {**vars(local), "score": 0} == {**vars(served), "score": 0}
        assert local.score == pytest.approx(served.score, abs=1e-6)


@pytest.mark.parametrize("source", ["server", "folder"])
@pytest.mark.parametrize("model", ["ner", "intent"])
def test_random_texts_get_the_same_answers(client: AnyClient, folder: Path, model: str, source: str) -> None:
    served = client.task(model)
    local = client.task(model, tokenize="client", tokenizer=folder / model if source == "folder" else None)
    texts = random_texts(150, seed=sum(map(ord, f"{model} {source}")))
    kinds = []
    for text in texts:
        expected = answer(client, served, text)
        assert_same(answer(client, local, text), expected)
        kinds.append("error" if isinstance(expected, MooringError) else "found" if expected else "nothing")
    assert kinds.count("error") > 5
    assert kinds.count("found") > 10, "a model that finds nothing proves nothing"
    usable = [text for text, kind in zip(texts, kinds, strict=True) if kind != "error"]
    assert len(usable) > 64, "more than two requests are needed"
    assert_same(answer(client, local, usable), answer(client, served, usable))


@pytest.mark.parametrize(
    "texts",
    [
        "",
        " \n",
        "\0",
        "anna " * 23,
        ["anna", ""],
        ["anna", "\u3000"],
        ["anna"] * 40 + ["is " * 40],
        [],
        "\ud800",
    ],
    ids=[
        "empty",
        "blank",
        "dropped",
        "long",
        "second",
        "second-blank",
        "second-request",
        "none",
        "surrogate",
    ],
)
@pytest.mark.parametrize("model", ["ner", "intent"])
def test_unusable_texts_get_the_same_errors(client: AnyClient, model: str, texts: Any) -> None:
    served, local = client.task(model), client.task(model, tokenize="client")
    assert_same(answer(client, local, texts), answer(client, served, texts))


def test_a_map_isolates_the_same_items(server: TritonServer) -> None:
    texts = random_texts(120, seed=5)
    with Client(server.grpc_url) as client:
        served = list(client.task("ner").map(texts, batch_size=8))
        local = list(client.task("ner", tokenize="client").map(texts, batch_size=8))
    for one, other in zip(local, served, strict=True):
        assert one.index == other.index
        assert_same(one.error or one.value, other.error or other.value)
    assert any(outcome.error for outcome in served)


def test_the_engine_alone_is_asked(server: TritonServer) -> None:
    def counts(client: Client) -> dict[str, int]:
        names = ("ner", "ner_tokenizer", "ner_onnx", "ner_postprocessor")
        return {name: client.statistics(name)[0].success.count for name in names}

    with Client(server.grpc_url) as client:
        task = client.task("ner", tokenize="client")
        before = settled(lambda: counts(client))
        task("Anna Smith")
        after = settled(lambda: counts(client))
    assert {name: after[name] - before[name] for name in after} == {
        "ner": 0,
        "ner_tokenizer": 0,
        "ner_onnx": 1,
        "ner_postprocessor": 0,
    }


def test_the_tokenizer_is_given_to_those_who_name_it(server: TritonServer, folder: Path) -> None:
    texts = np.array([["a"], ["b"]], np.object_)
    with Client(server.grpc_url) as client:
        given = client.infer("ner_tokenizer", {"text": texts}, outputs=["tokenizer"], version="1")
        tokens = client.infer("ner_tokenizer", {"text": texts}, outputs=["input_ids", "words"])
    assert given["tokenizer"].tolist() == [[(folder / "ner" / "tokenizer.json").read_bytes()], [b""]]
    assert tokens.keys() == {"input_ids", "words"}


NAMES_OUTPUTS = """
    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(request) for request in requests]

        def answer(self, request):
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            names = ",".join(sorted(request.requested_output_names())).encode()
            column = np.full((len(x), 1), names, np.object_)
            return pb_utils.InferenceResponse([pb_utils.Tensor(name, column) for name in ("y", "unmapped")])
"""
NAMES_OUTPUTS_CONFIG = """
    backend: "python"
    max_batch_size: 8
    input { name: "x" data_type: TYPE_FP32 dims: [1] }
    output { name: "y" data_type: TYPE_STRING dims: [1] }
    output { name: "unmapped" data_type: TYPE_STRING dims: [1] }
"""


def write_ensemble(repository: Path, step: str, *, output: str, data_type: str) -> None:
    """Write ``chain``, an ensemble of one step."""
    (repository / "chain" / "1").mkdir(parents=True)
    (repository / "chain" / "config.pbtxt").write_text(f"""
        platform: "ensemble"
        max_batch_size: 1
        input {{ name: "x" data_type: TYPE_FP32 dims: [-1] }}
        output {{ name: "{output}" data_type: {data_type} dims: [-1] }}
        ensemble_scheduling {{
          step {{
            model_name: "{step}"
            model_version: -1
            input_map {{ key: "x" value: "x" }}
            output_map {{ key: "{output}" value: "{output}" }}
          }}
        }}
    """)


def test_an_ensemble_asks_for_mapped_outputs_alone(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    """So a pipeline does not pay for the tokenizer's files, which its ensemble does not map."""
    repository = write_python_model(
        tmp_path / "repository", "names", source=NAMES_OUTPUTS, config=NAMES_OUTPUTS_CONFIG
    )
    write_ensemble(repository, "names", output="y", data_type="TYPE_STRING")
    with Client(make_server(repository).grpc_url) as client:
        x = {"x": np.float32([[1]])}
        assert client.infer("chain", x)["y"].tolist() == [[b"y"]]
        assert client.infer("names", x)["y"].tolist() == [[b"unmapped,y"]]


@pytest.mark.parametrize("pair", [PAIRS[0], PAIRS[-1]], ids=str)
def test_a_task_follows_a_new_release_whole(tmp_path: Path, pair: Pair) -> None:
    """The new release orders its labels otherwise: of one release and another, they would be swapped."""
    repository = tmp_path / "repository"
    recipe = padded_recipe("ner", [*CHEAP, 'export.formats=["onnx"]', "serving.warm_up=false"])
    first = make_release(tmp_path / "first", recipe, {"anna": "B-PER", "porto": "B-LOC"}, runnable=True)
    second = make_release(
        tmp_path / "second",
        recipe,
        {"anna": "B-PER", "porto": "B-LOC", "york": "B-LOC"},
        labels=["O", "B-LOC", "I-LOC", "B-PER", "I-PER"],
        inputs_digest="b",
        runnable=True,
    )
    publish_release(repository, recipe, first)
    before, after = ["PER", "LOC"], ["PER", "LOC", "LOC"]
    log = tmp_path / "tritonserver.log"
    with (
        TritonServer(repository, log_file=log, model_control_mode="explicit") as server,
        pair(pair.url(server)) as client,
    ):
        task = client.task("ner", tokenize="client")

        def labels() -> list[str]:
            found = answer(client, task, "Anna in Porto, York")
            assert isinstance(found, list), found
            return [entity.label for entity in found]

        assert labels() == before
        publish_release(repository, recipe, second)
        assert labels() == before
        with Client(server.grpc_url) as other:
            other.load("ner")  # and with it its parts
            wait_until(lambda: not other.ready("ner_onnx", version="1"))
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: labels(), range(8))) == [after] * 8


def test_an_ensemble_passes_a_requests_timeout_to_its_steps(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    """A step whose queue heeds timeouts refuses in time, though the ensemble itself has no queue.

    tritonserver 24.10 hands the request's ``timeout`` to every step as it came, without what earlier steps
    took of it. (The client can't show this: it gives up when its own deadline has passed.)
    """
    repository = tmp_path / "repository"
    record = write_recorder(repository, more_config=QUEUE)
    write_ensemble(repository, "recorder", output="y", data_type="TYPE_FP32")
    server = make_server(repository)
    with triton_grpc.InferenceServerClient(server.grpc_url.partition("://")[2]) as client:

        def ask(seconds: float, name: str, timeout_us: int | None = None) -> None:
            x = triton_grpc.InferInput("x", [1, 1], "FP32")
            x.set_data_from_numpy(np.float32([[seconds]]))
            client.infer("chain", [x], request_id=name, timeout=timeout_us)

        blocking = threading.Thread(target=ask, args=(2, "blocking"))
        blocking.start()
        wait_until(lambda: executions(record) == ["blocking"])
        with pytest.raises(InferenceServerException, match=r"in ensemble 'chain', .*Request timeout expired"):
            ask(0, "impatient", 300_000)
        ask(0, "patient", 30_000_000)
        blocking.join()
    assert executions(record) == ["blocking", "patient"]
