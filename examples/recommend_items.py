"""Recommend to each user of a file of events (CSV: user,item,time) what may come next.

python examples/recommend_items.py EVENTS ITEMS [URL]
"""

import csv
import sys
from pathlib import Path

from mooring import Client


def rows_of(path: str) -> list[dict[str, str]]:
    """The rows of a CSV file with a header."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main(events: str, items: str, url: str = "grpc://127.0.0.1:8001") -> None:
    """Print three items a user, and first those that suit everybody who is new."""
    histories: dict[str, list[str]] = {"(new)": []}
    # Times of one notation sort as texts.
    for row in sorted(rows_of(events), key=lambda row: row["time"]):
        histories.setdefault(row["user"], []).append(row["item"])
    texts = {row["item"]: row["text"] for row in rows_of(items)}
    with Client(url, timeout_s=10.0) as client:
        recommender = client.task("recommender")
        for user, outcome in zip(histories, recommender.map(histories.values()), strict=True):
            if outcome.error is not None:
                print(f"{user}\t(refused)\t{outcome.error}")
                continue
            for ranked in outcome.unwrap()[:3]:
                print(f"{user}\t{ranked.item}\t{ranked.score:.2f}\t{texts.get(ranked.item, '')}")


if __name__ == "__main__":
    main(*sys.argv[1:])
