"""Data sets as the hub keeps them, read from local folders."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from mooring import DataError, RecipeError
from mooring_build.datasets import load_dataset
from mooring_build.examples import LabelledRow, LabelledText, NextItem, TaggedSentence, Visits
from mooring_build.recipe import Recipe, load_recipe

TAGS = ["O", "B-PER", "I-PER", "B-LOC"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def save(folder: Path, rows: dict[str, list[object]], features: Features) -> Path:
    folder.mkdir()
    for split in ("train", "test"):
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def recipe_of(name: str, folder: Path, *more: str, **changes: str) -> Recipe:
    keys = {"format": "hub", "dataset": str(folder), "train": "train", "evaluation": "test"} | changes
    return load_recipe(name, [*(f"data.{key}={value}" for key, value in keys.items()), *more])


def texts(folder: Path, **changes: str) -> Recipe:
    return recipe_of("intent", folder, **changes)


def test_labels_may_be_numbers_with_names(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["ask", "pay"])})
    folder = save(tmp_path / "set", {"text": ["one", "two"], "label": [1, 0]}, features)
    dataset = load_dataset(texts(folder).model_copy(update={"labels": None}))
    assert list(dataset.train) == [LabelledText("one", "pay"), LabelledText("two", "ask")]
    assert dataset.labels == ["ask", "pay"]
    assert len(dataset.evaluation) == 2


def test_sentences_are_tokens_and_tags(tmp_path: Path) -> None:
    features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=TAGS))})
    rows = {"tokens": [["Anna", "left", "Porto"]], "ner_tags": [[1, 0, 3]]}
    folder = save(tmp_path / "set", rows, features)
    recipe = recipe_of("ner", folder, text_column="tokens", label_column="ner_tags")
    expected = TaggedSentence(("Anna", "left", "Porto"), ("B-PER", "O", "B-LOC"))
    assert list(load_dataset(recipe).train) == [expected]


def test_tags_that_are_not_bio(tmp_path: Path) -> None:
    features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(Value("string"))})
    folder = save(tmp_path / "set", {"tokens": [["Anna", "left"]], "ner_tags": [["PER", "O"]]}, features)
    recipe = recipe_of("ner", folder, "labels=", text_column="tokens", label_column="ner_tags")
    with pytest.raises(DataError, match="'train', row 0: tag 'PER' is none of O, B-<type>, I-<type>"):
        load_dataset(recipe)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "intent": Value("string")})
    folder = save(tmp_path / "set", {"text": ["one", ""], "intent": ["a", "b"]}, features)
    with pytest.raises(
        DataError, match=r"data\.label_column 'label' is not among its columns \['text', 'intent'\]"
    ):
        load_dataset(texts(folder))
    with pytest.raises(DataError, match=r"split 'train', row 1: '' with 'b' is no example"):
        load_dataset(texts(folder, label_column="intent"))
    with pytest.raises(DataError, match=r"split 'validation' can't be loaded"):
        load_dataset(texts(folder, train="validation"))


def test_a_row_without_a_label_or_with_several_is_no_example(tmp_path: Path) -> None:
    named = Features({"text": Value("string"), "label": ClassLabel(names=["ask", "pay"])})
    folder = save(tmp_path / "named", {"text": ["one", "two"], "label": [1, -1]}, named)
    with pytest.raises(DataError, match=r"row 1: 'two' with -1 is no example"):
        load_dataset(texts(folder))
    several = Features({"text": Value("string"), "label": Sequence(Value("string"))})
    folder = save(tmp_path / "several", {"text": ["one"], "label": [["ask", "pay"]]}, several)
    with pytest.raises(DataError, match=r"row 0: 'one' with \['ask', 'pay'\] is no example"):
        load_dataset(texts(folder))
    tokens = Features({"text": Sequence(Value("string")), "label": Value("string")})
    folder = save(tmp_path / "tokens", {"text": [["Anna", "left"]], "label": ["ask"]}, tokens)
    with pytest.raises(DataError, match=r"row 0: \['Anna', 'left'\] with 'ask' is no example"):
        load_dataset(texts(folder))
    with pytest.raises(DataError, match=r"row 0: \['Anna', 'left'\] with 'ask' is no example"):
        load_dataset(recipe_of("ner", folder))


def test_a_configuration_is_one_of_several(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    features = Features({"text": Value("string"), "label": Value("string")})
    cards = []
    for name in ("small", "plus"):
        save(folder / name, {"text": [f"{name} one", "two"], "label": ["a", "b"]}, features)
        files = "".join(
            f"  - split: {split}\n    path: {name}/{split}.parquet\n" for split in ("train", "test")
        )
        cards.append(f"- config_name: {name}\n  data_files:\n{files}")
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(cards) + "---\n", encoding="utf-8")
    assert load_dataset(texts(folder, configuration="plus")).train[0] == LabelledText("plus one", "a")
    with pytest.raises(
        DataError, match=r"configuration 'large', split 'train' can't be loaded: .*'large' not found"
    ):
        load_dataset(texts(folder, configuration="large"))


def test_a_revision_is_for_the_hub_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load(path: str, name: str | None, *, split: str, revision: str | None) -> Dataset:
        asked.append((path, name, split, revision))
        return Dataset.from_dict({"text": ["one", "two"], "label": ["a", "b"]})

    monkeypatch.setattr("datasets.load_dataset", load)
    load_dataset(texts(Path("someone/set")))
    load_dataset(texts(Path("someone/set"), configuration="plus", revision="v2"))
    load_dataset(texts(tmp_path, revision="v2"))
    assert asked[::2] == [
        ("someone/set", None, "train", "main"),
        ("someone/set", "plus", "train", "v2"),
        (str(tmp_path), None, "train", None),
    ]


def test_a_relative_folder_starts_at_the_recipe(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": Value("string")})
    save(tmp_path / "set", {"text": ["one", "two"], "label": ["a", "b"]}, features)
    recipe = recipe_of("sentiment", Path("set"))
    recipe._folder = tmp_path
    assert load_dataset(recipe).train[0] == LabelledText("one", "a")


def test_overrides_start_at_the_current_folder_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(
        "intent",
        [
            "data.train=train",
            "data.evaluation=test",
            "data.out_of_scope=other.csv",
            "data.dataset=set",
            "data.format=hub",
        ],
    )
    assert recipe.data is not None
    assert (recipe.data.train, recipe.data.evaluation) == ("train", "test")
    assert recipe.data.out_of_scope == str(tmp_path / "other.csv")
    assert recipe.data.dataset == str(tmp_path / "set")
    named = load_recipe("intent", ["data.format=hub", "data.dataset=clinc_oos", "data.train=train"]).data
    assert named is not None
    assert named.dataset == "clinc_oos"


@pytest.mark.parametrize(
    ("key", "value"), [("dataset", "set"), ("configuration", "plus"), ("revision", "v2")]
)
def test_what_goes_with_the_hub_is_refused_elsewhere(key: str, value: str) -> None:
    complaint = rf"data\.{key} goes with data\.format 'hub', not with 'csv' \(got '{value}'\)"
    with pytest.raises(RecipeError, match=complaint):
        load_recipe("intent", [f"data.{key}={value}"])
    complaint = rf"heads\.topic\.{key} goes with heads\.topic\.format 'hub', not with 'csv'"
    with pytest.raises(RecipeError, match=complaint):
        load_recipe("opinion_heads", [f"heads.topic.{key}={value}"])


def test_a_head_on_the_hub_needs_a_data_set() -> None:
    with pytest.raises(
        RecipeError, match=r"heads\.topic\.dataset goes with heads\.topic\.format 'hub', and is missing"
    ):
        load_recipe("opinion_heads", ["heads.topic.format=hub"])


def test_a_recipe_is_read_back_from_a_manifest() -> None:
    for recipe in (load_recipe("intent"), texts(Path("someone/set"), revision="v2")):
        written = recipe.model_dump(mode="json")
        assert Recipe.model_validate(written).model_dump(mode="json") == written


def test_a_split_that_is_not_named() -> None:
    recipe = load_recipe("intent", ["data.format=hub", "data.dataset=someone/set", "data.train=train"])
    assert recipe.data is not None
    unnamed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": None})})
    with pytest.raises(RecipeError, match=r"data\.train: is missing"):
        load_dataset(unnamed)


def test_questions_name_their_item(tmp_path: Path) -> None:
    features = Features({"query": Value("string"), "answer": ClassLabel(names=["returns", "delivery"])})
    folder = save(tmp_path / "set", {"query": ["Send it back?", "When?"], "answer": [0, 1]}, features)
    recipe = recipe_of("faq", folder, text_column="query", label_column="answer")
    dataset = load_dataset(recipe)
    expected = [LabelledText("Send it back?", "returns"), LabelledText("When?", "delivery")]
    assert list(dataset.train) == list(dataset.evaluation) == expected
    with pytest.raises(DataError, match=r"data\.text_column 'text' is not among its columns"):
        load_dataset(recipe_of("faq", folder, label_column="answer"))


NUMBERS = {"height": Value("float32"), "kind": ClassLabel(names=["x", "y"]), "width": Value("int64")}


def numbers(folder: Path, *more: str) -> Recipe:
    return recipe_of("tabular", folder, "features.count=2", *more, label_column="kind")


def test_rows_of_numbers(tmp_path: Path) -> None:
    rows = {"height": [0.5, -1000.0], "kind": [1, 0], "width": [3, 4]}
    dataset = load_dataset(numbers(save(tmp_path / "set", rows, Features(NUMBERS))))
    assert list(dataset.train) == [LabelledRow((0.5, 3.0), "y"), LabelledRow((-1000.0, 4.0), "x")]
    assert dataset.labels == ["x", "y"]
    with pytest.raises(DataError, match=r"'train' has 2 features, the recipe says 3 \(features\.count\)"):
        load_dataset(numbers(tmp_path / "set", "features.count=3"))
    with pytest.raises(DataError, match=r"data\.label_column 'label' is not among its columns \['height'"):
        load_dataset(recipe_of("tabular", tmp_path / "set"))


@pytest.mark.parametrize(
    ("column", "feature", "value", "complaint"),
    [
        ("height", Value("float32"), float("nan"), "column 'height': 'nan' is not finite"),
        ("height", Value("float32"), float("inf"), "column 'height': 'inf' is not finite"),
        ("width", Value("int64"), None, "column 'width': 'None' is no number"),
        ("width", Value("string"), "wide", "column 'width': 'wide' is no number"),
        ("width", Sequence(Value("int64")), [1, 2], r"column 'width': '\[1, 2\]' is no number"),
        ("kind", NUMBERS["kind"], -1, "empty label"),
        ("kind", Value("string"), None, "empty label"),
    ],
)
def test_rows_that_are_not_numbers_and_a_label(
    tmp_path: Path, column: str, feature: object, value: object, complaint: str
) -> None:
    rows = {"height": [0.5], "kind": [1], "width": [3]} | {column: [value]}
    folder = save(tmp_path / "set", rows, Features(NUMBERS | {column: feature}))
    with pytest.raises(DataError, match=rf"split 'train', row 0: {complaint}"):
        load_dataset(numbers(folder))


def test_a_label_alone_is_no_row_of_numbers(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", {"kind": [1]}, Features({"kind": NUMBERS["kind"]}))
    with pytest.raises(DataError, match=r"split 'train' has no column but 'kind'"):
        load_dataset(numbers(folder))


def test_both_splits_have_the_same_columns_in_one_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: str, name: str | None, *, split: str, revision: str | None) -> Dataset:
        rows = {"a": [1, 2], "label": ["x", "y"], "b": [3, 4]}
        return Dataset.from_dict(rows if split == "train" else dict(reversed(rows.items())))

    monkeypatch.setattr("datasets.load_dataset", load)
    complaint = r"'test' has the columns \['b', 'a'\], those of someone/set, split 'train' are \['a', 'b'\]"
    with pytest.raises(DataError, match=complaint):
        load_dataset(recipe_of("tabular", Path("someone/set"), "features.count=2"))


EVENTS: dict[str, list[object]] = {
    "user": [7, 7, 7, 7, 8, 8, 8, 9],
    "item": ["c", "a", "b", "a", "b", "a", "d", "a"],
    "time": [30.0, 10.0, 20.0, 40.0, 9.5, 8.0, 10.0, 1.0],
    "rating": [5, 1, 4, 5, 5, 5, 5, 5],
}
EVENT = {"user": Value("int64"), "item": Value("string"), "time": Value("float64"), "rating": Value("int64")}


def events(folder: Path, *more: str) -> Recipe:
    items = folder.parent / "items.csv"
    items.write_text("item,text\na,A thing\nb,Bread\nc,Cheese\nd,Dill\n", encoding="utf-8")
    keys = ["data.format=hub", f"data.dataset={folder}", "data.train=train", f"catalogue.file={items}"]
    return load_recipe("recommender", [*keys, *more])


def test_events_are_read_as_those_of_a_file(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", EVENTS, Features(EVENT))
    dataset = load_dataset(events(folder))
    assert dataset.train == [Visits(("a", "b")), Visits(("a", "b"))]
    assert dataset.evaluation == [NextItem(("a", "b"), "d"), NextItem(("a", "b"), "c")]
    rated = load_dataset(events(folder, "data.min_rating=4.0"))
    assert rated.evaluation == [NextItem(("a", "b"), "d"), NextItem(("b", "c"), "a")]
    table = tmp_path / "events.csv"
    Dataset.from_dict(EVENTS).to_csv(table)
    file = load_recipe("recommender", [f"data.train={table}", f"catalogue.file={tmp_path / 'items.csv'}"])
    assert load_dataset(file).digest == dataset.digest


def test_times_may_be_moments(tmp_path: Path) -> None:
    moments = [datetime(2024, 5, 1, 12, 0, second, tzinfo=UTC) for second in (30, 10, 20)]
    rows = {"user": ["u"] * 3, "item": ["c", "a", "b"], "time": moments}
    for unit in ("s", "us", "ns"):
        kinds = {
            "user": Value("string"),
            "item": Value("string"),
            "time": Value(f"timestamp[{unit}, tz=UTC]"),
        }
        folder = save(tmp_path / unit, rows, Features(kinds))
        assert load_dataset(events(folder)).evaluation == [NextItem(("a", "b"), "c")]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"item": [None] * 8}, r"row 0: empty item"),
        ({"item": ["a"] * 7 + ["  "]}, r"row 7: empty item"),
        ({"time": [float("nan")] * 8}, r"row 0: time 'nan' is not finite"),
        ({"rating": [None] * 8}, r"row 0: empty rating"),
        ({"user": list(range(8))}, r"split 'train': no user has 3 events or more"),
        ({"item": ["a", "b", "x"] * 2 + ["a", "b"]}, r"1 item\(s\) that are not in the catalogue: \['x'\]"),
    ],
)
def test_events_that_can_not_be_used(
    tmp_path: Path, changes: dict[str, list[object]], complaint: str
) -> None:
    folder = save(tmp_path / "set", EVENTS | changes, Features(EVENT))
    with pytest.raises(DataError, match=complaint):
        load_dataset(events(folder, "data.min_rating=1.0"))


def test_events_without_a_column(tmp_path: Path) -> None:
    kinds = {column: EVENT[column] for column in ("user", "item", "time")}
    folder = save(tmp_path / "set", {column: EVENTS[column] for column in kinds}, Features(kinds))
    load_dataset(events(folder))
    with pytest.raises(
        DataError, match=r"column 'rating' is not among its columns \['user', 'item', 'time'\]"
    ):
        load_dataset(events(folder, "data.min_rating=1.0"))


def test_a_split_of_held_out_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.evaluation 'test': .* each user's last event is held out"):
        events(tmp_path / "set", "data.evaluation=test")
    with pytest.raises(RecipeError, match=r"training needs"):
        load_recipe("recommender", ["data.format=hub", "data.dataset=someone/set", "data.train="])
