"""``mooring build`` from recipe to release with a tiny model: what it does, skips and refuses."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification

import mooring_build.export
import mooring_build.training
from mooring import BuildError
from mooring._cli import main
from mooring_build.building import build
from mooring_build.datasets import load_dataset
from mooring_build.engines import open_engine
from mooring_build.learners import Exportable
from mooring_build.recipe import load_recipe
from mooring_build.repository import read_manifest, released_version
from tiny_checkpoint import make_tiny_checkpoint

pytestmark = pytest.mark.integration

LABELS = ["ask", "complain", "pay"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "text-classification", LABELS)


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "checkpoint"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [("who pays my refund", "pay"), ("the river is wide", "complain"), ("is anna in porto", "ask")]
    path = tmp_path / "data.csv"
    path.write_text(
        "text,label\n" + "".join(f"{text} {i},{label}\n" for i in range(8) for text, label in rows)
    )
    return path


class Command:
    """``mooring build intent`` in a folder of its own; TorchScript alone, which exports in a second."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.repository, self.artifacts = folder / "models", folder / "artifacts"
        self._words = ["build", "intent", f"--checkpoint={checkpoint}", f"--repository={self.repository}"]
        self._words += [f"--artifacts={self.artifacts}", "--set=text.max_length=48"]
        self._words += ['--set=export.formats=["torchscript"]', "--set=export.engine=torchscript"]

    def __call__(self, *more: str) -> int:
        return main([*self._words, *more])

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.repository)): path.read_bytes()
            for path in self.repository.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }


@pytest.fixture
def command(tmp_path: Path, checkpoint: Path) -> Command:
    return Command(tmp_path, checkpoint)


def test_a_fine_tuned_checkpoint_is_published_without_training(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0
    assert "nothing to train" in capsys.readouterr().out
    assert released_version(command.repository, "intent") == 1
    assert read_manifest(command.repository, "intent", 1)["labels"] == LABELS


def test_nothing_is_done_twice(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command() == 0
    before = command.files()
    capsys.readouterr()

    def again(*args: object) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr(mooring_build.export, "export_engine", again)
    assert command() == 0
    assert capsys.readouterr().out.count("(up to date)") == 2
    assert command.files() == before


def test_only_what_a_change_touches_is_done_again(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command() == 0
    with monkeypatch.context() as patch:
        patch.setattr(mooring_build.export, "export_engine", None)
        assert command("--set=serving.max_queue_delay_microseconds=900") == 0
    assert released_version(command.repository, "intent") == 2
    assert command("--set=verify.tolerance=1e-3") == 0
    assert released_version(command.repository, "intent") == 3


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"garbage"), Path.unlink])
def test_a_damaged_engine_is_made_again(command: Command, damage: Callable[[Path], object]) -> None:
    assert command() == 0
    (engine,) = command.artifacts.glob("intent/torchscript-*/model.pt")
    damage(engine)
    assert command("--set=text.top_k=2") == 0
    open_engine(engine, "torchscript")
    published = command.repository / "intent_torchscript_ragged" / "2" / "model.pt"
    assert published.read_bytes() == engine.read_bytes()


def test_a_build_is_alone(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    folder = command.artifacts / "intent"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert command() == 1
    assert f"another build works in {folder}" in capsys.readouterr().err


def test_artifacts_that_cant_be_written(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--artifacts=/dev/null/here") == 1
    assert "can't build intent: Not a directory: /dev/null/here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("tokenizer.json", "{}", "its tokenizer can't be loaded"),
        ("config.json", '{"model_type": "bert", "id2label": ["a"]}', "id2label is no table by label id"),
        ("config.json", '{"model_type": "bert", "id2label": {"x": "a"}}', "id2label is no table by label id"),
        ("config.json", '{"model_type": "bert", "hidden_size": "wide"}', "can't be loaded for text-"),
    ],
)
def test_malformed_checkpoint_files(
    command: Command,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str,
    complaint: str,
) -> None:
    (checkpoint / name).write_text(content)
    assert command('--set=labels=["a", "b"]' if "wide" in content else "--set=text.top_k=1") == 2
    assert complaint in capsys.readouterr().err


