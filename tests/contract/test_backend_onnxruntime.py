"""The embedded onnxruntime backend serves what the official one serves, seen through a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from engine_models import LOOKUP_CONFIG, ONE_CPU_INSTANCE, lookup_model, onnx_model, write_config
from mooring_serve import TritonServer
from triton_calls import Client, connect, count, infer, infer_together, load_error

pytestmark = pytest.mark.integration

#: Triton's type, ONNX's type, NumPy's type, values [2, 2].
_TYPES = (
    ("BOOL", TensorProto.BOOL, "?", [[True, False], [False, True]]),
    ("UINT8", TensorProto.UINT8, "u1", [[0, 255], [1, 2]]),
    ("UINT16", TensorProto.UINT16, "u2", [[0, 65535], [1, 2]]),
    ("UINT32", TensorProto.UINT32, "u4", [[0, 4294967295], [1, 2]]),
    ("UINT64", TensorProto.UINT64, "u8", [[0, 18446744073709551615], [1, 2]]),
    ("INT8", TensorProto.INT8, "i1", [[-128, 127], [1, 2]]),
    ("INT16", TensorProto.INT16, "i2", [[-32768, 32767], [1, 2]]),
    ("INT32", TensorProto.INT32, "i4", [[-2147483648, 2147483647], [1, 2]]),
    ("INT64", TensorProto.INT64, "i8", [[-9223372036854775808, 9223372036854775807], [1, 2]]),
    ("FP16", TensorProto.FLOAT16, "f2", [[0.5, -65504.0], [1, 2]]),
    ("FP32", TensorProto.FLOAT, "f4", [[0.1, -3e38], [1, 2]]),
    ("FP64", TensorProto.DOUBLE, "f8", [[0.1, -1e308], [1, 2]]),
    ("STRING", TensorProto.STRING, "O", [["straße".encode(), b"a b"], ["日本".encode(), b""]]),
)
_ARRAYS = {f"in_{kind}": np.array(values, dtype=dtype) for kind, _, dtype, values in _TYPES}
_KINDS = (
    "BATCH_ELEMENT_COUNT",
    "BATCH_ACCUMULATED_ELEMENT_COUNT",
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE",
    "BATCH_ITEM_SHAPE",
    "BATCH_ITEM_SHAPE_FLATTEN",
)
# Requests wait until there are three items, so that they run as one batch.
_THREE_TOGETHER = "dynamic_batching { preferred_batch_size: [3] max_queue_delay_microseconds: 5000000 }"
_WARMUP = """
    model_warmup {
      name: "w" batch_size: 2 count: 3
      inputs { key: "ids" value { data_type: TYPE_INT64 dims: [3] zero_data: true } }
    }
