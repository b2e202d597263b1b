from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mooring import MooringError
from mooring_loadtests.client_bench import CEILINGS, FLOORS, main
from mooring_loadtests.client_bench_map import MapSides
from mooring_loadtests.texts import SENTENCES
from mooring_serve import TritonServer
from text_models import write_text_models

pytestmark = pytest.mark.integration


def test_the_benchmark_measures_everything_and_ends_with_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = write_text_models(tmp_path / "models")
    command = ["--repository", str(repository), "--pairs", "2", "--slice-ms", "5"]
    status = main([*command, "--requests", "200", "--texts", "60"])
    shown = capsys.readouterr()
    assert (status, shown.err) == (0, "")
    *lines, last = shown.out.splitlines()
    figures = json.loads(last)
    assert set(figures) == {*FLOORS, *CEILINGS, "heavy_imports", "async_map_over_asyncio"}
    assert figures["heavy_imports"] == []
    assert all(figures[key] > 0 for key in (*FLOORS, "import_s", "async_map_over_asyncio"))
    assert figures["memory_growth_mib"] >= 0
    said = "\n".join(lines)
    # What is done is said before what came out of it.
    for step in (
        "import mooring in 11 interpreters",
        "infer beside tritonclient",
        "60 texts of 2 to 67 words",
    ):
        assert step in said[: said.index("\nimport_s")]
    assert f"finds the same {60} entities in the first 60 texts" in said


def test_every_side_finds_the_same(tmp_path: Path, make_server: Callable[..., TritonServer]) -> None:
    server = make_server(write_text_models(tmp_path / "models"))
    with MapSides(server.grpc_url, "ner") as sides:
        # Each text's first word is a person.
        assert sides.check(SENTENCES) == len(SENTENCES)
        before = sides.requests
        sides.loop(SENTENCES)
        assert sides.requests - before == len(SENTENCES)
        rows = sides.asyncio_loop(SENTENCES, 3, 4)
    first = SENTENCES[0].split()[0]
    assert rows[0] == [("PER", 0.75, 0, len(first), first)]
    assert [row[0][4] for row in rows] == [sentence.split()[0] for sentence in SENTENCES]


def test_another_task_is_refused(tmp_path: Path, make_server: Callable[..., TritonServer]) -> None:
    server = make_server(write_text_models(tmp_path / "models"))
    with (
        pytest.raises(MooringError, match="'intent' is no token classifier"),
        MapSides(server.grpc_url, "intent"),
    ):
        pass
