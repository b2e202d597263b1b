from __future__ import annotations

import statistics
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from mooring import ConfigError, ModelConfig, ModelMetadata, TensorSpec
from mooring_loadtests.load_profile import Payload
from mooring_loadtests.payloads import draw_text, endless_items, items_sha256


def _items(task: str, payload: Payload = Payload(), source: int = 0, width: int = 64) -> list[Any]:  # noqa: B008
    config = ModelConfig(name="model", max_batch_size=8, optional_inputs=(), parameters={"task": task})
    tensor = TensorSpec(name="features", datatype="FP32", shape=(-1, width))
    metadata = ModelMetadata(name="model", versions=("1",), platform="", inputs=(tensor,), outputs=())
    return list(islice(endless_items(payload, config, metadata, source=source), 5))


def test_lengths_are_lognormal_and_bounded() -> None:
    payload, random = Payload(median_words=12.0, sigma=0.5, max_words=40), Random(0)
    lengths = [len(draw_text(random, payload).split()) for _ in range(4000)]
    assert abs(statistics.median(lengths) - 12) <= 1
    assert min(lengths) >= 1
    assert max(lengths) == 40
    # A normal variate has 15.9 % beyond one standard deviation: 12 * e^0.5 = 19.8 words.
    assert abs(sum(length > 19.8 for length in lengths) / 4000 - 0.159) < 0.03


def test_each_source_draws_its_own_texts_again_and_again_the_same() -> None:
    assert _items("text-classification") == _items("text-classification")
    assert _items("text-classification", source=1) != _items("text-classification", source=0)
    assert _items("text-classification", Payload(seed=1)) != _items("text-classification", Payload(seed=0))


def test_arrays_fit_their_task() -> None:
    (image, *_), (row, *_) = _items("image-classification"), _items("tabular-classification", width=10)
    assert (image.dtype, image.shape) == (np.uint8, (64, 64, 3))
    assert (row.dtype, row.shape) == (np.float32, (10,))


def test_a_file_is_asked_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "histories.jsonl"
    path.write_text('["a", "b"]\n\n["c"]\n', encoding="utf-8")
    assert _items("recommendation", Payload(file=str(path)))[:3] == [["a", "b"], ["c"], ["a", "b"]]
    # Users begin at different places, so that they do not ask the same at the same time.
    assert _items("recommendation", Payload(file=str(path)), source=1)[0] == ["c"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("", "holds no items"), ('"a"\n{"b\n', "line 2: no JSON"), (None, "cannot be read")],
)
def test_a_file_that_will_not_do(tmp_path: Path, content: str | None, complaint: str) -> None:
    path = tmp_path / "items.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint):
        _items("text-classification", Payload(file=str(path)))


def test_a_recommender_needs_histories() -> None:
    with pytest.raises(ConfigError, match=r"takes items of its own catalogue: name a file"):
        _items("recommendation")


def test_a_file_of_items_is_known_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert items_sha256(Payload(file=str(tmp_path / "items.jsonl"))) == empty
    assert items_sha256(Payload()) == ""
