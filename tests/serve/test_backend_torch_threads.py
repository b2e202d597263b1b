"""When the embedded pytorch backend lets PyTorch's threads sleep soon."""

from __future__ import annotations

import pytest
from mooring_model_config import BackendError, ModelConfig
from mooring_torch_threads import shorten_waiting


def _config(threads: str | None, *groups: dict[str, object]) -> ModelConfig:
    parameters = {} if threads is None else {"INTRA_OP_THREAD_COUNT": {"string_value": threads}}
    return ModelConfig.parse({"name": "m", "instance_group": list(groups), "parameters": parameters})


def _cpu(count: int) -> dict[str, object]:
    return {"count": count, "kind": "KIND_CPU"}


@pytest.mark.parametrize(
    ("config", "shortened"),
    [
        (_config("2", _cpu(2)), True),
        (_config("2", _cpu(1), _cpu(1)), True),
        (_config("1", _cpu(3)), True),
        (_config("1", _cpu(2)), False),
        (_config("2", _cpu(1)), False),
        # Without a number, or with one that PyTorch ignores, each instance has a thread for every core.
        (_config(None, _cpu(2)), True),
        (_config("0", _cpu(2)), True),
        (_config(None, _cpu(1)), False),
        (_config("2", {"count": 2, "kind": "KIND_GPU"}), False),
        (_config("2"), False),
    ],
)
def test_more_threads_than_cores(config: ModelConfig, shortened: bool) -> None:
    environment = {"OTHER": "1"}
    shorten_waiting(config, cores=2, environment=environment)
    assert environment == {"OTHER": "1", **({"GOMP_SPINCOUNT": "100"} if shortened else {})}


@pytest.mark.parametrize("said", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_what_the_environment_says_stays(said: dict[str, str]) -> None:
    environment = dict(said)
    shorten_waiting(_config("2", _cpu(2)), cores=2, environment=environment)
    assert environment == said


def test_a_thread_count_that_is_no_number() -> None:
    with pytest.raises(BackendError, match=r"INTRA_OP_THREAD_COUNT.*'two'"):
        shorten_waiting(_config("two", _cpu(2)), cores=2, environment={})
