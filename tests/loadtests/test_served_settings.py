from __future__ import annotations

from typing import cast

from mooring import Client, DynamicBatching, EnsembleStep, ModelConfig
from mooring_loadtests.served_settings import served_settings


def _config(name: str, *steps: str, **fields: object) -> ModelConfig:
    calls = tuple(EnsembleStep(model=step, version="", inputs={}, outputs={}) for step in steps)
    given = {"max_batch_size": 32, "optional_inputs": (), "parameters": {}, **fields}
    return ModelConfig(name=name, steps=calls, **given)


class Configs:
    """A client that knows configs alone."""

    def __init__(self, *configs: ModelConfig) -> None:
        self.config = {config.name: config for config in configs}.__getitem__


def test_settings_are_told_of_every_model_that_is_called() -> None:
    labels = str([f"label {number}" for number in range(50)])
    client = Configs(
        _config(
            "service",
            *("intent", "reply"),
            backend="ensemble",
            response_cache=True,
            parameters={"labels": labels},
        ),
        _config("intent", "engine", backend="ensemble"),
        _config("reply", "engine", backend="python", instance_count=1),
        _config(
            "engine",
            backend="onnxruntime",
            instance_count=2,
            instance_kinds=("KIND_CPU",),
            resources={"cores": 1},
            dynamic_batching=DynamicBatching(
                preferred_batch_sizes=(4, 8), max_queue_size=16, queue_timeout_us=700
            ),
            parameters={"intra_op_thread_count": "1"},
        ),
    )
    assert served_settings(cast(Client, client), "service") == {
        "service": "ensemble, response cache",
        "intent": "ensemble",
        "reply": "python, 1 instance, batches up to 32",
        "engine": "onnxruntime, 2 instances, on CPU, batches up to 32, preferred 4 or 8, queue delay 0 us, "
        "at most 16 waiting, waiting for at most 700 us, 1 of resource cores, intra_op_thread_count=1",
    }
