from __future__ import annotations

from typing import Any

import pytest

from mooring import DecodeError, DynamicBatching
from mooring._models import read_config

# JSON of protobuf writes 64-bit numbers as text, Triton's own HTTP endpoint does not.
BATCHING = {
    "preferred_batch_size": [4, 8],
    "max_queue_delay_microseconds": "500",
    "default_queue_policy": {"max_queue_size": 16, "default_timeout_microseconds": "700"},
}


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({}, {"instance_count": 0, "instance_kinds": (), "resources": {}, "response_cache": False}),
        ({}, {"dynamic_batching": None}),
        ({"dynamic_batching": {}}, {"dynamic_batching": DynamicBatching()}),
        (
            {"dynamic_batching": BATCHING},
            {
                "dynamic_batching": DynamicBatching(
                    preferred_batch_sizes=(4, 8),
                    max_queue_delay_us=500,
                    max_queue_size=16,
                    queue_timeout_us=700,
                )
            },
        ),
        (
            {"instance_group": [{"count": 2, "kind": "KIND_CPU", "gpus": []}]},
            {"instance_count": 2, "instance_kinds": ("KIND_CPU",)},
        ),
        (
            {"instance_group": [{"count": 2, "kind": "KIND_GPU", "gpus": [0, 1]}, {"gpus": [3]}]},
            {"instance_count": 5, "instance_kinds": ("KIND_GPU", "KIND_AUTO")},
        ),
        (
            {"instance_group": [{"rate_limiter": {"resources": [{"name": "cores", "count": 1}]}}]},
            {"resources": {"cores": 1}},
        ),
        ({"response_cache": {"enable": True}}, {"response_cache": True}),
    ],
)
def test_a_config_says_how_a_model_is_served(raw: dict[str, Any], told: dict[str, Any]) -> None:
    config = read_config({"name": "ner_onnx", "max_batch_size": 32, **raw}, model="ner_onnx")
    assert {name: getattr(config, name) for name in told} == told


def test_another_answer_is_no_config() -> None:
    with pytest.raises(DecodeError, match="model 'ner': the answer is no model config"):
        read_config({"name": "ner", "instance_group": [{"count": "two"}]}, model="ner")
