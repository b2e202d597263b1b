from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from mooring import MooringError
from mooring_loadtests import client_bench, client_bench_import, client_bench_map, client_bench_memory
from mooring_loadtests.client_bench import CEILINGS, FLOORS, main, verdicts
from mooring_loadtests.client_bench_echo import ROW, write_echo
from mooring_loadtests.client_bench_import import HEAVY, ImportCost, measure_import
from mooring_loadtests.client_bench_infer import CASES, CoroutineSide, ThreadSide, address_of, check_answer
from mooring_loadtests.client_bench_map import GRID, MapSides, MapTiming, time_map
from mooring_loadtests.client_bench_memory import MemoryUse, measure_memory
from mooring_loadtests.client_bench_pairs import Comparison, Side, compare


def _side(name: str, turns: list[tuple[str, int]], seconds_each: float) -> Side:
    def side(requests: int) -> float:
        turns.append((name, requests))
        return requests * seconds_each

    return side


def test_sides_take_turns_with_equally_many_requests() -> None:
    turns: list[tuple[str, int]] = []
    sdk, bare = _side("sdk", turns, 0.002), _side("bare", turns, 0.001)
    seen = compare(sdk, bare, workers=8, pairs=3, slice_s=0.5)
    timed = turns[-6:]
    assert [name for name, _ in timed] == ["sdk", "bare", "bare", "sdk", "sdk", "bare"]
    # The slower side needs 2 ms for each of its workers' requests, so 250 fill half a second.
    assert {requests for _, requests in timed} == {250}
    assert seen.ratios == pytest.approx((0.5, 0.5, 0.5))
    # 8 workers, each with one request in 2 ms or 1 ms.
    assert (seen.sdk_per_s, seen.bare_per_s) == pytest.approx((4000, 8000))


def test_a_turn_has_at_least_one_request() -> None:
    turns: list[tuple[str, int]] = []
    side = _side("slow", turns, 5.0)
    compare(side, side, workers=1, pairs=1, slice_s=0.001)
    assert [requests for _, requests in turns[-2:]] == [1, 1]


@pytest.mark.parametrize(
    ("ratios", "median", "quartiles"),
    [
        ((0.9,), 0.9, (0.9, 0.9)),
        ((1.0, 0.8), 0.9, (0.85, 0.95)),
        # One disturbed pair moves neither.
        ((1.0, 0.98, 0.2, 0.99, 0.97), 0.98, (0.97, 0.99)),
    ],
)
def test_a_comparison_is_its_median(
    ratios: tuple[float, ...], median: float, quartiles: tuple[float, float]
) -> None:
    seen = Comparison(ratios=ratios, sdk_per_s=1.0, bare_per_s=1.0)
    assert seen.ratio == median
    assert seen.quartiles == pytest.approx(quartiles)


def test_each_thread_of_a_side_has_its_own_call_and_the_same_work() -> None:
    done: list[int] = []

    def make_call(opened: ExitStack) -> Callable[[], np.ndarray]:
        owner = threading.get_ident()
        opened.callback(lambda: done.append(-1))

        def call() -> np.ndarray:
            assert threading.get_ident() == owner
            done.append(owner)
            return ROW

        return call

    with closing(ThreadSide(make_call, 3)) as side:
        assert side(4) > 0
        assert side(2) > 0
        # The first call of each shows that the answers are right.
        counts = [done.count(owner) for owner in set(done)]
        assert counts == [4 + 2 + 1] * 3
    assert done.count(-1) == 3


def test_what_fails_in_a_thread_fails_the_turn() -> None:
    def make_call(opened: ExitStack) -> Callable[[], np.ndarray]:
        return lambda: ROW + 1

    with closing(ThreadSide(make_call, 2)) as side, pytest.raises(MooringError, match="echo was sent"):
        side(1)


def test_coroutines_of_a_side_run_at_the_same_time() -> None:
    under_way, most = 0, 0
    calls = 0

    async def call() -> np.ndarray:
        nonlocal under_way, most, calls
        under_way, calls = under_way + 1, calls + 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return ROW

    with asyncio.Runner() as runner:
        assert CoroutineSide(runner, call, 5)(3) > 0
    assert (calls, most) == (15, 5)


