from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mooring import ConfigError
from mooring import _cli as cli
from mooring_build.building import build
from mooring_build.publish import publish_release
from mooring_build.recipe import load_recipe
from mooring_build.repository import released_version
from mooring_loadtests import tune_choice, tune_command, tune_probe, tuner
from mooring_loadtests.load_profile import Payload
from mooring_loadtests.tune_probe import Prober, Release
from tiny_checkpoint import make_tiny_checkpoint
from tiny_release import make_release, padded_recipe

pytestmark = pytest.mark.integration


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    # The tiny vocabulary makes a token of each letter, too many for the longest texts that are drawn.
    overrides = ["serving.instance_count=1", "serving.warm_up=false", "text.truncation=true"]
    recipe = padded_recipe("intent", overrides)
    release = make_release(tmp_path / "files", recipe, {"refund": "refund"}, runnable=True)
    facts = {**release.facts, "recipe": recipe.model_dump(mode="json")}
    publish_release(tmp_path / "models", recipe, type(release)(**{**vars(release), "facts": facts}))
    return tmp_path / "models"


def _shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "_ROUNDS", ((1, (0.1, 0.2)),))
    monkeypatch.setattr(tuner, "_TURN_S", 1)
    monkeypatch.setattr(tuner, "_STAGE_REQUESTS", 1)
    monkeypatch.setattr(tune_command, "TURNS", 1)
    monkeypatch.setattr(tune_command, "TURN_SHARES", (0.5, 1.0))
    monkeypatch.setattr(tune_command, "_SCOUT_S", 1)
    monkeypatch.setattr(tune_command, "_SCOUT_SHARES", (0.1, 0.2))
    monkeypatch.setattr(tune_choice, "confirmation_s", lambda p99_ms, minutes: 2)


def test_settings_are_tried_on_a_copy_and_written_when_asked(repository: Path, tmp_path: Path) -> None:
    release = Release(repository, "intent")
    other = tuner.Candidate(**{**vars(release.default), "engine": "torchscript", "max_batch_size": 8})
    before = {path: path.read_text() for path in repository.glob("*/config.pbtxt")}
    prober = Prober(release, payload=Payload(), timeout_s=5.0, folder=tmp_path)
    stages = prober.run(other, [5.0, 10.0], 2)
    assert [stage.rate for stage in stages] == [5.0, 10.0]
    assert all(0 < stage.p99_ms < 5000 for stage in stages)
    assert {path: path.read_text() for path in repository.glob("*/config.pbtxt")} == before

    release.apply(other, artifacts=tmp_path / "artifacts")
    assert "max_batch_size: 8" in (repository / "intent_torchscript" / "config.pbtxt").read_text()
    assert 'model_name: "intent_torchscript"' in (repository / "intent" / "config.pbtxt").read_text()
    # From then on these are the present settings.
    assert Release(repository, "intent").default == other

    by_hand = repository / "intent_torchscript" / "config.pbtxt"
    written = by_hand.read_text()
    for old, new in (("max_batch_size: 8", "max_batch_size: 4"), ("INTRA_OP_THREAD_COUNT", "THREADS")):
        by_hand.write_text(written.replace(old, new))
        with pytest.raises(ConfigError, match="is not as Mooring writes it: build 'intent' again"):
            Release(repository, "intent")


