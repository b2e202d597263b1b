"""Joining and splitting of dynamic batches, against answers computed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mooring_batch import Request, answer_requests, join_inputs, make_batch_input
from mooring_model_config import BackendError, BatchInput, BatchOutput, ModelConfig, TensorConfig

Array = npt.NDArray[Any]

BATCHING = ModelConfig(name="m", max_batch_size=8)
BAD = 99


def _request(values: Sequence[Any], *, outputs: tuple[str, ...] = ("y",)) -> Request:
    return Request({"x": np.array(values)}, outputs)


class Doubler:
    """Engine that returns ``y`` = 2x, refuses a batch that holds ``BAD``, and counts its runs."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []

    def __call__(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> Mapping[str, Array]:
        x = inputs["x"]
        self.batches.append(x.tolist())
        if (x == BAD).any():
            raise BackendError(f"value {BAD} is out of range", code="INTERNAL")
        return dict.fromkeys(wanted, 2 * x)


def _values(answers: Sequence[Any]) -> list[Any]:
    return [str(a) if isinstance(a, BackendError) else a["y"].tolist() for a in answers]


def test_one_run_answers_all_requests() -> None:
    engine = Doubler()
    answers = answer_requests(BATCHING, [_request([[1], [2]]), _request([[3]])], engine)
    assert _values(answers) == [[[2], [4]], [[6]]]
    assert engine.batches == [[[1], [2], [3]]]


def test_a_single_request_is_not_copied() -> None:
    request = _request([[1, 2]])
    assert join_inputs(BATCHING, [request])["x"] is request.inputs["x"]


def test_without_batching_requests_run_one_by_one() -> None:
    engine = Doubler()
    answers = answer_requests(ModelConfig(name="m"), [_request([1]), _request([2, 3])], engine)
    assert _values(answers) == [[2], [4, 6]]
    assert engine.batches == [[1], [2, 3]]


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([1, 2, 3, BAD]), min_size=1, max_size=3), min_size=1, max_size=8))
def test_only_bad_requests_fail_whatever_the_batch(rows: list[list[int]]) -> None:
    answers = answer_requests(BATCHING, [_request(row) for row in rows], Doubler())
    expected = ["value 99 is out of range" if BAD in row else [2 * v for v in row] for row in rows]
    assert _values(answers) == expected


def test_a_bad_request_costs_few_runs() -> None:
    engine = Doubler()
    answer_requests(BATCHING, [_request([BAD if i == 5 else i]) for i in range(8)], engine)
    assert [len(batch) for batch in engine.batches] == [8, 4, 4, 2, 1, 1, 2]


def test_requests_of_different_shapes_run_apart() -> None:
    answers = answer_requests(BATCHING, [_request([[1, 2]]), _request([[3]])], Doubler())
    assert _values(answers) == [[[2, 4]], [[6]]]


def test_every_request_gets_the_outputs_that_it_wants() -> None:
    both, one = answer_requests(
        BATCHING, [_request([1], outputs=("y", "z")), _request([2], outputs=("z",))], Doubler()
    )
    assert isinstance(both, Mapping)
    assert isinstance(one, Mapping)
    assert sorted(both) == ["y", "z"]
    assert sorted(one) == ["z"]


def test_too_few_rows_fail_only_the_requests_that_get_none() -> None:
    def first_two_rows(inputs: Mapping[str, Array], wanted: Sequence[str]) -> Mapping[str, Array]:
        return {"y": inputs["x"][:2]}

    answers = answer_requests(BATCHING, [_request([1]), _request([2]), _request([3])], first_two_rows)
    assert _values(answers[:2]) == [[1], [2]]
    assert isinstance(answers[2], BackendError)
    assert answers[2].code == "UNSUPPORTED"
    assert "output tensor 'y': expected a batch size of at least 3 in the model's output, got 2" in str(
        answers[2]
    )


def test_surplus_rows_are_dropped() -> None:
    answers = answer_requests(BATCHING, [_request([1])], lambda _inputs, _wanted: {"y": np.arange(4)})
    assert _values(answers) == [[0]]


def test_a_scalar_can_not_be_split() -> None:
    (answer,) = answer_requests(
        BATCHING, [_request([1])], lambda _inputs, _wanted: {"y": np.float32(1).reshape(())}
    )
    assert "'y' is a scalar" in str(answer)


def _shapes_of(*, kind: str, data_type: str = "TYPE_INT32") -> Array:
    """Batch input over requests of shape [2, 3, 4], [1, 0, 5] and [1, 2, 2]."""
    entry = BatchInput(kind=kind, data_type=data_type, target_name="t", source_input="x")
    return make_batch_input(entry, [(2, 3, 4), (1, 0, 5), (1, 2, 2)])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("BATCH_ELEMENT_COUNT", [24, 0, 4]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT", [24, 24, 28]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", [0, 24, 24, 28]),
        ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", [0] * 24),
        ("BATCH_ITEM_SHAPE", [[3, 4], [3, 4], [0, 5], [2, 2]]),
        ("BATCH_ITEM_SHAPE_FLATTEN", [3, 4, 3, 4, 0, 5, 2, 2]),
    ],
)
def test_batch_inputs(kind: str, expected: list[Any]) -> None:
    values = _shapes_of(kind=kind)
    assert values.tolist() == expected
    assert values.dtype == np.int32
    assert _shapes_of(kind=kind, data_type="TYPE_FP32").dtype == np.float32


def test_batch_input_of_a_type_that_triton_has_not() -> None:
    with pytest.raises(BackendError, match="TYPE_INT64 is neither TYPE_INT32 nor TYPE_FP32"):
        _shapes_of(kind="BATCH_ELEMENT_COUNT", data_type="TYPE_INT64")
    with pytest.raises(BackendError, match="unknown kind NEW"):
        _shapes_of(kind="NEW")


RAGGED = ModelConfig(
    name="m",
    max_batch_size=8,
    inputs=(TensorConfig(name="x", data_type="TYPE_INT64", dims=(-1,), ragged=True),),
    batch_inputs=(
        BatchInput(kind="BATCH_ITEM_SHAPE", data_type="TYPE_INT32", target_name="shape", source_input="x"),
        BatchInput(
            kind="BATCH_ELEMENT_COUNT", data_type="TYPE_INT32", target_name="counts", source_input="x"
        ),
    ),
    batch_outputs={"y": BatchOutput(target_name="y", source_input="x", shape=(-1, -1, 2))},
)


def test_ragged_requests_are_packed_and_the_output_scattered() -> None:
    def pair(inputs: Mapping[str, Array], wanted: Sequence[str]) -> Mapping[str, Array]:
        assert inputs["x"].tolist() == [1, 2, 3, 4, 5, 6, 7]
        assert inputs["shape"].tolist() == [[3], [3], [1]]
        assert inputs["counts"].tolist() == [6, 1]
        return {"y": np.stack([inputs["x"], -inputs["x"]], axis=-1)}

    answers = answer_requests(RAGGED, [_request([[1, 2, 3], [4, 5, 6]]), _request([[7]])], pair)
    assert _values(answers) == [
        [[[1, -1], [2, -2], [3, -3]], [[4, -4], [5, -5], [6, -6]]],
        [[[7, -7]]],
    ]


def test_scatter_of_too_little_fails_the_request_that_misses_it() -> None:
    answers = answer_requests(
        RAGGED, [_request([[1]]), _request([[2, 3]])], lambda _inputs, _wanted: {"y": np.arange(4)}
    )
    assert _values(answers[:1]) == [[[[0, 1]]]]
    assert "by input 'x' the batch needs at least 6 elements, the model gave 4" in str(answers[1])
