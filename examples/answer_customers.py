"""Answer customers' messages, and pass on to a person what nothing is sure enough about.

python examples/answer_customers.py FILE [URL]
"""

import sys
from pathlib import Path

from mooring import Client


def main(path: str, url: str = "grpc://127.0.0.1:8001") -> None:
    """Print the reply to each line of a file."""
    messages = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    with Client(url, timeout_s=10.0) as client:
        service = client.task("customer_service")
        for outcome in service.map(messages):
            print(f"\n< {messages[outcome.index]}")
            if outcome.error is not None:
                print(f"(failed) {outcome.error}", file=sys.stderr)
                continue
            found = outcome.unwrap()
            print(f"> {found.reply}")
            best = found.answers[0]
            print(f"  {found.intent.label} {found.intent.score:.2f}, {best.item} {best.score:.2f}")
            if found.handover:
                print("  a person takes over")


if __name__ == "__main__":
    main(*sys.argv[1:])
