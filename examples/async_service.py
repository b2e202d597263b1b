"""Answer many callers at once from one event loop, as a web service would, and see what it took.

python examples/async_service.py [URL …]
"""

import asyncio
import sys

from mooring import AsyncClient, AsyncTextClassifier, HedgePolicy, MooringError

QUESTIONS = ["where is my refund", "my card", "what is my balance"] * 20


async def answer(intent: AsyncTextClassifier, question: str) -> str:
    """One caller's request: a label, or what to tell the caller."""
    try:
        labels = await intent(question, timeout_s=2.0)
    except MooringError as error:
        return f"sorry: {type(error).__name__}"
    return labels[0].label


async def main(*urls: str) -> None:
    """Ask all questions at once; slow requests are sent a second time."""
    async with AsyncClient(urls or ["grpc://127.0.0.1:8001"], hedge=HedgePolicy()) as client:
        intent = await client.task("intent", AsyncTextClassifier)
        answers = await asyncio.gather(*(answer(intent, question) for question in QUESTIONS))
        for question, label in sorted(set(zip(QUESTIONS, answers, strict=True))):
            print(f"{question}: {label}")
        counters = client.counters()
        print(f"{counters.requests} requests, {counters.retries} retries, {counters.hedges} hedges")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
