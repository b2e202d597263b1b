"""Texts that fit no label: how they are learnt, and what recipes may say of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mooring import DataError, RecipeError
from mooring._served.classification import confidence
from mooring_build.acceptance import step_files
from mooring_build.datasets import load_dataset
from mooring_build.layouts import layout_of
from mooring_build.learners.text import IGNORED, TextClassificationLearner, exposure_loss
from mooring_build.models import load_fine_tuned_model, load_tokenizer
from mooring_build.recipe import load_recipe
from mooring_build.release import open_engine_and_tokenizer
from mooring_build.training import fine_tune
from tiny_checkpoint import make_tiny_checkpoint
from tiny_release import make_release, padded_recipe


def test_a_text_without_a_label_is_drawn_to_all_of_them_alike() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]))

    def loss(*labels: int) -> float:
        rows = logits[: len(labels)]
        return float(exposure_loss({"logits": rows}, torch.tensor(labels)))

    assert loss(0) == pytest.approx(math.log(2))
    assert loss(IGNORED) == pytest.approx((math.log(2) + 2 * math.log(4)) / 3)
    assert loss(1, IGNORED) == pytest.approx((math.log(4) + loss(IGNORED)) / 2)
    # It can't get lower than for logits that say nothing.
    assert float(exposure_loss({"logits": logits[2:]}, torch.tensor([IGNORED]))) == pytest.approx(math.log(3))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text("text,label\nwho pays,pay\nanna,ask\n")
    (tmp_path / "eval.csv").write_text("text,label\nmy refund,pay\n")
    (tmp_path / "out.csv").write_text("text\nthe river\nlisbon\n")
    (tmp_path / "out_eval.csv").write_text("text\nporto\n")
    return tmp_path


def overrides(files: Path) -> list[str]:
    names = {"train": "train", "evaluation": "eval", "out_of_scope_train": "out", "out_of_scope": "out_eval"}
    return [f"data.{key}={files / name}.csv" for key, name in names.items()]


def test_they_are_trained_with_and_no_label_of_their_own(files: Path) -> None:
    recipe = load_recipe("intent", overrides(files))
    dataset = load_dataset(recipe)
    assert list(dataset.out_of_scope) == ["the river", "lisbon"]
    assert dataset.labels == ["ask", "pay"]
    assert load_dataset(recipe, evaluation_only=True, labels=["ask", "pay"]).out_of_scope == []
    (files / "out.csv").write_text("text\nthe river\n")
    assert load_dataset(recipe).digest != dataset.digest

    checkpoint = make_tiny_checkpoint(files / "tiny", "text-classification", ["ask", "pay"])
    learner = TextClassificationLearner()
    lesson = learner.lesson(recipe, checkpoint, dataset)
    assert [item["labels"] for item in lesson.train] == [1, 0, IGNORED, IGNORED]
    assert [item["labels"] for item in lesson.evaluation] == [1]
    assert lesson.loss is exposure_loss
    # Without them the model's own loss stays.
    plain = learner.lesson(recipe, checkpoint, replace(dataset, out_of_scope=()))
    assert (len(plain.train), plain.loss) == (2, None)


def test_a_classifier_learns_to_be_undecided(files: Path) -> None:
    for name in ("train.csv", "out.csv"):
        header, *rows = (files / name).read_text().splitlines(keepends=True)
        (files / name).write_text("".join([header, *rows * 300]))
    recipe = load_recipe("intent", [*overrides(files), "training.epochs=1", "training.learning_rate=1e-3"])
    checkpoint = make_tiny_checkpoint(files / "tiny", "text-classification", ["ask", "pay"])
    fine_tune(recipe, checkpoint, load_dataset(recipe), files / "trained")
    model, tokenizer = (
        load_fine_tuned_model(files / "trained", recipe.task),
        load_tokenizer(files / "trained"),
    )
    with torch.inference_mode():
        best = [
            float(model(**tokenizer([text], return_tensors="pt")).logits.softmax(-1).max())
            for text in ("who pays", "anna", "the river", "lisbon")
        ]
    assert min(best[:2]) > 0.8 > max(best[2:]), best


def test_the_release_says_how_surely_a_text_is_in_scope(files: Path) -> None:
    layout = layout_of(load_recipe("intent", [*overrides(files), "data.accepted=0.9"]), ["ask", "pay"])
    assert list(layout.answers) == ["label", "score", "acceptance"]
    assert layout.parameters["acceptance_threshold"] == "0.1"
    plain = load_recipe("intent", fine_tuned=files)
    assert list(layout_of(plain, ["ask", "pay"]).answers) == ["label", "score"]
    assert "acceptance_threshold" not in layout_of(plain, ["ask", "pay"]).parameters


def test_what_is_in_scope_is_told_by_the_engine_that_answers(files: Path) -> None:
    (files / "eval.csv").write_text("text,label\nrefund,pay\nmy card,ask\nanna,ask\n")
    recipe = padded_recipe("intent", [*overrides(files), 'labels=["ask", "pay"]'])
    plain = load_recipe("intent", fine_tuned=files)
    release = make_release(
        files / "release", recipe, {"refund": "pay", "card": "ask"}, labels=["ask", "pay"], runnable=True
    )
    engine, folder = release.engines["onnx"], release.tokenizer_file.parent
    dataset = load_dataset(recipe, evaluation_only=True)
    assert step_files(plain, engine, folder, dataset, files / "artifacts", print).files == {}
    found = step_files(recipe, engine, folder, dataset, files / "artifacts", print)
    opened, encoder = open_engine_and_tokenizer(recipe, engine, ["ask", "pay"], folder)
    encoded = encoder.encode(["refund", "my card", "anna"])
    served = confidence(opened(encoded.input_ids, encoded.attention_mask))
    calibration = json.loads(found.files["postprocessor"]["acceptance.json"].read_text())
    assert calibration["confidences"] == pytest.approx(sorted(served.tolist()))
    assert len(set(calibration["confidences"])) > 1
    # Another engine, such as one in a lower precision, has a calibration of its own.
    other = step_files(recipe, replace(engine, key="other"), folder, dataset, files / "artifacts", print)
    assert other.key != found.key


def test_a_file_that_is_not_there_or_malformed(files: Path) -> None:
    for key in ("out_of_scope_train", "out_of_scope"):
        recipe = load_recipe("intent", [*overrides(files), f"data.{key}={files / 'none.csv'}"])
        with pytest.raises(DataError, match=f"^data.{key} .*: no file {files / 'none.csv'}"):
            load_dataset(recipe)
    (files / "out.csv").write_text("words\nthe river\n")
    with pytest.raises(
        DataError, match=r"out.csv: data.text_column 'text' is not among its columns \['words'\]"
    ):
        load_dataset(load_recipe("intent", overrides(files)))


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ("ner", ["data.out_of_scope=a.csv"], "is for text-classification, not for token-classification"),
        ("intent", ["data.accepted=1.0"], r"data\.accepted: Input should be less than 1"),
    ],
)
def test_recipes_that_can_not_be(recipe: str, changes: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(recipe, changes)


def test_texts_to_train_with_come_with_texts_to_measure_on(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        'name = "a"\ntask = "text-classification"\nlabels = ["x", "y"]\n[base]\ncheckpoint = "a/b"\n'
        '[data]\nformat = "csv"\ntrain = "a.csv"\nevaluation = "b.csv"\nout_of_scope_train = "c.csv"\n'
    )
    with pytest.raises(RecipeError, match=r"data.out_of_scope_train needs data.out_of_scope"):
        load_recipe(path)
    path.write_text(path.read_text().replace("out_of_scope_train", "out_of_scope").replace("evaluation", "#"))
    with pytest.raises(RecipeError, match=r"data.out_of_scope needs data.evaluation"):
        load_recipe(path)


def test_smoothed_labels_leave_the_model_less_sure(files: Path) -> None:
    header, *rows = (files / "train.csv").read_text().splitlines(keepends=True)
    (files / "train.csv").write_text("".join([header, *rows * 300]))
    keys = ["data.out_of_scope_train=", "data.out_of_scope="]
    keys += ["training.epochs=1", "training.learning_rate=1e-3"]
    checkpoint = make_tiny_checkpoint(files / "tiny", "text-classification", ["ask", "pay"])
    sure = {}
    for smoothing in (0.0, 0.5):
        recipe = load_recipe("intent", [*overrides(files), *keys, f"training.label_smoothing={smoothing}"])
        folder = files / f"trained-{smoothing}"
        fine_tune(recipe, checkpoint, load_dataset(recipe), folder)
        model, tokenizer = load_fine_tuned_model(folder, recipe.task), load_tokenizer(folder)
        with torch.inference_mode():
            logits = model(**tokenizer(["who pays"], return_tensors="pt")).logits
        sure[smoothing] = float(logits.softmax(-1)[0, 1])
    # Half of the truth is spread over two labels: 3 / 4 is the most that the loss asks for.
    assert 0.5 < sure[0.5] < 0.95 < sure[0.0], sure
    recipe = load_recipe("intent", [*overrides(files), "training.label_smoothing=0.1"])
    with pytest.raises(RecipeError, match="has a loss of its own"):
        fine_tune(recipe, checkpoint, load_dataset(recipe), files / "never")
