from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mooring import DataError
from mooring_loadtests.load_profile import Profile, Stage
from mooring_loadtests.traces import Began, slowest

_NAMES = ("REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START")


def _trace(number: int, model: str, parent: int | None, *times_ms: float) -> list[dict[str, Any]]:
    """As tritonserver 2.51 writes them: one entry for the model and one for each time."""
    first = {"id": number, "model_name": model, "model_version": 1}
    names = (
        (*_NAMES, "COMPUTE_END", "REQUEST_END") if len(times_ms) == 7 else ("REQUEST_START", "REQUEST_END")
    )
    stamps = [
        {"id": number, "timestamps": [{"name": name, "ns": int(time * 1e6)}]}
        for name, time in zip(names, times_ms, strict=True)
    ]
    return [first | ({} if parent is None else {"parent_id": parent}), *stamps]


def _request(number: int, start_ms: float, queue_ms: float) -> list[dict[str, Any]]:
    """A pipeline of a tokenizer and an engine that waits for ``queue_ms``."""
    at = start_ms + 3 + queue_ms
    return [
        *_trace(
            number + 2, "ner_onnx", number, start_ms + 3, start_ms + 3, at, at + 1, at + 9, at + 10, at + 10
        ),
        *_trace(number + 1, "ner_tokenizer", number, *(start_ms + step for step in (0, 0, 1, 1, 2, 2, 3))),
        *_trace(number, "ner", None, start_ms, at + 11),
    ]


def test_the_slowest_are_picked_and_their_steps_averaged(tmp_path: Path) -> None:
    entries = [
        entry for i in range(100) for entry in _request(10 * i + 1, 100.0 * i, 40.0 if i == 7 else 2.0)
    ]
    half = len(entries) // 2
    (tmp_path / "trace.json.0").write_text(json.dumps(entries[:half]), encoding="utf-8")
    # The file that the server still writes to is not closed.
    (tmp_path / "trace.json.1").write_text(json.dumps(entries[half:])[:-1] + ",", encoding="utf-8")
    times = slowest(tmp_path / "trace.json", "ner")
    assert times is not None
    assert (times.requests, times.total_ms) == (1, pytest.approx(3 + 40 + 11))
    tokenizer, engine = times.steps
    assert (tokenizer.model, tokenizer.queue_ms, tokenizer.compute_ms) == ("ner_tokenizer", 1.0, 1.0)
    assert engine.model == "ner_onnx"
    assert (engine.queue_ms, engine.input_ms, engine.compute_ms, engine.output_ms) == (40.0, 1.0, 8.0, 1.0)
    assert slowest(tmp_path / "trace.json", "ner", share=1.0).total_ms == pytest.approx(16 + 38 / 100)


def test_requests_of_earlier_runs_and_other_models_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text(json.dumps(_request(1, 0.0, 2.0)), encoding="utf-8")
    assert slowest(tmp_path / "trace.json", "ner", since=Began(1, 0)) is None
    assert slowest(tmp_path / "trace.json", "intent") is None
    assert slowest(tmp_path / "trace.json", "ner") is not None


def test_requests_of_a_warm_up_do_not_count(tmp_path: Path) -> None:
    slow, usual = (
        _request(1, 1000.0, 5000.0),
        [_request(10 * i, 7000.0 + 100 * i, 36.0) for i in range(1, 9)],
    )
    entries = [*slow, *(entry for request in usual for entry in request)]
    (tmp_path / "trace.json").write_text(json.dumps(entries), encoding="utf-8")
    # The run's clock began 500 ms after the machine's.
    began = Began(300_000_000, 10_300_000_000)
    profile = Profile(loop="closed", users=1, stages=(Stage(seconds=5, measured=False), Stage(seconds=20)))
    spans = began.measured(profile, 10_500_000_000)
    assert spans == [(5_500_000_000, 25_500_000_000)]
    times = slowest(tmp_path / "trace.json", "ner", since=began, spans=spans)
    assert times is not None
    assert (times.requests, times.total_ms) == (1, pytest.approx(50.0))
    assert slowest(tmp_path / "trace.json", "ner", since=began).total_ms == pytest.approx(5014.0)


def test_files_of_an_earlier_server_do_not_count(tmp_path: Path) -> None:
    # It numbered its requests from 1 too, and its machine's clock had run for longer.
    (tmp_path / "trace.json.0").write_text(json.dumps(_request(1, 900.0, 50.0)), encoding="utf-8")
    os.utime(tmp_path / "trace.json.0", ns=(10, 10))
    assert slowest(tmp_path / "trace.json", "ner", since=Began(0, 20)) is None
    (tmp_path / "trace.json.1").write_text(json.dumps(_request(1, 0.0, 2.0)), encoding="utf-8")
    times = slowest(tmp_path / "trace.json", "ner", since=Began(0, 20))
    assert times is not None
    assert times.total_ms == pytest.approx(3 + 2 + 11)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "mooring serve --trace"), ("{", "holds no traces"), ("[1]", "no traces")],
)
def test_other_files_are_refused(tmp_path: Path, content: str | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / "trace.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=complaint):
        slowest(tmp_path / "trace.json", "ner")
