"""Draw ``events.csv``: invented readers who view the articles of ``items.csv``, always the same ones.

A reader has one to three themes and drifts from the first to the last. A visit stays with one theme. Within a
theme, readers start anywhere in its first half and move on from the easy articles to the demanding ones, and
some articles are more popular than others. So the recent views of a reader, and their order, say more about
the next one than the counts over all readers do.

Only ``Random.random`` is drawn from: Python promises its sequence for a seed in every version.

    python draw_events.py [FOLDER]    from FOLDER/items.csv to FOLDER/events.csv, by default beside this file
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

SEED = 20250301
READERS = 120
FEWEST_VIEWS, MOST_VIEWS = 8, 20
START = datetime(2025, 3, 1, tzinfo=UTC)
DAYS = 120

#: Every theme's articles from easy to demanding. An article on two themes stands in both.
THEMES = {
    "kitchen": "one-pot-dinners spice-drawer herbs-on-the-sill camp-stove-suppers stock-from-scraps "
    "soup-that-looks-good cast-iron-care sharp-knives first-sourdough pasta-by-hand salt-and-cabbage "
    "cooking-for-twelve tempering-chocolate",
    "garden": "soil-first herbs-on-the-sill balcony-tomatoes compost-without-smell rain-barrel wild-edges "
    "seed-saving salt-and-cabbage moths-by-lamplight small-pond pruning-apple-trees grafting",
    "cycling": "choosing-a-bike flat-tyre commuting-in-rain child-seat-or-trailer chain-care saddle-height "
    "first-hundred one-night-by-bike long-climbs truing-a-wheel",
    "hiking": "boots-that-fit layers-not-jackets walking-with-a-dog hut-manners camp-stove-suppers "
    "cheap-week-in-the-hills map-and-compass reading-clouds lighter-pack one-night-by-bike mountain-light "
    "first-ridge",
    "photography": "better-phone-pictures three-dials window-light soup-that-looks-good one-lens-for-a-year "
    "shooting-a-gig mountain-light moths-by-lamplight developing-film star-trails",
    "repair": "ten-tools holes-in-the-wall dripping-tap flat-tyre cast-iron-care sharp-knives chain-care "
    "draughty-windows creaking-stairs gluing-a-chair new-strings rain-barrel rewiring-a-lamp truing-a-wheel "
    "first-solder old-radio tiling-a-splashback",
    "money": "household-budget rainy-day-fund haggling stock-from-scraps energy-bill cheap-week-in-the-hills "
    "choosing-a-bike used-guitar seed-saving draughty-windows insurance-you-need shoebox-tax-return "
    "first-index-fund pension-letter fixed-or-floating writing-a-will",
    "music": "three-chords used-guitar twenty-minutes-a-day new-strings choir-for-the-shy counting-rhythm "
    "clean-vinyl playing-by-ear shooting-a-gig old-radio bedroom-recording first-jam-session",
}
ARTICLES = {theme: articles.split() for theme, articles in THEMES.items()}


def draw_index(rng: Random, weights: Sequence[float]) -> int:
    """Index drawn in proportion to ``weights``, of which at least one is positive."""
    left = rng.random() * sum(weights)
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return index
    return max(index for index, weight in enumerate(weights) if weight > 0)


def draw_order(rng: Random, names: Sequence[str]) -> list[str]:
    return [name for _, name in sorted((rng.random(), name) for name in names)]


def draw_reader(rng: Random, popularity: dict[str, float]) -> list[tuple[datetime, str]]:
    """Times and articles of one reader, oldest first, no article twice."""
    tastes = draw_order(rng, list(ARTICLES))[: 1 + draw_index(rng, [1, 2, 2])]
    count = FEWEST_VIEWS + int(rng.random() * (MOST_VIEWS - FEWEST_VIEWS + 1))
    reached = {theme: int(rng.random() * len(ARTICLES[theme]) / 2) for theme in ARTICLES}
    seen: list[str] = []
    times: list[datetime] = []
    time = START + timedelta(seconds=int(rng.random() * DAYS / 3 * 86400))
    theme = tastes[0]
    while len(seen) < count:
        if not seen or rng.random() < 0.4:  # a new visit
            if seen:
                time += timedelta(seconds=int((0.5 + 9 * rng.random()) * 86400))
            # The taste in favour moves from the first to the last; now and then anything is looked at.
            favoured = len(seen) / count * (len(tastes) - 1)
            weights = [max(0.05, 1 - abs(index - favoured)) for index in range(len(tastes))]
            theme = tastes[draw_index(rng, weights)]
            if rng.random() < 0.08:
                theme = list(ARTICLES)[int(rng.random() * len(ARTICLES))]
        articles = ARTICLES[theme]
        weights = [
            0.0 if article in seen else popularity[article] * 0.5 ** abs(place - reached[theme])
            for place, article in enumerate(articles)
        ]
        if sum(weights) <= 0:  # nothing unread is left in this theme
            theme = list(ARTICLES)[int(rng.random() * len(ARTICLES))]
            continue
        place = draw_index(rng, weights)
        reached[theme] = min(place + 1, len(articles) - 1)
        seen.append(articles[place])
        times.append(time)
        time += timedelta(seconds=40 + int(rng.random() * 600))
    return list(zip(times, seen, strict=True))


def draw_events(items: Sequence[str]) -> list[tuple[str, str, str]]:
    """Rows of ``events.csv``, ordered by time: user, item, time (ISO 8601, UTC).

    Raises:
        ValueError: ``THEMES`` and ``items`` do not name the same articles.
    """
    unmatched = set(items) ^ {article for articles in ARTICLES.values() for article in articles}
    if unmatched:
        raise ValueError(f"items.csv and THEMES differ in {sorted(unmatched)}: name them in both")
    rng = Random(SEED)
    popularity = {item: 1 / (1 + rank / 8) for rank, item in enumerate(draw_order(rng, sorted(items)))}
    events = [
        (time, f"reader-{number:03}", item)
        for number in range(1, READERS + 1)
        for time, item in draw_reader(rng, popularity)
    ]
    return [(user, item, f"{time:%Y-%m-%dT%H:%M:%SZ}") for time, user, item in sorted(events)]


def main(folder: Path) -> None:
    with (folder / "items.csv").open(encoding="utf-8", newline="") as file:
        items = [row["item"] for row in csv.DictReader(file)]
    with (folder / "events.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("user", "item", "time"))
        writer.writerows(draw_events(items))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
