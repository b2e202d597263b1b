from __future__ import annotations

from typing import Any

import pytest

from mooring import DecodeError, DynamicBatching
from mooring._models import read_config

# JSON of protobuf writes 64-bit numbers as text, Triton's own HTTP endpoint does not.
BATCHING = {
    "preferred_batch_size": [4, 8],
    "max_queue_delay_microseconds": "500",
    "default_queue_policy": {"max_queue_size": 16},
}


@pytest.mark.parametrize(
    ("raw", "instances", "batching"),
    [
        ({}, 0, None),
        ({"dynamic_batching": {}}, 0, DynamicBatching()),
        (
            {"instance_group": [{"count": 2, "kind": "KIND_CPU", "gpus": []}], "dynamic_batching": BATCHING},
            2,
            DynamicBatching(preferred_batch_sizes=(4, 8), max_queue_delay_us=500, max_queue_size=16),
        ),
        ({"instance_group": [{"count": 2, "gpus": [0, 1]}, {"gpus": [3]}]}, 5, None),
    ],
)
def test_a_config_says_how_a_model_is_served(
    raw: dict[str, Any], instances: int, batching: DynamicBatching | None
) -> None:
    config = read_config({"name": "ner_onnx", "max_batch_size": 32, **raw}, model="ner_onnx")
    assert (config.instance_count, config.dynamic_batching) == (instances, batching)


def test_another_answer_is_no_config() -> None:
    with pytest.raises(DecodeError, match="model 'ner': the answer is no model config"):
        read_config({"name": "ner", "instance_group": [{"count": "two"}]}, model="ner")
