"""Names of TorchScript inputs and outputs, as the official backend resolves them."""

from __future__ import annotations

import pytest
from mooring_model_config import BackendError, BatchInput, ModelConfig, TensorConfig
from mooring_torch_signature import Argument, order_inputs, order_outputs

TENSORS = [Argument("ids", "TensorType"), Argument("mask", "TensorType")]


def _tensors(
    *names: str, data_type: str = "TYPE_INT64", dims: tuple[int, ...] = (-1,)
) -> tuple[TensorConfig, ...]:
    return tuple(TensorConfig(name=name, data_type=data_type, dims=dims) for name in names)


def _config(*names: str, max_batch_size: int = 8) -> ModelConfig:
    return ModelConfig(name="m", max_batch_size=max_batch_size, inputs=_tensors(*names))


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("mask", "ids"), {"mask": 1, "ids": 0}),
        (("B__1", "A__0"), {"B__1": 1, "A__0": 0}),
        # One that is neither: the order of the configuration decides for all.
        (("mask", "other"), {"mask": 0, "other": 1}),
        (("A__1", "other"), {"A__1": 0, "other": 1}),
        (("A__1x", "B__0"), {"A__1x": 0, "B__0": 1}),
        # What follows the first two underscores is no number.
        (("a__b__1", "a__b__0"), {"a__b__1": 0, "a__b__0": 1}),
        (("B__1", "A__"), {"B__1": 1, "A__": 0}),
    ],
)
def test_inputs_by_argument_number_or_order(names: tuple[str, ...], order: dict[str, int]) -> None:
    assert order_inputs(_config(*names), TENSORS) == order


def test_batch_inputs_follow_the_rule_of_the_inputs() -> None:
    lengths = BatchInput(
        kind="BATCH_ITEM_SHAPE", data_type="TYPE_INT32", target_name="mask", source_input="ids"
    )
    config = ModelConfig(name="m", max_batch_size=8, inputs=_tensors("ids"), batch_inputs=(lengths,))
    assert order_inputs(config, TENSORS) == {"ids": 0, "mask": 1}


def test_a_dict_takes_any_names() -> None:
    assert order_inputs(_config("a", "b"), [Argument("inputs", "DictType")]) == {"a": 0, "b": 1}


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (
            _config("ids"),
            TENSORS,
            r"configuration expects 1 inputs \['ids'\], model provides 2 \['ids', 'mask'\]",
        ),
        (_config("a__0", "b__0"), TENSORS, r"inputs \['a__0', 'b__0'\] don't name every argument"),
        (
            _config("a__0", "b__7"),
            TENSORS,
            r"don't name every argument of forward\(\) \['ids', 'mask'\] once",
        ),
        (_config(), TENSORS, "at least one input"),
        (
            ModelConfig(name="m", inputs=_tensors("ids"), controls=(("corrid__1", "TYPE_UINT64"),)),
            TENSORS,
            "sequence control 'corrid__1' is TYPE_UINT64, which TorchScript has not",
        ),
        (
            _config("a"),
            [Argument("a", "OptionalType")],
            "argument 'a' of forward() is a OptionalType".replace("(", r"\(").replace(")", r"\)"),
        ),
        (
            ModelConfig(name="m", inputs=_tensors("ids", data_type="TYPE_BF16")),
            TENSORS,
            "unsupported datatype TYPE_BF16 for input 'ids' for model 'm'",
        ),
        (
            ModelConfig(name="m", inputs=_tensors("ids", data_type="TYPE_UINT32")),
            TENSORS,
            "unsupported datatype TYPE_UINT32",
        ),
        (
            ModelConfig(
                name="m", max_batch_size=2, inputs=_tensors("texts", data_type="TYPE_STRING", dims=(1,))
            ),
            [Argument("texts", "ListType")],
            "'texts' has 2 dimensions with the batch axis",
        ),
        (
            ModelConfig(
                name="m", inputs=(TensorConfig(name="x", data_type="TYPE_FP32", dims=(1,), optional=True),)
            ),
            [Argument("x", "TensorType")],
            "input 'x' is optional, which the pytorch backend does not support",
        ),
    ],
)
def test_inputs_that_do_not_fit(config: ModelConfig, arguments: list[Argument], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        order_inputs(config, arguments)


def test_outputs_by_number_or_order() -> None:
    numbered = ModelConfig(name="m", outputs=_tensors("pooled__1", "logits__0"))
    assert order_outputs(numbered) == {"pooled__1": 1, "logits__0": 0}
    named = ModelConfig(name="m", outputs=_tensors("logits", "pooled__5"))
    assert order_outputs(named) == {"logits": 0, "pooled__5": 1}
    with pytest.raises(BackendError, match="at least one output"):
        order_outputs(ModelConfig(name="m"))
