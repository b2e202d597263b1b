from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, cast

import pytest

from mooring import BatchStatistics, Client, DurationStatistics, EnsembleStep, ModelConfig, ModelStatistics
from mooring_loadtests.server_times import between, loaded_anew, snapshot, switched

NONE = DurationStatistics(count=0, ns=0)


def _statistics(
    name: str,
    *,
    requests: int = 0,
    success_ms: float = 0.0,
    parts_ms: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    batches: dict[int, int] | None = None,
    version: str = "1",
) -> ModelStatistics:
    """Counts of a model whose requests took so long each."""

    def spent(each_ms: float) -> DurationStatistics:
        return DurationStatistics(count=requests, ns=round(requests * each_ms * 1e6))

    queue, compute_input, compute_infer, compute_output = map(spent, parts_ms)
    return ModelStatistics(
        name=name,
        version=version,
        last_inference_ms=0,
        inference_count=requests,
        execution_count=sum((batches or {}).values()),
        success=spent(success_ms),
        fail=NONE,
        queue=queue,
        compute_input=compute_input,
        compute_infer=compute_infer,
        compute_output=compute_output,
        cache_hit=NONE,
        cache_miss=NONE,
        batches=tuple(
            BatchStatistics(
                batch_size=size,
                compute_input=NONE,
                compute_infer=DurationStatistics(count=count, ns=0),
                compute_output=NONE,
            )
            for size, count in (batches or {}).items()
        ),
    )


BEFORE = {
    "ner": _statistics("ner", requests=100, success_ms=50.0),
    "ner_tokenizer": _statistics("ner_tokenizer", requests=100, parts_ms=(1.0, 1.0, 1.0, 1.0)),
    "ner_onnx": _statistics("ner_onnx", requests=100, parts_ms=(9.0, 9.0, 9.0, 9.0), batches={1: 80, 2: 10}),
}


def _add(earlier: ModelStatistics, later: ModelStatistics) -> ModelStatistics:
    """What the server says after both: its counts only grow."""

    def both(field: str) -> DurationStatistics:
        one, other = getattr(earlier, field), getattr(later, field)
        return DurationStatistics(count=one.count + other.count, ns=one.ns + other.ns)

    fields = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    sizes = {batch.batch_size: batch.compute_infer.count for batch in earlier.batches}
    for batch in later.batches:
        sizes[batch.batch_size] = sizes.get(batch.batch_size, 0) + batch.compute_infer.count
    whole = _statistics(earlier.name, requests=earlier.inference_count + later.inference_count, batches=sizes)
    return replace(whole, **{field: both(field) for field in fields})


def test_what_was_before_does_not_count() -> None:
    during = {
        "ner": _statistics("ner", requests=40, success_ms=12.0),
        "ner_tokenizer": _statistics("ner_tokenizer", requests=40, parts_ms=(0.5, 0.1, 1.0, 0.2)),
        "ner_onnx": _statistics(
            "ner_onnx", requests=40, parts_ms=(2.0, 0.3, 7.0, 0.4), batches={2: 12, 4: 4}
        ),
    }
    times = between("ner", BEFORE, {name: _add(BEFORE[name], during[name]) for name in during})
    assert (times.model, times.requests, times.total_ms) == ("ner", 40, pytest.approx(12.0))
    tokenizer, engine = times.steps
    assert (tokenizer.model, tokenizer.batches) == ("ner_tokenizer", {})
    assert tokenizer.total_ms == pytest.approx(1.8)
    parts = (engine.queue_ms, engine.input_ms, engine.compute_ms, engine.output_ms)
    assert parts == pytest.approx((2.0, 0.3, 7.0, 0.4))
    # Batches of one were formed before, not during.
    assert (engine.requests, engine.batches) == (40, {2: 12, 4: 4})


def test_steps_that_not_every_request_calls_have_their_share_of_it() -> None:
    # A cache answers 70 of the 100 without the engine; others ask the tokenizer, too.
    after = {
        "ner": _statistics("ner", requests=100, success_ms=30.0),
        "ner_tokenizer": _statistics("ner_tokenizer", requests=200, parts_ms=(0.0, 0.0, 1.0, 0.0)),
        "ner_onnx": _statistics("ner_onnx", requests=30, parts_ms=(10.0, 0.0, 80.0, 0.0)),
    }
    times = between("ner", {}, after)
    tokenizer, engine = times.steps
    assert (tokenizer.requests, tokenizer.total_ms) == (200, pytest.approx(1.0))
    assert (engine.requests, engine.queue_ms, engine.total_ms) == (
        30,
        pytest.approx(3.0),
        pytest.approx(27.0),
    )


