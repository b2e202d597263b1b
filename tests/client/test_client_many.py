"""Many requests at a time: ``infer_many`` and a task's ``map``."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from awaited import as_async
from mooring import ConfigError, ConnectError, InvalidInput, ModelNotFound, Outcome, Overloaded
from wire_models import in_memory

#: What may be begun and not yet taken, as a multiple of ``concurrency``.
WINDOW = 4
#: Texts of one to five capitalised words.
TEXTS = [" ".join(["Word"] * (1 + i % 5)) for i in range(40)]


def numbers(count: int) -> Iterator[dict[str, np.ndarray]]:
    """Inputs that are told apart by their value."""
    for i in range(count):
        yield {"x": np.full((1, 2), i, np.float32)}


def value(outcome: Outcome[dict[str, np.ndarray]]) -> float:
    """The number that was sent."""
    return float(outcome.unwrap()["y"][0, 0]) / 2


def test_every_input_has_its_outcome_in_order(wired: Any) -> None:
    outcomes = list(wired.client.infer_many("double", numbers(50)))
    assert [outcome.index for outcome in outcomes] == list(range(50))
    assert [value(outcome) for outcome in outcomes] == list(range(50))
    assert {outcome.error for outcome in outcomes} == {None}


def test_without_order_every_input_still_has_its_outcome(wired: Any) -> None:
    outcomes = list(wired.client.infer_many("double", numbers(50), ordered=False, concurrency=4))
    assert sorted(outcome.index for outcome in outcomes) == list(range(50))
    assert all(value(outcome) == outcome.index for outcome in outcomes)


@in_memory
@pytest.mark.parametrize("side", ["threads"], indirect=True)
def test_threads_can_not_wait_for_an_async_generator(wired: Any) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        list(wired.client.infer_many("double", as_async(numbers(2))))


@pytest.mark.parametrize("side", ["coroutines"], indirect=True)
@pytest.mark.parametrize("ordered", [True, False])
def test_an_async_generator_may_be_the_source(wired: Any, ordered: bool) -> None:
    outcomes = list(wired.client.infer_many("double", as_async(numbers(20)), ordered=ordered))
    assert sorted(map(value, outcomes)) == list(range(20))
    assert all(value(outcome) == outcome.index for outcome in outcomes)


def test_options_go_with_each_request(wired: Any) -> None:
    stream = wired.client.infer_many("double", numbers(3), outputs=["rows"], version="1", timeout_s=9)
    assert [set(outcome.unwrap()) for outcome in stream] == [{"rows"}] * 3
    assert {request.version for request in wired.fake.requests} == {"1"}
    assert all(8 < request.timeout_s <= 9 for request in wired.fake.requests)


def test_no_input_is_no_outcome_and_no_request(wired: Any) -> None:
    assert list(wired.client.infer_many("double", [])) == []
    assert list(wired.client.task("ner").map([])) == []
    assert wired.fake.requests == []


def test_what_fails_has_an_error_of_its_own(wired: Any) -> None:
    inputs = list(numbers(6))
    inputs[1] = {"x": np.zeros((9, 1), np.float32)}
    inputs[4] = {"z": np.zeros((1, 1), np.float32)}
    outcomes = list(wired.client.infer_many("double", inputs, concurrency=2))
    assert [outcome.index for outcome in outcomes if outcome.error is not None] == [1, 4]
    with pytest.raises(InvalidInput, match="expected at most 3"):
        outcomes[1].unwrap()
    assert re.search("there is no input 'z'", str(outcomes[4].error))
    assert outcomes[1].value is None
    assert [value(outcomes[i]) for i in (0, 2, 3, 5)] == [0, 2, 3, 5]


def test_a_model_that_is_not_there_is_every_input_s_error(wired: Any) -> None:
    outcomes = list(wired.client.infer_many("nope", numbers(3)))
    assert [type(outcome.error) for outcome in outcomes] == [ModelNotFound] * 3


def hold_the_first(wired: Any, model: str, taken: list[Any], window: int) -> None:
    """The request with the first item, 7 or ``"First"``, is answered when the window must be full."""
    plain = wired.fake.models_by_name[model].answer

    def answer(inputs: dict[str, np.ndarray]) -> Any:
        if next(iter(inputs.values()))[0, 0] in (7, b"First"):
            ends_at_s = time.monotonic() + 20
            while len(taken) < window and time.monotonic() < ends_at_s:
                time.sleep(0.001)
            time.sleep(0.05)
        return plain(inputs)

    wired.fake.change(model, answer=answer)


# A fake answers coroutines in their own thread, so it can't hold one answer and give others.
@pytest.mark.parametrize("wired", ["grpc", "http"], indirect=True)
@pytest.mark.parametrize("from_coroutines", [True, False])
def test_the_source_is_never_read_further_ahead_than_the_window(wired: Any, from_coroutines: bool) -> None:
    taken: list[int] = []

    def endless() -> Iterator[dict[str, np.ndarray]]:
        for inputs in itertools.chain([{"x": np.float32([[7, 7]])}], itertools.cycle(numbers(5))):
            taken.append(len(taken))
            yield inputs

    wired.client.infer("double", {"x": np.zeros((1, 1), np.float32)})
    hold_the_first(wired, "double", taken, WINDOW * 3)
    source: Any = as_async(endless()) if wired.is_async and from_coroutines else endless()
    with closing(wired.client.infer_many("double", source, concurrency=3)) as stream:
        for given in range(1, 60):
            next(stream)
            # One more may have been fetched, but not begun, where items come asynchronously.
            assert len(taken) <= given - 1 + WINDOW * 3 + (wired.is_async and from_coroutines)
            assert given > 1 or len(taken) >= WINDOW * 3


def test_leaving_early_ends_the_pauses_that_a_server_asked_for(side: Any, fake: Any) -> None:
    paused = threading.Semaphore(0)
    plain = fake.models_by_name["double"].answer

    def answer(inputs: dict[str, np.ndarray]) -> Any:
        if inputs["x"][0, 0] == 0:
            return plain(inputs)
        paused.release()
        raise Overloaded("come back later", retry_after_s=30.0)

    fake.change("double", answer=answer)
    client = side.client("grpc://fake:8001", transport=fake, timeout_s=60)
    results = client.infer_many("double", numbers(4), concurrency=4)
    assert value(next(results)) == 0
    for _ in range(3):
        assert side.is_async or paused.acquire(timeout=20)
    began_s = time.monotonic()
    results.close()
    assert time.monotonic() - began_s < 10


def test_no_more_requests_run_at_a_time_than_asked_for(wired: Any) -> None:
    running = most = 0
    lock = threading.Lock()
    together = threading.Barrier(3)

    def answer(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        # A fake of coroutines answers in their one thread.
        if not (wired.is_async and wired.wire == "fake"):
            together.wait(20)
        with lock:
            running -= 1
        return {"y": 2 * inputs["x"], "rows": np.zeros((1, 1), np.int64)}

    wired.fake.change("double", answer=answer)
    assert len(list(wired.client.infer_many("double", numbers(30), concurrency=3))) == 30
    assert most == (1 if wired.is_async and wired.wire == "fake" else 3)


def test_an_error_of_the_source_comes_through(wired: Any) -> None:
    def broken() -> Iterator[dict[str, np.ndarray]]:
        yield from numbers(2)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(wired.client.infer_many("double", broken()))
    # Nothing is left behind, and the client works on.
    assert wired.client.counters().endpoints[0].outstanding == 0
    assert len(list(wired.client.infer_many("double", numbers(2)))) == 2


def test_closing_early_leaves_nothing_under_way(wired: Any) -> None:
    closed = []

    def endless() -> Iterator[dict[str, np.ndarray]]:
        try:
            yield from itertools.cycle(numbers(5))
        finally:
            closed.append(True)

    async def async_endless() -> AsyncIterator[dict[str, np.ndarray]]:
        try:
            for inputs in itertools.cycle(numbers(5)):
                yield inputs
        finally:
            closed.append(True)

    source = async_endless() if wired.is_async else endless()
    stream = wired.client.infer_many("double", source)
    next(stream)
    stream.close()
    assert wired.client.counters().endpoints[0].outstanding == 0
    if wired.is_async:  # a generator of threads is closed when it is collected
        assert closed == [True]


@in_memory
@pytest.mark.parametrize("concurrency", [0, -1, 1.5, True, "8", None])
def test_impossible_counts_are_refused(wired: Any, concurrency: Any) -> None:
    ner = wired.client.task("ner")
    for call in (
        lambda: wired.client.infer_many("double", numbers(1), concurrency=concurrency),
        lambda: ner.map(["A"], concurrency=concurrency),
    ):
        with pytest.raises(
            ConfigError, match=f"concurrency must be a whole number from 1, got {concurrency!r}"
        ):
            next(call())
    if concurrency is not None:
        with pytest.raises(ConfigError, match="batch_size must be a whole number from 1"):
            next(ner.map(["A"], batch_size=concurrency))


def test_a_map_gives_what_single_calls_give(wired: Any) -> None:
    ner = wired.client.task("ner")
    expected = [ner(text) for text in TEXTS]
    for options in ({}, {"batch_size": 3}, {"batch_size": 100}, {"concurrency": 1}):
        outcomes = list(ner.map(iter(TEXTS), **options))
        assert [outcome.index for outcome in outcomes] == list(range(len(TEXTS))), options
        assert [outcome.unwrap() for outcome in outcomes] == expected, options
    unordered = list(ner.map(TEXTS, ordered=False, batch_size=2))
    assert sorted(outcome.index for outcome in unordered) == list(range(len(TEXTS)))
    assert all(outcome.value == expected[outcome.index] for outcome in unordered)


def test_every_task_maps(wired: Any) -> None:
    items = {"ner": "A", "intent": "a", "embed": "a", "rank": "a", "recommend": ["a", "b"], "images": b"a"}
    items |= {"rows": [0.25, 0.125, 0.0]}
    for model, item in items.items():
        task = wired.client.task(model)
        one = task(item)
        for outcome in task.map([item] * 5, batch_size=2):
            np.testing.assert_array_equal(outcome.unwrap(), one)


@pytest.mark.parametrize("side", ["coroutines"], indirect=True)
def test_a_map_of_an_async_generator(wired: Any) -> None:
    ner = wired.client.task("ner")
    outcomes = list(ner.map(as_async(TEXTS), batch_size=3))
    assert [outcome.unwrap() for outcome in outcomes] == [ner(text) for text in TEXTS]


@pytest.mark.parametrize("wired", ["grpc", "http"], indirect=True)
def test_a_map_reads_no_further_ahead_than_its_window(wired: Any) -> None:
    taken: list[str] = []

    def endless() -> Iterator[str]:
        for text in itertools.chain(["First"], itertools.cycle(TEXTS)):
            taken.append(text)
            yield text

    ner = wired.client.task("ner")
    # Windows are counted in requests.
    hold_the_first(wired, "ner", taken, 3 * WINDOW * 2)
    with closing(ner.map(endless(), concurrency=2, batch_size=3)) as stream:
        for given in range(1, 60):
            next(stream)
            assert len(taken) <= given - 1 + 3 * (WINDOW * 2 + 1)
            assert given > 1 or len(taken) >= 3 * WINDOW * 2


def test_a_batch_holds_no_more_than_the_model_takes(wired: Any) -> None:
    list(wired.client.task("ner").map(TEXTS, batch_size=100))
    assert [len(request.inputs[0].array) for request in wired.fake.requests] == [4] * 10


def test_without_a_chosen_size_a_map_begins_with_single_items(wired: Any) -> None:
    list(wired.client.task("ner").map(TEXTS[:8]))
    assert [len(request.inputs[0].array) for request in wired.fake.requests] == [1] * 8


def test_items_that_no_model_takes_spare_their_neighbours(wired: Any) -> None:
    ner = wired.client.task("ner")
    outcomes = list(ner.map(["One", "", "Two", None, "Three", "Four"], batch_size=3))
    assert [outcome.index for outcome in outcomes] == list(range(6))
    said = {outcome.index: str(outcome.error) for outcome in outcomes if outcome.error is not None}
    assert said == {
        1: "model 'ner': text 1 is empty",
        3: "model 'ner': text 3 is NoneType, expected str",
    }
    assert [outcomes[i].unwrap()[0].text for i in (0, 2, 4, 5)] == ["One", "Two", "Three", "Four"]
    # They were not even sent.
    assert sum(len(request.inputs[0].array) for request in wired.fake.requests) == 4


@in_memory
@pytest.mark.parametrize("items", ["Anna visits Porto", b"Anna", bytearray(b"Anna")], ids=repr)
def test_one_text_is_not_taken_for_its_characters(wired: Any, items: Any) -> None:
    said = f"^model 'ner': map takes an iterable of texts, got one {type(items).__name__}$"
    with pytest.raises(InvalidInput, match=said):
        list(wired.client.task("ner").map(items))
    assert wired.fake.requests == []


def test_a_text_that_is_no_path_spares_its_neighbours(wired: Any) -> None:
    good = b"\x89PNG"
    outcomes = list(wired.client.task("images").map([good, "A" * 5000, good], batch_size=3))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), InvalidInput, type(None)]


def test_a_refused_batch_is_split_to_find_the_culprit(wired: Any) -> None:
    plain = wired.fake.models_by_name["ner"].answer

    def refuse_some(inputs: dict[str, np.ndarray]) -> Any:
        if any(b"Bad" in text for text in inputs["text"][:, 0]):
            raise InvalidInput("there is a bad text")
        return plain(inputs)

    wired.fake.change("ner", answer=refuse_some)
    ner = wired.client.task("ner")
    outcomes = list(ner.map(["One", "Two", "Bad", "Three", "Four"], batch_size=4, concurrency=1))
    assert [outcome.index for outcome in outcomes] == list(range(5))
    assert [outcome.index for outcome in outcomes if outcome.error is not None] == [2]
    with pytest.raises(InvalidInput, match="there is a bad text"):
        outcomes[2].unwrap()
    assert [outcomes[i].unwrap()[0].text for i in (0, 1, 3, 4)] == ["One", "Two", "Three", "Four"]
    # The batch, its four items one by one, and the rest.
    assert [len(request.inputs[0].array) for request in wired.fake.requests] == [4, 1, 1, 1, 1, 1]


def test_what_is_not_the_items_fault_is_the_whole_batch_s(side: Any, fake: Any) -> None:
    client = side.client("grpc://fake:8001", transport=fake)
    ner = client.task("ner")
    fake.error = ConnectError("down")
    outcomes = list(ner.map(["One", "Two"], batch_size=2))
    assert [type(outcome.error) for outcome in outcomes] == [ConnectError] * 2
    assert outcomes[0].error is outcomes[1].error
    assert outcomes[0].error is not None
    assert len(outcomes[0].error.attempts) == 3


def test_each_request_of_a_map_has_the_time_given(wired: Any) -> None:
    for outcome in wired.client.task("ner").map(TEXTS[:4], timeout_s=9):
        outcome.unwrap()
    assert wired.fake.requests
    assert all(8 < request.timeout_s <= 9 for request in wired.fake.requests)


def test_a_progress_bar_counts_the_items(wired: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm", reason="the progress bar is tqdm's")
    assert len(list(wired.client.task("ner").map(TEXTS, progress=True, batch_size=4))) == len(TEXTS)
    shown = capsys.readouterr().err
    assert "ner: 100%" in shown
    assert "40/40" in shown
    list(wired.client.infer_many("double", numbers(3), progress=True))
    # A generator does not say how many there are.
    assert re.search(r"double: 3 items", capsys.readouterr().err)
    list(wired.client.infer_many("double", numbers(3)))
    assert capsys.readouterr().err == ""


def test_without_tqdm_a_progress_bar_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['tqdm'] = None\n"
        "from mooring import Client\n"
        "from mooring.testing import FakeTransport\n"
        "client = Client('grpc://fake:1', transport=FakeTransport({}))\n"
        "next(client.infer_many('m', [{}], progress=True))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("ImportError: progress=True needs tqdm: install Mooring's extra [progress]\n")


def test_an_outcome_is_its_value_or_its_error() -> None:
    assert Outcome(index=0, value=7).unwrap() == 7
    assert Outcome(index=0, value=None).unwrap() is None
    error = InvalidInput("no")
    with pytest.raises(InvalidInput) as caught:
        Outcome(index=0, error=error).unwrap()
    assert caught.value is error
