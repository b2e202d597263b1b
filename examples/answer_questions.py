"""Look a question up in a knowledge base, and say so where no answer suits it well enough.

python examples/answer_questions.py [--threshold SCORE] QUESTION [URL]
"""

import argparse

from mooring import Client


def main(question: str, url: str, threshold: float) -> None:
    """Print one line an item, best first: its name, its score and its answer."""
    with Client(url, timeout_s=10.0) as client:
        found = client.task("faq")(question)
    if found[0].score < threshold:
        print(f"(no sure answer: the best score is below {threshold:g})")
    for answer in found:
        print(f"{answer.item}\t{answer.score:.2f}\t{answer.text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--threshold", type=float, default=0.5, help="least score of a sure answer")
    parser.add_argument("question")
    parser.add_argument("url", nargs="?", default="grpc://127.0.0.1:8001")
    main(**vars(parser.parse_args()))
