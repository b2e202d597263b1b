"""An earlier version that answers again."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from mooring import ConfigError, PublishError
from mooring_build import publish, rollback_command, switching
from mooring_build import repository as repository_module
from mooring_build.publish import Release, publish_release, publish_steps, released_version, roll_back
from mooring_build.recipe import Recipe
from mooring_build.repository import decided_with_others, locked, versions_of, write_file
from mooring_build.triton_config import model_names
from tiny_release import make_release, padded_recipe, snapshot


def configs_of(repository: Path) -> dict[str, bytes]:
    return {name: data for name, data in snapshot(repository).items() if name.count("/") == 1}


def rollback(repository: Path) -> int:
    """The command."""
    parser = argparse.ArgumentParser()
    rollback_command.add_command(parser.add_subparsers())
    args = parser.parse_args(["rollback", "ner", "--repository", str(repository)])
    return args.run(args)


@pytest.fixture
def first_configs(repository: Path, recipe: Recipe, release: Release, tmp_path: Path) -> dict[str, bytes]:
    """Version 1; version 2 has more labels, smaller batches and an engine less."""
    publish_release(repository, recipe, release)
    configs = configs_of(repository)
    smaller = padded_recipe("ner", ["serving.max_batch_size=8", 'export.formats=["onnx"]'])
    labels = [*release.labels, "B-ORG", "I-ORG"]
    publish_release(
        repository, smaller, make_release(tmp_path / "b", smaller, labels=labels, inputs_digest="b")
    )
    return configs


def test_the_version_before_answers_with_its_own_configs(
    repository: Path, first_configs: dict[str, bytes]
) -> None:
    second_configs = configs_of(repository)
    assert roll_back(repository, "ner") == 1
    assert released_version(repository, "ner") == 1
    assert configs_of(repository) == first_configs
    assert roll_back(repository, "ner", 2) == 2
    assert configs_of(repository) == second_configs
    assert versions_of(repository, "ner_onnx") == {1, 2}


def test_the_next_release_has_a_number_of_its_own(
    repository: Path, recipe: Recipe, tmp_path: Path, first_configs: dict[str, bytes]
) -> None:
    roll_back(repository, "ner")
    third = make_release(tmp_path / "third", recipe, inputs_digest="c")
    assert publish_release(repository, recipe, third) == 3
    assert roll_back(repository, "ner") == 2


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("ner", 2, r"/ner serves version 2 and has version 1 beside it, not version 2$"),
        ("ner", 7, r"/ner serves version 2 and has version 1 beside it, not version 7$"),
        ("nobody", None, r"/nobody has no release to go back from$"),
        ("ner_onnx", None, r"/ner_onnx is a part of a pipeline, which goes back as a whole: name that$"),
    ],
)
def test_what_is_not_there_is_refused(
    repository: Path, first_configs: dict[str, bytes], name: str, version: int | None, said: str
) -> None:
    before = snapshot(repository)
    with pytest.raises(PublishError, match=said):
        roll_back(repository, name, version)
    assert snapshot(repository) == before


def test_a_first_release_has_nothing_before_it(repository: Path, recipe: Recipe, release: Release) -> None:
    publish_release(repository, recipe, release)
    with pytest.raises(PublishError, match=r"serves version 1 and has no other version beside it$"):
        roll_back(repository, "ner")


def test_a_damaged_version_is_refused(repository: Path, first_configs: dict[str, bytes]) -> None:
    path = repository / "ner_onnx" / "1" / "model.onnx"
    path.chmod(0o644)
    path.write_bytes(b"something else")
    with pytest.raises(PublishError, match=f"^{path} is missing or not as it was published"):
        roll_back(repository, "ner")
    assert released_version(repository, "ner") == 2


def test_a_pipeline_that_joins_needs_what_it_joins(tmp_path: Path, repository: Path) -> None:
    plain, scored = (padded_recipe("intent", [f"text.top_k={k}"]) for k in (1, 2))
    publish_release(repository, plain, make_release(tmp_path / "a", plain))
    publish_release(repository, scored, make_release(tmp_path / "b", scored, inputs_digest="b"))
    (repository / "joining" / "1").mkdir(parents=True)
    (repository / "joining" / "config.pbtxt").write_text(
        'name: "joining" platform: "ensemble" max_batch_size: 4 ensemble_scheduling { step { '
        'model_name: "intent" model_version: -1 output_map { key: "other" value: "x" } } }'
    )
    with pytest.raises(PublishError, match="joins 'intent' and needs its output other"):
        roll_back(repository, "intent")
    assert released_version(repository, "intent") == 2


def test_a_pipeline_with_thresholds_of_another_version_is_named(
    repository: Path, first_configs: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, metrics in (("service", {"right": 0.9}), ("monitor", {})):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(
            f'name: "{name}" platform: "ensemble" version_policy {{ specific {{ versions: 1 }} }}'
            ' ensemble_scheduling { step { model_name: "ner" model_version: -1 } }'
        )
        manifest = {
            "files": {},
            "metrics": metrics,
            "composed_of": {"entities": {"model": "ner", "version": 2}},
        }
        (repository / name / "1" / "manifest.json").write_text(json.dumps(manifest))
    assert decided_with_others(repository, "ner", 2) == []
    assert rollback(repository) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"ner: version 1 answers in {repository}, once a server has loaded it",
        "service found its thresholds with another version of ner: build it again",
    ]


def _stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be killed at the so-many-th config, before anything is cleaned up."""
    writes = 0

    def write(path: Path, text: str) -> None:
        nonlocal writes
        writes += 1
        if writes > step:
            raise KeyboardInterrupt
        write_file(path, text)

    monkeypatch.setattr(switching, "write_file", write)
    monkeypatch.setattr(publish, "recover", lambda repository, journal: None)


