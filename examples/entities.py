"""Find the entities of each line of a file, several requests at a time.

python examples/entities.py FILE [URL]
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from mooring import Client


def lines_of(path: str) -> Iterator[str]:
    """The lines of a file that hold something; the file may be larger than memory."""
    with Path(path).open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield line.rstrip("\n")


def main(path: str, url: str = "grpc://127.0.0.1:8001") -> None:
    """Print one line an entity: number of the text, label, text."""
    with Client(url, timeout_s=10.0) as client:
        ner = client.task("ner")
        for outcome in ner.map(lines_of(path)):
            if outcome.error is not None:
                print(f"{outcome.index}\t(failed)\t{outcome.error}", file=sys.stderr)
                continue
            for entity in outcome.unwrap():
                print(f"{outcome.index}\t{entity.label}\t{entity.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
