"""The package's surface: names, imports, documentation."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mooring
import mooring.testing
from mooring import AsyncClient, CircuitPolicy, Client, ConnectionPolicy, MooringError, RetryPolicy, _policies
from mooring.testing import FakeModel, FakeTransport

ROOT = Path(__file__).parents[2]
NAMES = [
    "AccessDenied",
    "AsyncClient",
    "AsyncCustomerService",
    "AsyncEmbedder",
    "AsyncImageClassifier",
    "AsyncOpinionClassifier",
    "AsyncRecommender",
    "AsyncSharedMemory",
    "AsyncTabularClassifier",
    "AsyncTextClassifier",
    "AsyncTextMultiClassifier",
    "AsyncTextRanker",
    "AsyncTokenClassifier",
    "BatchStatistics",
    "BuildError",
    "CheckpointError",
    "CircuitOpen",
    "CircuitPolicy",
    "Client",
    "ClientCounters",
    "ConfigError",
    "ConnectError",
    "ConnectionPolicy",
    "CustomerService",
    "CustomerServiceAnswer",
    "DataError",
    "DeadlineExceeded",
    "DecodeError",
    "DurationStatistics",
    "DynamicBatching",
    "Embedder",
    "EndpointStatus",
    "EnsembleStep",
    "Entity",
    "HedgePolicy",
    "ImageClassifier",
    "InvalidInput",
    "Label",
    "ModelConfig",
    "ModelMetadata",
    "ModelNotFound",
    "ModelNotReady",
    "ModelStatistics",
    "ModelStatus",
    "MooringError",
    "Opinion",
    "OpinionClassifier",
    "Outcome",
    "Overloaded",
    "PublishError",
    "RankedAnswer",
    "RankedItem",
    "RecipeError",
    "Recommender",
    "RetryPolicy",
    "SequenceStep",
    "ServerError",
    "ServerMetadata",
    "SharedMemory",
    "StartError",
    "TabularClassifier",
    "TensorSpec",
    "TextClassifier",
    "TextMultiClassifier",
    "TextRanker",
    "ThrottlePolicy",
    "Throttled",
    "TlsConfig",
    "TokenClassifier",
    "TransportError",
    "UnsupportedPlatform",
    "VerificationError",
]


def test_public_names_are_these() -> None:
    assert mooring.__all__ == NAMES
    assert sorted(NAMES) == NAMES
    assert mooring.testing.__all__ == ["FakeModel", "FakeTransport"]
    public = {
        name
        for name, value in vars(mooring).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(NAMES)


def test_every_error_is_exported_and_drawn_in_the_tree() -> None:
    from mooring import _errors

    errors = {
        name
        for name, value in vars(_errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert errors == {name for name in NAMES if issubclass(getattr(mooring, name), Exception)}
    assert all(issubclass(getattr(mooring, name), MooringError) for name in errors)
    drawn = re.findall(r"^ +[│ ]*[├└]── (\w+)", _errors.__doc__ or "", flags=re.MULTILINE)
    assert set(drawn) == errors - {"MooringError"}


VALUES = [
    "BatchStatistics",
    "CircuitPolicy",
    "ClientCounters",
    "ConnectionPolicy",
    "CustomerServiceAnswer",
    "DurationStatistics",
    "DynamicBatching",
    "EndpointStatus",
    "EnsembleStep",
    "Entity",
    "HedgePolicy",
    "Label",
    "ModelConfig",
    "ModelMetadata",
    "ModelStatistics",
    "ModelStatus",
    "Opinion",
    "Outcome",
    "RankedAnswer",
    "RankedItem",
    "RetryPolicy",
    "SequenceStep",
    "ServerMetadata",
    "TensorSpec",
    "ThrottlePolicy",
    "TlsConfig",
]


def test_value_objects_are_frozen_and_keyword_only() -> None:
    assert [name for name in NAMES if dataclasses.is_dataclass(getattr(mooring, name))] == VALUES
    for name in VALUES:
        kind = getattr(mooring, name)
        assert kind.__dataclass_params__.frozen, name
        assert all(field.kw_only for field in dataclasses.fields(kind)), name


def test_the_twins_of_each_public_class_are_exported() -> None:
    twins = {name.removeprefix("Async") for name in NAMES if name.startswith("Async")}
    assert twins == {
        "Client",
        "CustomerService",
        "Embedder",
        "ImageClassifier",
        "OpinionClassifier",
        "Recommender",
        "SharedMemory",
        "TabularClassifier",
        "TextClassifier",
        "TextMultiClassifier",
        "TextRanker",
        "TokenClassifier",
    }
    assert twins <= set(NAMES)


#: What the twins for coroutines call otherwise.
RENAMED = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}


def methods(kind: type) -> dict[str, Any]:
    """The public ones, those of ``with`` and ``__init__`` by the name that the twin for threads has."""
    wanted = ("__init__", "__call__", "__enter__", "__exit__", "__aenter__", "__aexit__")
    return {
        RENAMED.get(name, name): value
        for name, value in inspect.getmembers(kind, callable)
        if name in wanted or not name.startswith("_")
    }


def parameters(method: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("Async")])
def test_threads_and_coroutines_have_the_same_methods_and_parameters(name: str) -> None:
    asynchronous = methods(getattr(mooring, name))
    synchronous = methods(getattr(mooring, name.removeprefix("Async")))
    assert asynchronous.keys() == synchronous.keys()
    for method, twin in asynchronous.items():
        assert parameters(twin) == parameters(synchronous[method]), method
        assert inspect.getdoc(twin) or method.startswith("__"), method


def test_what_asks_a_server_is_awaited_or_iterated() -> None:
    plain = {
        name
        for name, method in methods(AsyncClient).items()
        if not (inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method))
    }
    assert plain == {"__init__", "counters", "shared_memory"}


def test_the_client_for_threads_is_the_generated_one() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "generate_sync.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", [getattr(mooring, name) for name in NAMES] + [FakeModel, FakeTransport])
def test_everything_public_is_documented(kind: Any) -> None:
    assert inspect.getdoc(kind)
    for name, value in vars(kind).items():
        if inspect.isfunction(value) and not name.startswith("_"):
            assert inspect.getdoc(value), f"{kind.__name__}.{name}"


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_defaults_are_those_of_the_documentation(client: Any) -> None:
    given = {name: p.default for name, p in inspect.signature(client).parameters.items()}
    assert given.pop("url") is inspect.Parameter.empty
    assert given.pop("timeout_s") == 60.0
    assert set(given.values()) == {None}
    default_concurrency = inspect.signature(client.infer_many).parameters["concurrency"].default
    for name, method in methods(client).items():
        found = inspect.signature(method).parameters
        if "timeout_s" in found and name != "__init__":
            assert found["timeout_s"].default is None, name
        if "concurrency" in found:
            assert found["concurrency"].default == default_concurrency, name
        assert all(p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) for p in found.values()), name
        optional = [p for p in found.values() if p.default is not p.empty and p.name != "model"]
        leading = ["kind"] if name == "task" else []
        assert [p.name for p in optional if p.kind is not p.KEYWORD_ONLY] == leading, name


def test_options_end_in_their_unit() -> None:
    """Seconds everywhere; no option is a bare ``timeout`` or ``delay``."""
    for name in VALUES:
        if name.endswith("Policy"):
            for field in dataclasses.fields(getattr(mooring, name)):
                if re.search("delay|pause|timeout|interval|age", field.name):
                    assert field.name.endswith("_s"), f"{name}.{field.name}"


def test_every_field_of_a_policy_has_its_comment() -> None:
    source = inspect.getsource(_policies)
    for name in (name for name in VALUES if name.endswith(("Policy", "Config")) and name != "ModelConfig"):
        for field in dataclasses.fields(getattr(mooring, name)):
            assert re.search(rf"    #: [^\n]+\n(    #:? [^\n]+\n)*    {field.name}: ", source), field.name


def test_the_guide_says_the_defaults_of_the_code() -> None:
    guide = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
    connections = ConnectionPolicy()
    said = " ".join(guide.split())
    assert f"resolved again every {connections.resolve_interval_s:g} s" in said
    assert "Connections are replaced every five minutes" in said
    assert connections.max_age_s == 5 * 60


def example_of(module: Any) -> str:
    """The first indented block of a module's docstring."""
    block = re.search(r"::\n\n((?: {4}.*\n|\n)+)", module.__doc__)
    assert block is not None
    return inspect.cleandoc(block[1])


