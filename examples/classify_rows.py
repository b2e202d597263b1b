"""Label each row of numbers of a .csv file without a header, or one row given as arguments.

python examples/classify_rows.py FILE [URL]
python examples/classify_rows.py NUMBER … [URL]
"""

import csv
import sys
from pathlib import Path

from mooring import Client


def number(cell: str) -> float | str:
    """A number; what is none stays a text, so that the client refuses its row and no other."""
    try:
        return float(cell)
    except ValueError:
        return cell


def main(*arguments: str) -> None:
    """Print one line a row: its number from 0, the best label and its score."""
    *words, url = arguments if "://" in arguments[-1] else (*arguments, "grpc://127.0.0.1:8001")
    is_file = words[0].endswith(".csv")
    lines = Path(words[0]).read_text(encoding="utf-8").splitlines() if is_file else [",".join(words)]
    rows = [[number(cell) for cell in cells] for cells in csv.reader(lines) if cells]
    with Client(url, timeout_s=10.0) as client:
        for outcome in client.task("tabular").map(rows):
            if outcome.error is not None:
                print(f"{outcome.index}\t(refused)\t{outcome.error}")
                continue
            best = outcome.unwrap()[0]
            print(f"{outcome.index}\t{best.label}\t{best.score:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
