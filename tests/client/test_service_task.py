"""The task that answers customers: intent, answers, reply and hand-over in one call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest

from mooring import AsyncClient, CustomerServiceAnswer, DecodeError, InvalidInput, Label, RankedAnswer
from mooring._answers import format_json, format_readable
from mooring._cli import main
from mooring.testing import FakeModel, FakeTransport
from wire_models import in_memory

TEXT = "Wo ist mein Paket?"
GOOD: dict[str, Any] = {
    "intent": [[b"track"]],
    "intent_score": [[0.75]],
    "item": [[b"parcel", b"time", b""]],
    "item_score": [[0.5, -0.25, 0]],
    "answer": [[b"See the link.", b"Two days.", b""]],
    "reply": [["Es kömmt.\nSee the link.".encode()]],
    "handover": [[False]],
}
DTYPES = {"intent_score": np.float32, "item_score": np.float32, "handover": np.bool_}
ANSWER = CustomerServiceAnswer(
    intent=Label(label="track", score=0.75),
    answers=[
        RankedAnswer(item="parcel", score=0.5, text="See the link."),
        RankedAnswer(item="time", score=-0.25, text="Two days."),
    ],
    reply="Es kömmt.\nSee the link.",
    handover=False,
)


def model_of(changes: Mapping[str, Any]) -> FakeModel:
    """A model that says the same to every text."""
    rows = {**GOOD, **changes}

    def answer(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        count = len(inputs["text"])
        return {name: np.array(rows[name] * count, DTYPES.get(name, np.object_)) for name in rows}

    return FakeModel(
        inputs={"text": ("BYTES", [-1, 1])},
        outputs={
            name: ({"handover": "BOOL"}.get(name, "FP32" if name in DTYPES else "BYTES"), [-1, -1])
            for name in GOOD
        },
        max_batch_size=4,
        parameters={"task": "customer-service"},
        answer=answer,
    )


def test_a_text_gives_an_answer_and_several_a_list(wired: Any) -> None:
    wired.fake.models_by_name["service"] = model_of({})
    service = wired.client.task("service")
    assert repr(service) == f"{wired.side.name('CustomerService')}('service')"
    assert (service.name, service.model) == ("customer-service", "service")
    assert service(TEXT) == ANSWER
    assert service([TEXT] * 5) == [ANSWER] * 5
    assert [outcome.unwrap() for outcome in service.map([TEXT] * 5)] == [ANSWER] * 5


def test_a_person_may_take_over_and_know_no_answer(wired: Any) -> None:
    nothing = {"item": [[]], "item_score": [[]], "answer": [[]], "handover": [[True]]}
    wired.fake.models_by_name["service"] = model_of(nothing)
    said = wired.client.task("service")(TEXT)
    assert (said.handover, said.answers) == (True, [])


@in_memory
def test_what_is_no_text_is_not_sent(wired: Any) -> None:
    wired.fake.models_by_name["service"] = model_of({})
    service = wired.client.task("service")
    with pytest.raises(InvalidInput, match=r"^model 'service': text 0 is empty$"):
        service("")
    assert wired.fake.requests == []


WRONG = [
    ({"reply": [[b""]]}, "the reply is empty"),
    ({"reply": [[b"\xff"]]}, r"reply b'\\xff' is not UTF-8"),
    ({"answer": [[b"", b"\xff", b""]]}, r"answer b'\\xff' is not UTF-8"),
    ({"intent_score": [[1.5]]}, r"score 1\.5 is no probability"),
    ({"item_score": [[float("nan"), 0, 0]]}, "are not all finite"),
    ({"item": [[b"a", b"", b"c"]]}, "item 1 is empty, but later ones are not"),
    ({"item": [[b"a", b"b"]]}, "expected 1 rows of equal length in each output"),
    ({"handover": [[True, False]]}, "expected 1 rows of equal length in each output"),
    (
        {name: [GOOD[name][0] * 2] for name in ("intent", "intent_score", "reply", "handover")},
        "2 columns of intent, expected 1",
    ),
]


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=range(len(WRONG)))
def test_answers_that_can_not_be_are_decode_errors(
    side: Any, fake: Any, changes: dict[str, Any], said: str
) -> None:
    fake.models_by_name["service"] = model_of(changes)
    service = side.client("grpc://fake:8001", transport=fake).task("service")
    with pytest.raises(
        DecodeError, match=f"^model 'service' says task 'customer-service', but answers otherwise: .*{said}"
    ):
        service(TEXT)


def test_a_model_without_its_outputs_is_none_of_the_task(side: Any, fake: Any) -> None:
    fake.models_by_name["service"] = model_of({})
    fake.change("service", outputs={"reply": ("BYTES", [-1, 1])})
    with pytest.raises(DecodeError, match="its signature is not that of one"):
        side.client("grpc://fake:8001", transport=fake).task("service")


def test_it_is_printed_for_people_and_as_json() -> None:
    assert format_readable(TEXT, ANSWER).split("\n") == [
        TEXT,
        "  track    0.7500",
        "  parcel   0.5000",
        "  time    -0.2500",
        "  > Es kömmt.",
        "  > See the link.",
    ]
    assert json.loads(format_json("customer-service", TEXT, TEXT, ANSWER)) == {
        "text": TEXT,
        "service": {
            "intent": {"label": "track", "score": 0.75},
            "answers": [
                {"item": "parcel", "score": 0.5, "text": "See the link."},
                {"item": "time", "score": -0.25, "text": "Two days."},
            ],
            "reply": "Es kömmt.\nSee the link.",
            "handover": False,
        },
    }


def test_the_command_says_when_a_person_takes_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeTransport({"service": model_of({"handover": [[True]]})})
    monkeypatch.setattr("mooring._predict.AsyncClient", partial(AsyncClient, transport=fake))
    assert main(["predict", "service", TEXT]) == 0
    assert capsys.readouterr().out.endswith("  > See the link.\n  a person takes over\n")
