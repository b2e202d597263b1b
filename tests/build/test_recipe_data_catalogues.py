"""The data of the recipes faq, customer_service and recommender is what its READMEs say."""

from __future__ import annotations

import csv
import re
import runpy
import shutil
import tomllib
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "build" / "recipes" / "data"

COLUMNS = {
    "faq/answers.csv": ["item", "question", "answer"],
    "faq/train.csv": ["text", "item"],
    "faq/eval.csv": ["text", "item"],
    "customer_service/eval.csv": ["text", "intent", "item", "handover"],
    "recommender/items.csv": ["item", "text"],
    "recommender/events.csv": ["user", "item", "time"],
}
ROWS = {
    "faq/answers.csv": 45,
    "faq/train.csv": 180,
    "faq/eval.csv": 90,
    "customer_service/eval.csv": 60,
    "recommender/items.csv": 80,
    "recommender/events.csv": 1646,
}
MAY_BE_EMPTY = {"intent", "item"}


def read(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def column(name: str, key: str) -> list[str]:
    return [row[key] for row in read(name)]


def normalised(text: str) -> str:
    return re.sub(r"\W+", " ", text.casefold()).strip() or text


def views_by_user() -> dict[str, list[dict[str, str]]]:
    views: dict[str, list[dict[str, str]]] = {}
    for row in read("recommender/events.csv"):
        views.setdefault(row["user"], []).append(row)
    return views


@pytest.mark.parametrize("name", COLUMNS)
def test_every_file_is_plain_utf8_csv(name: str) -> None:
    content = (DATA / name).read_bytes()
    assert not content.startswith(b"\xef\xbb\xbf")
    assert b"\r" not in content
    assert content.endswith(b"\n")
    header, *rows = csv.reader(content.decode("utf-8").splitlines(), strict=True)
    assert header == COLUMNS[name]
    assert len(rows) == ROWS[name]
    for row in rows:
        assert len(row) == len(header)
        for key, value in zip(header, row, strict=True):
            assert value == " ".join(value.split())
            assert value or (name == "customer_service/eval.csv" and key in MAY_BE_EMPTY), row


@pytest.mark.parametrize("name", ["faq", "customer_service", "recommender"])
def test_the_readme_states_the_sizes(name: str) -> None:
    readme = (DATA / name / "README.md").read_text(encoding="utf-8")
    for file, rows in ROWS.items():
        folder, _, base = file.partition("/")
        if folder == name:
            assert f"`{base}`" in readme
            assert f"{rows:,} " in readme


@pytest.mark.parametrize("name", ["faq/answers.csv", "recommender/items.csv"])
def test_item_ids_are_unique_slugs(name: str) -> None:
    items = column(name, "item")
    assert len(set(items)) == len(items)
    assert [item for item in items if not re.fullmatch(r"[a-z]+(-[a-z]+)*", item)] == []


def test_no_text_occurs_twice() -> None:
    texts = column("faq/answers.csv", "question") + column("faq/answers.csv", "answer")
    for name in ("faq/train.csv", "faq/eval.csv", "customer_service/eval.csv", "recommender/items.csv"):
        texts += column(name, "text")
    for path in sorted((DATA / "intent").glob("*.csv")):
        texts += column(f"intent/{path.name}", "text")
    counts = Counter(normalised(text) for text in texts)
    assert [text for text, count in counts.items() if count > 1] == []


@pytest.mark.parametrize(("name", "per_item"), [("faq/train.csv", 4), ("faq/eval.csv", 2)])
def test_every_faq_item_has_its_queries(name: str, per_item: int) -> None:
    queries = Counter(column(name, "item"))
    assert queries == dict.fromkeys(column("faq/answers.csv", "item"), per_item)


def test_faq_answers_are_short() -> None:
    for answer in column("faq/answers.csv", "answer"):
        assert answer.endswith(".")
        assert 1 <= len(re.findall(r"\.(?= [A-Z]|$)", answer)) <= 3, answer


def test_the_faq_readme_places_every_item() -> None:
    readme = (DATA / "faq" / "README.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| (`\w+`|none of them) \| (.*) \|$", readme, flags=re.MULTILINE))
    placed = re.findall(r"`([a-z-]+)`", " ".join(table.values()))
    assert sorted(placed) == sorted(column("faq/answers.csv", "item"))
    intents = {key.strip("`") for key in table} - {"none of them"}
    assert intents == set(column("intent/train.csv", "label"))


