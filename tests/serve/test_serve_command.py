from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mooring import ConfigError
from mooring_serve import TritonServer, _server
from mooring_serve._command import (
    ServerOptions,
    check_repository,
    models_to_load,
    server_command,
    unbuilt_models,
)
from mooring_serve._installation import Installation
from mooring_serve.cli import without_parts

EMBEDDED = Installation(
    executable=Path("/wheel/tritonserver"),
    backend_directory=Path("/cache/backends"),
    cache_directory=Path("/wheel/caches"),
    environment={},
)
OFFICIAL = replace(EMBEDDED, backend_directory=None, cache_directory=None)
PORTS = {"http_port": 1001, "grpc_port": 1002, "metrics_port": 1003}


def command(installation: Installation = EMBEDDED, **options: Any) -> list[str]:
    asked = ServerOptions(model_repository=Path("models"), **options)
    return server_command(installation, asked, address="127.0.0.1", ports=PORTS, server_id="mine")


def test_command_of_the_embedded_server() -> None:
    assert command() == [
        "/wheel/tritonserver",
        "--id=mine",
        "--model-repository=models",
        "--model-control-mode=none",
        "--http-address=127.0.0.1",
        "--http-port=1001",
        "--grpc-address=127.0.0.1",
        "--grpc-port=1002",
        "--metrics-address=127.0.0.1",
        "--metrics-port=1003",
        "--strict-readiness=true",
        "--exit-on-error=false",
        "--exit-timeout-secs=8",
        "--backend-directory=/cache/backends",
        "--cache-directory=/wheel/caches",
        "--backend-config=python,shm-region-prefix-name=mine",
        "--backend-config=python,shm-default-byte-size=16777216",
        "--backend-config=onnxruntime,shm-region-prefix-name=mine",
        "--backend-config=onnxruntime,shm-default-byte-size=16777216",
        "--backend-config=pytorch,shm-region-prefix-name=mine",
        "--backend-config=pytorch,shm-default-byte-size=16777216",
    ]


def test_the_official_server_keeps_its_backends() -> None:
    assert set(command()) - set(command(OFFICIAL)) == {
        "--backend-directory=/cache/backends",
        "--cache-directory=/wheel/caches",
        "--backend-config=onnxruntime,shm-region-prefix-name=mine",
        "--backend-config=onnxruntime,shm-default-byte-size=16777216",
        "--backend-config=pytorch,shm-region-prefix-name=mine",
        "--backend-config=pytorch,shm-default-byte-size=16777216",
    }


def test_options_reach_the_command() -> None:
    given = command(
        strict_readiness=False,
        stop_timeout_s=2.5,
        model_control_mode="poll",
        extra_args=["--log-verbose=1"],
    )
    assert {"--strict-readiness=false", "--exit-timeout-secs=1", "--model-control-mode=poll"} < set(given)
    assert given[-1] == "--log-verbose=1"