def test_the_command_searches_confirms_and_proposes(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune_command, "affordable", lambda count, **times: 2)
    _shorten(monkeypatch)
    release = Release(repository, "intent")
    words = ["tune", "intent", "--slo", "p99=5s", "--repository", str(repository)]
    assert cli.main([*words, "--reports", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("  round 1  ") == 2
    assert shown.count("  round 2  ") == 2
    assert "\nIn turns, and in a longer run:\npresent  onnx fp32, padded, 1 x 1 threads" in shown
    assert "<svg" in (tmp_path / "intent-tune" / "probes.svg").read_text()
    journal = (tmp_path / "intent-tune" / "probes.jsonl").read_text().splitlines()
    search = json.loads(journal[0])["search"]
    assert (search["model"], search["p99_ms"], search["minutes"]) == ("intent", 5000.0, 10.0)
    result = json.loads((tmp_path / "intent-tune" / "result.json").read_text())
    assert result["p99_ms"] == 5000.0
    present = vars(release.default) | {"preferred_batch_size": [4, 8]}
    assert ("The present settings stay" in shown) == (result["chosen"] == present)
    assert ("[serving]\n" in shown) == (result["chosen"] != present)
    assert result["turns"][0]["settings"] == present
    # What served is known where the search did not come to its end.
    assert json.loads(journal.pop()) == {"finished": True}
    (tmp_path / "intent-tune" / "probes.jsonl").write_text("\n".join([*journal, ""]))
    assert cli.main([*words, "--reports", str(tmp_path)]) == 0
    failed = sum('"error": null' not in line for line in journal[1:])
    resumed = capsys.readouterr().out
    assert f"Going on with {len(journal) - 1 - failed} probe" in resumed
    assert resumed.count("  round 1  ") + resumed.count("  round 2  ") == failed


def test_a_precision_is_tried_with_the_format_that_has_it(tmp_path: Path) -> None:
    recipe = padded_recipe(
        "intent", ["export.precision=bf16", "export.engine=torchscript", "serving.kind=gpu"]
    )
    release = make_release(tmp_path / "files", recipe)
    facts = {**release.facts, "recipe": recipe.model_dump(mode="json")}
    publish_release(tmp_path / "models", recipe, type(release)(**{**vars(release), "facts": facts}))
    assert Release(tmp_path / "models", "intent").variants == [("torchscript", "bf16", "padded")]


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run 'mooring build intent' first"):
        Release(tmp_path, "intent")


def test_other_builds_are_tried_and_published_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = make_tiny_checkpoint(tmp_path / "checkpoint", "text-classification", ["ask", "pay"])
    recipe = tmp_path / "asked.toml"
    recipe.write_text(
        f"""
        name = "asked"
        task = "text-classification"
        base.checkpoint = "{checkpoint}"
        text = {{max_length = 48, truncation = true}}
        export = {{formats = ["onnx"]}}
        serving = {{instance_count = 1, warm_up = false}}
        """
    )
    repository, artifacts = tmp_path / "models", tmp_path / "artifacts"
    build(load_recipe(recipe), repository=repository, artifacts=artifacts)

    # The packed engine wins, as no other is tried.
    def packed_alone(**given: Any) -> list[tuner.Candidate]:
        return [one for one in grid(**given) if one.mixed_lengths == "ragged"]

    grid = tuner.grid
    monkeypatch.setattr(tune_probe, "grid", packed_alone)
    monkeypatch.setattr(tune_command, "affordable", lambda count, **times: 1)
    _shorten(monkeypatch)
    words = [
        "tune",
        "asked",
        "--slo",
        "p99=5s",
        "--repository",
        str(repository),
        "--artifacts",
        str(artifacts),
    ]
    words += ["--reports", str(tmp_path / "reports"), "--mixed-lengths", "ragged", "--precision", "int8"]
    assert cli.main([*words, "--apply", "--recipe", str(recipe)]) == 0
    shown = capsys.readouterr().out
    # int8 is judged on evaluation data, and this recipe has none.
    assert "Building int8, none\n  left out: " in shown
    assert 'mixed_lengths = "ragged"' in shown
    assert "This takes a build" in shown
    assert released_version(repository, "asked") == 2
    assert (repository / "asked_onnx_ragged" / "2" / "model.onnx").is_file()

    # A mistake is not left out as a variant that can't be, nor are settings that were forgotten.
    assert cli.main([*words, "--recipe", str(tmp_path / "nowhere.toml")]) == 2
    assert "no recipe" in capsys.readouterr().err
    forgotten = ["--recipe", str(recipe), "--set", "serving.max_queue_size=16"]
    assert cli.main([*words, *forgotten]) == 2
    assert "is not what version 2 of 'asked' was built from (see serving)" in capsys.readouterr().err
    assert cli.main([*words, "--recipe", "intent"]) == 2
    assert "is not what version 2 of 'asked' was built from" in capsys.readouterr().err
