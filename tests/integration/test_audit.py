"""``mooring audit`` against a real server: finds the bias that was planted and no other."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mooring_build
from mooring_build.publish import publish_release
from mooring_serve import TritonServer
from python_models import write_python_model
from text_models import INTENT_CONFIG, NER_CONFIG
from tiny_release import LOGIT, make_release, padded_recipe

pytestmark = pytest.mark.integration

FILLS = tomllib.loads(
    (Path(mooring_build.__file__).parent / "audit_templates" / "fills.toml").read_text(encoding="utf-8")
)
AFRICA = [name for names in FILLS["names"]["africa"].values() for name in names]
NAMES = [name for region in FILLS["names"].values() for names in region.values() for name in names]

# Sure of everything, but less so of texts with one of the given words.
_SENTIMENT = """
    import re

    import numpy as np
    import triton_python_backend_utils as pb_utils

    WORDS = re.compile({words!r})


    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(request) for request in requests]

        def answer(self, request):
            column = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[:, 0]
            good = np.array([0.6 if WORDS.search(raw.decode()) else 0.9 for raw in column], np.float32)
            labels = np.array([[b"good", b"bad"]] * len(column), dtype=np.object_)
            return pb_utils.InferenceResponse([
                pb_utils.Tensor("label", labels),
                pb_utils.Tensor("score", np.stack([good, 1 - good], axis=1)),
            ])
"""
# Knows these names and no others.
_PEOPLE = """
    import numpy as np
    import triton_python_backend_utils as pb_utils

    NAMES = {names!r}


    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(request) for request in requests]

        def answer(self, request):
            column = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[:, 0]
            texts = [raw.decode() for raw in column]
            names = [next((name for name in NAMES if name in text), "") for text in texts]
            starts = [text.index(name) if name else -1 for text, name in zip(texts, names)]
            ends = [start + len(name) if name else -1 for start, name in zip(starts, names)]
            tensor = lambda name, values, kind: pb_utils.Tensor(name, np.array([values], dtype=kind).T)
            return pb_utils.InferenceResponse([
                tensor("label", [b"PER" if name else b"" for name in names], np.object_),
                tensor("score", [0.75] * len(texts), np.float32),
                tensor("start", starts, np.int32),
                tensor("end", ends, np.int32),
                tensor("entity", [name.encode() for name in names], np.object_),
            ])
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("audit")
    repository = folder / "repository"
    recipe = padded_recipe("intent", ["serving.instance_count=1", 'export.formats=["onnx"]'])
    answers = {"card": "card", "anna": "refund"}
    publish_release(repository, recipe, make_release(folder / "intent", recipe, answers, runnable=True))
    women = rf"\b({'|'.join(FILLS['words']['female'])})\b"
    write_python_model(repository, "biased", source=_SENTIMENT.format(words=women), config=INTENT_CONFIG)
    write_python_model(
        repository, "fair", source=_SENTIMENT.format(words="profit|refused"), config=INTENT_CONFIG
    )
    known = [name for name in NAMES if name not in AFRICA]
    write_python_model(repository, "some_people", source=_PEOPLE.format(names=known), config=NER_CONFIG)
    write_python_model(repository, "all_people", source=_PEOPLE.format(names=NAMES), config=NER_CONFIG)
    with TritonServer(repository, log_file=folder / "log") as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: TritonServer) -> str:
    return str(getattr(server, f"{request.param}_url"))


def run_audit(*words: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "mooring", "audit", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout, done.stderr


def comparisons(printed: str, verdict: str) -> list[tuple[str, str]]:
    return [
        (found["axis"], found["group"])
        for found in json.loads(printed)["comparisons"]
        if verdict in {found["flips_verdict"], *(gap["verdict"] for gap in found["gaps"])}
    ]


def test_a_planted_bias_is_found_and_no_other(url: str) -> None:
    code, out, err = run_audit("biased", "--templates", "news", "--json", "--url", url)
    assert (code, err) == (1, "")
    assert comparisons(out, "broken") == [("words: gender", "female")]
    (found,) = [row for row in json.loads(out)["comparisons"] if row["axis"] == "words: gender"]
    assert {gap["label"]: gap["gap"]["value"] for gap in found["gaps"]} == pytest.approx(
        {"good": -0.3, "bad": 0.3}, abs=1e-3
    )


def test_a_model_that_looks_at_the_matter_alone_passes(server: TritonServer) -> None:
    code, out, err = run_audit("fair", "--url", server.http_url)
    assert (code, err) == (0, "")
    assert out.endswith("0 of 16 comparisons broken, 0 open\n")


def test_names_that_are_not_known_show_in_the_recall(server: TritonServer) -> None:
    code, out, err = run_audit("some_people", "--json", "--url", server.grpc_url)
    assert (code, err) == (1, "")
    assert ("names: origin", "africa") in comparisons(out, "broken")
    recall: dict[str, Any] = {
        row["group"]: row["recall"]["value"]
        for row in json.loads(out)["comparisons"]
        if row["axis"] == "names: origin"
    }
    assert recall == {region: float(region != "africa") for region in FILLS["names"]}
    code, out, _ = run_audit("all_people", "--url", server.http_url)
    assert code == 0
    assert "0 of 8 comparisons broken" in out


def test_a_published_pipeline_and_own_pairs(server: TritonServer, tmp_path: Path) -> None:
    code, out, _ = run_audit("intent", "--templates", "service", "--url", server.grpc_url)
    assert code == 0, out  # to this model most words, names among them, mean nothing
    pairs = tmp_path / "pairs.csv"
    rows = [
        "anna's card,smith's card",
        "anna visits my card,smith visits my card",
        "card of anna,card of smith",
    ]
    pairs.write_text("\n".join(["her,his", *rows]) + "\n")
    words = ["intent", "--templates", "none", "--pairs", str(pairs), "--json", "--url", server.grpc_url]
    code, out, err = run_audit(*words)
    assert (code, err) == (1, "")
    (found,) = json.loads(out)["comparisons"]
    assert (found["group"], found["against"], found["pairs"]) == ("her", "his", 3)
    weight = math.exp(LOGIT)
    expected = weight / (2 * weight + 1) - weight / (weight + 2)
    gaps = {gap["label"]: gap["gap"]["value"] for gap in found["gaps"]}
    assert gaps["card"] == pytest.approx(expected, abs=1e-3)
    assert "smith" not in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["intent", "--max-gap", "2"], 2, "max_gap must be from 0 to 1, got 2.0"),
        (["intent", "--templates", "none"], 2, "there are neither templates nor pairs to compare"),
        (["intent", "--templates", "no_such"], 2, "there are no templates 'no_such'"),
        (["intent_onnx"], 2, "does not say its task"),
        (["nope"], 1, "model 'nope'"),
        (["all_people", "--templates", "none", "--pairs", "/no/pairs.csv"], 2, "/no/pairs.csv can't be read"),
    ],
)
def test_what_is_refused(server: TritonServer, words: list[str], code: int, said: str) -> None:
    got, out, err = run_audit(*words, "--url", server.grpc_url)
    assert (got, out) == (code, "")
    assert err.startswith("mooring: error: ")
    assert said in err
