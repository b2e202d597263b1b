"""LitServe: its dynamic batching, its workers and its ZeroMQ queue."""

from __future__ import annotations

from typing import Any

import litserve

from alternatives.models import Answers, BatchedModel
from alternatives.options import HOST, options_from_environment, parse_options


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = BatchedModel(options_from_environment())

    # With no type on purpose: LitServe takes one for a parameter of the route.
    def decode_request(self, request):
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        return list(inputs)

    def predict(self, x: str | list[str]) -> Answers | list[Answers]:
        return self.model([x])[0] if isinstance(x, str) else self.model(x)

    def unbatch(self, output: list[Answers]) -> list[Answers]:
        return output

    def encode_response(self, output: Answers) -> dict[str, Any]:
        return {"answers": output}


if __name__ == "__main__":
    options = parse_options()
    api = Classifier(max_batch_size=options.max_batch_size, batch_timeout=options.max_wait_ms / 1000.0)
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=options.workers, fast_queue=True, timeout=False
    )
    server.run(
        host=HOST, port=options.port, num_api_servers=1, generate_client_file=False, log_level="warning"
    )