def test_the_package_example_runs(
    grpc_url: str, fake: FakeTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = ("INT64", [-1, -1])
    fake.models_by_name["ner_onnx_ragged"] = FakeModel(
        inputs={"input_ids": ids, "attention_mask": ids},
        outputs={"logits": ids},
        max_batch_size=2,
        answer=lambda inputs: {"logits": inputs["input_ids"]},
    )
    example = example_of(mooring)
    assert len(example.splitlines()) <= 10
    exec(example.replace("grpc://127.0.0.1:8001", grpc_url), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "NAME Angela 0 6 0.75"
    assert printed[-1] == "{'logits': array([[101, 102]])}"


def test_the_fake_server_example_runs() -> None:
    names: dict[str, Any] = {"FakeModel": FakeModel, "FakeTransport": FakeTransport, "Client": Client}
    exec(example_of(mooring.testing), names)
    np.testing.assert_array_equal(
        names["client"].infer("double", {"x": np.ones((1, 2), np.float32)})["y"], [[2, 2]]
    )


def test_a_fake_can_be_down(fake: FakeTransport) -> None:
    client = Client(
        "grpc://fake:8001",
        transport=fake,
        retry=RetryPolicy(max_retries=0),
        circuit=CircuitPolicy(failures=10),
    )
    fake.error = mooring.ConnectError("down")
    for call in (client.server_ready, client.models, lambda: client.ready("ner"), lambda: client.task("ner")):
        with pytest.raises(mooring.ConnectError, match="down"):
            call()
    fake.error = None
    assert client.ready("ner")
    client.close()
    assert fake.closed


def test_a_fake_that_answers_with_lists_says_so() -> None:
    model = FakeModel(
        inputs={"x": ("FP32", [2])}, outputs={"y": ("FP32", [2])}, answer=lambda _: {"y": [1.0, 2.0]}
    )
    client = Client("grpc://fake:8001", transport=FakeTransport({"m": model}))
    with pytest.raises(
        mooring.ConfigError, match="'m', output 'y': answer must give a numpy array, got list"
    ):
        client.infer("m", {"x": np.ones(2, np.float32)})


def test_a_fake_can_ask_for_a_pause(fake: FakeTransport) -> None:
    client = Client("grpc://fake:8001", transport=fake, retry=RetryPolicy(max_retries=0))
    fake.error = mooring.Overloaded("full", code="429", retry_after_s=1.5)
    with pytest.raises(mooring.Overloaded, match=r"^full$") as caught:
        client.server_ready()
    assert (caught.value.code, caught.value.retry_after_s) == ("429", 1.5)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (str(copied), copied.code, copied.retry_after_s) == ("full", "429", 1.5)


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after a statement."""
    program = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


OTHER_ROOMS = {"mooring_build", "mooring_serve", "mooring_loadtests"}
HEAVY = {
    "aiohttp",
    "asyncio.subprocess",
    "gevent",
    "google",
    "grpc",
    "httptools",
    "locust",
    "onnx",
    "onnxruntime",
    "opentelemetry",
    "requests",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
    "tritonclient",
}


def test_import_is_light() -> None:
    assert loaded_by("import mooring, mooring.testing, mooring._cli") & (HEAVY | OTHER_ROOMS) == set()


USES = {
    "grpc": ("mooring.Client('grpc://127.0.0.1:1', retry=none).models()", {"grpc", "tritonclient"}),
    "http": ("mooring.Client('http://127.0.0.1:1', retry=none).models()", {"httptools"}),
    "async grpc": ("asyncio.run(ask('grpc://127.0.0.1:1'))", {"grpc", "tritonclient"}),
    "async http": ("asyncio.run(ask('http://127.0.0.1:1'))", {"aiohttp"}),
}
PROTOCOLS = {"grpc", "tritonclient", "google", "httptools", "aiohttp"}


@pytest.mark.parametrize(("use", "wanted"), USES.values(), ids=USES.keys())
def test_a_protocol_is_imported_when_it_is_used(use: str, wanted: set[str]) -> None:
    program = f"""
import asyncio, mooring

none = mooring.RetryPolicy(max_retries=0)

async def ask(url):
    async with mooring.AsyncClient(url, retry=none) as client:
        await client.models()

try:
    {use}
except mooring.ConnectError:
    print("refused")
"""
    loaded = loaded_by(program)
    assert "refused" in loaded
    assert wanted <= loaded
    spared = PROTOCOLS - wanted - ({"google"} if "grpc" in wanted else set())
    # Telemetry looks whether OpenTelemetry is there.
    assert loaded & ((HEAVY - PROTOCOLS - {"opentelemetry"}) | OTHER_ROOMS | spared) == set()


def test_a_client_that_asks_nothing_imports_no_protocol() -> None:
    loaded = loaded_by("import mooring; mooring.Client('grpc://127.0.0.1:1').close()")
    assert loaded & PROTOCOLS == set()


def test_nothing_is_read_or_set_up_at_import() -> None:
    """No environment variable of the client's own, no handler that writes, no thread."""
    program = """
import logging, os, threading

class Watched(dict):
    def __getitem__(self, key):
        assert b"MOORING" not in key, key
        return super().__getitem__(key)

os.environ._data = Watched(os.environ._data) if hasattr(os.environ, "_data") else os.environ._data
import mooring, mooring.testing

assert logging.getLogger().handlers == []
handlers = logging.getLogger("mooring").handlers
assert [type(handler) for handler in handlers] == [logging.NullHandler], handlers
assert threading.active_count() == 1
"""
    loaded_by(program)
