"""MLServer's Hugging Face runtime, made to load beside the pinned PyTorch and to give entities.

The runtime imports optimum before version 2, which imports what PyTorch has moved since; nothing here calls
it, as the model runs on PyTorch. And its settings can't ask a pipeline for entities in place of tokens.
"""

from __future__ import annotations

import sys
from functools import partial

from torch.onnx._internal.torchscript_exporter import symbolic_opset14

sys.modules["torch.onnx.symbolic_opset14"] = symbolic_opset14

from mlserver_huggingface import HuggingFaceRuntime  # noqa: E402 - the module above must be there first


class Runtime(HuggingFaceRuntime):
    async def load(self) -> bool:
        loaded = await super().load()
        if self.hf_settings.task == "token-classification":
            pipe = self._model
            self._model = partial(pipe, aggregation_strategy="simple")
            # What the runtime reads of its pipeline when it unloads.
            self._model.framework, self._model.device = pipe.framework, pipe.device
        return loaded