def test_steps_of_requests_that_failed_later_do_not_add_to_those_that_were_answered() -> None:
    failed = DurationStatistics(count=400, ns=0)
    after = {
        "ner": replace(_statistics("ner", requests=100, success_ms=95.0), fail=failed),
        "ner_tokenizer": _statistics("ner_tokenizer", requests=500, parts_ms=(0.0, 0.0, 1.0, 0.0)),
        "ner_onnx": _statistics("ner_onnx", requests=100, parts_ms=(10.0, 0.0, 80.0, 0.0)),
    }
    tokenizer, engine = between("ner", {}, after).steps
    assert (tokenizer.total_ms, engine.total_ms) == (pytest.approx(1.0), pytest.approx(90.0))


def test_a_model_alone_is_its_own_step() -> None:
    after = {"ner_onnx": _add(BEFORE["ner_onnx"], _statistics("ner_onnx", requests=1, batches={1: 1}))}
    times = between("ner_onnx", BEFORE, after)
    assert [(step.model, step.batches) for step in times.steps] == [("ner_onnx", {1: 1})]


def test_where_nothing_happened_all_is_zero() -> None:
    times = between("ner", BEFORE, BEFORE)
    assert (times.requests, times.total_ms) == (0, 0.0)
    assert all(step.total_ms == 0 and step.batches == {} for step in times.steps)


@pytest.mark.parametrize(
    "after",
    [
        _statistics("m", requests=100, success_ms=7.0, version="2"),
        # Loaded anew under the same version: its counts began again.
        _statistics("m", requests=3, success_ms=7.0),
        # It has answered more than before since then, in less time or in other batches.
        _statistics("m", requests=101, success_ms=7.0),
        _statistics("m", requests=900, success_ms=7.0, batches={2: 450}),
    ],
)
def test_a_model_that_was_loaded_anew_counts_from_its_loading(after: ModelStatistics) -> None:
    before = {"m": _statistics("m", requests=100, success_ms=50.0, batches={1: 80, 2: 10})}
    times = between("m", before, {"m": after})
    assert (times.requests, times.total_ms) == (after.inference_count, pytest.approx(7.0))
    sizes = {batch.batch_size: batch.compute_infer.count for batch in after.batches}
    assert times.steps[0].batches == sizes
    (said,) = [*switched(before, {"m": after}), *loaded_anew(before, {"m": after})]
    assert said == ("m" if after.version == "1" else "m was version 1 before the run and 2 after it")


def test_a_server_that_goes_on_is_not_taken_for_another() -> None:
    after = {name: _add(counted, counted) for name, counted in BEFORE.items()}
    for later in (BEFORE, after):
        assert loaded_anew(BEFORE, later) == switched(BEFORE, later) == []


def test_a_model_that_was_not_there_before_counts_too() -> None:
    assert between("ner", {}, BEFORE).requests == 100


class _Server:
    """Answers as a client would of a pipeline that calls another one."""

    steps: ClassVar = {
        "outer": ["tokenizer", "inner"],
        "inner": ["engine", "tokenizer"],
        "tokenizer": [],
        "engine": [],
    }

    def config(self, model: str) -> ModelConfig:
        steps = tuple(
            EnsembleStep(model=name, version="", inputs={}, outputs={}) for name in self.steps[model]
        )
        return ModelConfig(name=model, max_batch_size=8, optional_inputs=(), parameters={}, steps=steps)

    def statistics(self, model: str) -> list[ModelStatistics]:
        return [_statistics(model, version=version) for version in ("9", "10")]


def test_a_snapshot_holds_all_that_computes_once_and_the_newest_version() -> None:
    taken = snapshot(cast(Client, _Server()), "outer")
    # Not the pipeline within: its times are the sum of its steps'.
    assert list(taken) == ["outer", "tokenizer", "engine"]
    assert {entry.version for entry in taken.values()} == {"10"}
