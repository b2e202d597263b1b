from __future__ import annotations

from pathlib import Path

import pytest

from mooring import DataError
from mooring_build.behaviour import read_events
from mooring_build.data_files import read_rows
from mooring_build.real_data import movielens
from shared_data import shared_data


def write_small(
    folder: Path, *, titles: str = "1,Rain (1999),Drama|Crime\n2,Sun,(no genres listed)\n"
) -> Path:
    (folder / "movies.csv").write_text(f"movieId,title,genres\n{titles}3,Snow,Comedy\n", encoding="utf-8")
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n7,2,0.5,100\n7,1,5.0,90\n", encoding="utf-8"
    )
    (folder / "tags.csv").write_text(
        "userId,movieId,tag,timestamp\n7,1,Slow,1\n8,1,slow,2\n8,1,grey sky,3\n", encoding="utf-8"
    )
    return folder


def test_films_become_items_and_ratings_events(tmp_path: Path) -> None:
    files = movielens(write_small(tmp_path), tmp_path / "made")
    assert files["items"].read_text(encoding="utf-8") == (
        'item,text\n1,"Rain (1999). Drama, Crime. slow, grey sky"\n2,Sun\n'
    )
    assert read_events(files["events"]) == {"7": ["1", "2"]}
    assert read_events(files["events"], min_rating=3) == {"7": ["1"]}


def test_a_rated_film_without_a_title_is_reported(tmp_path: Path) -> None:
    write_small(tmp_path, titles="1,Rain,Drama\n")
    with pytest.raises(DataError, match=r"movies.csv: no title of movies \['2'\]"):
        movielens(tmp_path, tmp_path / "made")


def test_the_real_set_converts(tmp_path: Path) -> None:
    files = movielens(shared_data("movielens_small"), tmp_path)
    users = read_events(files["events"])
    assert len(users) == 610
    assert sum(map(len, users.values())) == 100836
    assert min(map(len, users.values())) >= 20
    # 18 of the 9742 films were never rated.
    assert len(read_rows(files["items"], ["item", "text"])) == 9724