def test_every_intent_has_a_reply() -> None:
    tables = tomllib.loads((DATA / "customer_service" / "replies.toml").read_text(encoding="utf-8"))
    assert sorted(tables) == ["answer", "handover", "replies"]
    assert set(tables["replies"]) == set(column("intent/train.csv", "label"))
    for intent, reply in tables["replies"].items():
        assert set(reply) <= {"text", "needs_answer", "handover"}, intent
        assert set(re.findall(r"\{.*?\}", reply["text"])) <= {"{answer}"}, intent
        if reply["needs_answer"]:
            assert reply["text"].count("{answer}") == 1, intent
        elif "{answer}" in reply["text"]:
            # The reply must still read well without its line.
            assert "\n{answer}\n" in reply["text"], intent
    handing_over = {intent for intent, reply in tables["replies"].items() if reply.get("handover")}
    assert handing_over == {"talk_to_human"}
    assert tables["answer"]["text"].count("{answer}") == 1
    assert "{" not in tables["handover"]["text"]


def test_customer_service_messages() -> None:
    rows = read("customer_service/eval.csv")
    items = set(column("faq/answers.csv", "item"))
    intents = set(column("intent/train.csv", "label"))
    assert {row["item"] for row in rows} <= items | {""}
    assert {row["intent"] for row in rows} == intents | {""}
    kinds = Counter((bool(row["intent"]), bool(row["item"]), row["handover"]) for row in rows)
    assert kinds == {
        (True, True, "false"): 33,
        (True, False, "false"): 3,
        (False, True, "false"): 4,
        (True, False, "true"): 6,
        (False, False, "true"): 14,
    }
    for row in rows:
        if row["intent"]:
            assert (row["intent"] == "talk_to_human") == (row["handover"] == "true"), row


def test_the_generator_reproduces_the_events(tmp_path: Path) -> None:
    shutil.copy(DATA / "recommender" / "items.csv", tmp_path)
    runpy.run_path(str(DATA / "recommender" / "draw_events.py"))["main"](tmp_path)
    assert (tmp_path / "events.csv").read_bytes() == (DATA / "recommender" / "events.csv").read_bytes()


def test_the_generator_refuses_a_catalogue_that_it_does_not_know() -> None:
    draw_events = runpy.run_path(str(DATA / "recommender" / "draw_events.py"))["draw_events"]
    items = column("recommender/items.csv", "item")
    with pytest.raises(ValueError, match=r"differ in \['new-article'\]"):
        draw_events([*items, "new-article"])


def test_the_events_are_in_time_order() -> None:
    times = column("recommender/events.csv", "time")
    assert [time for time in times if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", time)] == []
    parsed = [datetime.fromisoformat(time) for time in times]
    assert parsed == sorted(parsed)
    assert (f"{parsed[0]:%Y-%m}", f"{parsed[-1]:%Y-%m}") == ("2025-03", "2025-06")


def test_every_reader_views_8_to_20_articles_once() -> None:
    views = views_by_user()
    assert len(views) == 120
    for user, rows in views.items():
        assert 8 <= len(rows) <= 20, user
        assert len({row["item"] for row in rows}) == len(rows), user
        assert len({row["time"] for row in rows}) == len(rows), user
    viewed = {row["item"] for rows in views.values() for row in rows}
    assert viewed == set(column("recommender/items.csv", "item"))


def test_order_and_theme_tell_more_than_popularity() -> None:
    """The last view is found by the themes of the views just before it, less by older ones or by counts."""
    namespace = runpy.run_path(str(DATA / "recommender" / "draw_events.py"))
    themes: dict[str, set[str]] = {article: set() for article in column("recommender/items.csv", "item")}
    for theme, articles in namespace["ARTICLES"].items():
        for article in articles:
            themes[article].add(theme)
    assert sum(len(on) == 2 for on in themes.values()) == 22
    assert all(1 <= len(on) <= 2 for on in themes.values())
    histories = [[row["item"] for row in rows] for rows in views_by_user().values()]
    counts = Counter(item for history in histories for item in history[:-1])

    def hits(recent: slice) -> int:
        """How often the last view is among the ten best: most shared themes first, then popularity."""
        found = 0
        for *history, last in histories:
            seen_themes = Counter(theme for item in history[recent] for theme in themes[item])
            unseen = [item for item in themes if item not in history]
            unseen.sort(key=lambda item: (-sum(seen_themes[theme] for theme in themes[item]), -counts[item]))
            found += last in unseen[:10]
        return found

    by_popularity, by_recent_views, by_first_views = hits(slice(0)), hits(slice(-3, None)), hits(slice(3))
    assert by_recent_views > 1.5 * by_popularity
    assert by_recent_views > 1.5 * by_first_views
