"""``mooring audit``: what it prints, its limits and exit codes; the server is a fake."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

import mooring
from mooring import Client, ConfigError, InvalidInput
from mooring.testing import FakeModel, FakeTransport
from mooring_build import audit_command
from task_models import make_task_server

WOMEN = ("woman", "lady", "mother", "daughter", "sister", "wife", "aunt", "spokeswo", "saleswo", "chairwo")
TEXT = {"text": ("BYTES", [-1, 1])}
LABELS = {"label": ("BYTES", [-1, 2]), "score": ("FP32", [-1, 2])}


def classifier(score: Callable[[str], float]) -> FakeModel:
    def answer(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        texts = [raw.decode() for raw in inputs["text"][:, 0]]
        good = np.array([score(text) for text in texts], np.float32)
        labels = np.array([[b"good", b"bad"]] * len(texts), np.object_)
        return {"label": labels, "score": np.stack([good, 1 - good], axis=1)}

    parameters = {"task": "text-classification"}
    return FakeModel(inputs=TEXT, outputs=LABELS, max_batch_size=64, parameters=parameters, answer=answer)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    fake = make_task_server()
    fake.models_by_name["fair"] = classifier(lambda text: 0.9)
    fake.models_by_name["biased"] = classifier(lambda text: 0.6 if any(w in text for w in WOMEN) else 0.9)
    monkeypatch.setattr(mooring, "Client", partial(Client, transport=fake))
    return fake


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    audit_command.add_command(parser.add_subparsers())
    args = parser.parse_args(["audit", *words])
    return int(args.run(args))


def test_a_row_a_group_and_a_verdict(served: FakeTransport, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("biased", "--templates", "news") == 1
    out, err = capsys.readouterr()
    header, *rows, blank, last = out.splitlines()
    assert header.split() == "AXIS GROUP AGAINST PAIRS LABEL GAP 95 % FLIPS 95 % VERDICT".split()
    assert (len(rows), blank, err) == (16, "", "")
    broken = [" ".join(row.split()) for row in rows if row.endswith("broken")]
    assert len(broken) == 1
    assert broken[0].startswith("words: gender female male 108 ")
    assert "0.300" in broken[0]
    assert (
        rows[0].split()
        == "names: gender female male 1008 bad +0.000 +0.000 +0.000 0.0% 0.0% 0.4% within".split()
    )
    assert last == (
        "biased: 2988 texts; largest gap allowed 0.05, most flips 5.0%: 1 of 16 comparisons broken, 0 open"
    )
    sent = {raw.decode() for request in served.requests for raw in request.inputs[0].array[:, 0]}
    assert not [text for text in sent if text in out]


def test_limits_and_json(served: FakeTransport, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("biased", "--templates", "news", "--max-gap", "0.4", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["passed"], told["texts"]) == ("biased", True, 2988)
    assert told["limits"] == {"max_gap": 0.4, "max_flips": 0.05}
    assert run("fair", "--max-gap", "0", "--max-flips", "0.01") == 0


def test_recall_and_fewer_labels_are_told(served: FakeTransport, capsys: pytest.CaptureFixture[str]) -> None:
    # The fake finds each word with a capital letter, and calls it NAME.
    assert run("ner", "--person-label", "NAME") == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert "RECALL" in header
    assert "0.0%" in rows[0]
    served.models_by_name["intent"] = classifier(lambda text: 0.9)
    answer = served.models_by_name["intent"].answer

    def best_alone(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array[:, :1] for name, array in answer(inputs).items()}  # type: ignore[union-attr]

    served.models_by_name["intent"] = FakeModel(
        inputs=TEXT,
        outputs={"label": ("BYTES", [-1, 1]), "score": ("FP32", [-1, 1])},
        max_batch_size=64,
        parameters={"task": "text-classification"},
        answer=lambda inputs: (
            best_alone(inputs)
            if b"Larkfield" not in inputs["text"][0, 0]
            else {name: array[:, 1:] for name, array in answer(inputs).items()}  # type: ignore[union-attr]
        ),
    )
    run("intent", "--templates", "news")
    assert "Answers hold as few as 1 of 2 labels (the model's top_k)" in capsys.readouterr().out


@pytest.mark.usefixtures("served")
def test_what_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="model 'rank' is for text-ranking: only text and token classifiers"
    ):
        run("rank")
    with pytest.raises(ConfigError, match="max_flips must be from 0 to 1, got -1"):
        run("fair", "--max-flips", "-1")
    with pytest.raises(ConfigError, match="there are neither templates nor pairs"):
        run("fair", "--templates", "none")


def test_an_error_of_the_server_ends_it(served: FakeTransport) -> None:
    def refuse(text: str) -> float:
        raise InvalidInput("the text is too long")

    served.models_by_name["fair"] = classifier(refuse)
    with pytest.raises(InvalidInput, match="too long"):
        run("fair", "--templates", "news")
