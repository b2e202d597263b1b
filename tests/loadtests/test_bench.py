"""The benchmark: what its callers see, what its ratios are made of, and what it writes."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mooring import (
    ConfigError,
    DataError,
    MooringError,
    Overloaded,
    StartError,
    ThrottlePolicy,
    TransportError,
)
from mooring_loadtests import bench, bench_compare, bench_options, bench_report
from mooring_loadtests.alternatives import LITSERVE, RAY_SERVE, Alternative, ServingSettings
from mooring_loadtests.bench import PARTS
from mooring_loadtests.bench_clients import (
    Run,
    draw_texts,
    drive,
    flood,
    http_caller,
    lean_http_caller,
)
from mooring_loadtests.bench_compare import read_settings
from mooring_loadtests.bench_report import (
    BEGIN,
    END,
    best_alternative,
    check_report,
    ratios,
    summary,
    write_report,
)
from mooring_loadtests.bench_sides import BareSettings, Built
from mooring_loadtests.load_profile import Payload


def rounds(*rates: float, p99_ms: float = 10.0) -> list[dict[str, float]]:
    return [{"per_s": rate, "p50_ms": 5.0, "p99_ms": p99_ms} for rate in rates]


def sides(callers: int, **changes: list[dict[str, float]]) -> dict[str, list[dict[str, float]]]:
    found = {
        "ONNX Runtime fp32": [{"per_s": rate} for rate in (200.0, 220.0, 100.0)],
        "ONNX Runtime int8": [{"per_s": 400.0}] * 3,
        f"engine fp32 {callers}": rounds(180.0, 176.0, 90.0),
        f"engine int8 {callers}": rounds(360.0, 360.0, 360.0),
        f"pipeline fp32 {callers}": rounds(150.0, 160.0, 80.0, p99_ms=30.0),
        f"pipeline int8 {callers}": rounds(300.0, 300.0, 300.0),
        f"LitServe {callers}": rounds(100.0, 100.0, 50.0, p99_ms=60.0),
        f"Ray Serve {callers}": rounds(90.0, 90.0, 95.0),
    }
    return found | changes


MACHINE = {
    "processor": "a processor",
    "vector instructions": "avx2",
    "cores": "2",
    "system": "Linux",
    "python": "3.12",
}


def results(**parts: Any) -> dict[str, Any]:
    compared = {
        "texts": 2000,
        "tokens": [3, 19, 90],
        "rounds": 3,
        "settings": {"LitServe": {"workers": 2}},
        "bare": {
            "fp32": {"sessions": 2, "threads": 1, "batch": 8},
            "int8": {"sessions": 1, "threads": 2, "batch": 1},
        },
        "cores": {"engine fp32 8": [{"callers": 0.25, "engine": share} for share in (1.2, 1.5, 1.3)]},
        "not_measured": {"MLServer": "not installed: no such wheel"},
        "machine": MACHINE,
    }
    return {name: compared | {"sides": found} for name, found in parts.items()}


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    found = ratios(sides(8), 8)
    assert found["engine_over_onnxruntime"] == pytest.approx(0.9)
    assert found["pipeline_over_best_alternative"] == pytest.approx(1.6)
    assert found["pipeline_int8_over_best_alternative"] == pytest.approx(3.0)
    assert found["pipeline_p99_over_best_alternative"] == pytest.approx(0.5)


def test_the_best_alternative_is_the_one_with_the_highest_median() -> None:
    assert best_alternative(sides(8), 8) == "LitServe"
    assert best_alternative(sides(8, **{"Ray Serve 8": rounds(101.0, 102.0, 3.0)}), 8) == "Ray Serve"
    assert best_alternative({}, 8) is None


def test_the_summary_has_the_lowest_ratio_over_models_and_callers() -> None:
    slower = {"pipeline fp32 32": rounds(110.0, 110.0, 110.0), "Ray Serve 32": rounds(101.0, 101.0, 101.0)}
    found = summary(results(classifier=sides(8) | sides(32), ner=sides(8) | sides(32, **slower)))
    assert found["pipeline_over_best_alternative"] == pytest.approx(110 / 101, abs=1e-3)
    assert found["best_alternative"] == "Ray Serve"
    assert found["engine_over_onnxruntime"] == pytest.approx(0.9)
    assert found["medians"]["ner"]["LitServe 8"]["per_s"] == 100.0
    json.dumps(found, allow_nan=False)


def test_what_was_not_measured_is_said() -> None:
    found = summary(
        {"locust": {"rounds": [{"per_core_s": 1700.0}, {"per_core_s": 1800.0}, {"per_core_s": 900.0}]}}
    )
    assert found["locust_rps_per_core"] == 1700.0
    assert found["medians"] == {"locust": {"per_core_s": 1700.0}}
    keys = ("engine_over_onnxruntime", "best_alternative", "goodput_at_5x", "refusal_p99_ms")
    assert [found[key] for key in keys] == [None] * 4
    assert summary(results(ner=sides(8) | sides(32)))["not_measured"] == {
        "ner": {"MLServer": "not installed: no such wheel"}
    }


CORES = {"cores": {"engine": 1.0}, "cores_beyond": {"engine": 0.5}, "cores_throttled": {"engine": 0.75}}


def test_goodput_is_held_against_what_users_get_who_wait_for_their_answers() -> None:
    one = {"rate": 200.0, "capacity_per_s": 180.0, "beyond_per_s": 150.0, "refusal_p99_ms": 20.0}
    one["throttled_per_s"] = 190.0
    found = summary({"overload": {"rounds": [one | CORES]}})
    assert (found["goodput_at_5x"], found["refusal_p99_ms"]) == (0.75, 20.0)
    assert found["goodput_at_5x_throttled"] == 0.95
    assert found["medians"]["overload"] == one


def test_where_nothing_was_refused_there_is_no_such_latency() -> None:
    assert bench._p99([]) is None
    one = {"rate": 200.0, "capacity_per_s": 180.0, "beyond_per_s": 150.0, "beyond_answer_p99_ms": 40.0}
    one |= {"late_p99_ms": 1.0, "throttled_per_s": 190.0, "throttled_answer_p99_ms": 35.0}
    one |= {"throttled_refused": 900, "held_back": 7000}
    rounds = [{**one, **CORES, "refusal_p99_ms": refusal} for refusal in (None, 20.0, 30.0)]
    found = summary({"overload": {"rounds": rounds}})
    assert (found["refusal_p99_ms"], found["medians"]["overload"]["refusal_p99_ms"]) == (25.0, 25.0)
    none = {"rounds": rounds[:1], "queue": 16, "times": 5, "seconds": 15.0}
    found = summary({"overload": none})
    assert (found["refusal_p99_ms"], found["medians"]["overload"]["refusal_p99_ms"]) == (None, None)
    json.dumps(found, allow_nan=False)
    shown = list(bench_report._overload(none))
    assert "| 1 | 200 | 180 | 150 | 40 | - | 1 | 190 | 35 | 900 | 7000 |" in shown
    assert "| engine | 1.00 | 0.50 | 0.75 |" in shown


def test_a_report_is_looked_at_before_anything_is_measured(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    check_report(page, PARTS)
    page.write_text(marked("ner", "old"), encoding="utf-8")
    check_report(page, ["ner"])
    with pytest.raises(DataError, match=r"has not both marks, .*PART=classifier"):
        check_report(page, ["ner", "classifier"])
    with pytest.raises(DataError, match="nowhere is not there"):
        check_report(tmp_path / "nowhere" / "performance.md", ["ner"])


def marked(part: str, content: str) -> str:
    return f"{BEGIN.format(part=part)}\n{content}\n{END}\n"


def test_the_report_keeps_what_is_outside_the_marks_of_what_was_measured(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    others = f"# Title\n\nBefore.\n\n{marked('ner', 'of another day')}\n"
    page.write_text(f"{others}{marked('classifier', 'old')}\nAfter.\n", encoding="utf-8")
    write_report(page, results(classifier=sides(8) | sides(32)))
    text = page.read_text(encoding="utf-8")
    assert text.startswith(others)
    assert text.endswith(f"\n{END}\n\nAfter.\n")
    assert "old" not in text
    assert "| `pipeline_over_best_alternative` | 1.6 | >= 1.35 | reached |" in text
    assert "| **LitServe** | 100 (50-100) | 5 | 60 |" in text
    assert "ONNX Runtime fp32 in process, 2 x 1 threads, 8 texts packed" in text
    assert "| cores used (medians) | callers | engine |\n|---|---:|---:|\n" in text
    assert "| engine fp32, 8 callers | 0.25 | 1.30 |" in text
    assert "- MLServer was not measured: not installed: no such wheel" in text
    assert "On a processor (avx2), 2 cores, Linux, Python 3.12." in text


def test_a_new_report_has_a_place_for_every_part(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    write_report(page, results(ner=sides(8) | sides(32)))
    first = page.read_text(encoding="utf-8")
    write_report(page, results(classifier=sides(8) | sides(32)))
    second = page.read_text(encoding="utf-8")
    assert "### Named entities" in first
    assert "### Text classifier" not in first
    assert second.index("### Text classifier") < second.index("### Named entities")


def test_the_report_says_why_a_setting_has_no_figures(tmp_path: Path) -> None:
    options = {
        "rounds": 1,
        "repeated": 0.5,
        "callers": 32,
        "sides": {"as the recipe says": rounds(100.0)},
        "not_measured": {"OpenVINO": "not installed: no such wheel"},
        "machine": MACHINE,
    }
    write_report(tmp_path / "performance.md", {"options": options})
    text = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert "| as the recipe says | 100 (100-100) | 5 | 10 |\n\n- OpenVINO was not measured: not inst" in text


def test_a_report_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    mine = f"# Mine\n{marked('classifier', 'old')}{BEGIN.format(part='ner')}\n{marked('locust', 'old')}"
    page.write_text(mine, encoding="utf-8")
    with pytest.raises(DataError, match=r"has not both marks, .*PART=ner"):
        write_report(page, results(classifier=sides(8) | sides(32), ner=sides(8) | sides(32)))
    assert page.read_text(encoding="utf-8") == mine


def test_texts_are_the_same_for_the_same_seed_and_of_mixed_lengths() -> None:
    texts = draw_texts(200)
    assert texts == draw_texts(200) != draw_texts(200, Payload(seed=1))
    lengths = sorted(len(text.split()) for text in texts)
    assert lengths[0] < 8
    assert 12 <= lengths[100] <= 18
    assert 40 < lengths[-1] <= 80


def test_callers_ask_about_every_text_once_and_never_more_at_a_time() -> None:
    asked: list[int] = []
    under_way = most = 0

    async def ask(number: int) -> None:
        nonlocal under_way, most
        asked.append(number)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1

    run = asyncio.run(drive(ask, range(50), concurrency=4))
    # The first ones are asked once more: they warm up.
    assert sorted(asked) == sorted([*range(4), *range(50)])
    assert most == 4
    assert run.per_s > 0
    assert 1 <= run.p50_ms <= run.p99_ms


def test_a_flood_does_not_wait_for_answers_and_tells_refusals_from_them() -> None:
    async def ask(number: int) -> None:
        if number % 2:
            raise Overloaded("full")
        await asyncio.sleep(1)

    seen = asyncio.run(flood(ask, range(10), rate=200, seconds=0.5))
    sent = len(seen.answered_ms) + len(seen.refused_ms)
    assert sent == len(seen.late_ms) > 40
    assert abs(len(seen.answered_ms) - len(seen.refused_ms)) <= 1
    assert min(seen.answered_ms) >= 1000 > max(seen.refused_ms)


def test_a_flood_with_a_policy_holds_most_back_that_would_be_refused() -> None:
    async def ask(number: int) -> None:
        if number % 5:
            raise Overloaded("full")

    policy = ThrottlePolicy(window_s=0.5)
    seen = asyncio.run(flood(ask, range(1000), rate=1000, seconds=2.0, policy=policy))
    sent = len(seen.answered_ms) + len(seen.refused_ms)
    assert sent == len(seen.late_ms)
    assert sent > 0.05 * (sent + seen.held_back)
    assert sent < seen.held_back


def test_a_flood_ends_with_the_first_failure_that_is_no_refusal() -> None:
    async def ask(number: int) -> None:
        if number == 3:
            raise MooringError("broken")

    with pytest.raises(MooringError, match="broken"):
        asyncio.run(flood(ask, range(10), rate=500, seconds=5))


@pytest.mark.parametrize("caller", [http_caller, lean_http_caller])
@pytest.mark.parametrize(
    ("status", "error"), [(200, None), (503, Overloaded), (429, Overloaded), (400, MooringError)]
)
def test_what_a_server_answers(
    status: int, error: type[MooringError] | None, caller: Any, http_answers: Callable[[int], str]
) -> None:
    url = http_answers(status)

    async def ask() -> object:
        async with caller(url, lambda number: (f"/{number}", b"{}")) as call:
            return await call(7)

    if error is None:
        assert asyncio.run(ask()) == b"/7 {}"
    else:
        with pytest.raises(error, match=f"answered {status}"):
            asyncio.run(ask())


async def _ask_lean(answers: Sequence[Sequence[bytes]], *, close: bool = False) -> tuple[list[bytes], int]:
    """Answers to as many questions, in these pieces, and over how many connections they went."""
    waiting, connections, ended = iter(answers), 0, asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        ended.clear()
        while await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            for piece in next(waiting):
                writer.write(piece)
                await asyncio.sleep(0.01)
            if close:
                break
        writer.close()
        await writer.wait_closed()
        ended.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            async with lean_http_caller(url, lambda number: ("/", b"{}")) as ask:
                said = []
                for number in range(len(answers)):
                    said.append(await asyncio.wait_for(ask(number), 5))
                    if close:
                        # Before the next question, and so that the caller has noticed.
                        await asyncio.wait_for(ended.wait(), 5)
                        await asyncio.sleep(0.05)
                return said, connections
        finally:
            await asyncio.wait_for(ended.wait(), 5)


_OK = b"HTTP/1.1 200 OK\r\nX: y\r\ncontent-length: 4\r\n\r\n"


def test_lean_callers_keep_connections_and_put_answers_together() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nmo\r\n2\r\nre\r\n0\r\n\r\n"
    pieces = [[_OK + b"just"], [_OK[:20], _OK[20:-2], b"\r\nso", b"me"], [chunked]]
    assert asyncio.run(_ask_lean(pieces)) == ([b"just", b"some", b"more"], 1)
    assert asyncio.run(_ask_lean(pieces, close=True)) == ([b"just", b"some", b"more"], 3)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP response"), (_OK + b"les", "connection was lost")],
)
def test_lean_callers_say_what_is_no_answer(answer: bytes, message: str) -> None:
    with pytest.raises(TransportError, match=message):
        asyncio.run(_ask_lean([[answer]], close=True))


@pytest.fixture
def http_answers() -> Any:
    """Starts servers that answer every POST with one status, the path and the body."""
    import http.server
    import threading

    servers: list[http.server.HTTPServer] = []

    def start(status: int) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                said = self.path.encode() + b" " + self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *args: Any) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_settings_of_an_earlier_run_are_taken_and_not_searched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "settings.json"
    known = {"LitServe": {"workers": 2, "threads": 1, "max_batch_size": 8, "max_wait_ms": 2.0}}
    path.write_text(json.dumps(known), encoding="utf-8")
    python = tmp_path / "python"
    monkeypatch.setattr(bench_compare, "install", lambda requirements, folder: python)
    built = Built(
        name="ner", task="token-classification", repositories={}, plain={}, checkpoint=tmp_path / "none"
    )
    chosen, missing = bench_compare._choose_settings(built, [], [], tmp_path, read_settings(path))
    assert chosen == {"LitServe": (python, ServingSettings(**known["LitServe"]))}
    assert missing["Infinity"] == "it has no token-classification"
    assert missing["BentoML"] == "no settings of it are known"


@pytest.mark.parametrize("content", [None, "[]", "{", '{"LitServe": {"speed": 9}}'])
def test_other_settings_are_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--settings \S+settings\.json holds no settings of other servers"):
        read_settings(path)


def _measure_options(
    refuse: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], list[str]]:
    """What is measured of two rows where one of them fails in the second round, and which were asked."""
    options = {"plain": bench_options.Option(), "OpenVINO": bench_options.Option(openvino=True)}
    asked: list[str] = []

    def drive_option(option: bench_options.Option, *where: Any) -> Run:
        name = next(name for name, one in options.items() if one is option)
        asked.append(name)
        if name == refuse and len(asked) > len(options):
            raise StartError("tritonserver ended: 1")
        return Run(per_s=100.0, p50_ms=5.0, p99_ms=10.0)

    monkeypatch.setattr(bench_options, "OPTIONS", options)
    monkeypatch.setattr(bench_options, "install", lambda requirements, cache: cache / "bin" / "python")
    monkeypatch.setattr(bench_options, "release_classifier", lambda overrides, repository, work: repository)
    monkeypatch.setattr(bench_options, "_use_openvino", lambda repository, environment: None)
    monkeypatch.setattr(bench_options, "_drive_option", drive_option)
    args = argparse.Namespace(texts=20, rounds=3, work=tmp_path)
    return bench_options.measure_options(args), asked


def test_an_onnx_runtime_that_is_not_the_projects_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, asked = _measure_options("OpenVINO", tmp_path, monkeypatch)
    assert {name: len(runs) for name, runs in found["sides"].items()} == {"plain": 3}
    assert found["not_measured"] == {"OpenVINO": "in round 2: tritonserver ended: 1"}
    assert asked == ["plain", "OpenVINO", "plain", "OpenVINO", "plain"]


def test_a_setting_of_moorings_own_that_fails_is_no_row_that_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StartError, match="tritonserver ended: 1"):
        _measure_options("plain", tmp_path, monkeypatch)


def test_of_servers_and_of_onnx_runtime_the_best_settings_take_turns_and_who_misses_one_has_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: Counter[tuple[str, int]] = Counter()

    def drive_alternative(
        alternative: Alternative,
        python: Path,
        built: Built,
        texts: Sequence[str],
        expected: object,
        *,
        settings: ServingSettings,
        log_file: Path,
    ) -> dict[str, Run]:
        turns[alternative.name, len(texts)] += 1
        if settings.workers == 1:
            raise MooringError("one copy is too few")
        if (alternative, turns[alternative.name, 500]) == (RAY_SERVE, 2):
            raise MooringError("it died")
        rates = {"8": 10.0 * settings.max_batch_size, "32": 20.0 * settings.max_batch_size}
        return {callers: Run(per_s=rate, p50_ms=5.0, p99_ms=10.0) for callers, rate in rates.items()}

    async def drive_mooring(*given: object) -> dict[str, Any]:
        run = Run(per_s=200.0, p50_ms=5.0, p99_ms=10.0), {"engine": 1.0}
        return {f"{side} {callers}": run for side in ("engine", "pipeline") for callers in (8, 32)}

    class Bare:
        def __init__(self, built: Built, precision: str, settings: BareSettings) -> None:
            self._settings = settings

        def per_s(self, inputs: object) -> float:
            return {1: 100.0, 4: 200.0, 8: 150.0, 32: 50.0}[self._settings.batch]

    def tokenize(texts: Sequence[str]) -> list[dict[str, np.ndarray]]:
        return [{"input_ids": np.zeros((1, len(text.split())))} for text in texts]

    folders = dict.fromkeys(("fp32", "int8"), tmp_path)
    built = SimpleNamespace(tokenize=tokenize, task="text-classification", repositories=folders)
    for name, value in {
        "ALTERNATIVES": (LITSERVE, RAY_SERVE),
        "BareOnnxRuntime": Bare,
        "TritonServer": lambda repository, log_file: nullcontext(),
        "best_labels": lambda built, texts: [],
        "build_sides": lambda part, work: built,
        "drive_alternative": drive_alternative,
        "drive_mooring": drive_mooring,
        "install": lambda requirements, cache: cache / "python",
        "usable_cores": lambda: 2,
    }.items():
        monkeypatch.setattr(bench_compare, name, value)
    args = argparse.Namespace(texts=500, rounds=3, work=tmp_path, known=None)
    found = bench_compare.compare_sides("classifier", args)
    best = {"workers": 2, "threads": 1, "max_batch_size": 8, "max_wait_ms": 2.0}
    assert read_settings(tmp_path / "classifier-settings.json")["Ray Serve"] == ServingSettings(**best)
    assert found["settings"] == {"LitServe": best}
    assert found["not_measured"] == {"Ray Serve": "in round 2: it died"}
    assert turns == {
        ("LitServe", 400): 3,
        ("LitServe", 500): 3,
        ("Ray Serve", 400): 3,
        ("Ray Serve", 500): 2,
    }
    assert {side for side in found["sides"] if side.startswith("LitServe")} == {"LitServe 8", "LitServe 32"}
    assert not any(side.startswith("Ray Serve") for side in found["sides"])
    assert {len(runs) for runs in found["sides"].values()} == {3}
    assert {way["batch"] for way in found["bare"].values()} == {4}
    assert ratios(found["sides"], 8)["pipeline_over_best_alternative"] == pytest.approx(200 / 80)
