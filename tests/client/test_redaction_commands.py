"""``mooring redact`` and ``mooring predict --redact``, and that the client itself logs no texts."""

from __future__ import annotations

import io
import json
import logging
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from mooring import AsyncClient, Client
from mooring._cli import main
from mooring.redaction import Redactor
from mooring.testing import FakeTransport
from task_models import make_task_server

SECRETS = ("anna@example.com", "4111 1111 1111 1111", "+44 20 7946 0958", "DE89 3704 0044 0532 0130 00")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    """What answers both commands in place of a server."""
    fake = make_task_server()
    monkeypatch.setattr("mooring._predict.AsyncClient", partial(AsyncClient, transport=fake))
    monkeypatch.setattr("mooring._redact.Client", partial(Client, transport=fake))
    return fake


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main([*words])
    return code, *capsys.readouterr()


def sent(fake: FakeTransport) -> list[str]:
    return [
        raw.decode()
        for request in fake.requests
        for tensor in request.inputs
        for raw in tensor.array.flat
        if raw
    ]


def test_lines_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lines.csv"
    path.write_bytes(
        f'text,label\r\n"Zoë: {SECRETS[0]}",a\r\n\r\n{SECRETS[1]},b\r\nlast {SECRETS[2]}'.encode()
    )
    code, out, err = run(capsys, "redact", str(path))
    assert (code, err) == (0, "found 1 CARD, 1 EMAIL, 1 PHONE\n")
    assert out == 'text,label\n"Zoë: [EMAIL]",a\n\n[CARD],b\nlast [PHONE]\n'


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"nothing\n")))
    assert run(capsys, "redact") == (0, "nothing\n", "found nothing\n")


def test_json_lines_keep_their_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "text": f"Zoë {SECRETS[0]}",
        "meta": {"card": 4111111111111111, "count": 12, "ok": True, "score": 0.5, "none": None},
        "history": [SECRETS[3], "lamp"],
    }
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + '"\\ud800 a@b.co"\n', encoding="utf-8")
    code, out, err = run(capsys, "redact", "--json", str(path))
    assert (code, err) == (0, "found 1 CARD, 2 EMAIL, 1 IBAN\n")
    first, second = out.splitlines()
    assert json.loads(first) == {
        "text": "Zoë [EMAIL]",
        "meta": {"card": "[CARD]", "count": 12, "ok": True, "score": 0.5, "none": None},
        "history": ["[IBAN]", "lamp"],
    }
    assert "Zoë" in first
    assert second == '"\\ud800 [EMAIL]"'


def test_names_come_from_a_served_model(
    served: FakeTransport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The model's NAMEs are the words with a capital letter.
    path = tmp_path / "lines.txt"
    path.write_text(
        "I met Zoë at anna@example.com\n\n  \nI met Zoë at anna@example.com\nnobody\n", encoding="utf-8"
    )
    code, out, err = run(capsys, "redact", str(path), "--names", "ner", "--name-label", "NAME")
    assert (code, err) == (0, "found 2 EMAIL, 4 NAME\n")
    assert out.splitlines() == [
        "[NAME] met [NAME] at [EMAIL]",
        "",
        "  ",
        "[NAME] met [NAME] at [EMAIL]",
        "nobody",
    ]
    assert sorted(sent(served)) == ["I met Zoë at anna@example.com", "nobody"]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("content", "words", "code", "said"),
    [
        (b"a\n\xff\n", [], 2, "line 2 is not valid UTF-8 (byte 0)"),
        (b'"a"\n{"b": \n', ["--json"], 2, "line 2 is no JSON: Expecting value"),
        (b"a\nREFUSED\n", ["--names", "ner"], 2, "line 2: the text is too long"),
        (
            b"a\n",
            ["--names", "intent"],
            2,
            "--names 'intent': expected a token classifier, got text-classification",
        ),
        (b"a\n", ["--names", "nope"], 1, "model 'nope'"),
    ],
)
def test_what_is_refused(
    content: bytes, words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lines"
    path.write_bytes(content)
    got, _, err = run(capsys, "redact", str(path), *words)
    assert got == code
    assert err.startswith("mooring: error: ")
    assert said in err


@pytest.mark.parametrize("file", ["no/such/file", "."])
def test_a_file_that_cannot_be_read(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "redact", file)
    assert (code, out) == (2, "")
    assert f"{file!r} can't be read: " in err


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_predict_sends_and_prints_redacted_texts_alone(
    json_option: list[str],
    served: FakeTransport,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    words = [f"I wrote to {secret} Zoë" for secret in SECRETS]
    code, out, err = run(capsys, "predict", "ner", *words, f"REFUSED {SECRETS[0]}", "--redact", *json_option)
    assert code == 2
    everywhere = "\n".join([out, err, caplog.text, *sent(served)])
    assert not [secret for secret in SECRETS if secret in everywhere]
    assert "I wrote to [EMAIL] Zoë" in out
    assert sorted(sent(served))[-1] == "REFUSED [EMAIL]"


def test_predict_redacts_histories(served: FakeTransport, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys, "predict", "recommend", f"tent, {SECRETS[0]}", f'["{SECRETS[1]}"]', "--redact"
    )
    assert (code, err) == (0, "")
    assert set(sent(served)) == {"tent", "[EMAIL]", "[CARD]"}
    assert out.startswith('["tent", "[EMAIL]"]\n')


@pytest.mark.usefixtures("served")
def test_predict_redacts_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG")
    code, out, err = run(capsys, "predict", "images", str(path), "--redact")
    assert (code, out) == (2, "")
    assert "--redact is for texts and histories of texts, which this model does not take" in err


def test_the_client_logs_no_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    text = " ".join(SECRETS)
    with Client("grpc://fake:8001", transport=make_task_server()) as client:
        client.task("intent")(text)
        list(client.task("ner").map([text, f"REFUSED {text}"]))
        redact = Redactor(names=client.task("ner"), name_labels=["NAME"])
        assert redact(f"Zoë {text}").text == "[NAME] [EMAIL] [CARD] [PHONE] [IBAN]"
    assert "Infer of intent answered" in caplog.text
    assert not [secret for secret in SECRETS if secret in caplog.text]
