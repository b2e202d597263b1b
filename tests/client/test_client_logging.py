"""The logger ``mooring``: silent unless configured, a line a call, and neither payloads nor secrets in it."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mooring import (
    AsyncClient,
    CircuitPolicy,
    Client,
    ConnectError,
    ConnectionPolicy,
    DecodeError,
    HedgePolicy,
    InvalidInput,
    MooringError,
    Overloaded,
    RetryPolicy,
    TlsConfig,
)
from mooring._log import describe_error
from mooring._operations import Infer, Operation
from mooring._transport import Headers
from mooring.testing import FakeModel, FakeTransport

PAYLOAD = "xyzzy-payload"
ANSWER = "plugh-answer"
TOKEN = "tok-plover"
HEADER = "hdr-plover"
TEXT = {"text": ("BYTES", [-1, 1])}
LABELS = {"label": ("BYTES", [-1, 1]), "score": ("FP32", [-1, 1])}


def label(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = len(inputs["text"])
    return {
        "label": np.full((rows, 1), ANSWER.encode(), np.object_),
        "score": np.full((rows, 1), 0.5, np.float32),
    }


def raising(kind: type[MooringError]) -> Any:
    def answer(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise kind(f"this can't be right: {inputs['text'][0, 0]!r}")

    return answer


def text_model(answer: Any, **options: Any) -> FakeModel:
    parameters = {"task": "text-classification"}
    return FakeModel(
        inputs=TEXT, outputs=LABELS, max_batch_size=4, parameters=parameters, answer=answer, **options
    )


def make_fake() -> FakeTransport:
    models = {kind.__name__: text_model(raising(kind)) for kind in (DecodeError, InvalidInput, Overloaded)}
    wrong = text_model(lambda inputs: {name: array[:0] for name, array in label(inputs).items()})
    stream = text_model(lambda inputs: iter([label(inputs)]), decoupled=True)
    return FakeTransport({"labels": text_model(label), "wrong": wrong, "stream": stream, **models})


def open_client(kind: type[Client] | type[AsyncClient], transport: FakeTransport) -> Any:
    return kind(
        "grpc://fake:8001",
        transport=transport,
        token=lambda: TOKEN,
        headers={"x-secret": HEADER},
        retry=RetryPolicy(initial_delay_s=0.001, max_delay_s=0.001),
        circuit=CircuitPolicy(failures=2, pause_s=0.02),
    )


def use_everything(client: Client) -> None:
    text = {"text": np.array([[PAYLOAD]], np.object_)}
    client.infer("labels", text, headers={"x-more": HEADER}, parameters={"p": PAYLOAD}, request_id=PAYLOAD)
    assert client.task("labels")(PAYLOAD)[0].label == ANSWER
    assert [outcome.error for outcome in client.task("labels").map([PAYLOAD] * 3)] == [None] * 3
    assert len(list(client.stream("stream", text))) == 1
    for model in ("DecodeError", "InvalidInput", "Overloaded"):
        with pytest.raises(MooringError, match=PAYLOAD):
            client.infer(model, text)
    with pytest.raises(DecodeError):
        client.task("wrong")(PAYLOAD)
    with pytest.raises(InvalidInput):
        client.infer("labels", {PAYLOAD: np.array([[PAYLOAD]], np.object_)})


@pytest.fixture
def root(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.DEBUG)
    yield caplog
    assert not [record for record in caplog.records if record.exc_info]


def test_debug_has_a_line_a_call(root: pytest.LogCaptureFixture) -> None:
    with open_client(Client, make_fake()) as client:
        client.infer("labels", {"text": np.array([[PAYLOAD]], np.object_)})
        with pytest.raises(InvalidInput):
            client.infer("InvalidInput", {"text": np.array([[PAYLOAD]], np.object_)})
    lines = [record.getMessage() for record in root.records if record.name == "mooring"]
    assert [line.partition(" in ")[0] for line in lines] == [
        "GetMetadata of labels answered",
        "GetConfig of labels answered",
        "Infer of labels answered",
        "GetMetadata of InvalidInput answered",
        "GetConfig of InvalidInput answered",
        "Infer of InvalidInput failed: InvalidInput",
    ]
    assert {record.levelno for record in root.records if record.name == "mooring"} == {logging.DEBUG}


def test_logs_hold_no_payload_and_no_secret(root: pytest.LogCaptureFixture) -> None:
    fake = make_fake()
    with open_client(Client, fake) as client:
        use_everything(client)
    assert any(f"Bearer {TOKEN}" in headers.values() for headers in fake.headers)
    assert "try 1 failed" in root.text  # of Overloaded, whose words hold the payload here
    for secret in (PAYLOAD, ANSWER, TOKEN, HEADER):
        assert secret not in root.text


def test_a_warning_about_garbled_answers_holds_none_of_them(root: pytest.LogCaptureFixture) -> None:
    circuit = CircuitPolicy(failures=1)
    with Client("grpc://fake:8001", transport=make_fake(), circuit=circuit) as client:
        with pytest.raises(DecodeError, match=PAYLOAD):
            client.infer("DecodeError", {"text": np.array([[PAYLOAD]], np.object_)})
        assert client.counters().endpoints[0].circuit == "open"
    (warning,) = [record for record in root.records if record.levelno == logging.WARNING]
    assert warning.getMessage().endswith("gets no requests for a while: DecodeError")
    assert PAYLOAD not in root.text


def test_logs_of_coroutines_hold_none_either(root: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with open_client(AsyncClient, make_fake()) as client:
            assert (await (await client.task("labels"))(PAYLOAD))[0].label == ANSWER
            for model in ("DecodeError", "InvalidInput", "Overloaded"):
                with pytest.raises(MooringError, match=PAYLOAD):
                    await client.infer(model, {"text": np.array([[PAYLOAD]], np.object_)})

    asyncio.run(main(), debug=False)
    assert "Infer of labels answered" in root.text
    for secret in (PAYLOAD, ANSWER, TOKEN, HEADER):
        assert secret not in root.text


def test_an_endpoint_that_leaves_and_returns_is_told(root: pytest.LogCaptureFixture) -> None:
    fake = make_fake()
    with open_client(Client, fake) as client:
        fake.error = ConnectError("nobody is there")
        with pytest.raises(ConnectError):
            client.server_ready()
        (warning,) = [record for record in root.records if record.levelno == logging.WARNING]
        said = "failed too often and gets no requests for a while: ConnectError: nobody is there"
        assert warning.getMessage() == f"grpc://fake:8001 {said}"
        fake.error = None
        ends_at_s = time.monotonic() + 30
        while not any(record.levelno == logging.INFO for record in root.records):
            assert time.monotonic() < ends_at_s
            time.sleep(0.02)
            try:
                client.server_ready()
            except ConnectError:
                continue
    (info,) = [record for record in root.records if record.levelno == logging.INFO]
    assert info.getMessage() == "grpc://fake:8001 is back"


QUIET = """
import numpy as np
from mooring import CircuitPolicy, Client, ConnectError, InvalidInput, MooringError
from mooring.testing import FakeModel, FakeTransport
tensor = ("FP32", [-1])
fake = FakeTransport({"echo": FakeModel(inputs={"x": tensor}, outputs={"x": tensor}, answer=dict)})
with Client("grpc://fake:8001", transport=fake, circuit=CircuitPolicy(failures=1)) as client:
    client.infer("echo", {"x": np.ones(3, np.float32)})
    fake.error = ConnectError("nobody is there")
    for _ in range(3):
        try:
            client.infer("echo", {"x": np.ones(3, np.float32)})
        except ConnectError:
            pass
    assert client.counters().endpoints[0].circuit == "open"
