"""A released pipeline of texts, run in this process with the files and modules that Triton runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mooring import BuildError
from mooring._served.classification import Acceptance, rank_labels
from mooring._served.encoding import TextEncoder
from mooring._served.ranking import Catalogue
from mooring_build.engines import ENGINE_FILES, open_engine, run_texts
from mooring_build.recipe_tables import ExportFormat
from mooring_build.repository import read_config, released_version

_FORMATS: dict[str, ExportFormat] = {"onnxruntime": "onnx", "pytorch": "torchscript"}


@dataclass(frozen=True)
class Classified:
    """What a text classifier says of ``N`` texts: ``[N]`` each."""

    labels: np.ndarray
    acceptance: np.ndarray


@dataclass(frozen=True)
class Ranked:
    """What a text ranker says of ``N`` texts: ``[N]`` each."""

    items: np.ndarray
    scores: np.ndarray
    answers: np.ndarray


class ReleasedPipeline:
    """Tokenizer and engine of the release that answers under a name.

    Args:
        repository: model repository.
        model: name of the pipeline.

    Raises:
        BuildError: it is not released there, or is no pipeline of a tokenizer, an engine and a last step.
    """

    def __init__(self, repository: Path, model: str) -> None:
        self.model = model
        config = read_config(repository, model)
        if config is None or released_version(repository, model) is None:
            raise BuildError(f"{model!r} is not in {repository}: run 'mooring build {model}' first")
        steps = list(config.ensemble_scheduling.step)
        if len(steps) != 3 or "input_ids" not in steps[0].output_map:
            raise BuildError(f"{repository / model} is no pipeline of a tokenizer, an engine and a last step")
        tokenizer, engine, self.last = (
            repository / step.model_name / str(step.model_version) for step in steps
        )
        engine_config = read_config(repository, steps[1].model_name)
        if engine_config is None or engine_config.backend not in _FORMATS:
            raise BuildError(f"{engine.parent} is no engine that Mooring made")
        export_format = _FORMATS[engine_config.backend]
        self.answers = {tensor.name for tensor in config.output}
        self._encoder = TextEncoder.load(tokenizer)
        self._engine = open_engine(engine / ENGINE_FILES[export_format], export_format, engine_config)

    def run(self, texts: Sequence[str]) -> np.ndarray:
        """The engine's output for as many texts as there are, ``[N, …]`` float32.

        Raises:
            DataError: the model does not take a text.
        """
        source = f"texts for {self.model}"
        return np.concatenate([rows for _, _, rows in run_texts(self._engine, self._encoder, texts, source)])


def classify(pipeline: ReleasedPipeline, texts: Sequence[str]) -> Classified:
    """Label texts with a released classifier that knows texts out of scope."""
    labels = np.array(json.loads((pipeline.last / "labels.json").read_text(encoding="utf-8")), dtype=object)
    content = json.loads((pipeline.last / "acceptance.json").read_text(encoding="utf-8"))
    logits = pipeline.run(texts)
    order, _ = rank_labels(logits, 1)
    return Classified(labels[order[:, 0]], Acceptance(content["confidences"])(logits)[:, 0])


def rank(pipeline: ReleasedPipeline, texts: Sequence[str]) -> Ranked:
    """Find the best item of each text with a released ranker."""
    catalogue = Catalogue.load(pipeline.last)
    order, scores = catalogue.rank(pipeline.run(texts), 1)
    items, answers = (np.array(names, dtype=object) for names in (catalogue.items, catalogue.answers))
    return Ranked(items[order[:, 0]], scores[:, 0], answers[order[:, 0]])