def test_an_exporter_that_fails(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(mooring_build.export, "export_engine", fail)
    assert command() == 1
    message = capsys.readouterr().err
    assert "intent_torchscript_ragged is not published: no such operator (if torchscript can't" in message
    assert "--set 'export.formats=[\"onnx\"]' --set export.engine=onnx tries onnx alone" in message


def test_an_engine_that_fails_verification_is_not_published(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    padded = "--set=serving.mixed_lengths=padded"
    assert command(padded) == 0
    before = command.files()
    export = mooring_build.export.export_engine

    def export_with_other_label_order(exportable: Exportable, *args: object) -> Path:
        head = exportable.hub_model.classifier
        original = head.weight.detach().clone()
        with torch.no_grad():
            head.weight.copy_(original.flip(0))
            try:
                return export(exportable, *args)
            finally:
                head.weight.copy_(original)

    monkeypatch.setattr(mooring_build.export, "export_engine", export_with_other_label_order)
    assert command(padded, "--set=verify.tolerance=1e-3") == 1
    message = capsys.readouterr().err
    assert "intent_torchscript is not published: output 'logits' differs from the PyTorch model by" in message
    assert command.files() == before


def test_corrupt_checkpoint(command: Command, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert command() == 2
    assert "model.safetensors can't be read (1000 bytes)" in capsys.readouterr().err
    assert not command.repository.exists()


def test_labels_that_are_not_the_checkpoints(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command('--set=labels=["pay", "ask", "complain"]') == 2
    assert "labels ['pay', 'ask', 'complain'] are not those of" in capsys.readouterr().err


def test_checkpoint_without_label_names(
    command: Command, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["id2label"] = {str(index): f"LABEL_{index}" for index in range(3)}
    config["label2id"] = {f"LABEL_{index}": index for index in range(3)}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert command() == 2
    assert "names no labels (id2label in its config.json)" in capsys.readouterr().err
    assert command('--set=labels=["a", "b"]') == 2
    assert "has 3 labels, the recipe has 2" in capsys.readouterr().err
    assert command('--set=labels=["a", "b", "c"]') == 0


def test_texts_longer_than_the_model_has_positions(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--set=text.max_length=65") == 2
    assert "text.max_length 65 is more than the 64 positions of" in capsys.readouterr().err


def test_what_makes_figures_other_than_they_seem_is_said(
    command: Command, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = tmp_path / "evaluation.csv"
    evaluation.write_text("text,label\nwho pays my refund 0,pay\nis anna in lisbon,ask\n")
    outside = tmp_path / "outside.csv"
    outside.write_text("text\nthe river\n")
    files = [f"--set=data.{key}={outside}" for key in ("out_of_scope", "out_of_scope_train")]
    files += [f"--set=data.train={data}", f"--set=data.evaluation={evaluation}", "--set=data.format=csv"]
    assert command(*files, "--set=training.epochs=1", "--set=training.learning_rate=1e-3") == 0
    said = capsys.readouterr().out
    assert f"and 1 texts that fit no label, from {outside} (data.out_of_scope_train)" in said
    assert "1 of 2 evaluation texts are training texts, too" in said


def test_a_checkpoint_with_one_output_is_refused(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make_tiny_checkpoint(tmp_path / "one", "text-classification", ["toxic"])
    assert command(f"--checkpoint={one}") == 2
    assert "has one output (id2label in its config.json), a number or a score" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, '{"model_max_length": 48}'], ids=["no file", "not in the file"])
def test_the_padding_token_may_be_left_to_transformers(
    command: Command, checkpoint: Path, content: str | None
) -> None:
    (checkpoint / "tokenizer_config.json").unlink()
    if content is not None:
        (checkpoint / "tokenizer_config.json").write_text(content)
    assert command() == 0
    settings = command.repository / "intent_tokenizer" / "1" / "settings.json"
    assert json.loads(settings.read_text())["pad_token_id"] == 0


@pytest.mark.parametrize("training", [True, False], ids=["trained", "scored"])
def test_an_encoder_that_cant_be_packed_is_refused_before_it_costs_time(
    command: Command,
    checkpoint: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    training: bool,
) -> None:
    config = AutoConfig.for_model(
        "albert",
        vocab_size=300,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        id2label=dict(enumerate(LABELS)),
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(checkpoint)

    def too_late(*args: object) -> None:
        raise AssertionError("it was trained, or scored")

    for name in ("fine_tune", "evaluate_checkpoint"):
        monkeypatch.setattr(mooring_build.training, name, too_late)
    table = [f"--set=data.train={data}", "--set=training.epochs=1", "--set=training.learning_rate=1e-3"]
    more = ["--set=data.format=csv", f"--set=data.evaluation={data}", *(table if training else [])]
    assert command("--set=serving.mixed_lengths=ragged", *more) == 2
    assert "'albert' models have no exchangeable attention; use 'padded'" in capsys.readouterr().err


def test_a_fine_tuned_checkpoint_is_scored_where_data_is_given(
    command: Command, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with data.open("a") as file:
        file.write("who " * 60 + ",ask\n")
    assert command("--set=data.format=csv", f"--set=data.evaluation={data}") == 0
    assert "1 examples are cut off at text.max_length 48" in capsys.readouterr().out
    assert 0 <= read_manifest(command.repository, "intent", 1)["metrics"]["accuracy"] <= 1


def test_an_interrupted_training_goes_on_where_it_was(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(
        "intent",
        [
            f"base.checkpoint={checkpoint}",
            f"data.train={data}",
            f"data.evaluation={data}",
            "training.epochs=3",
            "training.early_stopping_patience=0",
            "text.max_length=48",
            'export.formats=["torchscript"]',
            "export.engine=torchscript",
        ],
    )
    epochs: list[float] = []
    interrupt_at = 2.0

    class Watch(mooring_build.training.EpochProgress):
        def on_epoch_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
            epochs.append(state.epoch)  # type: ignore[attr-defined]
            if state.epoch == interrupt_at:  # type: ignore[attr-defined]
                raise KeyboardInterrupt

    monkeypatch.setattr(mooring_build.training, "EpochProgress", Watch)
    places = {"repository": tmp_path / "models", "artifacts": tmp_path / "artifacts"}
    with pytest.raises(KeyboardInterrupt):
        build(recipe, **places)
    assert not (tmp_path / "models").exists()
    assert epochs == [1.0, 2.0]
    (states,) = (tmp_path / "artifacts" / "intent").glob("trained-*/epochs")
    (states / "checkpoint-99").mkdir()  # as a kill while an epoch is saved leaves it
    (states / "checkpoint-98").mkdir()  # or while one is removed
    (states / "checkpoint-98" / "trainer_state.json").write_text("{}")
    interrupt_at = -1
    assert build(recipe, **places) == 1
    assert epochs == [1.0, 2.0, 2.0, 3.0], "the first epoch was not repeated"
    (trained,) = (tmp_path / "artifacts" / "intent").glob("trained-*")
    assert list((trained / "logs").glob("events.out.tfevents.*"))


def test_a_training_that_was_stopped_early_does_not_go_on(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(
        "intent",
        [
            f"base.checkpoint={checkpoint}",
            f"data.train={data}",
            f"data.evaluation={data}",
            "training.epochs=5",
            # Nothing is learnt at such a rate.
            "training.learning_rate=1e-12",
            "training.early_stopping_patience=1",
            "text.max_length=48",
        ],
    )
    epochs: list[float] = []

    class Watch(mooring_build.training.EpochProgress):
        killed = True

        def on_epoch_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
            epochs.append(state.epoch)  # type: ignore[attr-defined]

        def on_save(self, args: object, state: object, control: object, **kwargs: object) -> None:
            if self.killed and control.should_training_stop:  # type: ignore[attr-defined]
                raise KeyboardInterrupt

    monkeypatch.setattr(mooring_build.training, "EpochProgress", Watch)
    words = (recipe, checkpoint, load_dataset(recipe), tmp_path / "trained")
    with pytest.raises(KeyboardInterrupt):
        mooring_build.training.fine_tune(*words)
    assert epochs == [1.0, 2.0]
    monkeypatch.setattr(Watch, "killed", False)
    assert mooring_build.training.fine_tune(*words)["epochs"] == 2.0
    assert epochs == [1.0, 2.0]


def test_training_is_seeded(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    overrides = [f"base.checkpoint={checkpoint}", f"data.train={data}", f"data.evaluation={data}"]
    overrides += ["training.epochs=1", "text.max_length=48"]
    recipe = load_recipe("intent", overrides)
    dataset = load_dataset(recipe)
    fine_tune = mooring_build.training.fine_tune
    first, second = (fine_tune(recipe, checkpoint, dataset, tmp_path / name) for name in ("one", "two"))
    assert first == second
    other = load_recipe("intent", [*overrides, "training.seed=1"])
    assert fine_tune(other, checkpoint, dataset, tmp_path / "three")["loss"] != first["loss"]


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_full_disk_ends_a_build_in_a_line(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(mooring_build.training, "fine_tune", fail)
    overrides = [f"base.checkpoint={checkpoint}", f"data.train={data}", f"data.evaluation={data}"]
    with pytest.raises(BuildError, match=f"^can't build intent: {re.escape(str(error))}$"):
        build(
            load_recipe("intent", [*overrides, "text.max_length=48"]),
            repository=tmp_path / "models",
            artifacts=tmp_path / "artifacts",
        )
