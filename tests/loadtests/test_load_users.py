from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def _run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_grpc_is_prepared_for_gevent_once_and_before_the_first_call() -> None:
    code = """if True:
        import grpc.experimental.gevent as grpc_gevent
        calls, prepare = [], grpc_gevent.init_gevent
        grpc_gevent.init_gevent = lambda: (calls.append(1), prepare())
        import mooring_loadtests.users
        from mooring import Client, ConnectError
        for _ in range(2):
            with Client("grpc://127.0.0.1:1", timeout_s=5.0) as client:
                try:
                    client.server_ready()
                except ConnectError:
                    print(len(calls))
    """
    assert _run_python(code) == "1\n1\n"


# A user whose model is what ``answer`` says; nothing is connected.
_USER = """if True:
    from argparse import Namespace
    from mooring_loadtests import users
    from locust.env import Environment
    from locust.event import Events
    from locust.exception import StopUser

    options = Namespace(
        load_profile="steady",
        overrides=["rate=100", 'arrivals="constant"', "stages=[{seconds=1}]"],
        ca_file=None, cert_file=None, key_file=None, token_env=None,
        generators=1, model="ner", grpc_url="grpc://127.0.0.1:1", http_url="http://127.0.0.1:1",
    )
    environment = Environment(user_classes=[users.GrpcUser], parsed_options=options, events=Events())

    def run(answer):
        user = users.GrpcUser(environment)
        user._items = iter(range(1000))
        user._ask = lambda item: answer(user, item)
        users._process.begin()
        try:
            user.run_loop()
        except StopUser:
            user.on_stop()
"""


def test_an_open_loop_ends_when_locust_ends_it() -> None:
    code = """
    sent = []
    def answer(user, item):
        sent.append(item)
        if len(sent) == 5:
            user._state = "stopping"
    run(answer)
    print(5 <= len(sent) < 50)
    """
    assert _run_python(_USER + code) == "True\n"


def test_what_crashes_in_an_open_loop_is_no_missing_request() -> None:
    code = """
    def answer(user, item):
        if item % 50 == 7:
            raise KeyError(item)
    environment.events.user_error.add_listener(lambda exception, tb, **_: print(repr(exception), bool(tb)))
    run(answer)
    """
    assert _run_python(_USER + code) == "KeyError(7) True\nKeyError(57) True\n"


def test_a_source_that_replaces_another_sends_nothing() -> None:
    # Locust starts one more user in a process where another process has gone.
    code = """
    sent = []
    run(lambda user, item: sent.append(item))
    print(len(sent))
    run(lambda user, item: sent.append(item))
    print(len(sent))
    """
    assert _run_python(_USER + code) == "100\n100\n"


def test_each_test_of_locusts_page_begins_anew() -> None:
    code = """
    environment.runner = None
    sent = []
    for _ in range(2):
        users._watch(environment)
        run(lambda user, item: sent.append(users._process.now_s()))
    print(len(sent), sent[100] < 0.5, users._process.recorder.seconds["ner grpc", 0].latencies_ms.total())
    """
    assert _run_python(_USER + code) == "200 True 100\n"


def test_a_server_that_is_not_there_is_asked_again_and_again() -> None:
    code = """
    run(lambda user, item: user._client.metadata("ner"))
    errors = users._process.recorder.errors
    print(sum(errors.values()), {error.partition(":")[0] for error in errors})
    """
    assert _run_python(_USER + code) == "100 {'ConnectError'}\n"


def test_users_of_a_silent_worker_are_not_started_elsewhere() -> None:
    code = """
    from locust.runners import MasterRunner, WorkerNode, WorkerNodes

    options.load_profile, options.overrides = "smoke", ["users=8", "stages=[{seconds=60}]"]
    runner = object.__new__(MasterRunner)
    runner.environment, runner.clients = environment, WorkerNodes()
    for name in "ab":
        runner.clients[name] = WorkerNode(name, state="running")
        runner.clients[name].user_classes_count = {"GrpcUser": 4}
    shape = users.ProfileShape()
    shape.runner = runner
    shape.reset_time()
    # As Locust has it of a worker that it has not heard of for a while.
    runner.clients["b"].state, runner.clients["b"].user_classes_count = "missing", {}
    print(shape.tick() == shape.tick())
    # Some of its users have ended.
    runner.clients["b"].state, runner.clients["b"].user_classes_count = "running", {"GrpcUser": 3}
    print(shape.tick() == shape.tick())
    """
    assert _run_python(_USER + code) == "True\nFalse\n"


def test_results_say_when_the_clock_of_the_last_generator_began(tmp_path: Path) -> None:
    code = f"""
    import json, time
    from pathlib import Path
    from types import SimpleNamespace

    environment.runner = SimpleNamespace(exceptions={{}})
    options.results = {str(tmp_path / "results.json")!r}
    before_ns = time.time_ns()
    users._process.begin()
    own, taken = {{}}, {{}}
    users._hand_over(own)
    users._write_results(environment)
    print(before_ns <= json.loads(Path(options.results).read_text())["began_ns"] <= time.time_ns())
    users._process.reset()
    # By the master's clock, whatever the others' say.
    for ago_s in (50.0, 9.0, None, 70.0):
        users._take_over(client_id="there_0a", data=own | {{"mooring_ago_s": ago_s}})
    users._write_results(environment)
    print(round((time.time_ns() - json.loads(Path(options.results).read_text())["began_ns"]) / 1e9))
    """
    assert _run_python(_USER + code) == "True\n9\n"