def test_explicit_control_loads_everything_unless_told_what() -> None:
    assert "--load-model=*" in command(model_control_mode="explicit")
    named = command(model_control_mode="explicit", extra_args=["--load-model=ner"])
    assert [word for word in named if word.startswith("--load-model")] == ["--load-model=ner"]
    named = command(model_control_mode="explicit", extra_args=["--load-model", "ner"])
    assert [word for word in named if word.startswith("--load-model")] == ["--load-model"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_control_mode": "all"}, "model_control_mode is 'all': it must be one of 'none', 'explicit'"),
        ({"start_timeout_s": 0}, "start_timeout_s is 0: it must be a number above 0"),
        ({"start_timeout_s": math.nan}, "start_timeout_s is nan"),
        ({"stop_timeout_s": math.inf}, "stop_timeout_s is inf"),
        ({"stop_timeout_s": -1.5}, r"stop_timeout_s is -1\.5"),
        ({"extra_args": ["--http-port=80"]}, "'--http-port=80', which Mooring sets"),
        ({"http_port": 99999}, "http_port is 99999"),
    ],
)
def test_options_that_cannot_be_right(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TritonServer("models", **options)


def options_for(repository: Path, **options: Any) -> ServerOptions:
    return ServerOptions(model_repository=repository, **options)


def test_too_little_shared_memory_is_named() -> None:
    server = TritonServer("models")
    said = "Stub process 'ner_tokenizer_0_0' is not healthy: Failed to initialize shared memory pool"
    assert "takes 16 MiB of /dev/shm, which has" in server._shared_memory_hint({"ner_tokenizer": said})
    assert server._shared_memory_hint({"ner": "no such file"}) == ""


def test_a_repository_that_is_missing_empty_or_not_built(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model repository at .*/absent: run 'mooring build'"):
        check_repository(options_for(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"holds no built model: run 'mooring build'"):
        check_repository(options_for(tmp_path))
    (tmp_path / "ner" / ".staging-1").mkdir(parents=True)
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    (tmp_path / "ner" / "config.pbtxt").touch()
    with pytest.raises(ConfigError, match=r"holds no built model"):
        check_repository(options_for(tmp_path))
    for name in ("my models", "it's", "{a,b}"):
        (tmp_path / name / "ner" / "1").mkdir(parents=True)
        with pytest.raises(ConfigError, match=r"the model repository is .* hands it to a shell"):
            check_repository(options_for(tmp_path / name))
    (tmp_path / "Modèles@home,v=1+~#" / "ner" / "1").mkdir(parents=True)
    check_repository(options_for(tmp_path / "Modèles@home,v=1+~#"))
    # Here something may come later.
    check_repository(options_for(tmp_path, model_control_mode="poll"))
    (tmp_path / "ner" / "1").mkdir()
    check_repository(options_for(tmp_path))


def test_the_embedded_server_takes_no_repository_whose_path_is_not_ascii(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modèles" / "ner" / "1").mkdir(parents=True)
    monkeypatch.setattr(_server, "find_installation", lambda: EMBEDDED)
    with pytest.raises(ConfigError, match=r"the model repository is .*/modèles': .* names for ASCII"):
        TritonServer(tmp_path / "modèles").start()


def test_models_to_load(tmp_path: Path) -> None:
    (tmp_path / "ner" / "1").mkdir(parents=True)
    (tmp_path / "intent").mkdir()
    (tmp_path / ".staging").mkdir()
    (tmp_path / "README").touch()
    assert models_to_load(options_for(tmp_path)) == {"ner"}
    assert unbuilt_models(options_for(tmp_path)) == {"intent"}
    (tmp_path / "faq" / "1").mkdir(parents=True)
    for extra_args in (["--load-model=ner"], ["--load-model", "ner", "--log-verbose=1"]):
        only = options_for(tmp_path, model_control_mode="explicit", extra_args=extra_args)
        assert models_to_load(only) == {"ner"}


@pytest.fixture
def refuse_to_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make folders of a name unreadable; root, who may read everything, runs tests too."""
    iterdir, read_text = Path.iterdir, Path.read_text

    def make_unreadable(name: str) -> None:
        def refuse(path: Path) -> None:
            if name in (path.name, path.parent.name):
                raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "iterdir", lambda path: refuse(path) or iterdir(path))
        monkeypatch.setattr(Path, "read_text", lambda path, **how: refuse(path) or read_text(path, **how))

    return make_unreadable


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_a_volumes_own_folder_is_no_model(
    tmp_path: Path, mode: Any, refuse_to_read: Callable[[str], None]
) -> None:
    (tmp_path / "ner" / "1").mkdir(parents=True)
    (tmp_path / "lost+found").mkdir()
    refuse_to_read("lost+found")
    options = options_for(tmp_path, model_control_mode=mode)
    check_repository(options)
    words = server_command(EMBEDDED, options, address="127.0.0.1", ports=PORTS, server_id="mine")
    assert "--strict-readiness=true" in words
    assert models_to_load(options) == {"ner"}
    assert unbuilt_models(options) == set()


def test_a_model_that_can_not_be_read_is_not_left_out(
    tmp_path: Path, refuse_to_read: Callable[[str], None]
) -> None:
    for name in ("ner", "intent"):
        (tmp_path / name / "1").mkdir(parents=True)
    refuse_to_read("ner")
    options = options_for(tmp_path)
    for look in (check_repository, models_to_load, unbuilt_models):
        with pytest.raises(ConfigError, match=r"^the model .*/ner can't be read: Permission denied$"):
            look(options)


def test_a_repository_that_can_not_be_read_is_not_missing(
    tmp_path: Path, refuse_to_read: Callable[[str], None]
) -> None:
    repository = tmp_path / "models"
    (repository / "ner" / "1").mkdir(parents=True)
    refuse_to_read("models")
    with pytest.raises(ConfigError, match=r"model repository .*/models can't be read: .*Permission denied"):
        check_repository(options_for(repository))


@pytest.mark.parametrize(("built", "strict"), [(True, "true"), (False, "false")])
def test_polling_does_not_wait_for_what_is_not_built(tmp_path: Path, built: bool, strict: str) -> None:
    (tmp_path / "ner" / "1").mkdir(parents=True)
    (tmp_path / "intent" / "1" if built else tmp_path / "intent").mkdir(parents=True)
    options = options_for(tmp_path, model_control_mode="poll")
    words = server_command(EMBEDDED, options, address="127.0.0.1", ports=PORTS, server_id="mine")
    assert f"--strict-readiness={strict}" in words


def test_parts_are_not_named_beside_their_pipeline(tmp_path: Path) -> None:
    models = ["faq", "faq_catalogue", "faq_zh", "faq_zh_tokenizer", "faqs", "ner_onnx"]
    for name in models:
        (tmp_path / name).mkdir()
        kind = 'platform: "ensemble"' if name in ("faq", "faq_zh") else 'backend: "python"'
        (tmp_path / name / "config.pbtxt").write_text(f'name: "{name}"\n{kind}\n')
    (tmp_path / "faqs" / "config.pbtxt").unlink()
    assert without_parts(tmp_path, models) == ["faq", "faq_zh", "faqs", "ner_onnx"]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", ["--model-control-mode=explicit", "--load-model=ner", "--strict-readiness=true"]),
        ("explicit", ["--model-control-mode=explicit", "--load-model=ner", "--strict-readiness=true"]),
        ("poll", ["--model-control-mode=poll", "--strict-readiness=false"]),
    ],
)
def test_a_hidden_folder_is_no_model_that_failed(mode: Any, expected: list[str], tmp_path: Path) -> None:
    # Triton takes it for a model "" of the backend "git", of which no version is there.
    for folder in ("ner/1", ".git/objects"):
        (tmp_path / folder).mkdir(parents=True)
    options = options_for(tmp_path, model_control_mode=mode)
    words = server_command(EMBEDDED, options, address="127.0.0.1", ports=PORTS, server_id="mine")
    told = ("--load-model", "--model-control", "--strict-readiness")
    assert [word for word in words if word.startswith(told)] == expected
    assert unbuilt_models(options) == set()


@pytest.mark.parametrize("mode", ["none", "explicit"])
def test_models_that_are_not_built_are_left_out(mode: Any, tmp_path: Path) -> None:
    for model in ("ner", "ner_onnx"):
        (tmp_path / model / "1").mkdir(parents=True)
    options = options_for(tmp_path, model_control_mode=mode)

    def loading() -> list[str]:
        words = server_command(EMBEDDED, options, address="127.0.0.1", ports=PORTS, server_id="mine")
        return [word for word in words if word.startswith(("--load-model", "--model-control"))]

    assert loading() == [
        f"--model-control-mode={mode}",
        *(["--load-model=*"] if mode == "explicit" else []),
    ]
    (tmp_path / "intent").mkdir()
    assert loading() == ["--model-control-mode=explicit", "--load-model=ner", "--load-model=ner_onnx"]


@pytest.mark.parametrize(
    ("config", "extra_args", "expected"),
    [
        ("response_cache {\n  enable: true\n}", [], ["--cache-config=local,size=67108864"]),
        (
            "response_cache: { enable: true }",
            ["--cache-config=redis,host=cache"],
            ["--cache-config=redis,host=cache"],
        ),
        ("instance_group {\n  rate_limiter {\n  }\n}", [], ["--rate-limit=execution_count"]),
        ("instance_group [{ count: 1 rate_limiter { priority: 1 } }]", [], ["--rate-limit=execution_count"]),
        ("response_cache {\n  enable: true\n}", ["--response-cache-byte-size=9"], []),
        ("response_cache {\n  enable: false\n}", [], []),
        ("instance_group { count: 1 }\n# no response_cache { enable: true }", [], []),
    ],
)
def test_the_server_does_what_a_config_asks_of_it(
    tmp_path: Path, config: str, extra_args: list[str], expected: list[str]
) -> None:
    (tmp_path / "ner" / "1").mkdir(parents=True)
    (tmp_path / "ner" / "config.pbtxt").write_text(config, encoding="utf-8")
    options = options_for(tmp_path, extra_args=extra_args)
    words = server_command(EMBEDDED, options, address="127.0.0.1", ports=PORTS, server_id="mine")
    assert [word for word in words if word.startswith(("--cache-config", "--rate-limit"))] == expected


def test_a_model_that_goes_away_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ner" / "1").mkdir(parents=True)
    (tmp_path / "intent").mkdir()
    iterdir = Path.iterdir

    def look(path: Path) -> Any:
        if path.name == "intent":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", look)
    assert models_to_load(options_for(tmp_path)) == {"ner"}