"""
_PARAMETERS = {
    "intra_op_thread_count": "1",
    "inter_op_thread_count": "1",
    "execution_mode": "1",
    "enable_mem_arena": "1",
    "enable_mem_pattern": "off",
    "memory.enable_memory_arena_shrinkage": "cpu:0",
    "session.use_device_allocator_for_initializers": "1",
    "share_session_between_instances": "true",
}


def _write_every_type(repository: Path) -> None:
    model = onnx_model(
        [helper.make_node("Identity", [f"in_{kind}"], [f"out_{kind}"]) for kind, *_ in _TYPES],
        [(f"in_{kind}", onnx_type, ["b", "n"]) for kind, onnx_type, *_ in _TYPES],
        [(f"out_{kind}", onnx_type, ["b", "n"]) for kind, onnx_type, *_ in _TYPES],
    )
    tensors = [
        f'{side}put {{ name: "{side}_{kind}" data_type: TYPE_{kind} dims: [-1] }}'
        for kind, *_ in _TYPES
        for side in ("in", "out")
    ]
    config = "\n".join(['backend: "onnxruntime"', "max_batch_size: 4", ONE_CPU_INSTANCE, *tensors])
    onnx.save(model, write_config(repository, "types", config) / "model.onnx")


def _write_lookups(repository: Path) -> None:
    """Write the lookup model in many configurations, right and wrong."""
    configs = {
        "together": LOOKUP_CONFIG + _THREE_TOGETHER,
        "warm": LOOKUP_CONFIG + _WARMUP,
        "wrong_dims": LOOKUP_CONFIG.replace("dims: [-1]", "dims: [-1, 2]"),
    }
    for name, config in configs.items():
        onnx.save(lookup_model(), write_config(repository, name, config) / "model.onnx")
    write_config(repository, "no_file", LOOKUP_CONFIG + 'default_model_filename: "gone.onnx"')
    (write_config(repository, "damaged", LOOKUP_CONFIG) / "model.onnx").write_bytes(b"not an ONNX file")

    automatic = repository / "automatic" / "1"
    automatic.mkdir(parents=True)
    onnx.save(lookup_model(), automatic / "model.onnx")

    parameters = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in _PARAMETERS.items()
    )
    tuned = LOOKUP_CONFIG.replace("count: 1", "count: 2") + (
        f'{parameters}\ndefault_model_filename: "engine"\noptimization {{ graph {{ level: 1 }} }}'
    )
    folder = write_config(repository, "tuned", tuned) / "engine"
    folder.mkdir()
    onnx.save(lookup_model(), folder / "model.onnx")


def _write_without_batching(repository: Path) -> None:
    """Write x + bias and its sum, where a request may leave the bias to the model."""
    model = onnx_model(
        [
            helper.make_node("Add", ["x", "bias"], ["sum"]),
            helper.make_node("ReduceSum", ["sum"], ["total"], keepdims=0),
        ],
        [("x", TensorProto.FLOAT, [2]), ("bias", TensorProto.FLOAT, [2])],
        [("sum", TensorProto.FLOAT, [2]), ("total", TensorProto.FLOAT, [])],
        [helper.make_tensor("bias", TensorProto.FLOAT, [2], [100, 200])],
    )
    config = f"""
        backend: "onnxruntime"
        input {{ name: "x" data_type: TYPE_FP32 dims: [2] }}
        input {{ name: "bias" data_type: TYPE_FP32 dims: [2] optional: true }}
        output {{ name: "sum" data_type: TYPE_FP32 dims: [2] }}
        output {{ name: "total" data_type: TYPE_FP32 dims: [1] }}
        {ONE_CPU_INSTANCE}
    """
    onnx.save(model, write_config(repository, "no_batch", config) / "model.onnx")


def _write_reshaped(repository: Path) -> None:
    model = onnx_model(
        [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Neg", ["m"], ["n"])],
        [("x", TensorProto.FLOAT, ["b"]), ("m", TensorProto.FLOAT, ["b", 2, 2])],
        [("y", TensorProto.FLOAT, ["b"]), ("n", TensorProto.FLOAT, ["b", 2, 2])],
    )
    config = f"""
        backend: "onnxruntime"
        max_batch_size: 4
        input {{ name: "x" data_type: TYPE_FP32 dims: [1] reshape {{ shape: [] }} }}
        input {{ name: "m" data_type: TYPE_FP32 dims: [4] reshape {{ shape: [2, 2] }} }}
        output {{ name: "y" data_type: TYPE_FP32 dims: [1] reshape {{ shape: [] }} }}
        output {{ name: "n" data_type: TYPE_FP32 dims: [4] reshape {{ shape: [2, 2] }} }}
        {ONE_CPU_INSTANCE}
    """
    onnx.save(model, write_config(repository, "reshaped", config) / "model.onnx")


def _write_ragged(repository: Path) -> None:
    """Write twice the packed ids, and for every item one row of all that the batch inputs hold."""
    longest, item_shape = _KINDS[3], _KINDS[4]
    nodes = [helper.make_node("Reshape", [kind, "minus_one"], [f"flat_{kind}"]) for kind in _KINDS]
    row = [f"flat_{kind}" if kind != longest else "length" for kind in _KINDS]
    nodes += [
        # This one says what it has to say by its shape.
        helper.make_node("Shape", [longest], ["length64"]),
        helper.make_node("Cast", ["length64"], ["length"], to=TensorProto.INT32),
        helper.make_node("Concat", row, ["row"], axis=0),
        helper.make_node("Shape", [item_shape], ["items"], start=0, end=1),
        helper.make_node("Concat", ["items", "one"], ["rows"], axis=0),
        helper.make_node("Expand", ["row", "rows"], ["seen"]),
        helper.make_node("Add", ["ids", "ids"], ["twice"]),
    ]
    flat_inputs = [(kind, TensorProto.INT32, [f"n_{kind}"]) for kind in _KINDS if kind != item_shape]
    model = onnx_model(
        nodes,
        [("ids", TensorProto.INT32, ["t"]), (item_shape, TensorProto.INT32, ["items", 1]), *flat_inputs],
        [("seen", TensorProto.INT32, ["items", "k"]), ("twice", TensorProto.INT32, ["t"])],
        [
            helper.make_tensor("minus_one", TensorProto.INT64, [1], [-1]),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        ],
    )
    batch_inputs = [
        f'batch_input {{ kind: {kind} target_name: "{kind}" data_type: TYPE_INT32 source_input: "ids" }}'
        for kind in _KINDS
    ]
    config = [
        'backend: "onnxruntime"',
        "max_batch_size: 8",
        'input { name: "ids" data_type: TYPE_INT32 dims: [-1] allow_ragged_batch: true }',
        *batch_inputs,
        'output { name: "seen" data_type: TYPE_INT32 dims: [-1] }',
        'output { name: "twice" data_type: TYPE_INT32 dims: [-1] }',
        'batch_output { target_name: "twice" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "ids" }',
        ONE_CPU_INSTANCE,
        _THREE_TOGETHER,
    ]
    onnx.save(model, write_config(repository, "ragged", "\n".join(config)) / "model.onnx")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("onnxruntime")
    repository = folder / "repository"
    for write in (
        _write_every_type,
        _write_lookups,
        _write_without_batching,
        _write_reshaped,
        _write_ragged,
    ):
        write(repository)
    with TritonServer(
        repository,
        strict_readiness=False,
        log_file=folder / "tritonserver.log",
        extra_args=["--backend-config=onnxruntime,default-max-batch-size=16"],
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[Client]:
    with connect(server) as connected:
        yield connected


def test_warm_up_runs_the_model(client: Client) -> None:
    # Three times two items, before any request.
    assert count(client, "warm", "inference_count") == 6
    assert infer(client, "warm", ids=[[3]]).as_numpy("values").tolist() == [[30]]


@pytest.mark.parametrize("kind", [kind for kind, *_ in _TYPES])
def test_every_data_type_passes_through(client: Client, kind: str) -> None:
    sent = _ARRAYS[f"in_{kind}"]
    result = infer(client, "types", outputs=[f"out_{kind}"], **_ARRAYS)
    returned = result.as_numpy(f"out_{kind}")
    assert returned.dtype == sent.dtype
    assert returned.tolist() == sent.tolist()
    assert [output.name for output in result.get_response().outputs] == [f"out_{kind}"]


def test_one_bad_request_fails_alone(client: Client) -> None:
    before = count(client, "together", "execution_count")
    requests = [{"ids": [ids]} for ids in ([1, 2], [3, 99], [0, 3])]
    good, bad, other = infer_together(client, "together", requests)
    assert good.as_numpy("values").tolist() == [[10, 20]]
    assert other.as_numpy("values").tolist() == [[0, 30]]
    assert isinstance(bad, InferenceServerException)
    assert bad.status() == "StatusCode.INTERNAL"
    assert bad.message().startswith("onnx runtime error 2: Non-zero status code")
    assert "indices element out of data bounds, idx=99" in bad.message()
    assert count(client, "together", "execution_count") == before + 1


def test_requests_of_one_batch_get_their_own_rows(client: Client) -> None:
    before = count(client, "together", "execution_count")
    one, two = infer_together(client, "together", [{"ids": [[1, 2]]}, {"ids": [[3, 0], [2, 1]]}])
    assert one.as_numpy("values").tolist() == [[10, 20]]
    assert two.as_numpy("values").tolist() == [[30, 0], [20, 10]]
    assert count(client, "together", "execution_count") == before + 1


def test_ragged_batch_with_every_batch_input(client: Client) -> None:
    first, second = infer_together(
        client,
        "ragged",
        [{"ids": np.array([[1, 2, 3], [4, 5, 6]], np.int32)}, {"ids": np.array([[7, 8]], np.int32)}],
    )
    assert first.as_numpy("twice").tolist() == [[2, 4, 6], [8, 10, 12]]
    assert second.as_numpy("twice").tolist() == [[14, 16]]
    rows = first.as_numpy("seen").tolist()
    assert second.as_numpy("seen").tolist() == rows[:1]
    assert rows[0] == rows[1]
    # Counts, sums, sums from zero, the longest, item lengths twice; either request may have come first.
    assert rows[0] in (
        [*(6, 2), *(6, 8), *(0, 6, 8), 6, *(3, 3, 2), *(3, 3, 2)],
        [*(2, 6), *(2, 8), *(0, 2, 8), 6, *(2, 3, 3), *(2, 3, 3)],
    )


def test_model_without_batching_optional_input_and_scalar(client: Client) -> None:
    x = np.array([1, 2], np.float32)
    default = infer(client, "no_batch", x=x)
    assert default.as_numpy("sum").tolist() == [101, 202]
    assert default.as_numpy("total").tolist() == [303]
    given = infer(client, "no_batch", x=x, bias=np.array([10, 20], np.float32))
    assert given.as_numpy("sum").tolist() == [11, 22]


def test_reshape(client: Client) -> None:
    x = np.array([[1], [2]], np.float32)
    m = np.arange(8, dtype=np.float32).reshape(2, 4)
    result = infer(client, "reshaped", x=x, m=m)
    assert result.as_numpy("y").tolist() == (-x).tolist()
    assert result.as_numpy("n").tolist() == (-m).tolist()


def test_missing_configuration_is_completed_from_the_model(client: Client) -> None:
    config = client.get_model_config("automatic").config
    assert config.max_batch_size == 16
    assert config.HasField("dynamic_batching")
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [("ids", [-1])]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("values", [-1])]
    assert infer(client, "automatic", ids=[[2]]).as_numpy("values").tolist() == [[20]]


def test_parameters_two_instances_and_a_folder_as_the_model_file(client: Client) -> None:
    for result in infer_together(client, "tuned", [{"ids": [[2]]}] * 4):
        assert result.as_numpy("values").tolist() == [[20]]


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        ("wrong_dims", ["'ids': the model has 2 dimensions, shape [-1, -1], but", "shape [-1, -1, 2]"]),
        ("no_file", ["unable to find '", "/no_file/1/gone.onnx'"]),
        (
            "damaged",
            ["failed to load model 'damaged' from '", "/damaged/1/model.onnx': onnx runtime error 7"],
        ),
    ],
)
def test_load_error_says_what_is_wrong(server: TritonServer, model: str, reasons: list[str]) -> None:
    error = load_error(server, model)
    assert [reason for reason in reasons if reason not in error] == []
