from __future__ import annotations

from pathlib import Path

import pytest

from mooring import DataError, RecipeError
from mooring_build.behaviour import count_events, read_events
from mooring_build.datasets import load_dataset
from mooring_build.examples import NextItem, Visits
from mooring_build.recipe import Recipe, load_recipe

EVENTS = (
    "user,item,time,rating\n"
    "ann,c,30,5\n"
    "ann,a,10,1\n"
    "ann,b,20,4\n"
    "ann,a,40,5\n"
    "bob,b,1970-01-01T00:00:09Z,5\n"
    "bob,a,1970-01-01 00:00:08,5\n"
    "bob,d,1970-01-01T01:00:10+01:00,5\n"
    "cid,a,1,5\n"
    "cid,b,2,5\n"
)
ITEMS = "item,text\na,A thing\nb,Bread\nc,Cheese\nd,Dill\ne,Eggs\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of(tmp_path, EVENTS, ITEMS)


def recipe_of(folder: Path, events: str, items: str, *overrides: str) -> Recipe:
    events_file, items_file = write(folder / "events.csv", events), write(folder / "items.csv", items)
    files = [f"data.train={events_file}", f"catalogue.file={items_file}"]
    return load_recipe("recommender", [*files, *overrides])


def test_events_are_in_the_order_of_time_and_the_first_of_several_counts(tmp_path: Path) -> None:
    assert read_events(write(tmp_path / "events.csv", EVENTS)) == {
        "ann": ["a", "b", "c"],
        "bob": ["a", "b", "d"],
        "cid": ["a", "b"],
    }


def test_eight_digits_are_a_date(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", "user,item,time\nu,b,20240501\nu,a,2023-12-31\nu,c,1714521601\n")
    assert read_events(path) == {"u": ["a", "b", "c"]}


def test_events_of_one_moment_keep_the_order_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", "user,item,time\nu,z,5\nu,a,5\nu,m,5\nu,k,4\n")
    assert read_events(path) == {"u": ["k", "z", "a", "m"]}


def test_events_below_the_least_rating_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", EVENTS)
    # Her first visit of a is left out, so her second counts.
    assert read_events(path, min_rating=4)["ann"] == ["b", "c", "a"]


def test_the_last_event_of_each_user_is_held_out(recipe: Recipe) -> None:
    dataset = load_dataset(recipe)
    assert dataset.train == [Visits(("a", "b")), Visits(("a", "b"))]
    assert dataset.evaluation == [NextItem(("a", "b"), "d"), NextItem(("a", "b"), "c")]
    assert dataset.labels == []
    alone = load_dataset(recipe, evaluation_only=True)
    assert (alone.train, alone.evaluation) == ([], dataset.evaluation)
    assert alone.evaluation_digest == dataset.evaluation_digest


def test_a_new_item_changes_nothing_that_is_trained(recipe: Recipe, tmp_path: Path) -> None:
    before = load_dataset(recipe).digest
    assert load_dataset(recipe_of(tmp_path, EVENTS, ITEMS + "f,Figs\n")).digest == before
    assert load_dataset(recipe_of(tmp_path, EVENTS, ITEMS.replace("Bread", "Brown bread"))).digest != before
    assert load_dataset(recipe_of(tmp_path, EVENTS.replace("ann,b", "ann,d"), ITEMS)).digest != before


def test_counts_are_of_users() -> None:
    assert count_events([("a", "b"), ("b",)]) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("events", "complaint"),
    [
        ("user,item\nann,a\n", "column 'time' is not among its columns"),
        ("user,item,time\nann,a,1\nann,b,soon\n", r"row 2 after the header: time 'soon' is neither seconds"),
        ("user,item,time\nann,a,nan\n", r"row 1 after the header: time 'nan' is not finite"),
        ("user,item,time\nann,,3\n", r":2: empty item"),
        ("user,item,time\n", "holds no row"),
        ("user,item,time\nann,a,1\nann,b,2\n", "no user has 3 events or more"),
        (
            "user,item,time\nann,a,1\nann,b,2\nann,x,3\n",
            r"1 item\(s\) that are not in the catalogue: \['x'\]",
        ),
    ],
)
def test_events_that_can_not_be_used(tmp_path: Path, events: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        load_dataset(recipe_of(tmp_path, events, ITEMS))


@pytest.mark.parametrize("rating", ["good", "nan"])
def test_a_rating_that_is_no_number(tmp_path: Path, rating: str) -> None:
    events = f"user,item,time,rating\nann,a,1,{rating}\n"
    with pytest.raises(DataError, match=f"row 1 after the header: rating '{rating}' is no number"):
        load_dataset(recipe_of(tmp_path, events, ITEMS, "data.min_rating=3.0"))


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        ("item,text\na,A thing\na,Another\n", "row 2 after the header: item 'a' is there twice"),
        ("item,text\na,\n", ":2: empty text"),
        ("item,title\na,A thing\n", "column 'text' is not among its columns"),
    ],
)
def test_a_catalogue_that_can_not_be_used(tmp_path: Path, items: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        load_dataset(recipe_of(tmp_path, EVENTS, items))


def test_a_catalogue_that_is_not_there(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, EVENTS, ITEMS)
    (tmp_path / "items.csv").unlink()
    with pytest.raises(DataError, match=r"catalogue.file '.*items.csv': no file"):
        load_dataset(recipe)


def test_a_file_of_held_out_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="each user's last event is held out"):
        recipe_of(tmp_path, EVENTS, ITEMS, "data.evaluation=more.csv")


def test_a_lower_precision_is_refused() -> None:
    with pytest.raises(RecipeError, match="'fp16': task 'recommendation' is served in 'fp32' only"):
        load_recipe("recommender", ['export.precision="fp16"'])


def test_the_shipped_set_loads() -> None:
    dataset = load_dataset(load_recipe("recommender"))
    assert len(dataset.train) == len(dataset.evaluation) == 120
    assert all(asked.item not in asked.history for asked in dataset.evaluation)
