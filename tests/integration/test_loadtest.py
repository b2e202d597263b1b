from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from models_of_every_task import write_models_of_every_task
from mooring import Client, ConnectError
from mooring import _cli as cli
from mooring._task_kinds import KINDS
from mooring_loadtests.demo import main
from mooring_loadtests.load_profile import load_profile
from mooring_loadtests.load_result import LoadResult, read_result
from mooring_loadtests.load_run import run_load
from mooring_loadtests.slo import bounds
from mooring_serve import TritonServer
from processes import all_gone, family, wait_until
from python_models import write_python_model
from text_models import INTENT_CONFIG, write_text_models

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).resolve().parents[2]
DOCKERFILE = CHECKOUT / "deploy" / "container" / "Dockerfile"
#: As many at once as there are users.
WIDE_INTENT_CONFIG = INTENT_CONFIG.replace("count: 1", "count: 8")


def test_the_demo_serves_asks_loads_and_sums_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository, reports = write_text_models(tmp_path / "models"), tmp_path / "reports"
    status = main(["--repository", str(repository), "--reports", str(reports), "--seconds", "3"])
    shown = capsys.readouterr()
    assert (status, shown.err) == (0, "")
    for title in ("Trained", "Exported", "Answers: gRPC and HTTP agree", "Load: 8 users for 3 s", "Report"):
        assert f"\n{title}" in shown.out
    assert re.search(r"ner +version 1 +entity F1 0\.910 ", shown.out)
    assert re.search(r"PER +Maria \[0:5\] +0\.750 +0\.750\n", shown.out)
    for protocol in ("grpc", "http"):
        assert re.search(rf"ner {protocol} +[\d,]+( +[\d.e+]+){{4}} +0\n", shown.out)
    report = (reports / "ner-demo.html").read_text(encoding="utf-8")
    assert "ner grpc" in report
    assert "ner http" in report


def _load(server: TritonServer, folder: Path, profile: str, *overrides: str, **options: Any) -> LoadResult:
    return run_load(
        name=profile,
        profile=load_profile(profile, overrides),
        log=folder / "locust.log",
        **{"model": "ner", "grpc_url": server.grpc_url, **options},
    )