for url in ("grpc://127.0.0.1:1", "http://127.0.0.1:1"):
    with Client(url, timeout_s=5) as client:
        try:
            client.server_ready()
        except MooringError:
            pass
"""


def test_nothing_is_printed_unless_the_program_configures_logging() -> None:
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_configures_no_logging() -> None:
    program = (
        "import logging, mooring; root = logging.getLogger();"
        "print(root.handlers, root.level, logging.getLogger('mooring').level)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", str(logging.WARNING), "0"]


def test_only_words_of_the_clients_own_are_logged() -> None:
    assert describe_error(ConnectError("nobody is there")) == "ConnectError: nobody is there"
    assert describe_error(InvalidInput(PAYLOAD, code="INVALID_ARGUMENT")) == "InvalidInput [INVALID_ARGUMENT]"
    assert describe_error(Overloaded(PAYLOAD)) == "Overloaded"
    assert describe_error(ValueError(PAYLOAD)) == "ValueError"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_reprs_show_no_secret(kind: type[Client] | type[AsyncClient]) -> None:
    class Bound(FakeTransport):
        def send(self, operation: Operation[Any], *, timeout_s: float, headers: Headers = ()) -> Any:
            assert not isinstance(operation, Infer)
            return super().send(operation, timeout_s=timeout_s, headers=headers)

    client = kind(
        ["https://one:8000", "https://two:8000"],
        transport=Bound({}),  # type: ignore[arg-type]
        token=TOKEN,
        headers={"x-secret": HEADER},
        tls=TlsConfig(),
    )
    policies = (RetryPolicy(), HedgePolicy(), CircuitPolicy(), ConnectionPolicy(), TlsConfig())
    shown = "".join(map(repr, (client, client.counters(), client._caller, client._caller.servers, *policies)))
    assert f"{kind.__name__}(['https://one:8000', 'https://two:8000'])" in shown
    assert TOKEN not in shown
    assert HEADER not in shown