@pytest.mark.parametrize("wrong", [ROW.astype(np.float64), ROW[:, :4], ROW * 2])
def test_a_wrong_echo_is_no_result(wrong: np.ndarray) -> None:
    check_answer(ROW.copy())
    with pytest.raises(MooringError, match="but answered"):
        check_answer(wrong)


def test_tritonclient_gets_the_address() -> None:
    assert address_of("grpc://127.0.0.1:8001") == "127.0.0.1:8001"


def test_every_way_to_call_is_measured() -> None:
    assert {case.key for case in CASES} == {
        "infer_grpc_c1", "infer_grpc_c8", "infer_http_c1", "infer_http_c8",
        "infer_grpc_async_c1", "infer_grpc_async_c8", "infer_http_async_c1", "infer_http_async_c8",
    }  # fmt: skip


def test_the_echo_models_config_is_one(tmp_path: Path) -> None:
    assert write_echo(tmp_path) == tmp_path
    written = (tmp_path / "echo" / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(written, model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("echo", "python", 8)
    assert [(tensor.name, list(tensor.dims)) for tensor in (*config.input, *config.output)] == [
        ("x", [-1]),
        ("y", [-1]),
    ]
    compile((tmp_path / "echo" / "1" / "model.py").read_text(encoding="utf-8"), "model.py", "exec")


def test_memory_growth_counts_from_the_first_tenth_to_the_highest_later_one() -> None:
    assert MemoryUse(requests=10, rss_mib=(50.0, 51.0, 54.5, 52.0)).growth_mib == 4.5
    assert MemoryUse(requests=10, rss_mib=(50.0, 49.0)).growth_mib == 0.0


def test_a_failure_of_the_measured_process_is_told() -> None:
    with pytest.raises(MooringError, match=r"memory is measured failed:\nConfigError: .*'ftp://models:1'"):
        measure_memory("ftp://models:1", 10)


def test_the_import_is_measured_in_fresh_interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "csv" not in HEAVY
    monkeypatch.setattr(client_bench_import, "HEAVY", (*HEAVY, "numpy"))
    cost = measure_import(1)
    assert 0 < cost.seconds < 60
    assert cost.heavy == ("numpy",)


def test_an_import_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_bench_import, "_CODE", "import no_such_module_at_all")
    with pytest.raises(MooringError, match=r"import mooring failed:(?s:.*)no_such_module_at_all"):
        measure_import(1)


def test_map_figures_are_of_the_time_that_equally_many_texts_take() -> None:
    timing = MapTiming(loop=(50.0,), asyncio_loop=(100.0, 300.0), map=(120.0,), async_map=(150.0, 150.0))
    # 100 and then 300 texts/s: 200 texts in 1 + 1/3 s.
    assert timing.map_over_asyncio == pytest.approx(120 / 150)
    assert timing.map_over_loop == pytest.approx(2.4)
    assert timing.async_map_over_asyncio == pytest.approx(1.0)


class _FakeSides:
    """Every text takes the hand-tuned loop least with 16 coroutines and 4 texts a request."""

    def __init__(self, url: str, model: str) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.requests = 0
        self.now_s = 0.0

    def __enter__(self) -> _FakeSides:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append(("closed",))

    def check(self, texts: Sequence[str]) -> int:
        return 7

    def loop(self, texts: Sequence[str]) -> None:
        self._take("loop", texts)

    def map(self, texts: Sequence[str]) -> None:
        self._take("map", texts)
        self.requests += 3

    def async_map(self, texts: Sequence[str]) -> None:
        self._take("async_map", texts)

    def asyncio_loop(self, texts: Sequence[str], concurrency: int, batch_size: int) -> None:
        self._take("asyncio_loop", texts, concurrency, batch_size)
        self.now_s += 1 if (concurrency, batch_size) == (16, 4) else 1.1

    def _take(self, name: str, texts: Sequence[str], *numbers: int) -> None:
        self.calls.append((name, len(texts), *numbers))
        self.now_s += 1


def test_map_sides_run_twice_in_turns_with_the_best_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = _FakeSides("", "")
    monkeypatch.setattr(client_bench_map, "MapSides", lambda url, model: sides)
    clock = SimpleNamespace(perf_counter=lambda: sides.now_s)
    monkeypatch.setattr(client_bench_map, "time", clock)
    lines: list[str] = []
    timing = time_map(
        "grpc://127.0.0.1:1", ["a"] * 50, model="ner", loop_texts=5, sample=10, report=lines.append
    )
    assert sides.calls[: len(GRID)] == [("asyncio_loop", 10, *numbers) for numbers in GRID]
    assert sides.calls[len(GRID) :] == [
        ("loop", 5), ("asyncio_loop", 50, 16, 4), ("map", 50), ("async_map", 50),
        ("async_map", 50), ("map", 50), ("asyncio_loop", 50, 16, 4), ("loop", 5),
        ("closed",),
    ]  # fmt: skip
    twice = {"loop": 5.0, "asyncio_loop": 25.0, "map": 50.0, "async_map": 50.0}
    assert timing == MapTiming(**{name: pytest.approx((rate, rate)) for name, rate in twice.items()})
    assert any("task.map of Client: 50 texts in 3 requests" in line for line in lines)
    assert any("16 coroutines, 4 texts a request: 50 texts" in line for line in lines)


def test_sides_that_answer_differently_are_not_compared() -> None:
    sides = MapSides.__new__(MapSides)
    sides.loop = sides.map = sides.async_map = lambda texts: [[] for _ in texts]  # type: ignore[method-assign]
    sides.asyncio_loop = lambda texts, *_: [[("PER", 0.9, 0, 3, "Ada")] for _ in texts]  # type: ignore[method-assign]
    with pytest.raises(MooringError, match=r"asyncio_loop finds \[\('PER', 0, 3\)\] in 'Ada', the plain"):
        sides.check(["Ada"])


def test_verdicts_name_what_misses_its_limit() -> None:
    assert verdicts(
        {
            "import_s": 0.31,
            "heavy_imports": ["torch"],
            "infer_grpc_c1": 0.95,
            "map_over_loop": 1.49,
            "async_map_over_asyncio": 0.5,
            "memory_growth_mib": 5.0,
        }
    ) == [
        "import_s                0.310  <= 0.3   missed",
        "heavy_imports           torch  none     missed",
        "infer_grpc_c1           0.950  >= 0.95  ok",
        "map_over_loop           1.490  >= 1.5   missed",
        "async_map_over_asyncio  0.500  -        -",
        "memory_growth_mib       5.000  <= 5     ok",
    ]
    assert verdicts({"heavy_imports": []}) == ["heavy_imports  none  none  ok"]


def test_limits_are_those_of_the_figures() -> None:
    assert len(FLOORS) == len(CASES) + 2
    assert set(CEILINGS) == {"import_s", "memory_growth_mib"}


def test_only_what_was_asked_for_is_measured_and_the_last_line_is_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client_bench, "measure_import", lambda runs: ImportCost(seconds=0.2, heavy=()))
    assert main(["--only", "import"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert json.loads(shown.out.splitlines()[-1]) == {"import_s": 0.2, "heavy_imports": []}


def test_a_missing_model_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--repository", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "has no built model 'ner': run 'mooring build ner' first" in shown.err


@pytest.mark.parametrize("option", ["--pairs", "--slice-ms", "--requests", "--texts"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
def test_a_number_is_whole_and_above_0(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([f"{option}={value}"])
    assert stopped.value.code == 2
    assert f"{value!r} is no whole number from 1" in capsys.readouterr().err


def test_the_memory_process_imports_no_second_client() -> None:
    code = (
        f"import sys, {client_bench_memory.__name__}; "
        "print([name for name in sys.modules if name.split('.')[0] in ('gevent', 'grpc', 'locust', 'torch')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
