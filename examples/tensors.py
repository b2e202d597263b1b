"""Call an engine with tensors, and look at what the server says of it.

python examples/tensors.py [URL]
"""

import sys

import numpy as np

from mooring import Client, InvalidInput


def main(url: str = "grpc://127.0.0.1:8001", model: str = "ner_onnx_ragged") -> None:
    """Print the model's signature, run it, and show what a wrong input gives."""
    with Client(url) as client:
        metadata = client.metadata(model)
        print("takes", *metadata.inputs, "gives", *metadata.outputs)

        ids = np.array([[2, 4, 5, 3]], dtype=np.int64)  # [B, L]
        logits = client.infer(model, {"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"]
        print("logits", logits.shape, "best labels", logits.argmax(axis=-1).tolist())

        try:
            client.infer(model, {"input_ids": ids.astype(np.float32), "attention_mask": ids})
        except InvalidInput as error:
            print("refused:", error)

        (statistics,) = client.statistics(model)
        print(statistics.inference_count, "inferences,", f"{statistics.compute_infer.mean_ms:.2f} ms each")


if __name__ == "__main__":
    main(*sys.argv[1:])