@pytest.mark.parametrize("step", range(10))
def test_an_interrupted_way_back_ends_at_one_of_both(
    step: int,
    repository: Path,
    recipe: Recipe,
    tmp_path: Path,
    first_configs: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second_configs = configs_of(repository)
    with monkeypatch.context() as patched:
        _stop_at(step, patched)
        if step < 9:
            with pytest.raises(KeyboardInterrupt):
                roll_back(repository, "ner")
        else:
            roll_back(repository, "ner")
    answers = released_version(repository, "ner")
    assert answers == (1 if step > 4 else 2)
    # Whatever comes next finishes it or takes it back, and takes no version away.
    other = padded_recipe("intent")
    publish_release(repository, other, make_release(tmp_path / "other", other))
    assert released_version(repository, "ner") == answers
    found = {name: data for name, data in configs_of(repository).items() if name.startswith("ner")}
    assert found == {
        name: data
        for name, data in (first_configs if answers == 1 else second_configs).items()
        if name.startswith("ner")
    }
    assert versions_of(repository, "ner_onnx") == {1, 2}


def _kill_after(step: str, steps: Generator[str, None, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish until the first step of a kind is done, and leave everything as a kill would."""
    while not next(steps).startswith(step):
        pass
    with monkeypatch.context() as patched:
        patched.setattr(publish, "recover", lambda repository, journal: None)
        steps.close()


def test_a_release_that_has_answered_is_not_taken_back(
    repository: Path,
    recipe: Recipe,
    release: Release,
    next_release: Release,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish_release(repository, recipe, release)
    configs = configs_of(repository)
    _kill_after("narrowed", publish_steps(repository, recipe, next_release), monkeypatch)
    for name, data in configs.items():
        (repository / name).write_bytes(data)
    other = padded_recipe("intent")
    publish_release(repository, other, make_release(tmp_path / "other", other))
    assert released_version(repository, "ner") == 1
    assert versions_of(repository, "ner") == {1, 2}


def test_what_a_killed_publish_of_another_recipe_left_is_deleted(
    repository: Path, recipe: Recipe, release: Release
) -> None:
    left = repository / "intent_tokenizer" / ".staging-1"
    left.mkdir(parents=True)
    (left / "model.py").touch()
    publish_release(repository, recipe, release)
    assert not left.parent.exists()
    assert {path.name for path in repository.iterdir()} == {".publish.lock", *model_names(recipe)}


def test_a_journal_that_is_cut_off_is_an_error(
    repository: Path, recipe: Recipe, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite
    monkeypatch.setattr(
        repository_module.os, "pwrite", lambda number, data, place: write(number, data[:-1], place)
    )
    with pytest.raises(PublishError, match="No space left on device"):
        publish_release(repository, recipe, release)
    assert versions_of(repository, "ner") == set()


@pytest.mark.parametrize("model", ["ner", "ner_onnx"])
def test_a_config_that_is_no_text_is_refused(
    model: str, repository: Path, recipe: Recipe, next_release: Release, first_configs: dict[str, bytes]
) -> None:
    (repository / model / "config.pbtxt").write_bytes(b"\xff")
    said = rf"/{model}/config.pbtxt is no text: "
    with pytest.raises(PublishError, match=said):
        roll_back(repository, "ner")
    with pytest.raises(PublishError, match=said):
        publish_release(repository, recipe, next_release)


def test_a_journal_of_an_earlier_version_is_recovered(
    repository: Path, recipe: Recipe, release: Release, next_release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_release(repository, recipe, release)
    _kill_after("opened", publish_steps(repository, recipe, next_release), monkeypatch)
    path = repository / ".publish.lock"
    plan = json.loads(path.read_text())
    path.write_text(json.dumps({key: plan[key] for key in ("name", "version", "before", "after")}))
    assert publish_release(repository, recipe, next_release) == 2
    assert versions_of(repository, "ner") == {1, 2}


def test_a_plan_stays_whole_when_the_next_one_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(tmp_path) as journal:
        journal.write({"name": "ner", "committed": False})

        def fail(*arguments: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(repository_module.os, "pwrite", fail)
            with pytest.raises(OSError, match="No space left"):
                journal.write({"name": "ner", "committed": True})
        assert journal.read() == {"name": "ner", "committed": False}
        journal.write({"name": "ner", "committed": True})
        assert journal.read() == {"name": "ner", "committed": True}
        journal.write({})
        assert journal.read() == {}


def test_a_pipeline_goes_back_only_where_what_it_joins_suits_it(
    repository: Path, first_configs: dict[str, bytes]
) -> None:
    for version, size in ((1, 32), (2, 8)):
        folder = repository / "service" / str(version)
        folder.mkdir(parents=True)
        config = (
            f'name: "service" platform: "ensemble" max_batch_size: {size} '
            f"version_policy {{ specific {{ versions: {version} }} }} "
            'ensemble_scheduling { step { model_name: "ner" model_version: -1 } }'
        )
        (folder / "config.pbtxt").write_text(config)
        digest = hashlib.sha256(config.encode()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps({"parts": {}, "files": {"config.pbtxt": digest}}))
        (repository / "service" / "config.pbtxt").write_text(config)
    with pytest.raises(PublishError, match=r"service takes batches of 32, and what it joins, .*/ner, of 8:"):
        roll_back(repository, "service")
    assert released_version(repository, "service") == 2


def test_a_repository_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no model repository at .*/nowhere$"):
        rollback(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
