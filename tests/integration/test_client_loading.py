"""Models that come, go and change while clients use them, on a real tritonserver."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from driven_clients import TWO_PAIRS, AnyClient, Pair
from mooring import Client, ConfigError, InvalidInput, ModelNotFound, ModelNotReady, ServerError
from mooring_serve import TritonServer
from processes import wait_until
from python_models import ECHO, ECHO_CONFIG, write_python_model

pytestmark = pytest.mark.integration


@pytest.fixture(params=TWO_PAIRS, ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each load takes a second or two."""
    return request.param  # type: ignore[no-any-return]


X = np.float32([[1, 2]])
#: The echo model with names and a type of its own.
RENAMED = ECHO.replace('"x"', '"a"').replace('"y"', '"b"')
RENAMED_CONFIG = ECHO_CONFIG.replace('"x"', '"a"').replace('"y"', '"b"').replace("FP32", "INT32")
OVERRIDE = json.dumps(
    {
        "backend": "python",
        "max_batch_size": 2,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1]}],
        "parameters": {"colour": {"string_value": "blue"}},
    }
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("loading") / "repository"
    for name in ("kept", "overridden", "changed", "broken"):
        write_python_model(repository, name)
    (repository / "broken" / "1" / "model.py").write_text("raise ValueError('on purpose')")
    return repository


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(
        repository,
        log_file=repository.parent / "tritonserver.log",
        model_control_mode="explicit",
        strict_readiness=False,
    ) as running:
        yield running


@pytest.fixture
def client(server: TritonServer, pair: Pair) -> Iterator[AnyClient]:
    with pair(pair.url(server)) as made:
        yield made


def rewrite(repository: Path, *, source: str = ECHO, config: str = ECHO_CONFIG) -> None:
    """Change the model ``changed``; another time stamp makes the server look again."""
    folder = repository / "changed"
    (folder / "1" / "model.py").write_text(dedent(source), encoding="utf-8")
    (folder / "config.pbtxt").write_text(dedent(config), encoding="utf-8")


def test_load_and_unload(client: AnyClient) -> None:
    client.load("kept")
    assert client.infer("kept", {"x": X})["y"].tolist() == X.tolist()
    client.unload("kept")
    wait_until(lambda: not client.ready("kept"))
    with pytest.raises((ModelNotReady, ModelNotFound), match="'kept'"):
        client.infer("kept", {"x": X})
    wait_until(lambda: ("kept", "UNAVAILABLE") in {(model.name, model.state) for model in client.models()})
    client.load("kept")
    assert client.ready("kept")
    assert client.infer("kept", {"x": X})["y"].tolist() == X.tolist()


def test_a_config_in_place_of_the_repositorys(client: AnyClient) -> None:
    client.load("overridden", config=OVERRIDE)
    config = client.config("overridden")
    assert (config.max_batch_size, config.parameters) == (2, {"colour": "blue"})
    with pytest.raises(InvalidInput, match="holds 3 rows; expected at most 2"):
        client.infer("overridden", {"x": np.zeros((3, 1), np.float32)})
    client.unload("overridden")


def test_files_in_place_of_the_repositorys(client: AnyClient) -> None:
    source = dedent(ECHO).replace(".as_numpy() for", ".as_numpy() * 3 for").encode()
    client.load("sent", config=OVERRIDE, files={"1/model.py": source})
    assert client.infer("sent", {"x": X})["y"].tolist() == (X * 3).tolist()
    client.unload("sent")
    wait_until(lambda: not client.ready("sent"))
    with pytest.raises(ConfigError, match="files need a config"):
        client.load("sent", files={"1/model.py": source})


def test_models_that_can_not_be_loaded(client: AnyClient) -> None:
    with pytest.raises(ServerError, match=r"^model 'broken': load failed .*\n?.*ValueError: on purpose") as e:
        client.load("broken")
    assert type(e.value) is ServerError
    with pytest.raises(ServerError, match=r"^model 'nope': failed to load 'nope'"):
        client.load("nope")
    with pytest.raises(ServerError, match=r"^model 'kept': failed to load 'kept'"):
        client.load("kept", config="{nonsense")
    client.load("kept")


def test_a_changed_signature_is_noticed(client: AnyClient, server: TritonServer, repository: Path) -> None:
    """Another client loads the model anew, so that this one isn't told."""
    with Client(server.http_url) as other:
        rewrite(repository)
        other.load("changed")
        assert client.infer("changed", {"x": X})["y"].tolist() == X.tolist()
        rewrite(repository, source=RENAMED, config=RENAMED_CONFIG)
        other.load("changed")
        # What the client knows says no to this, so it asks.
        a = np.int32([[1, 2]])
        assert client.infer("changed", {"a": a})["b"].tolist() == a.tolist()
        rewrite(repository)
        other.load("changed")
        # What it knows says yes to this; the server says no, and from then on the client knows better.
        with pytest.raises(ServerError, match="'changed'"):
            client.infer("changed", {"a": a})
        with pytest.raises(ServerError, match="there is no input 'a'; expected x FP32"):
            client.infer("changed", {"a": a})
        assert client.infer("changed", {"x": X})["y"].tolist() == X.tolist()


def test_reloads_in_poll_mode(tmp_path: Path, make_server: Callable[..., TritonServer]) -> None:
    repository = write_python_model(tmp_path / "repository", "changed")
    server = make_server(repository, model_control_mode="poll", extra_args=("--repository-poll-secs=1",))
    with Client(server.grpc_url) as client:
        assert client.infer("changed", {"x": X})["y"].tolist() == X.tolist()
        time.sleep(0.01)
        rewrite(repository, source=RENAMED, config=RENAMED_CONFIG)
        wait_until(lambda: client.metadata("changed").inputs[0].name == "a")
        a = np.int32([[3]])
        assert client.infer("changed", {"a": a})["b"].tolist() == [[3]]


def test_a_client_of_several_servers_loads_nothing(pair: Pair) -> None:
    urls = [f"{pair.protocol}://127.0.0.1:1", f"{pair.protocol}://127.0.0.1:2"]
    with pair(urls) as client:
        for change in (client.load, client.unload):
            with pytest.raises(ConfigError, match="concerns one server, but this client has 2"):
                change("kept")
