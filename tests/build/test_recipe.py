from __future__ import annotations

import re
from pathlib import Path

import pytest

from mooring import RecipeError
from mooring_build.recipe import load_recipe, shipped_recipes
from mooring_build.recipe_tables import Base, Card

MINIMAL = """
name = "mine"
task = "text-classification"
[base]
checkpoint = "somewhere"
[data]
format = "csv"
train = "train.csv"
evaluation = "eval.csv"
[training]
epochs = 1
learning_rate = 1e-4
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("name", ["ner", "intent"])
def test_shipped_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.export.formats == ["onnx", "torchscript"]


def test_shipped_recipes_are_found_by_name() -> None:
    assert {"ner", "intent"} <= set(shipped_recipes())


def test_relative_paths_start_at_the_recipe(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.data is not None
    assert recipe.path(recipe.data.evaluation) == recipe_file.parent.resolve() / "eval.csv"


def test_a_recipe_may_begin_with_a_byte_order_mark(recipe_file: Path) -> None:
    name = load_recipe(recipe_file).name
    recipe_file.write_text(MINIMAL, encoding="utf-8-sig")
    assert load_recipe(recipe_file).name == name


def test_every_mistake_is_reported_with_its_key(recipe_file: Path) -> None:
    recipe_file.write_text(
        MINIMAL.replace("epochs = 1", "epochs = -1\nepoch = 2").replace('"somewhere"', "3")
        + "[serving]\nmax_batch_size = 4\npreferred_batch_size = [8]\n"
        + '[export]\nformats = ["onnx"]\nengine = "torchscript"\n'
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file)
    message = str(caught.value)
    assert "5 mistake(s)" in message
    for line in (
        "base.checkpoint: Input should be a valid string (got 3)",
        "training.epochs: Input should be greater than 0 (got -1)",
        "training.epoch: unknown key",
        "serving: preferred_batch_size [8] exceeds max_batch_size 4",
        "export: engine 'torchscript' is not in formats ['onnx']",
    ):
        assert line in message


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("[base]", "[bases]"), "base: is missing"),
        (('task = "text-classification"', 'task = "chat"'), "task: Input should be"),
        (('format = "csv"', 'format = "conll"'), "'conll' does not fit task 'text-classification'"),
        (('train = "train.csv"', ""), "training needs data.train"),
        (('name = "mine"', 'name = "Mine!"'), "name: String should match pattern"),
        (('"somewhere"', '"somewhere"\nwheel = "a==1"'), "wheel_sha256 and wheel_folder go together"),
        (
            ("epochs = 1", "epochs = 1\nwarmup_ratio = 1.0"),
            "training.warmup_ratio: Input should be less than 1",
        ),
        (("epochs = 1", 'epochs = "1"'), "training.epochs: Input should be a valid number (got '1')"),
    ],
)
def test_a_mistake_names_its_key(recipe_file: Path, change: tuple[str, str], complaint: str) -> None:
    recipe_file.write_text(MINIMAL.replace(*change))
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("name", "override", "complaint"),
    [
        ("faq", "training.label_smoothing=0.1", "task 'text-ranking' has a loss of its own"),
        ("opinion_heads", "training.label_smoothing=0.1", "task 'text-multi-classification' has a loss"),
        ("recommender", "training.label_smoothing=0.1", "task 'recommendation' has a loss of its own"),
        ("recommender", "catalogue.dimension=25", r"catalogue\.dimension 25: must be even"),
    ],
)
def test_what_a_task_does_not_take(name: str, override: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(name, [override])


@pytest.mark.parametrize("name", ["opinion_heads", "recommender", "opinion_monitor"])
def test_answers_that_a_cache_would_mix_up_are_not_kept(name: str) -> None:
    with pytest.raises(
        RecipeError, match=r"serving\.response_cache: task '[a-z-]+' would give wrong answers"
    ):
        load_recipe(name, ["serving.response_cache=true"])
    assert load_recipe("faq", ["serving.response_cache=true"]).serving.response_cache


def test_not_toml(recipe_file: Path) -> None:
    recipe_file.write_bytes(b"name = \xff")
    with pytest.raises(RecipeError, match="is not a TOML file"):
        load_recipe(recipe_file)


def test_unknown_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'nre'.*intent, ner"):
        load_recipe("nre")


def test_overrides(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.csv").write_text("text,label\n")
    recipe = load_recipe(
        recipe_file, ["training.epochs=3", "data.train=here.csv", "text.truncation=true", 'labels=["a", "b"]']
    )
    assert recipe.training is not None
    assert recipe.data is not None
    assert recipe.training.epochs == 3
    assert recipe.data.train == str((tmp_path / "here.csv").resolve())
    assert recipe.text.truncation is True
    assert recipe.labels == ["a", "b"]


def test_an_override_without_a_value_takes_the_key_away() -> None:
    recipe = load_recipe("intent", ["data.out_of_scope_train=", "data.out_of_scope="])
    assert recipe.data is not None
    assert recipe.data.out_of_scope is None
    assert recipe.data.out_of_scope_train is None
    with pytest.raises(RecipeError, match=r"data\.format: is missing"):
        load_recipe("intent", ["data.format="])


@pytest.mark.parametrize("override", ["training", "=3", "Training.epochs=3", "name.deep=3"])
def test_malformed_override(recipe_file: Path, override: str) -> None:
    with pytest.raises(RecipeError, match="override"):
        load_recipe(recipe_file, [override])


def test_a_fine_tuned_checkpoint_replaces_base_labels_data_and_training(tmp_path: Path) -> None:
    recipe = load_recipe("ner", fine_tuned=tmp_path)
    assert recipe.training is None
    assert recipe.data is None
    assert recipe.labels is None
    assert recipe.base.checkpoint == str(tmp_path.resolve())
    assert recipe.base.wheel is None
    assert recipe.card == Card()


def test_another_checkpoint_has_not_the_recipes_wheel() -> None:
    assert load_recipe("ner").base.wheel is not None
    base = load_recipe("ner", ["base.checkpoint=google-bert/bert-base-cased"]).base
    assert base == Base(checkpoint="google-bert/bert-base-cased")
    pinned = load_recipe("ner", ["base.revision=v2", "base.checkpoint=google-bert/bert-base-cased"]).base
    assert pinned.revision == "v2"


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("intent", "data.train=mine.csv"),
        ("intent", "data.dataset=PolyAI/banking77"),
        ("faq", "catalogue.file=mine.csv"),
        ("opinion_heads", "heads.topic.train=mine.csv"),
    ],
)
def test_other_data_take_the_card_away(name: str, override: str) -> None:
    hub = ["data.format=hub"] if "dataset" in override else []
    assert load_recipe(name).card.data_source
    assert load_recipe(name, [*hub, override]).card == Card()
    mine = load_recipe(name, [*hub, override, "card.data_source=mine"]).card
    assert (mine.data_source, mine.limits) == ("mine", None)


@pytest.mark.parametrize("name", ["faq", "image", "opinion_heads", "recommender", "tabular"])
def test_adapters_are_refused_where_there_are_none(name: str) -> None:
    with pytest.raises(
        RecipeError, match=r"adapter: task '.+' has none; these have: text-classification, token"
    ):
        load_recipe(name, ["adapter.rank=4"])


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        (
            "intent",
            'catalogue={file="x.csv", dimension=4}',
            "catalogue: task 'text-classification' has no such",
        ),
        ("intent", "features.count=3", "features: task 'text-classification' has no such table"),
        ("faq", "service.replies=r.toml", "service: task 'text-ranking' has no such table"),
        ("recommender", "catalogue.max_history=1", "catalogue.max_history: Input should be greater than or"),
    ],
)
def test_what_another_task_needs_is_refused(name: str, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        load_recipe(name, [override])