def test_the_clock_of_a_closed_loop_starts_when_all_users_of_its_first_stage_are_ready() -> None:
    code = """
    import gevent

    options.load_profile = "smoke"
    options.overrides = ["users=3", "stages=[{seconds=1}, {seconds=1, load=2}]"]
    environment.runner = None
    users._watch(environment)
    learned, sent = [], []

    def answer(item):
        sent.append(len(learned))
        gevent.sleep(0.02)

    def learn(user):
        gevent.sleep(0.2 * user._number)
        learned.append(users._process.began_ns)
        if user._number == 1 and len(learned) < 4:
            raise KeyError("one crashes at first")
        user._items, user._ask = iter(range(1000)), answer
        return True

    def live(user):
        while True:
            try:
                user.run_loop()
            except KeyError:
                pass
            except StopUser:
                return

    users.GrpcUser._learn = learn
    gevent.joinall([gevent.spawn(live, users.GrpcUser(environment)) for _ in range(3)], raise_error=True)
    print(learned[:3], min(sent), len(learned))
    # Some 40 heartbeats from then on, and none of before.
    print(users._process.recorder.health[0].lateness_ms.total() <= 20)
    # One who comes later is waited for by nobody.
    users._process.reset()
    users._process.begin()
    late = users.GrpcUser(environment)
    late.run_loop()
    print(late._ask is answer)
    """
    assert _run_python(_USER + code) == "[None, None, None] 3 4\nTrue\nTrue\n"


def test_users_show_what_the_options_name() -> None:
    code = """
    import os

    asked = []
    users.Client = lambda url, **options: asked.append(options)
    os.environ["OWN_TOKEN"], options.token_env = "secret", "OWN_TOKEN"
    options.ca_file = users.__file__
    users.GrpcUser(environment)
    print(asked[0]["token"], asked[0]["tls"].ca_file == users.__file__)
    options.token_env = "NO_TOKEN"
    try:
        users._prepare(environment)
    except SystemExit as exc:
        print(exc)
    """
    assert _run_python(_USER + code) == (
        "secret True\nmooring: error: --token-env: there is no environment variable 'NO_TOKEN' with a token\n"
    )


def test_a_process_that_stands_still_is_late_for_all_that_time() -> None:
    code = """
    import gevent, time
    from gevent.monkey import get_original

    options.load_profile, options.overrides, environment.runner = "smoke", ["users=1"], None
    users._watch(environment)
    users._process.begin()
    gevent.sleep(0.1)
    get_original("time", "sleep")(1.0)
    gevent.sleep(0.2)
    late = [ms for health in users._process.recorder.health.values() for ms in health.lateness_ms.elements()]
    print(sum(ms > 100 for ms in late) >= 15, max(late) >= 900)
    """
    assert _run_python(_USER + code) == "True True\n"


def test_one_of_several_processes_whose_first_answer_takes_long_sends_late() -> None:
    code = """
    import gevent
    from types import SimpleNamespace

    options.generators, options.overrides, environment.runner = 2, ["rate=100", "stages=[{seconds=1}]"], None
    users._watch(environment)

    def config(model):
        gevent.sleep(0.5)
        return SimpleNamespace(name=model, parameters={})

    user = users.GrpcUser(environment)
    user._client = SimpleNamespace(
        config=config, metadata=lambda model: None, task=lambda model: lambda item: None, close=lambda: None
    )
    try:
        user.run_loop()
    except StopUser:
        user.on_stop()
    late = [ms for health in users._process.recorder.health.values() for ms in health.lateness_ms.elements()]
    print(sum(ms > 100 for ms in late) >= 10)
    """
    assert _run_python(_USER + code) == "True\n"


def test_workers_that_send_something_else_are_named(tmp_path: Path) -> None:
    code = f"""
    import json
    from pathlib import Path
    from types import SimpleNamespace

    items, options.results = Path({str(tmp_path / "items.jsonl")!r}), {str(tmp_path / "results.json")!r}
    environment.runner = SimpleNamespace(exceptions={{}})

    def report(name, text, *overrides):
        items.write_text(json.dumps(text))
        options.overrides = [f"payload.file='{{items}}'", *overrides]
        users._process.profile = None
        users._watch(environment)
        users._process.begin()
        told = {{}}
        users._hand_over(told)
        return {{"client_id": f"{{name}}_0a", "data": told}}

    reports = [
        report("other_time", "one", "timeout_s=9"),
        report("other_texts", "two"),
        report("other_bounds", "one", "slo.p99_ms=9"),
        report("same", "one"),
    ]
    for one in reports:
        users._take_over(**one)
    users._write_results(environment)
    print(json.loads(Path(options.results).read_text())["strangers"])
    """
    assert _run_python(_USER + code) == "['other_texts', 'other_time']\n"
