"""The task that the monitor asks: topic and sentiment of a text in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mooring import DecodeError, InvalidInput, Label, Opinion
from mooring._answers import format_json, format_readable
from opinion_models import fake_opinion_model
from wire_models import in_memory

BAD = Opinion(topic=Label(label="bank", score=0.75), sentiment=Label(label="negative", score=0.75))


def test_a_text_gives_an_opinion_and_several_a_list(wired: Any) -> None:
    wired.fake.models_by_name["opinions"] = fake_opinion_model()
    opinions = wired.client.task("opinions")
    assert repr(opinions) == f"{wired.side.name('OpinionClassifier')}('opinions')"
    assert (opinions.name, opinions.model) == ("opinion-monitoring", "opinions")
    assert opinions("bank bad news") == BAD
    texts = ["bank bad news", "öl rises", "öl bad", "bank opens", "bank bad"]
    assert opinions(texts) == [opinions(text) for text in texts]
    assert opinions(texts)[1].topic.label == "öl"
    assert [outcome.unwrap() for outcome in opinions.map(texts)] == opinions(texts)


@in_memory
def test_what_is_no_text_is_not_sent(wired: Any) -> None:
    wired.fake.models_by_name["opinions"] = fake_opinion_model()
    opinions = wired.client.task("opinions")
    for items, said in (("", "text 0 is empty"), (["a", 7], "text 1 is int, expected str")):
        with pytest.raises(InvalidInput, match=f"^model 'opinions': {said}$"):
            opinions(items)
    assert wired.fake.requests == []


GOOD: dict[str, Any] = {
    "topic": [[b"bank"]],
    "topic_score": [[0.75]],
    "sentiment": [[b"negative"]],
    "sentiment_score": [[0.75]],
}
WRONG = [
    ({"topic": [[b""]]}, "the topic is empty"),
    ({"sentiment": [[b"\xff"]]}, r"sentiment b'\\xff' is not UTF-8"),
    ({"sentiment_score": [[1.5]]}, r"score 1\.5 is no probability"),
    ({name: [rows[0] * 2] for name, rows in GOOD.items()}, "2 columns of topic, expected 1"),
    ({"topic": [[b"bank", b"oil"]]}, "expected 1 rows of equal length in each output"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=range(len(WRONG)))
def test_answers_that_are_no_opinion_are_decode_errors(
    side: Any, fake: Any, changes: dict[str, Any], said: str
) -> None:
    fake.models_by_name["opinions"] = fake_opinion_model()
    answer = {
        name: np.array(rows, np.float32 if name.endswith("score") else np.object_)
        for name, rows in {**GOOD, **changes}.items()
    }
    wide = {name: (datatype, [-1, -1]) for name, (datatype, _) in fake_opinion_model().outputs.items()}
    fake.change("opinions", answer=lambda inputs: answer, outputs=wide)
    opinions = side.client("grpc://fake:8001", transport=fake).task("opinions")
    with pytest.raises(DecodeError, match=f"^model 'opinions' says task 'opinion-monitoring', but.*{said}"):
        opinions("bank")


def test_an_opinion_is_printed_in_words_and_as_json() -> None:
    assert format_readable("bank bad", BAD) == "bank bad\n  bank      0.7500\n  negative  0.7500"
    assert format_json("opinion-monitoring", "bank bad", "bank bad", BAD) == (
        '{"text": "bank bad", "opinion": {"topic": {"label": "bank", "score": 0.75}, '
        '"sentiment": {"label": "negative", "score": 0.75}}}'
    )
