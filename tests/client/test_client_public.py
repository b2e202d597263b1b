"""The package's surface: names, imports, documentation."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import mooring
import mooring.testing
from mooring import Client, MooringError
from mooring.testing import FakeModel, FakeTransport

NAMES = [
    "BuildError",
    "CheckpointError",
    "Client",
    "ConfigError",
    "ConnectError",
    "DataError",
    "DeadlineExceeded",
    "DecodeError",
    "Entity",
    "InvalidInput",
    "Label",
    "ModelConfig",
    "ModelMetadata",
    "ModelNotFound",
    "ModelNotReady",
    "ModelStatus",
    "MooringError",
    "Overloaded",
    "PublishError",
    "RecipeError",
    "ServerError",
    "StartError",
    "TensorSpec",
    "TextClassifier",
    "TokenClassifier",
    "TransportError",
    "UnsupportedPlatform",
    "VerificationError",
]


def test_public_names_are_these() -> None:
    assert mooring.__all__ == NAMES == sorted(NAMES)
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


def test_value_objects_are_frozen_and_keyword_only() -> None:
    for name in ("Entity", "Label", "ModelConfig", "ModelMetadata", "ModelStatus", "TensorSpec"):
        kind = getattr(mooring, name)
        assert kind.__dataclass_params__.frozen, name
        assert all(field.kw_only for field in dataclasses.fields(kind)), name


@pytest.mark.parametrize("kind", [getattr(mooring, name) for name in NAMES] + [FakeModel, FakeTransport])
def test_everything_public_is_documented(kind: Any) -> None:
    assert inspect.getdoc(kind)
    for name, value in vars(kind).items():
        if inspect.isfunction(value) and not name.startswith("_"):
            assert inspect.getdoc(value), f"{kind.__name__}.{name}"


def test_defaults_in_the_documentation_are_those_of_the_signature() -> None:
    assert inspect.signature(Client).parameters["timeout_s"].default == 60.0
    methods = ("server_ready", "ready", "metadata", "config", "models", "infer", "task")
    for method in methods:
        assert inspect.signature(getattr(Client, method)).parameters["timeout_s"].default is None, method


def example_of(module: Any) -> str:
    """The first indented block of a module's docstring."""
    block = re.search(r"::\n\n((?: {4}.*\n|\n)+)", module.__doc__)
    assert block is not None
    return inspect.cleandoc(block[1])


def test_the_package_example_runs(
    grpc_url: str, fake: FakeTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = ("INT64", [-1, -1])
    fake.models_by_name["ner_onnx"] = FakeModel(
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
    client = Client("grpc://fake:8001", transport=fake)
    fake.error = mooring.ConnectError("down")
    for call in (client.server_ready, client.models, lambda: client.ready("ner"), lambda: client.task("ner")):
        with pytest.raises(mooring.ConnectError, match="down"):
            call()
    fake.error = None
    assert client.ready("ner")
    client.close()
    assert fake.closed


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after a statement."""
    program = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


OTHER_ROOMS = {"mooring_build", "mooring_serve", "mooring_loadtests"}
HEAVY = {"torch", "transformers", "locust", "onnx", "onnxruntime", "tokenizers"}


def test_import_is_light() -> None:
    loaded = loaded_by("import mooring, mooring.testing, mooring._cli")
    assert loaded & (HEAVY | OTHER_ROOMS | {"tritonclient", "grpc", "gevent"}) == set()


@pytest.mark.parametrize(
    ("url", "wanted", "spared"),
    [("grpc://127.0.0.1:1", "grpc", "gevent"), ("http://127.0.0.1:1", "gevent", "grpc")],
)
def test_a_protocol_is_imported_when_it_is_used(url: str, wanted: str, spared: str) -> None:
    loaded = loaded_by(f"import mooring; mooring.Client({url!r}).close()")
    assert wanted in loaded
    assert loaded & (HEAVY | OTHER_ROOMS | {spared}) == set()
