"""Generated configs: what Triton reads in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from mooring_build.recipe import COMPOSED_TASKS, load_recipe, shipped_recipes
from mooring_build.triton_config import (
    HEADER,
    as_configured,
    dumps_config,
    loads_config,
    model_configs,
    model_names,
    serve_versions,
)
from tiny_release import LABELS, padded_recipe

ENTITY_LABELS = LABELS["token-classification"]
INTENT_LABELS = LABELS["text-classification"]


def _configs(shipped: str, *overrides: str, version: int = 1) -> dict[str, pb.ModelConfig]:
    labels = ENTITY_LABELS if shipped == "ner" else INTENT_LABELS
    return model_configs(padded_recipe(shipped, overrides), labels, version)


def _tensors(tensors: Any) -> dict[str, tuple[str, list[int]]]:
    return {tensor.name: (pb.DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in tensors}


def test_a_recipe_has_five_models_and_the_ensemble_is_last() -> None:
    names = ["ner_tokenizer", "ner_onnx", "ner_torchscript", "ner_postprocessor", "ner"]
    assert list(_configs("ner")) == model_names(padded_recipe("ner")) == names
    assert "ner_torchscript" not in _configs("ner", 'export.formats=["onnx"]')


@pytest.mark.parametrize("shipped", ["ner", "intent"])
def test_the_text_round_trips_and_says_where_it_comes_from(shipped: str) -> None:
    for name, config in _configs(shipped).items():
        text = dumps_config(config)
        assert text.startswith(f"{HEADER}; what is changed here is overwritten.\n")
        assert loads_config(text) == config
        assert dumps_config(loads_config(text)) == text
        assert config.name == name


WITH_ENGINE = [name for name in shipped_recipes() if load_recipe(name).task not in COMPOSED_TASKS]


@pytest.mark.parametrize("shipped", WITH_ENGINE)
@pytest.mark.parametrize("limit", [0, 64])
def test_what_a_recipe_is_served_with_is_read_back(shipped: str, limit: int) -> None:
    built = load_recipe(shipped)
    tuned = {
        "instance_count": 3,
        "intra_op_thread_count": 5,
        "max_batch_size": 16,
        "preferred_batch_size": [2, 7],
        "max_queue_delay_microseconds": 700,
    }
    built = built.model_copy(update={"serving": built.serving.model_copy(update={"max_batch_tokens": limit})})
    served = built.model_copy(
        update={
            "serving": built.serving.model_copy(update=tuned),
            "export": built.export.model_copy(update={"engine": built.export.formats[-1]}),
        }
    )
    found = as_configured(built, model_configs(served, INTENT_LABELS, 1))
    assert found.export.engine == built.export.formats[-1]
    overruled = {"preferred_batch_size", "max_queue_delay_microseconds"} if limit else set()
    for key, value in tuned.items():
        assert getattr(found.serving, key) == (getattr(built.serving, key) if key in overruled else value)
    assert model_configs(found, INTENT_LABELS, 1).keys() == model_configs(served, INTENT_LABELS, 1).keys()


def test_text_that_is_no_config_is_refused() -> None:
    with pytest.raises(ValueError, match=r'not a Triton model configuration: 1:1 : .*no field named "nam"'):
        loads_config('nam: "ner"')


def test_signatures_of_token_classification() -> None:
    configs = _configs("ner")
    text = {"text": ("TYPE_STRING", [1])}
    tokens = {"input_ids": ("TYPE_INT64", [-1]), "attention_mask": ("TYPE_INT64", [-1])}
    files = {"tokenizer": ("TYPE_STRING", [1]), "settings": ("TYPE_STRING", [1])}
    words = {"words": ("TYPE_INT32", [-1, 2])}
    answers = {
        "label": ("TYPE_STRING", [-1]),
        "score": ("TYPE_FP32", [-1]),
        "start": ("TYPE_INT32", [-1]),
        "end": ("TYPE_INT32", [-1]),
        "entity": ("TYPE_STRING", [-1]),
    }
    logits = ("TYPE_FP32", [-1, -1])
    engine_logits = ("TYPE_FP32", [-1, len(ENTITY_LABELS)])
    assert {name: (_tensors(config.input), _tensors(config.output)) for name, config in configs.items()} == {
        "ner_tokenizer": (text, tokens | words | files),
        "ner_onnx": (tokens, {"logits": engine_logits}),
        "ner_torchscript": (tokens, {"logits__0": engine_logits}),
        "ner_postprocessor": (text | {"logits": logits} | words, answers),
        "ner": (text, answers),
    }


def test_signatures_of_text_classification() -> None:
    configs = _configs("intent", "text.top_k=2")
    logits = ("TYPE_FP32", [-1])
    tokenizer_outputs = {"input_ids", "attention_mask", "tokenizer", "settings"}
    assert _tensors(configs["intent_tokenizer"].output).keys() == tokenizer_outputs
    assert _tensors(configs["intent_onnx"].output) == {"logits": ("TYPE_FP32", [3])}
    assert _tensors(configs["intent_postprocessor"].input) == {"logits": logits}
    acceptance = {"acceptance": ("TYPE_FP32", [1])}
    assert _tensors(configs["intent_postprocessor"].output) == {
        "label": ("TYPE_STRING", [-1]),
        "score": ("TYPE_FP32", [-1]),
        **acceptance,
    }
    assert _tensors(configs["intent"].output) == {
        "label": ("TYPE_STRING", [2]),
        "score": ("TYPE_FP32", [2]),
        **acceptance,
    }


def test_a_classifier_returns_no_more_labels_than_it_has() -> None:
    assert _tensors(_configs("intent", "text.top_k=50")["intent"].output)["label"] == ("TYPE_STRING", [3])


@pytest.mark.parametrize(
    ("engine", "output"), [("onnx", {"logits": "logits"}), ("torchscript", {"logits__0": "logits"})]
)
def test_the_ensemble_chains_the_parts_of_its_version(engine: str, output: dict[str, str]) -> None:
    configs = _configs("ner", f"export.engine={engine}", version=7)
    ensemble = configs["ner"]
    steps = ensemble.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["ner_tokenizer", f"ner_{engine}", "ner_postprocessor"]
    assert {step.model_version for step in steps} == {7}
    assert dict(steps[1].output_map) == output
    for step in steps:
        part = configs[step.model_name]
        assert step.input_map.keys() == _tensors(part.input).keys()
        # What a step maps is what the ensemble asks it for: not the tokenizer's files.
        assert step.output_map.keys() == _tensors(part.output).keys() - {"tokenizer", "settings"}
    produced = {"text"}
    for step in steps:
        assert set(step.input_map.values()) <= produced
        produced |= set(step.output_map.values())
    assert _tensors(ensemble.output).keys() <= produced
    assert ensemble.platform == "ensemble"
    assert not ensemble.model_warmup  # Triton refuses a warm-up of an ensemble


def test_every_model_serves_one_version_and_parts_may_serve_more() -> None:
    configs = _configs("ner", version=3)
    assert {tuple(config.version_policy.specific.versions) for config in configs.values()} == {(3,)}
    serve_versions(configs["ner_onnx"], [3, 2])
    assert list(configs["ner_onnx"].version_policy.specific.versions) == [2, 3]


def test_a_client_can_read_what_the_ensemble_is() -> None:
    ensemble = _configs("ner", "text.truncation=true", "text.max_length=96")["ner"]
    parameters = {key: value.string_value for key, value in ensemble.parameters.items()}
    assert json.loads(parameters.pop("labels")) == ENTITY_LABELS
    assert parameters == {"task": "token-classification", "max_length": "96", "truncation": "true"}


def test_batching_and_instances_come_from_the_recipe() -> None:
    configs = _configs(
        "ner",
        "serving.max_batch_size=16",
        "serving.preferred_batch_size=[16, 2]",
        "serving.max_queue_delay_microseconds=700",
        "serving.instance_count=3",
        "serving.intra_op_thread_count=4",
    )
    assert {config.max_batch_size for config in configs.values()} == {16}
    for name in ("ner_onnx", "ner_torchscript"):
        batching = configs[name].dynamic_batching
        assert list(batching.preferred_batch_size) == [2, 16]
        assert batching.max_queue_delay_microseconds == 700
        assert [group.count for group in configs[name].instance_group] == [3]
    for name in ("ner_tokenizer", "ner_postprocessor"):
        config = configs[name]
        assert config.backend == "python"
        assert config.HasField("dynamic_batching")
        assert config.dynamic_batching.max_queue_delay_microseconds == 0
        assert [pb.ModelInstanceGroup.Kind.Name(group.kind) for group in config.instance_group] == [
            "KIND_CPU"
        ]


@pytest.mark.parametrize("shipped", ["ner", "intent"])
def test_queues_limit_waiting_where_the_recipe_says_so(shipped: str) -> None:
    limited = _configs(shipped, "serving.queue_timeout_microseconds=2500000")
    for name, config in _configs(shipped).items():
        assert not config.dynamic_batching.HasField("default_queue_policy"), name
        if name == shipped:
            continue  # an ensemble has no queue of its own
        policy = limited[name].dynamic_batching.default_queue_policy
        assert policy.allow_timeout_override, name
        assert policy.default_timeout_microseconds == 2_500_000
        assert policy.timeout_action == pb.ModelQueuePolicy.REJECT


def test_the_engines_queue_alone_is_bounded() -> None:
    configs = _configs("intent", "serving.max_queue_size=16")
    bounds = {
        name: config.dynamic_batching.default_queue_policy.max_queue_size for name, config in configs.items()
    }
    assert {name for name, bound in bounds.items() if bound} == {"intent_onnx", "intent_torchscript"}
    assert bounds["intent_onnx"] == 16


def test_batches_of_limited_tokens_take_what_waits() -> None:
    configs = _configs("intent", "serving.max_batch_tokens=512", "serving.max_batch_size=8")
    limited = {name for name, config in configs.items() if "max_batch_tokens" in config.parameters}
    assert limited == {"intent_onnx", "intent_torchscript"}
    engine = configs["intent_onnx"]
    assert engine.parameters["max_batch_tokens"].string_value == "512"
    assert list(engine.dynamic_batching.preferred_batch_size) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert engine.dynamic_batching.max_queue_delay_microseconds == 0


def test_the_pipelines_answers_are_kept_where_the_recipe_says_so() -> None:
    kept = [
        name
        for name, config in _configs("ner", "serving.response_cache=true").items()
        if config.response_cache.enable
    ]
    assert kept == ["ner"]
    assert not any(config.HasField("response_cache") for config in _configs("ner").values())


def test_an_engines_runs_take_the_recipes_resources() -> None:
    configs = _configs("ner", "serving.resources={cores = 2}")
    for name, config in configs.items():
        taken = {
            one.name: one.count for group in config.instance_group for one in group.rate_limiter.resources
        }
        assert taken == ({"cores": 2} if name in ("ner_onnx", "ner_torchscript") else {}), name


@pytest.mark.parametrize("kind", ["auto", "cpu", "gpu"])
def test_engines_run_where_the_recipe_says(kind: str) -> None:
    configs = _configs("ner", f"serving.kind={kind}")
    for name in ("ner_onnx", "ner_torchscript"):
        (group,) = configs[name].instance_group
        assert pb.ModelInstanceGroup.Kind.Name(group.kind) == f"KIND_{kind.upper()}"


def test_threads_go_by_the_backends_own_names() -> None:
    configs = _configs("ner", "serving.intra_op_thread_count=2")
    parameters = {
        name: {key: value.string_value for key, value in configs[name].parameters.items()}
        for name in ("ner_onnx", "ner_torchscript")
    }
    assert parameters == {
        "ner_onnx": {"intra_op_thread_count": "2"},
        "ner_torchscript": {
            "INTRA_OP_THREAD_COUNT": "2",
            "INTER_OP_THREAD_COUNT": "1",
            "DISABLE_OPTIMIZED_EXECUTION": "true",
        },
    }
    assert (configs["ner_onnx"].backend, configs["ner_torchscript"].backend) == ("onnxruntime", "pytorch")


@pytest.mark.parametrize(
    ("shipped", "kind", "as_frozen"),
    [("ner", "auto", True), ("ner", "gpu", True), ("ner", "cpu", False), ("image", "gpu", False)],
)
def test_what_may_meet_new_shapes_on_a_gpu_is_not_compiled_for_each(
    shipped: str, kind: str, as_frozen: bool
) -> None:
    configs = model_configs(load_recipe(shipped, [f"serving.kind={kind}"]), ["O", "B-X"], 1)
    (engine,) = (config for config in configs.values() if config.backend == "pytorch")
    assert ("DISABLE_OPTIMIZED_EXECUTION" in engine.parameters) == as_frozen


@pytest.mark.parametrize(("shipped", "per_token"), [("ner", True), ("intent", False)])
def test_ragged_engines_get_the_length_of_each_text(shipped: str, per_token: bool) -> None:
    plain, configs = _configs(shipped), _configs(shipped, "serving.mixed_lengths=ragged")
    for export_format, output in (("onnx", "logits"), ("torchscript", "logits__0")):
        config = configs[f"{shipped}_{export_format}_ragged"]
        assert all(tensor.allow_ragged_batch for tensor in config.input)
        (lengths,) = config.batch_input
        assert (lengths.kind, lengths.data_type) == (pb.BatchInput.BATCH_ITEM_SHAPE, pb.TYPE_INT32)
        assert (list(lengths.target_name), list(lengths.source_input)) == (["lengths"], ["input_ids"])
        scattered = [(list(entry.target_name), list(entry.source_input)) for entry in config.batch_output]
        assert scattered == ([([output], ["input_ids"])] if per_token else [])
        # What callers see is the same.
        other = plain[f"{shipped}_{export_format}"]
        assert _tensors(config.input) == _tensors(other.input)
        assert _tensors(config.output) == _tensors(other.output)
    steps = [step.model_name for step in configs[shipped].ensemble_scheduling.step]
    assert steps[1] == f"{shipped}_onnx_ragged"
    assert plain.keys() & configs.keys() == {
        f"{shipped}{part}" for part in ("", "_tokenizer", "_postprocessor")
    }


@pytest.mark.parametrize("mixed_lengths", ["none", "padded"])
def test_other_engines_are_not_ragged(mixed_lengths: str) -> None:
    config = _configs("ner", f"serving.mixed_lengths={mixed_lengths}")["ner_onnx"]
    assert not any(tensor.allow_ragged_batch for tensor in config.input)
    assert not config.batch_input
    assert not config.batch_output


@pytest.mark.parametrize("mixed_lengths", ["none", "padded", "ragged"])
def test_python_steps_take_requests_of_unlike_shapes_together(mixed_lengths: str) -> None:
    inputs = _configs("ner", f"serving.mixed_lengths={mixed_lengths}")["ner_postprocessor"].input
    assert {tensor.name: (list(tensor.dims), tensor.allow_ragged_batch) for tensor in inputs} == {
        "text": ([1], False),
        "logits": ([-1, -1], True),
        "words": ([-1, 2], True),
    }


@pytest.mark.parametrize(
    ("overrides", "shapes"),
    [
        ([], {(1, 16), (4, 16), (8, 16), (1, 128)}),
        (["serving.mixed_lengths=none"], {(1, 16), (4, 16), (8, 16), (1, 128)}),
        (["serving.padded_lengths=24"], {(1, 24), (4, 24), (8, 24), (1, 128)}),
        (["text.max_length=10", "serving.preferred_batch_size=[]"], {(1, 10)}),
        (["serving.warm_up=false"], set()),
    ],
)
def test_engines_warm_up_on_the_shapes_they_will_meet(
    overrides: list[str], shapes: set[tuple[int, int]]
) -> None:
    configs = _configs("ner", *overrides)
    for name in ("ner_onnx", "ner_torchscript"):
        warm_up = configs[name].model_warmup
        assert {(one.batch_size, one.inputs["input_ids"].dims[0]) for one in warm_up} == shapes
        assert len({one.name for one in warm_up}) == len(shapes)
        for one in warm_up:
            assert set(one.inputs) == {"input_ids", "attention_mask"}
            assert one.inputs["attention_mask"].dims == one.inputs["input_ids"].dims
            assert all(tensor.zero_data for tensor in one.inputs.values())


def test_packed_engines_warm_up_on_tokens_that_are_not_masked() -> None:
    configs = _configs("ner", "serving.mixed_lengths=ragged")
    for name in ("ner_onnx_ragged", "ner_torchscript_ragged"):
        inputs = [one.inputs for one in configs[name].model_warmup]
        drawn = {(one["input_ids"].zero_data, one["attention_mask"].random_data) for one in inputs}
        assert drawn == {(True, True)}


def test_int8_engines_run_on_the_cpu() -> None:
    configs = _configs("ner", "export.precision=int8")
    kinds = {name: configs[name].instance_group[0].kind for name in ("ner_onnx", "ner_torchscript")}
    assert kinds == {
        "ner_onnx": pb.ModelInstanceGroup.KIND_CPU,
        "ner_torchscript": pb.ModelInstanceGroup.KIND_AUTO,
    }


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, unique=True))
def test_any_label_survives_the_text_format(labels: list[str]) -> None:
    config = model_configs(padded_recipe("intent"), labels, 1)["intent"]
    parsed = text_format.Parse(dumps_config(config), pb.ModelConfig())
    assert json.loads(parsed.parameters["labels"].string_value) == labels
