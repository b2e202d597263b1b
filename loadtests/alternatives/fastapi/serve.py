"""FastAPI in front of transformers' pipeline: one queue in each of uvicorn's processes, emptied by batches.

The queue is that of transformers' guide to pipelines on a web server
(https://huggingface.co/docs/transformers/pipeline_webserver), with a thread for the model so that further
requests are taken in while it works.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from alternatives.models import PipelineModel
from alternatives.options import HOST, Options, options_from_environment, parse_options


class Question(BaseModel):
    text: str


def create_app() -> FastAPI:
    """The application of one process."""
    options = options_from_environment()
    waiting: asyncio.Queue[tuple[str, asyncio.Future[Any]]] = asyncio.Queue()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_answer_batches(waiting, PipelineModel(options), options))
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/answer")
    async def answer(question: Question) -> dict[str, Any]:
        answered = asyncio.get_running_loop().create_future()
        waiting.put_nowait((question.text, answered))
        return {"answers": await answered}

    return app


async def _answer_batches(waiting: asyncio.Queue[Any], model: PipelineModel, options: Options) -> None:
    while True:
        batch = [await waiting.get()]
        deadline_s = asyncio.get_running_loop().time() + options.max_wait_ms / 1000.0
        while len(batch) < options.max_batch_size:
            try:
                # Waits for nothing that is there already, and takes that after the deadline too.
                async with asyncio.timeout_at(deadline_s if waiting.empty() else None):
                    batch.append(await waiting.get())
            except TimeoutError:
                break
        texts, futures = zip(*batch, strict=True)
        try:
            answers = await asyncio.to_thread(model, list(texts))
        except Exception as exc:  # noqa: BLE001 - a batch that fails fails its requests, not the server
            answers = [exc] * len(futures)
        for future, found in zip(futures, answers, strict=True):
            if future.cancelled():
                continue
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)


if __name__ == "__main__":
    given = parse_options()
    uvicorn.run(
        "alternatives.fastapi.serve:create_app",
        factory=True,
        host=HOST,
        port=given.port,
        workers=given.workers,
        access_log=False,
        # Uvicorn's own 5 s would replace a process that imports PyTorch on a busy machine.
        timeout_worker_healthcheck=60,
    )
