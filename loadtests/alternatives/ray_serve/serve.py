"""Ray Serve: one replica for each copy of the model, dynamic batching inside it."""

from __future__ import annotations

import signal
import time
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from alternatives.models import Answers, BatchedModel
from alternatives.options import HOST, Options, parse_options


def deployment(options: Options) -> Any:
    """The application for these options."""

    @serve.deployment(
        num_replicas=options.workers,
        # Reserves nothing: Ray's own accounting would refuse more copies than cores.
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=max(100, 2 * options.max_batch_size),
    )
    class Classifier:
        def __init__(self) -> None:
            _listen_on_loopback()
            self.model = BatchedModel(options)

        @serve.batch(max_batch_size=options.max_batch_size, batch_wait_timeout_s=options.max_wait_ms / 1000.0)
        async def answer(self, texts: list[str]) -> list[Answers]:
            return self.model(texts)

        async def __call__(self, request: Request) -> dict[str, Any]:
            return {"answers": await self.answer((await request.json())["text"])}

    return Classifier.bind()


def _listen_on_loopback() -> None:
    """Have a replica's own gRPC server listen there; Ray has a setting for every other port, not for this."""
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add_port(server, address.replace("[::]", HOST))


def _stop(number: int, frame: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    given = parse_options()
    signal.signal(signal.SIGTERM, _stop)
    # Of its own: it would join a cluster that runs here already, and end what that serves.
    ray.init(address="local", include_dashboard=False)
    try:
        serve.start(http_options={"host": HOST, "port": given.port})
        serve.run(deployment(given), route_prefix="/answer")
        while True:
            time.sleep(3600.0)
    finally:
        serve.shutdown()
        ray.shutdown()