def test_failures_are_counted_and_the_rest_is_answered(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    server = make_server(write_text_models(tmp_path / "models", refused="Porto?"))
    load = _load(server, tmp_path, "smoke", "stages=[{seconds=4}]", http_url=server.http_url)
    assert load.names == ("ner grpc", "ner http")
    for name in load.names:
        requests, failures = load.count(name)
        assert 0 < failures < requests
    assert all(
        error.startswith("InvalidInput: ") and "no text with" in error for error in load.recorder.errors
    )
    (bound,) = bounds(load)
    assert (bound.name, bound.kept) == ("error_rate", False)
    assert load.server is not None
    assert load.server.requests >= load.count()[0] - load.count()[1]


@pytest.fixture(scope="module")
def every_task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TritonServer, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("every_task")
    models = write_models_of_every_task(folder / "models")
    with TritonServer(folder / "models", log_file=folder / "tritonserver.log") as server:
        yield server, models


@pytest.mark.parametrize("task", sorted(KINDS))
def test_users_of_every_task_ask_over_both_protocols(
    every_task: tuple[TritonServer, dict[str, str]], task: str, tmp_path: Path
) -> None:
    server, models = every_task
    overrides = ["stages=[{seconds=2}]"]
    if task == "recommendation":
        (tmp_path / "histories.jsonl").write_text('["a", "b"]\n["c"]\n', encoding="utf-8")
        overrides.append(f"payload.file='{tmp_path / 'histories.jsonl'}'")
    load = _load(server, tmp_path, "smoke", *overrides, model=models[task], http_url=server.http_url)
    assert load.names == (f"{models[task]} grpc", f"{models[task]} http")
    for name in load.names:
        requests, failures = load.count(name)
        assert requests > 0
        assert not failures, load.recorder.errors
    assert load.settings[models[task]].startswith("python, 1 instance, on ")


STALLING = """
    import time
    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def initialize(self, args):
            self.asked = 0

        def execute(self, requests):
            self.asked += len(requests)
            if 100 <= self.asked < 100 + len(requests):
                time.sleep(1.5)
            rows = [pb_utils.get_input_tensor_by_name(request, "text").as_numpy() for request in requests]
            return [pb_utils.InferenceResponse([
                pb_utils.Tensor("label", np.array([[b"a"]] * len(row), dtype=np.object_)),
                pb_utils.Tensor("score", np.ones((len(row), 1), dtype=np.float32)),
            ]) for row in rows]
"""


def test_an_open_loop_counts_what_a_stall_delayed(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    write_python_model(tmp_path / "models", "intent", source=STALLING, config=INTENT_CONFIG)
    server = make_server(tmp_path / "models")
    load = _load(
        server,
        tmp_path,
        "steady",
        "rate=40",
        'arrivals="constant"',
        "stages=[{seconds=5}]",
        model="intent",
    )
    assert load.count() == (200, 0)
    slow = sum(
        count for second in load.seconds() for value, count in second.latencies_ms.items() if value > 100
    )
    # 60 requests were due while the server slept; all but the last few of them waited longer than that. Users
    # who wait for their answers would have sent none of these.
    assert slow > 40
    # The last ones may come after the last second.
    assert 190 <= sum(second.answers for second in load.seconds()) <= 200


def test_two_processes_make_one_rate(tmp_path: Path, make_server: Callable[..., TritonServer]) -> None:
    server = make_server(write_text_models(tmp_path / "models"))
    overrides = ("rate=30", 'arrivals="constant"', "stages=[{seconds=1, measured=false}, {seconds=4}]")
    with socket.socket() as other:
        # Another run on this machine, at Locust's own port; it may be there.
        with contextlib.suppress(OSError):
            other.bind(("127.0.0.1", 5557))
            other.listen()
        load = _load(server, tmp_path, "steady", *overrides, http_url=server.http_url, processes=2)
    requests, failures = load.count()
    # Each of the four sources sends a quarter of it; whole seconds cut one off at either end. A process that
    # the machine starves loses contact with the others, and the result says so.
    assert 116 <= requests <= 124 or any("missing" in doubt for doubt in load.doubts)
    assert not failures
    assert set(load.names) <= {"ner grpc", "ner http"}
    assert {process for health in load.recorder.health.values() for process in health.cpu} == {0, 1}


def test_a_process_without_users_is_not_missed(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    server = make_server(write_text_models(tmp_path / "models"))
    load = _load(server, tmp_path, "smoke", "users=1", "stages=[{seconds=8}]", processes=2)
    requests, failures = load.count()
    assert requests > 0
    assert not failures
    assert not [doubt for doubt in load.doubts if "generating processes" in doubt]


def test_workers_of_other_machines_generate_the_load(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    server = make_server(write_text_models(tmp_path / "models"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        bind = f"127.0.0.1:{probe.getsockname()[1]}"
    words = ["load", "ner", "--url", server.grpc_url, "--reports", str(tmp_path), "--profile", "steady"]
    words += ["--set", "rate=30", "--set", "stages=[{seconds=4}]", "--set", "slo.p99_ms=60000"]
    words += ["--workers", "2", "--bind", bind]
    with ExitStack() as running:

        def start(*command: str, **options: Any) -> subprocess.Popen[str]:
            process = subprocess.Popen([sys.executable, "-m", *command], text=True, **options)
            running.callback(process.kill)
            return process

        master = start("mooring", *words, stdout=subprocess.PIPE)
        assert master.stdout is not None
        assert master.stdout.readline() == "Waiting for 2 of:\n"
        program, *options = shlex.split(master.stdout.readline())
        assert program == "locust"
        workers = [start("locust", *options, cwd=CHECKOUT, stderr=subprocess.DEVNULL) for _ in range(2)]
        shown, _ = master.communicate(timeout=120)
        assert [worker.wait(30) for worker in workers] == [0, 0]
    # 3 where this machine is too busy to measure anything.
    assert master.returncode in (0, 3), shown
    load = read_result(tmp_path / "ner-steady.json")
    requests, failures = load.count()
    assert (load.processes, failures) == (2, 0)
    assert 100 <= requests <= 140 or load.doubts
    assert {process for health in load.recorder.health.values() for process in health.cpu} == {0, 1}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--workers", "0"], "--workers 0: give 1 or more"),
        (["--workers", "2", "--processes", "2"], "--workers 2: give 1 or more, and no --processes"),
        (["--workers", "2"], "--workers 2 needs --url"),
        (
            ["--workers", "2", "--url", "grpc://models:8001", "--bind", "here"],
            "--bind 'here' is not of the form HOST:PORT",
        ),
    ],
)
def test_mistaken_workers_are_refused(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["load", "ner", *options]) == 2
    assert complaint in capsys.readouterr().err


def test_a_closed_loops_stages_have_their_own_users(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    # Each request takes as long as the server sleeps, so that users are as good as answers.
    source = STALLING.replace("if 100 <= self.asked < 100 + len(requests):", "if True:").replace("1.5", "0.1")
    write_python_model(tmp_path / "models", "intent", source=source, config=WIDE_INTENT_CONFIG)
    server = make_server(tmp_path / "models")
    stages = "stages=[{seconds=4}, {seconds=4, load=8.0}, {seconds=8}]"
    load = _load(server, tmp_path, "smoke", "users=1", stages, model="intent")
    one, many, again = load.stages()
    assert [stage.span.amount for stage in (one, many, again)] == [1, 8, 1]
    answers = [stage.figures["throughput"].value for stage in (one, many, again)]
    # Once and eight times ten a second, if nothing else costs time.
    assert 3 < answers[0] <= 11
    assert answers[1] > 2 * answers[0]
    # Locust changes users once a second: eight of them for a second more. If it took one away each second,
    # there would be some 36 answers a second.
    assert answers[2] <= 25


@pytest.mark.parametrize("processes", [1, 2])
def test_users_come_back_after_a_stage_that_was_shorter_than_their_answers(
    tmp_path: Path, make_server: Callable[..., TritonServer], processes: int
) -> None:
    source = STALLING.replace("if 100 <= self.asked < 100 + len(requests):", "if True:").replace("1.5", "2.5")
    write_python_model(tmp_path / "models", "intent", source=source, config=WIDE_INTENT_CONFIG)
    server = make_server(tmp_path / "models")
    # An answer takes 2.5 s, and with it the users who are to go still wait when they are wanted again.
    stages = "stages=[{seconds=5, load=8.0}, {seconds=1}, {seconds=15, load=8.0}]"
    load = _load(server, tmp_path, "smoke", "users=1", stages, model="intent", processes=processes)
    last = load.stages()[-1].figures["throughput"].value
    # Eight users have up to 48 answers in that time, one alone has six, and as many as seven of before.
    assert last > 1.2


def test_what_is_under_way_at_the_end_counts_from_every_process(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    write_python_model(tmp_path / "models", "intent", source=STALLING, config=INTENT_CONFIG)
    server = make_server(tmp_path / "models")
    # The hundredth is asked after some four seconds: the server sleeps beyond the end.
    overrides = ("rate=24", 'arrivals="constant"', "stages=[{seconds=5}]")
    load = _load(server, tmp_path, "steady", *overrides, model="intent", processes=2)
    requests, failures = load.count()
    assert 114 <= requests <= 122
    assert not failures
    assert sum(second.answers for second in load.seconds()) < requests


def test_what_was_measured_is_kept_where_the_server_died(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    server = make_server(write_text_models(tmp_path / "models"))
    complaints: list[str] = []

    def stop_when_asked() -> None:
        with Client(server.grpc_url) as client:
            while sum(entry.inference_count for entry in client.statistics("ner")) < 40:
                time.sleep(0.1)
        server.stop()

    stopper = threading.Thread(target=stop_when_asked)
    stopper.start()
    load = _load(server, tmp_path, "steady", "rate=20", "stages=[{seconds=9}]", complain=complaints.append)
    stopper.join()
    requests, failures = load.count()
    assert 0 < failures < requests
    assert load.server is None
    assert len(complaints) == 1
    assert complaints[0].startswith("no times of the server's steps, ")


def test_a_run_that_is_ended_early_sends_no_more(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    server = make_server(write_text_models(tmp_path / "models"))
    words = ["load", "ner", "--url", server.grpc_url, "--reports", str(tmp_path), "--profile", "steady"]
    # What is under way would be waited for, half a minute at most.
    words += ["--set", "timeout_s=30", "--set", "stages=[{seconds=120}]", "--processes", "2"]
    process = subprocess.Popen([sys.executable, "-m", "mooring", *words], cwd=CHECKOUT)
    try:
        with Client(server.grpc_url) as client:
            wait_until(
                lambda: sum(entry.inference_count for entry in client.statistics("ner")) > 40, timeout_s=60
            )
        processes = family(process.pid)
        process.terminate()
        wait_until(lambda: all_gone(processes))
    finally:
        process.kill()
        process.wait()
    # Itself, Locust's master and two workers.
    assert len(processes) == 4
    assert not (tmp_path / "ner-steady.json").exists()


def test_each_protocol_is_tried_before_anything_is_measured(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    server = make_server(write_text_models(tmp_path / "models"))
    with pytest.raises(ConnectError, match=r"127\.0\.0\.1:1"):
        _load(server, tmp_path, "smoke", http_url="http://127.0.0.1:1")
    assert not (tmp_path / "locust.log").exists()


def test_the_command_writes_a_report_and_says_which_bound_broke(
    tmp_path: Path, make_server: Callable[..., TritonServer], capsys: pytest.CaptureFixture[str]
) -> None:
    server = make_server(write_text_models(tmp_path / "models"))
    words = [
        "load",
        "ner",
        "--set",
        "stages=[{seconds=6}]",
        "--url",
        server.http_url,
        "--reports",
        str(tmp_path),
    ]
    words += ["--set", "slo.min_throughput=1e6", "--set", "slo.p50_ms=60000"]
    # 3 where this machine is too busy to measure anything.
    words += ["--trace", str(tmp_path / "trace.json")]
    status = cli.main(words)
    shown, complaints = capsys.readouterr()
    assert status in (1, 3), complaints
    # The result is not thrown away for what is missing.
    assert "no times of the slowest requests: " in shown
    # So short a run has no confidence intervals.
    short = "too little measured for an interval"
    broken, kept = ["no verdict"] * 2 if status == 3 else [f"BROKEN, {short}", f"kept, {short}"]
    assert re.search(rf"min_throughput [\d.e+]+, bound 1e\+06: {broken}\n", shown)
    assert re.search(rf"p50_ms [\d.e+]+, bound 60000: {kept}\n", shown)
    assert "<svg" in (tmp_path / "ner-smoke.html").read_text(encoding="utf-8")
    assert read_result(tmp_path / "ner-smoke.json").figures()["error_rate"].value == 0


def test_the_containers_health_check_asks_the_model(
    tmp_path: Path, make_server: Callable[..., TritonServer]
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed; the container has it")
    server = make_server(write_text_models(tmp_path / "models", refused="refuse"))
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text(encoding="utf-8"))
    command = json.loads(re.search(r"^HEALTHCHECK .*? CMD (\[.*\])$", text, re.MULTILINE)[1])
    settings = dict(
        setting.split("=", 1)
        for setting in shlex.split(re.search(r"^ENV (PROBE_.*)$", text, re.MULTILINE)[1])
    )
    command = [word.replace("http://127.0.0.1:8000", server.http_url) for word in command]
    assert any(server.http_url in word for word in command)

    def probe(**changes: str) -> int:
        environment = {**os.environ, **settings, **changes}
        return subprocess.run(command, env=environment, check=False, timeout=30).returncode

    assert probe() == 0
    assert probe(PROBE_MODEL="intent") == 0
    assert probe(PROBE_MODEL="missing") == 1
    assert probe(PROBE_REQUEST='{"text": "refuse this"}') == 1
    server.stop()
    assert probe() == 1
