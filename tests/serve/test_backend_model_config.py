"""Triton's configuration in JSON form, as the embedded backends read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mooring_backend_flags import parse_backend_flags
from mooring_model_config import BackendError, Instance, ModelConfig, TensorConfig, check_model_file


def _tensor(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "data_type": "TYPE_FP32", "dims": [-1], **fields}


def test_reads_every_field_that_the_backends_use() -> None:
    config = ModelConfig.parse(
        {
            "name": "m",
            "max_batch_size": 8,
            "input": [
                _tensor("x", dims=["3", "-1"], reshape={"shape": ["-1"]}),
                _tensor("r", allow_ragged_batch=True),
            ],
            "output": [_tensor("y", dims=[-1, 9]), _tensor("z", dims=[1], reshape={})],
            "batch_input": [
                {
                    "kind": "BATCH_ITEM_SHAPE",
                    "target_name": [target],
                    "data_type": "TYPE_INT32",
                    "source_input": ["r"],
                }
                for target in ("a", "b")
            ],
            "batch_output": [
                {"kind": "BATCH_SCATTER_WITH_INPUT_SHAPE", "target_name": ["y"], "source_input": ["r"]}
            ],
            "default_model_filename": "other.onnx",
            "parameters": {"threads": {"string_value": "3"}, "flag": {"string_value": "Off"}},
            "model_operations": {"op_library_filename": ["ops.so"]},
            "sequence_batching": {
                "control_input": [
                    {
                        "name": "start",
                        "control": [{"kind": "CONTROL_SEQUENCE_START", "int32_false_true": [0, 1]}],
                    },
                    {
                        "name": "corrid",
                        "control": [{"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_UINT64"}],
                    },
                ]
            },
        }
    )
    assert config.inputs[0].model_dims == (-1,)
    assert config.inputs[0].dims == (3, -1)
    assert config.outputs[1].model_dims == ()
    assert config.ragged_inputs == {"r"}
    assert config.batch_input_names == ("a", "b")
    assert config.batch_outputs["y"].shape == (-1, -1, 9)
    assert config.controls == (("start", "TYPE_INT32"), ("corrid", "TYPE_UINT64"))
    assert config.op_libraries == ("ops.so",)
    assert config.integer("threads") == 3
    assert config.integer("missing", default=7) == 7
    assert config.flag("flag", default=True) is False
    assert config.flag("missing", default=True) is True


def test_a_smallest_configuration_is_enough() -> None:
    config = ModelConfig.parse({"name": "m"})
    assert config == ModelConfig(name="m")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"batch_output": [{"target_name": ["y", "z"], "source_input": ["x"]}]},
            r"batch_output names 2 targets \['y', 'z'\]; write one entry for each",
        ),
        (
            {"batch_input": [{"target_name": ["y", "z"], "source_input": ["x"]}]},
            r"batch_input names 2 targets \['y', 'z'\]; write one entry for each",
        ),
        (
            {"batch_output": [{"target_name": ["y"], "source_input": ["x"]}]},
            "batch_output target 'y' is missing in output",
        ),
        (
            {
                "max_batch_size": 8,
                "input": [_tensor("x")],
                "output": [_tensor("y", dims=[-1, 2, -1])],
                "batch_output": [{"target_name": ["y"], "source_input": ["x"]}],
            },
            r"'y' takes every -1 of its shape \[-1, -1, 2, -1\] .* input 'x', whose shape is \[-1, -1\]:",
        ),
        ({"sequence_batching": {"state": [{"input_name": "s"}]}}, r"sequence_batching\.state"),
        (
            {"model_transaction_policy": {"decoupled": True}},
            r"model_transaction_policy { decoupled: true } is",
        ),
    ],
)
def test_refuses_what_it_can_not_serve(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        ModelConfig.parse({"name": "m", **fields})


@pytest.mark.parametrize("read", [ModelConfig.flag, ModelConfig.integer])
def test_a_parameter_of_the_wrong_kind_is_named(read: Any) -> None:
    config = ModelConfig(name="m", parameters={"key": "seven"})
    with pytest.raises(BackendError, match="parameter 'key': 'seven' is not a"):
        read(config, "key")


@pytest.mark.parametrize("wanted", [True, False])
def test_instance_and_model_file(tmp_path: Path, wanted: bool) -> None:
    group = "{ count: 2 kind: KIND_GPU }" if wanted else "{ count: 2 }  # not KIND_GPU"
    # A comment in Latin-1, which Triton doesn't mind.
    (tmp_path / "config.pbtxt").write_bytes(f"instance_group {group}\n# f\xfcr".encode("latin-1"))
    instance = Instance.parse(
        {
            "model_instance_kind": "GPU",
            "model_instance_device_id": "1",
            "model_repository": str(tmp_path),
            "model_version": "12",
        }
    )
    assert instance == Instance(kind="GPU", device_id=1, folder=tmp_path / "12", gpu_wanted=wanted)
    with pytest.raises(BackendError, match=r"unable to find '.*gone\.onnx'") as raised:
        check_model_file(ModelConfig(name="m"), tmp_path / "gone.onnx")
    assert raised.value.code == "UNAVAILABLE"


def test_tensor_without_options() -> None:
    tensor = TensorConfig.parse(_tensor("x"))
    assert (tensor.optional, tensor.ragged, tensor.reshape) == (False, False, None)


def test_backend_flags_of_one_backend_go_before_those_of_all() -> None:
    command = [
        "tritonserver",
        "--backend-config=default-max-batch-size=2",
        "--backend-config",
        "onnxruntime,enable-global-threadpool=1",
        "--backend-config=onnxruntime,default-max-batch-size=16",
        "--backend-config=pytorch,intra_op_thread_count=9",
        "--http-port=1",
        "",
    ]
    assert parse_backend_flags("onnxruntime", command) == {
        "default-max-batch-size": "16",
        "enable-global-threadpool": "1",
    }
    assert parse_backend_flags("pytorch", command) == {
        "default-max-batch-size": "2",
        "intra_op_thread_count": "9",
    }
