"""Label every picture of a folder, and one that was never a file.

python examples/classify_images.py FOLDER [URL]
"""

import sys
from pathlib import Path

import numpy as np

from mooring import Client


def main(folder: str, url: str = "grpc://127.0.0.1:8001") -> None:
    """Print one line a picture: its name, the best label and its score."""
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix in (".jpg", ".jpeg", ".png"))
    with Client(url, timeout_s=30.0) as client:
        image = client.task("image")
        for outcome in image.map(paths):
            name = paths[outcome.index].name
            if outcome.error is not None:
                print(f"{name}\t(refused)\t{outcome.error}")
                continue
            best = outcome.unwrap()[0]
            print(f"{name}\t{best.label}\t{best.score:.2f}")

        white = np.full((28, 28), 255, np.uint8)  # [H, W], or [H, W, 3] in colour
        print(f"(array)\t{image(white)[0].label}")


if __name__ == "__main__":
    main(*sys.argv[1:])
