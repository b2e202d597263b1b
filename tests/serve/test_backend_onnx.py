"""The embedded onnxruntime backend's engine, with real sessions and no server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mooring_onnx_engine
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from mooring_batch import Request, answer_requests
from mooring_model_config import BackendError, BatchInput, BatchOutput, Instance, ModelConfig, TensorConfig
from mooring_onnx_engine import OnnxEngine
from mooring_onnx_options import execution_providers, session_options
from mooring_onnx_signature import OnnxTensor, Signature, check_signature, complete_config, needs_completion
from onnx import TensorProto, helper

from engine_models import lookup_model, onnx_model

SPINNING = ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning")
#: Providers without a GPU's.
ON_CPU: list[tuple[str, dict[str, str]]] = [("CPUExecutionProvider", {})]


def _on_cpu(folder: Path = Path()) -> Instance:
    return Instance(kind="CPU", device_id=0, folder=folder)


def _tensor(name: str, data_type: str, dims: Sequence[int], **fields: Any) -> TensorConfig:
    return TensorConfig(name=name, data_type=data_type, dims=tuple(dims), **fields)


def _engine(model: onnx.ModelProto, folder: Path, **fields: Any) -> OnnxEngine:
    onnx.save(model, folder / "model.onnx")
    return OnnxEngine(ModelConfig(name="m", **fields), _on_cpu(folder), {})


# ── Running ──────────────────────────────────────────────────────────────────────────────────────────────


def test_computes_the_wanted_outputs_alone(tmp_path: Path) -> None:
    model = onnx_model(
        [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])],
        [("x", TensorProto.FLOAT, ["n"])],
        [("a", TensorProto.FLOAT, ["n"]), ("b", TensorProto.FLOAT, ["n"])],
    )
    outputs = _engine(model, tmp_path).run({"x": np.array([-1, 2], np.float32)}, ["b"])
    assert {name: value.tolist() for name, value in outputs.items()} == {"b": [1, 2]}


def test_an_error_has_the_engine_s_own_message(tmp_path: Path) -> None:
    with pytest.raises(
        BackendError, match=r"onnx runtime error 2: Non-zero status code.*idx=4 must be"
    ) as raised:
        _engine(lookup_model(), tmp_path).run({"ids": np.array([[4]])}, ["values"])
    assert raised.value.code == "INTERNAL"


def _identity(onnx_type: int, shape: Sequence[int | str] = ("n",)) -> onnx.ModelProto:
    return onnx_model(
        [helper.make_node("Identity", ["x"], ["y"])], [("x", onnx_type, shape)], [("y", onnx_type, shape)]
    )


def test_strings_are_c_strings_of_any_bytes(tmp_path: Path) -> None:
    engine = _engine(_identity(TensorProto.STRING), tmp_path)
    texts = np.array(["é".encode(), b"", b"cut\0off"], dtype=np.object_)
    assert engine.run({"x": texts}, ["y"])["y"].tolist() == ["é", "", "cut"]
    assert engine.run({"x": np.array([], dtype=np.object_)}, ["y"])["y"].shape == (0,)
    with pytest.raises(BackendError, match="a string that is not valid UTF-8") as raised:
        engine.run({"x": np.array([b"\xff"], dtype=np.object_)}, ["y"])
    assert raised.value.code == "UNSUPPORTED"


@pytest.mark.parametrize("texts", [[b"abc", b"abd", b"a"], [b"x" * 1000] * 30, [b"a"]])
def test_strings_end_where_they_end(tmp_path: Path, texts: list[bytes]) -> None:
    engine = _engine(_identity(TensorProto.STRING), tmp_path)
    returned = engine.run({"x": np.array(texts, dtype=np.object_)}, ["y"])["y"]
    assert returned.tolist() == [text.decode() for text in texts]


def test_strings_do_not_take_many_times_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(_identity(TensorProto.STRING), tmp_path)
    uneven = np.array([b"x" * 100, *[b""] * 29], dtype=np.object_)
    assert engine.run({"x": uneven}, ["y"])["y"][0] == "x" * 100
    monkeypatch.setattr(mooring_onnx_engine, "_PADDING_BYTES", 1429)
    with pytest.raises(
        BackendError, match="'x': 30 strings of 100 bytes, the longest of 100, would take 3030 bytes"
    ) as raised:
        engine.run({"x": uneven}, ["y"])
    assert raised.value.code == "INVALID_ARG"
    even = np.array([b"x" * 100] * 30, dtype=np.object_)
    assert engine.run({"x": even}, ["y"])["y"].tolist() == ["x" * 100] * 30
    # Requests that fit alone do not fail for being joined.
    requests = [Request({"x": part}, ["y"]) for part in (uneven[:1], uneven[1:])]
    answers = answer_requests(ModelConfig(name="m", max_batch_size=64), requests, engine.run)
    assert not any(isinstance(answer, BackendError) for answer in answers)


def test_scalars_take_the_configured_dims(tmp_path: Path) -> None:
    engine = _engine(_identity(TensorProto.FLOAT, []), tmp_path, outputs=(_tensor("y", "TYPE_FP32", [1, 1]),))
    assert engine.run({"x": np.array([7], np.float32)}, ["y"])["y"].tolist() == [[7]]


def test_scalars_of_a_joined_batch_run_one_by_one(tmp_path: Path) -> None:
    engine = _engine(_identity(TensorProto.FLOAT, []), tmp_path, outputs=(_tensor("y", "TYPE_FP32", [1]),))
    requests = [Request({"x": np.array([value], np.float32)}, ["y"]) for value in (7, 8)]
    answers = answer_requests(ModelConfig(name="m", max_batch_size=8), requests, engine.run)
    assert [answer if isinstance(answer, BackendError) else answer["y"].tolist() for answer in answers] == [
        [7],
        [8],
    ]


def test_outputs_of_unknown_rank_are_left_as_they_come(tmp_path: Path) -> None:
    model = _identity(TensorProto.FLOAT)
    # Branches of different ranks: ONNX Runtime can say no shape, and says that of a scalar.
    branches = [
        helper.make_graph([helper.make_node(operator, inputs, ["y"])], "branch", [], [_of_any_rank("y")])
        for operator, inputs in (("Identity", ["x"]), ("ReduceSum", ["x"]))
    ]
    choose = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    del model.graph.node[:]
    model.graph.node.append(choose)
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.output[0].CopyFrom(_of_any_rank("y"))
    engine = _engine(model, tmp_path, outputs=(_tensor("y", "TYPE_FP32", [1]),))
    x = np.array([1, 2, 3], np.float32)
    assert engine.run({"x": x, "c": np.array([True])}, ["y"])["y"].tolist() == [1, 2, 3]
    assert engine.run({"x": x, "c": np.array([False])}, ["y"])["y"].shape == (1,)


def _of_any_rank(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=f"unable to find '{tmp_path}/model.onnx'"):
        OnnxEngine(ModelConfig(name="m"), _on_cpu(tmp_path), {})
    (tmp_path / "model.onnx").write_bytes(b"not an ONNX file")
    with pytest.raises(
        BackendError, match=f"failed to load model 'm' from '{tmp_path}/model.onnx': onnx runtime"
    ):
        OnnxEngine(ModelConfig(name="m"), _on_cpu(tmp_path), {})


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    onnx.save(lookup_model(), tmp_path / "weights" / "model.onnx")
    engine = OnnxEngine(ModelConfig(name="m", model_filename="weights"), _on_cpu(tmp_path), {})
    assert engine.run({"ids": np.array([[3]])}, ["values"])["values"].tolist() == [[30]]


# ── Options ──────────────────────────────────────────────────────────────────────────────────────────────


def test_defaults_are_onnx_runtime_s_own_except_for_spinning() -> None:
    options = session_options(ModelConfig(name="m"), ON_CPU, {})
    plain = ort.SessionOptions()
    for name in (
        "intra_op_num_threads", "inter_op_num_threads", "execution_mode", "graph_optimization_level",
        "enable_cpu_mem_arena", "enable_mem_pattern",
    ):  # fmt: skip
        assert getattr(options, name) == getattr(plain, name), name
    assert [options.get_session_config_entry(key) for key in SPINNING] == ["0", "0"]


def test_threads_may_spin_where_a_gpu_computes() -> None:
    options = session_options(ModelConfig(name="m"), [("CUDAExecutionProvider", {}), *ON_CPU], {})
    for key in SPINNING:
        with pytest.raises(RuntimeError, match=key):
            options.get_session_config_entry(key)


def test_parameters_reach_the_session() -> None:
    config = ModelConfig(
        name="m",
        parameters={
            "intra_op_thread_count": "3",
            "inter_op_thread_count": "2",
            "execution_mode": "1",
            "enable_mem_arena": "0",
            "enable_mem_pattern": "false",
            "session.use_device_allocator_for_initializers": "1",
            SPINNING[0]: "1",
        },
        optimization={"graph": {"level": 2}},
    )
    options = session_options(config, ON_CPU, {})
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"
    assert [options.get_session_config_entry(key) for key in SPINNING] == ["1", "0"]


def test_a_global_pool_s_thread_counts_go_before_the_model_s() -> None:
    config = ModelConfig(name="m", parameters={"intra_op_thread_count": "3", "inter_op_thread_count": "2"})
    flags = {"enable-global-threadpool": "1", "intra_op_thread_count": "5"}
    options = session_options(config, ON_CPU, flags)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (5, 0)
    options = session_options(config, ON_CPU, {"intra_op_thread_count": "5"})
    assert options.intra_op_num_threads == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"parameters": {"execution_mode": "2"}},
            r"'execution_mode': expected 0 \(sequential\) or 1 \(parallel\), got 2",
        ),
        (
            {"parameters": {"intra_op_thread_count": "two"}},
            "'intra_op_thread_count': 'two' is not a whole number",
        ),
        ({"parameters": {"enable_mem_arena": "maybe"}}, "'enable_mem_arena': 'maybe' is not a boolean"),
        ({"op_libraries": ("/no/such/ops.so",)}, "op library '/no/such/ops.so'"),
    ],
)
def test_wrong_options_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        session_options(ModelConfig(name="m", **fields), ON_CPU, {})


def _accelerated(kind: str, name: str, settings: dict[str, str] | None = None, **fields: Any) -> ModelConfig:
    accelerators = {f"{kind}_execution_accelerator": [{"name": name, "parameters": settings or {}}]}
    return ModelConfig(name="m", optimization={"execution_accelerators": accelerators}, **fields)


def test_providers_of_a_gpu_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: everything)
    second_gpu = Instance(kind="GPU", device_id=1, folder=Path())
    config = _accelerated(
        "gpu",
        "tensorrt",
        {"precision_mode": "FP16", "max_workspace_size_bytes": "7", "trt_engine_cache_enable": "1"},
        parameters={"cudnn_conv_algo_search": "1", "gpu_mem_limit": "99", "arena_extend_strategy": "1"},
    )
    assert execution_providers(config, second_gpu) == [
        (
            "TensorrtExecutionProvider",
            {
                "trt_fp16_enable": "1",
                "trt_max_workspace_size": "7",
                "trt_engine_cache_enable": "1",
                "device_id": "1",
            },
        ),
        (
            "CUDAExecutionProvider",
            {
                "cudnn_conv_algo_search": "HEURISTIC",
                "gpu_mem_limit": "99",
                "arena_extend_strategy": "kSameAsRequested",
                "device_id": "1",
            },
        ),
        ("CPUExecutionProvider", {}),
    ]
    tuned = _accelerated("gpu", "cuda", {"use_ep_level_unified_stream": "1"})
    assert execution_providers(tuned, second_gpu)[0] == (
        "CUDAExecutionProvider",
        {"use_ep_level_unified_stream": "1", "device_id": "1"},
    )


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (
            ModelConfig(name="m"),
            "GPU",
            "model 'm' needs CUDAExecutionProvider, but the ONNX Runtime of the embedded",
        ),
        (_accelerated("cpu", "openvino"), "CPU", "model 'm' needs OpenVINOExecutionProvider"),
        (_accelerated("gpu", "tensorrt"), "GPU", "model 'm' needs TensorrtExecutionProvider"),
        (_accelerated("cpu", "fast"), "CPU", "unknown execution accelerator 'fast' is requested"),
        (_accelerated("gpu", "fast"), "GPU", "unknown execution accelerator 'fast' is requested"),
        (_accelerated("gpu", "tensorrt", {"size": "1"}), "GPU", "unknown parameter 'size' .* 'tensorrt'"),
        (
            _accelerated("gpu", "tensorrt", {"precision_mode": "FP8"}),
            "GPU",
            "unsupported precision mode 'FP8'",
        ),
        (
            ModelConfig(name="m", parameters={"arena_extend_strategy": "2"}),
            "GPU",
            r"'arena_extend_strategy': '2' is not one of \['0', '1'\]",
        ),
    ],
)
def test_providers_that_can_not_be_had(config: ModelConfig, kind: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        execution_providers(config, Instance(kind=kind, device_id=0, folder=Path()))


def test_a_gpu_that_triton_chose_is_used_where_onnx_runtime_can(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Instance(kind="GPU", device_id=0, folder=Path(), gpu_wanted=False)
    cpu = ("CPUExecutionProvider", {})
    assert execution_providers(ModelConfig(name="m"), chosen) == [cpu]
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", cpu[0]])
    cuda = ("CUDAExecutionProvider", {"device_id": "0"})
    assert execution_providers(ModelConfig(name="m"), chosen) == [cuda, cpu]


@pytest.mark.filterwarnings(
    "ignore:Specified provider 'CUDAExecutionProvider' is not in available provider names"
)
@pytest.mark.parametrize("wanted", [True, False])
def test_a_gpu_that_can_not_start_is_needed_where_the_config_asks_for_it(
    wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(_identity(TensorProto.FLOAT), tmp_path / "model.onnx")
    # ONNX Runtime takes the CPU where CUDA does not start, as here.
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    instance = Instance(kind="GPU", device_id=0, folder=tmp_path, gpu_wanted=wanted)
    if wanted:
        with pytest.raises(
            BackendError, match="ONNX Runtime has CUDAExecutionProvider, but it could not start"
        ):
            OnnxEngine(ModelConfig(name="m"), instance, {})
    else:
        OnnxEngine(ModelConfig(name="m"), instance, {})


def test_gpu_accelerators_do_not_concern_cpu_instances() -> None:
    assert execution_providers(_accelerated("gpu", "tensorrt"), _on_cpu()) == [("CPUExecutionProvider", {})]


# ── Signatures ───────────────────────────────────────────────────────────────────────────────────────────


def _declared(name: str, data_type: str | None, *dims: int, onnx_type: str = "tensor(other)") -> OnnxTensor:
    return OnnxTensor(name, data_type, dims, onnx_type)


SIGNATURE = Signature(
    inputs=(_declared("ids", "TYPE_INT64", -1, -1),),
    initializers=(),
    outputs=(_declared("logits", "TYPE_FP32", -1, -1, 9),),
)
IDS = _tensor("ids", "TYPE_INT64", [-1])
LOGITS = _tensor("logits", "TYPE_FP32", [-1, 9])


def _config(
    *inputs: TensorConfig, outputs: tuple[TensorConfig, ...] = (LOGITS,), **fields: Any
) -> ModelConfig:
    return ModelConfig(name="m", inputs=inputs, outputs=outputs, **({"max_batch_size": 8} | fields))


def test_reads_a_session_s_signature(tmp_path: Path) -> None:
    model = onnx_model(
        [helper.make_node("Add", ["x", "bias"], ["y"]), helper.make_node("Identity", ["b"], ["c"])],
        [
            ("x", TensorProto.FLOAT, ["n", 2]),
            ("b", TensorProto.BFLOAT16, []),
            ("bias", TensorProto.FLOAT, [2]),
        ],
        [("y", TensorProto.FLOAT, ["n", 2]), ("c", TensorProto.BFLOAT16, [])],
        [helper.make_tensor("bias", TensorProto.FLOAT, [2], [0, 0])],
    )
    assert _engine(model, tmp_path).signature == Signature(
        inputs=(
            OnnxTensor("x", "TYPE_FP32", (-1, 2), "tensor(float)"),
            OnnxTensor("b", None, (), "tensor(bfloat16)"),
        ),
        initializers=(OnnxTensor("bias", "TYPE_FP32", (2,), "tensor(float)"),),
        outputs=(
            OnnxTensor("y", "TYPE_FP32", (-1, 2), "tensor(float)"),
            OnnxTensor("c", None, (), "tensor(bfloat16)"),
        ),
    )


def test_only_tensors_can_be_served(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["s"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(BackendError, match=r"'s' has the ONNX type seq\(tensor\(float\)\); only tensors"):
        _engine(model, tmp_path)


def test_fitting_configurations() -> None:
    check_signature(_config(IDS), SIGNATURE)
    # A smaller range than the model's is fine for inputs; outputs must be as the model declares them.
    check_signature(_config(_tensor("ids", "TYPE_INT64", [128])), SIGNATURE)
    without_batching = _config(
        _tensor("ids", "TYPE_INT64", [-1, -1]),
        outputs=(_tensor("logits", "TYPE_FP32", [-1, -1, 9]),),
        max_batch_size=0,
    )
    check_signature(without_batching, SIGNATURE)
    reshaped = _config(_tensor("ids", "TYPE_INT64", [4, 4], reshape=(16,)))
    check_signature(reshaped, SIGNATURE)


def test_ragged_and_batch_tensors_fit() -> None:
    packed = Signature(
        inputs=(_declared("ids", "TYPE_INT64", -1), _declared("shape", "TYPE_INT32", -1, 1)),
        initializers=(),
        outputs=(_declared("logits", "TYPE_FP32", -1, 9),),
    )
    shape = BatchInput(
        kind="BATCH_ITEM_SHAPE", data_type="TYPE_INT32", target_name="shape", source_input="ids"
    )
    scatter = {"logits": BatchOutput(target_name="logits", source_input="ids", shape=(-1, -1, 9))}
    ragged = _tensor("ids", "TYPE_INT64", [-1], ragged=True)
    check_signature(_config(ragged, batch_inputs=(shape,), batch_outputs=scatter), packed)
    with pytest.raises(
        BackendError, match=r"shape \[-1\] for the ragged input 'ids', model provides \[-1, -1\]"
    ):
        check_signature(_config(ragged), SIGNATURE)


def test_optional_inputs_are_initializers_of_models_without_batching() -> None:
    signature = Signature(
        inputs=(),
        initializers=(_declared("bias", "TYPE_FP32", 2),),
        outputs=(_declared("y", "TYPE_FP32", 2),),
    )
    bias, y = _tensor("bias", "TYPE_FP32", [2], optional=True), _tensor("y", "TYPE_FP32", [2])
    check_signature(_config(bias, outputs=(y,), max_batch_size=0), signature)
    with pytest.raises(BackendError, match="input 'bias' is optional, which is not supported"):
        check_signature(_config(bias, outputs=(y,)), signature)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_config(), r"configuration expects 0 inputs \[\], model provides 1 \['ids'\]"),
        (_config(_tensor("id", "TYPE_INT64", [-1])), "unexpected input 'id', allowed inputs are: ids"),
        (
            _config(IDS, outputs=(_tensor("x", "TYPE_FP32", [9]),)),
            "unexpected output 'x', allowed outputs are: logits",
        ),
        (
            _config(_tensor("ids", "TYPE_INT32", [-1])),
            "expects datatype TYPE_INT32 for input 'ids', model provides TYPE_INT64",
        ),
        (
            _config(IDS, outputs=(_tensor("logits", "TYPE_FP16", [-1, 9]),)),
            "expects datatype TYPE_FP16 for output 'logits', model provides TYPE_FP32",
        ),
        (
            _config(IDS, outputs=(_tensor("logits", "TYPE_FP32", [16, 9]),)),
            r"tensor 'logits': the model has 3 dimensions, shape \[-1, -1, 9\], but the configuration "
            r"specifies 3 dimensions, shape \[-1, 16, 9\] \(its batch axis",
        ),
        (
            _config(_tensor("ids", "TYPE_INT64", [-1]), max_batch_size=0),
            r"tensor 'ids': the model has 2 dimensions, shape \[-1, -1\], but the configuration specifies 1 "
            r"dimensions, shape \[-1\]$",
        ),
    ],
)
def test_configurations_that_do_not_fit(config: ModelConfig, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        check_signature(config, SIGNATURE)


@pytest.mark.parametrize(("dims", "fits"), [((-1, 1), True), ((-1, -1), False), ((-1,), False)])
def test_a_sequence_control_is_one_number(dims: tuple[int, ...], fits: bool) -> None:
    signature = Signature((*SIGNATURE.inputs, _declared("start", "TYPE_INT32", *dims)), (), SIGNATURE.outputs)
    config = _config(IDS, controls=(("start", "TYPE_INT32"),))
    if fits:
        check_signature(config, signature)
        return
    with pytest.raises(
        BackendError, match=r"sequence control 'start' in model has dims .* dims \[1\] is expected"
    ):
        check_signature(config, signature)


def test_models_that_do_not_fit() -> None:
    fixed = Signature((_declared("ids", "TYPE_INT64", 1, -1),), (), SIGNATURE.outputs)
    with pytest.raises(
        BackendError, match=r"its first dimension must be variable, but the model has .* \[1, -1\]"
    ):
        check_signature(_config(IDS), fixed)
    scalar = Signature((_declared("ids", "TYPE_INT64"),), (), SIGNATURE.outputs)
    with pytest.raises(BackendError, match=r"'ids' is a scalar in the model: its dims may only be 1.* \[2\]"):
        check_signature(_config(_tensor("ids", "TYPE_INT64", [2])), scalar)
    bfloat = Signature((_declared("ids", None, -1, -1, onnx_type="tensor(bfloat16)"),), (), SIGNATURE.outputs)
    with pytest.raises(
        BackendError, match=r"TYPE_BF16 for input 'ids', model provides tensor\(bfloat16\), which"
    ):
        check_signature(_config(_tensor("ids", "TYPE_BF16", [-1])), bfloat)


# ── Completion ───────────────────────────────────────────────────────────────────────────────────────────


def _partial(**fields: Any) -> dict[str, Any]:
    return {"name": "m", "max_batch_size": 0, "input": [], "output": [], "batch_input": []} | fields


def test_only_configurations_without_inputs_or_outputs_are_completed() -> None:
    assert needs_completion(_partial())
    assert needs_completion(_partial(input=[{}]))
    assert not needs_completion(_partial(input=[{}], output=[{}]))
    assert not needs_completion(_partial(batch_input=[{}], output=[{}]))


def test_completes_everything_from_a_model_that_can_batch() -> None:
    config = _partial()
    complete_config(config, SIGNATURE, 4)
    assert config == _partial(
        max_batch_size=4,
        dynamic_batching={},
        input=[{"name": "ids", "data_type": "TYPE_INT64", "dims": [-1]}],
        output=[{"name": "logits", "data_type": "TYPE_FP32", "dims": [-1, 9]}],
    )


def test_keeps_what_is_given() -> None:
    given = [{"name": "mine", "data_type": "TYPE_INT8", "dims": [1]}]
    config = _partial(max_batch_size=2, input=given, dynamic_batching={"preferred_batch_size": [2]})
    complete_config(config, SIGNATURE, 4)
    assert config["max_batch_size"] == 2
    assert config["input"] is given
    assert config["dynamic_batching"] == {"preferred_batch_size": [2]}
    assert config["output"][0]["name"] == "logits"


def test_no_dynamic_batching_for_sequences_and_batches_of_one() -> None:
    sequences = _partial(sequence_batching={})
    complete_config(sequences, SIGNATURE, 4)
    assert "dynamic_batching" not in sequences
    single = _partial()
    complete_config(single, SIGNATURE, 1)
    assert single["max_batch_size"] == 1
    assert "dynamic_batching" not in single


def test_a_model_without_variable_batch_axis_gets_full_dims() -> None:
    signature = Signature((_declared("x", "TYPE_FP32", 3, -1),), (), (_declared("y", "TYPE_FP32"),))
    config = _partial()
    complete_config(config, signature, 4)
    assert config["max_batch_size"] == 0
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3, -1]}]
    assert config["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}]
    with pytest.raises(
        BackendError, match="model does not support batching while max_batch_size 8 is specified"
    ):
        complete_config(_partial(max_batch_size=8), signature, 4)


def test_a_batch_of_scalars_is_reshaped() -> None:
    signature = Signature((_declared("x", "TYPE_FP32", -1),), (), (_declared("y", "TYPE_FP32", -1),))
    config = _partial()
    complete_config(config, signature, 4)
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}}]


def test_a_type_that_triton_lacks_can_not_be_completed() -> None:
    signature = Signature((_declared("x", None, -1, onnx_type="tensor(bfloat16)"),), (), SIGNATURE.outputs)
    with pytest.raises(BackendError, match=r"tensor 'x' has the type tensor\(bfloat16\), which Triton"):
        complete_config(_partial(), signature, 4)
