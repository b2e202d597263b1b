from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mooring import Label, Opinion
from mooring_build.publish import publish_release
from mooring_build.recipe import load_recipe, shipped_recipes
from mooring_loadtests.system_demo import _items, _watch, main
from tiny_release import make_release, padded_recipe


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_system_has_something_to_ask(name: str) -> None:
    asked = _items(load_recipe(name))
    assert len(asked) >= 2
    assert all(words for words, _ in asked)


def test_a_system_that_is_not_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sentiment", "--repository", str(tmp_path), "--reports", str(tmp_path)]) == 2
    assert "has no built model 'sentiment': run 'mooring build sentiment' first" in capsys.readouterr().err


def test_the_shipped_stream_raises_one_alert(tmp_path: Path) -> None:
    stream = load_recipe("opinion_monitor").path("data/opinion_monitor/stream.csv")
    bad_hours = ("2031-03-12T09:24", "2031-03-12T12:58")
    with stream.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    bad = {row["text"] for row in rows if bad_hours[0] <= row["time"] < bad_hours[1]}

    def judge(text: str) -> Opinion:
        sentiment = "negative" if text in bad else "neutral"
        return Opinion(topic=Label(label="energy", score=1.0), sentiment=Label(label=sentiment, score=1.0))

    said, alert, end = _watch(judge, stream, tmp_path)
    assert said.startswith("Watched 153 headlines of stream.csv")
    alert, end = json.loads(alert), json.loads(end)
    assert (alert["type"], alert["topic"], end["type"]) == ("alert", "energy", "alert_ended")
    assert bad_hours[0] < alert["time"] < end["time"]
    assert "<svg" in (tmp_path / "opinion-timeline.svg").read_text(encoding="utf-8")


@pytest.mark.integration
def test_a_system_answers_over_both_protocols(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = padded_recipe("intent", ['export.formats=["onnx"]'])
    release = make_release(tmp_path / "release", recipe, {"card": "card"}, runnable=True)
    publish_release(tmp_path / "models", recipe, release)
    arguments = ["intent", "--repository", str(tmp_path / "models"), "--reports", str(tmp_path / "reports")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "intent: text-classification; gRPC and HTTP agree" in printed
    assert "Where is my parcel? It should have come on Monday." in printed
