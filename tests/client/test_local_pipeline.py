"""``tokenize="client"`` against a release in memory, whose models run the code that publishing copies."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooring import AsyncClient, Client, ConfigError, DecodeError, InvalidInput, ModelNotFound, MooringError
from mooring._operations import GetConfig
from mooring.testing import FakeModel, FakeTransport
from release_transport import ENTITY_LABELS, MAX_BATCH_SIZE, ReleaseTransport
from tiny_release import VOCABULARY, make_tokenizer


class AsyncTaskOfThreads:
    """A task of an ``AsyncClient`` that is asked like one of a ``Client``."""

    def __init__(self, runner: asyncio.Runner, task: Any) -> None:
        self._runner, self._task = runner, task

    def __call__(self, items: Any) -> Any:
        return self._runner.run(self._task(items))


MakeTask = Callable[..., Any]


@pytest.fixture(params=["threads", "coroutines"])
def make_task(request: pytest.FixtureRequest) -> Iterator[MakeTask]:
    """Make a task of a new client on a transport."""
    with asyncio.Runner() as runner:
        clients: list[Any] = []

        def make(transport: FakeTransport, model: str = "m", **options: Any) -> Any:
            if request.param == "threads":
                clients.append(Client("grpc://fake:1", transport=transport))
                return clients[-1].task(model, **options)
            clients.append(AsyncClient("grpc://fake:1", transport=transport))
            return AsyncTaskOfThreads(runner, runner.run(clients[-1].task(model, **options)))

        yield make
        for client in clients:
            if isinstance(client, Client):
                client.close()
            else:
                runner.run(client.aclose())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> bytes:
    return (folder / "tokenizer.json").read_bytes()


@pytest.fixture
def transport(tokenizer: bytes) -> ReleaseTransport:
    return ReleaseTransport(tokenizer)


@contextmanager
def both(tokenizer: bytes, task: str) -> Iterator[tuple[Any, Any]]:
    """The task as the server and as the client tokenizes it."""
    with Client("grpc://fake:1", transport=ReleaseTransport(tokenizer, task=task)) as client:
        yield client.task("m"), client.task("m", tokenize="client")


def outcome(task: Any, text: str) -> Any:
    try:
        return task(text)
    except MooringError as error:
        return type(error), str(error).replace("in ensemble 'm', ", "")


@pytest.mark.parametrize("task", ["token-classification", "text-classification"])
def test_any_text_gets_the_answer_of_the_pipeline(tokenizer: bytes, task: str) -> None:
    with both(tokenizer, task) as (served, local):

        @settings(deadline=None, max_examples=200)
        @given(st.text(max_size=40) | st.lists(st.sampled_from(VOCABULARY), max_size=30).map(" ".join))
        def check(text: str) -> None:
            assert outcome(local, text) == outcome(served, text)

        check()


@pytest.mark.parametrize("task", ["token-classification", "text-classification"])
def test_any_texts_get_the_answers_of_the_pipeline(tokenizer: bytes, task: str) -> None:
    usable = st.text("anPo t.é", min_size=1, max_size=20).filter(str.strip)
    with both(tokenizer, task) as (served, local):

        @settings(deadline=None, max_examples=50)
        @given(st.lists(usable, min_size=1, max_size=3 * MAX_BATCH_SIZE))
        def check(texts: list[str]) -> None:
            assert local(texts) == served(texts)

        check()


def test_the_engine_alone_is_asked(make_task: MakeTask, transport: ReleaseTransport) -> None:
    task = make_task(transport, tokenize="client")
    assert transport.asked() == ["m_tokenizer"]
    assert transport.requests[0].outputs == ("tokenizer", "settings")
    transport.requests.clear()
    task(["anna"] * 6)
    assert transport.asked() == ["m_engine", "m_engine"]
    for request, rows in zip(transport.requests, (4, 2), strict=True):
        assert (request.version, request.outputs) == ("1", ("logits__0",))
        assert [(tensor.name, tensor.array.shape) for tensor in request.inputs] == [
            ("input_ids", (rows, 8)),
            ("attention_mask", (rows, 8)),
        ]


def test_a_folders_tokenizer_is_compared_with_the_servers(
    make_task: MakeTask, transport: ReleaseTransport, folder: Path
) -> None:
    task = make_task(transport, tokenize="client", tokenizer=folder)
    assert [request.outputs for request in transport.requests] == [("settings",), ("input_ids",)]
    assert task("anna smith") == make_task(transport)("anna smith")
    assert make_task(transport, tokenize="client", tokenizer=str(folder))("anna") == task("anna")


def test_a_folders_tokenizer_may_refuse_what_the_server_refuses(
    make_task: MakeTask, tokenizer: bytes, folder: Path
) -> None:
    transport = ReleaseTransport(tokenizer, max_length=5)
    assert make_task(transport, tokenize="client", tokenizer=folder)("anna") == make_task(transport)("anna")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (" \n", "model 'm': text 0 is empty: it has only white space"),
        (["anna", "\0"], "model 'm': text 1 has no tokens: the tokenizer drops every character of it"),
        ("is " * 30, "model 'm': text 0 has 32 tokens, this model takes at most 24: shorten it"),
        (["a"] * 5 + [" "], "text 1 is empty: .* (text 0 of that request is text 4 of the call)"),
    ],
)
def test_an_unusable_text_is_refused_in_the_servers_words(
    make_task: MakeTask, transport: ReleaseTransport, texts: Any, message: str
) -> None:
    pattern = re.escape(message).replace(r"\.\*", ".*")
    task = make_task(transport, tokenize="client")
    transport.requests.clear()
    with pytest.raises(InvalidInput, match=pattern):
        task(texts)
    assert len(transport.requests) == len(texts) // MAX_BATCH_SIZE * isinstance(texts, list)
    with pytest.raises(InvalidInput, match=pattern.replace("model\\ 'm':\\ ", "")):
        make_task(transport)(texts)


def test_a_new_release_is_noticed_when_the_old_one_is_gone(
    make_task: MakeTask, transport: ReleaseTransport, tokenizer: bytes
) -> None:
    served, local = make_task(transport), make_task(transport, tokenize="client")
    assert local("anna in porto") == served("anna in porto")
    swapped = [ENTITY_LABELS[index] for index in (0, 3, 4, 1, 2)]
    transport.release(ReleaseTransport(tokenizer, version="2", labels=swapped, max_length=12, seed=1))
    transport.requests.clear()
    assert local("anna in porto") == served("anna in porto")
    assert transport.asked() == ["m_tokenizer", "m_engine", "m"]
    assert {request.version for request in transport.requests[:2]} == {"2"}
    with pytest.raises(InvalidInput, match="this model takes at most 12"):
        local("is " * 20)
    assert transport.asked() == ["m_tokenizer", "m_engine", "m"]


def test_an_engine_that_is_gone_is_asked_for_once(make_task: MakeTask, transport: ReleaseTransport) -> None:
    local = make_task(transport, tokenize="client")
    del transport.models_by_name["m_engine"]
    with pytest.raises(ModelNotFound, match="'m_engine' is not found"):
        local("anna")


def test_a_release_that_changes_while_the_task_is_made(make_task: MakeTask, tokenizer: bytes) -> None:
    """The config still names version 1, the tokenizer is asked a moment later."""

    class Switching(ReleaseTransport):
        def send(self, operation: Any, **options: Any) -> Any:
            answer = super().send(operation, **options)
            if isinstance(operation, GetConfig) and operation.model == "m" and self.version == "1":
                self.release(ReleaseTransport(tokenizer, version="2", seed=1))
            return answer

    transport = Switching(tokenizer)
    local = make_task(transport, tokenize="client")
    assert {request.version for request in transport.requests} == {"2"}
    assert local("anna in porto") == make_task(transport)("anna in porto")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tokenize": "both"},
            "tokenize must be 'server', or 'client' with or without tokenizer; got .*'both'",
        ),
        ({"tokenizer": "here"}, "got tokenize='server', tokenizer='here'"),
        ({"tokenize": "client", "tokenizer": 5}, "tokenizer must be a folder, got 5"),
        (
            {"tokenize": "client", "tokenizer": "/nowhere"},
            "/nowhere/tokenizer.json can't be read: No such file",
        ),
    ],
)
def test_options_that_can_not_be_right(
    make_task: MakeTask, transport: ReleaseTransport, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task(transport, **options)


def _without_steps(transport: ReleaseTransport) -> None:
    transport.steps = ()


def _without_engine(transport: ReleaseTransport) -> None:
    transport.steps = transport.steps[:1]


def _unpinned(transport: ReleaseTransport) -> None:
    tokenizer, engine = transport.steps
    transport.steps = (tokenizer, dataclasses.replace(engine, version=""))


def _says(**parameters: str) -> Callable[[ReleaseTransport], None]:
    def change(transport: ReleaseTransport) -> None:
        model = transport.models_by_name["m"]
        said = {**model.parameters, **parameters}
        transport.models_by_name["m"] = dataclasses.replace(model, parameters=said)

    return change


def _older(transport: ReleaseTransport) -> None:
    model = transport.models_by_name["m_tokenizer"]
    outputs = {name: spec for name, spec in model.outputs.items() if name in ("input_ids", "attention_mask")}
    transport.models_by_name["m_tokenizer"] = dataclasses.replace(model, outputs=outputs)


def _broken_tokenizer(transport: ReleaseTransport) -> None:
    transport.tokenizer = b"{}"


def _newer_settings(transport: ReleaseTransport) -> None:
    transport.settings = dataclasses.make_dataclass("Newer", [("stride", int)])(stride=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_steps, "model 'm' can't be tokenized for by the client: it is no ensemble of a tokenizer"),
        (_without_engine, "it is no ensemble of a tokenizer (input_ids) and an engine (logits)"),
        (_unpinned, "it pins no version of 'm_engine', so versions could be mixed"),
        (_says(labels="PER"), "parameters.labels is 'PER'; expected a JSON list of texts"),
        (_says(labels='["PER"]'), "label 'PER' is not O, B-<type> or I-<type>"),
        (
            _older,
            "model 'm_tokenizer' version 1 can't give its settings and tokenizer: it was published by an",
        ),
        (_broken_tokenizer, "that of model 'm_tokenizer' version 1 is not a tokenizer.json"),
        (
            _newer_settings,
            'settings that this client can\'t use: expected a JSON object with .*{"stride": 3}',
        ),
    ],
)
def test_what_the_client_can_not_tokenize_for(
    make_task: MakeTask, transport: ReleaseTransport, change: Callable[[ReleaseTransport], None], message: str
) -> None:
    change(transport)
    with pytest.raises(ConfigError, match=re.escape(message).replace(r"\.\*", ".*")):
        make_task(transport, tokenize="client")


def test_a_classifier_that_does_not_say_how_many_labels_it_gives(
    make_task: MakeTask, tokenizer: bytes
) -> None:
    transport = ReleaseTransport(tokenizer, task="text-classification")
    outputs = {"label": ("BYTES", [-1, -1]), "score": ("FP32", [-1, -1])}
    model = transport.models_by_name["m"]
    transport.models_by_name["m"] = dataclasses.replace(model, outputs=outputs)
    with pytest.raises(ConfigError, match="its output label has -1 columns; expected how many labels"):
        make_task(transport, tokenize="client")


def test_a_task_without_texts_to_tokenize_is_refused(make_task: MakeTask) -> None:
    model = FakeModel(
        inputs={"text": ("BYTES", [-1, 1])},
        outputs={"embedding": ("FP32", [-1, 3])},
        max_batch_size=8,
        parameters={"task": "feature-extraction"},
        answer=lambda inputs: {"embedding": np.zeros((len(inputs["text"]), 3), np.float32)},
    )
    with pytest.raises(ConfigError, match="task is 'feature-extraction', and only text-classification and"):
        make_task(FakeTransport({"m": model}), tokenize="client")


def test_another_models_tokenizer_is_refused(
    make_task: MakeTask, transport: ReleaseTransport, tmp_path: Path, tokenizer: bytes
) -> None:
    other = json.loads(tokenizer)
    other["normalizer"]["lowercase"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(
        ConfigError, match=r"is not that of model 'm_tokenizer' version 1: .* gives \[.* there"
    ):
        make_task(transport, tokenize="client", tokenizer=tmp_path)


def test_logits_that_do_not_fit_are_told(make_task: MakeTask, transport: ReleaseTransport) -> None:
    local = make_task(transport, tokenize="client")
    engine = transport.models_by_name["m_engine"]

    def cut(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits__0": dict(engine.answer(inputs))["logits__0"][:, :2]}

    transport.models_by_name["m_engine"] = dataclasses.replace(engine, answer=cut)
    with pytest.raises(DecodeError, match=r"'m_engine' version 1 makes no sense: logits \[1, 2, 5\]"):
        local("anna")


def test_without_tokenizers_the_extra_is_named(
    make_task: MakeTask, transport: ReleaseTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert make_task(transport)("anna") is not None
    with pytest.raises(ImportError, match=r"install Mooring's extra \[tokenize\]"):
        make_task(transport, tokenize="client")


def test_importing_mooring_does_not_import_tokenizers() -> None:
    code = "import sys, mooring; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
