"""Several classifications of a text by one model, its heads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mooring._errors import ConfigError
from mooring._models import ModelConfig
from mooring._task_kind import Label, TaskKind, read_probability, read_text


class TextMultiClassification(TaskKind[str, dict[str, list[Label]]]):
    """Labels of a text by head, best first.

    Args:
        heads: those that are asked for; each answers in the outputs ``<head>`` and ``<head>_score``.
    """

    name = "text-multi-classification"

    def __init__(self, heads: Iterable[str] = ()) -> None:
        self.heads = tuple(heads)
        self.outputs = {  # type: ignore[misc]  # the only kind whose outputs are the model's own
            output: datatype
            for head in self.heads
            for output, datatype in ((head, "BYTES"), (f"{head}_score", "FP32"))
        }

    def of_model(self, config: ModelConfig, *, model: str) -> TextMultiClassification:
        try:
            heads: Any = json.loads(config.parameters.get("heads", ""))
        except ValueError:
            heads = None
        if not isinstance(heads, dict) or not heads:
            said = config.parameters.get("heads")
            raise self.contradiction(model, f"parameters.heads is {said!r}; expected labels by head, as JSON")
        return TextMultiClassification(heads)

    def only(self, heads: Sequence[str], *, model: str) -> TextMultiClassification:
        """The kind that asks for some heads alone.

        Raises:
            ConfigError: none are named, or one that the model does not have.
        """
        unknown = [head for head in heads if head not in self.heads]
        if unknown or not heads:
            named = f"no head {unknown[0]!r}" if unknown else "none of its heads was named"
            raise ConfigError(f"model {model!r}: {named}; it has {', '.join(self.heads)}")
        return TextMultiClassification(dict.fromkeys(heads))

    def rows_of_equal_length(self) -> list[tuple[str, ...]]:
        """Each head has its own number of labels."""
        return [(head, f"{head}_score") for head in self.heads]

    def read_row(self, item: str, row: Mapping[str, np.ndarray]) -> dict[str, list[Label]]:
        return {
            head: [
                Label(label=read_text(head, label), score=read_probability(score))
                for label, score in zip(row[head].tolist(), row[f"{head}_score"].tolist(), strict=True)
            ]
            for head in self.heads
        }
